"""Quantizes a model, measures it, and fails if it lost too much: for a pipeline.

python examples/quantize_and_gate.py MODEL OUT
"""

import sys

import r1quant


def main(model: str, out: str) -> int:
    plan = r1quant.plan(model, out, bits=4, samples=8, seq_len=256)
    print(f"predicted: {plan.estimate.output_bytes / 1e6:.1f} MB, {plan.estimate.seconds:.0f} s")
    result = r1quant.run(plan)
    verification = r1quant.verify(result.out, windows=4, gate=("kl.mean<0.5", "top1>0.5"))
    for verdict in verification.gates:
        print(f"{verdict.gate}: {verdict.value} {'passed' if verdict.passed else 'FAILED'}")
    return 0 if verification.passed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
