"""auto-round: options are those of its AutoRound; without any, its default of 200 iterations. Symmetric."""

from __future__ import annotations

from pathlib import Path

from peers.job import Job, run

BATCH = 8  # its own default


def quantize(job: Job) -> None:
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    batches = [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in torch.tensor(job.tokens).split(BATCH)
    ]
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16)
    count, seq_len = job.tokens.shape
    grid = {"bits": job.bits, "group_size": job.group_size, "sym": True}
    tuner = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job.model),
        dataset=batches,
        nsamples=count,
        seqlen=seq_len,
        batch_size=min(BATCH, count),
        device_map="cpu",
        **grid,
        **job.options,
    )
    place = Path(f"{job.out}.run")  # it makes a folder of its own naming there
    with job.timed():
        tuner.quantize_and_save(str(place), format="auto_gptq")
    next(place.rglob("config.json")).parent.rename(job.out)


if __name__ == "__main__":
    run(quantize, ("auto-round", "torch", "transformers"))
