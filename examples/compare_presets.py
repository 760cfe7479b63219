"""What the effort of a preset buys: the same model and bits by several recipes, one row each.

python examples/compare_presets.py MODEL FOLDER
"""

import sys
from pathlib import Path

import r1quant


def main(model: str, folder: str) -> int:
    Path(folder).mkdir(exist_ok=True)
    print("recipe      seconds  KL divergence  bits per weight")
    for name, recipe in (
        ("rtn", r1quant.plan(model, f"{folder}/rtn", method="rtn")),
        ("gptq", r1quant.plan(model, f"{folder}/gptq", method="gptq", samples=8, seq_len=256)),
        ("balanced", r1quant.plan(model, f"{folder}/balanced", preset="balanced", samples=8, seq_len=256)),
    ):
        result = r1quant.run(recipe)
        scores = r1quant.verify(result.out, windows=4).scores
        assert scores is not None and scores.kl is not None
        print(f"{name:<10} {result.seconds:>8.1f}  {scores.kl.mean:>13.4f}  {recipe.bits_per_weight:>15.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
