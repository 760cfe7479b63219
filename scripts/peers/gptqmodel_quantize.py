"""gptqmodel: options are those of its QuantizeConfig. Symmetric GPTQ where they do not say otherwise."""

from __future__ import annotations

import os

from peers.job import Job, run


def quantize(job: Job) -> None:
    os.environ["GPTQMODEL_CPU_WORKERS"] = str(max(2, (os.cpu_count() or 1) // 2))  # with one it cannot load
    from gptqmodel import GPTQModel, QuantizeConfig

    windows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job.tokens.tolist()]
    config = QuantizeConfig(**({"bits": job.bits, "group_size": job.group_size, "sym": True} | dict(job.options)))
    model = GPTQModel.load(job.model, config, device="cpu")
    with job.timed():
        model.quantize(windows, batch_size=1)
    model.save(job.out)


if __name__ == "__main__":
    run(quantize, ("gptqmodel", "torch", "transformers"))
