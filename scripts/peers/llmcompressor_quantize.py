"""llmcompressor: options are {"method": "rtn", "gptq" or "awq"}, each symmetric, the rest as it comes."""

from __future__ import annotations

from typing import Any

from peers.job import Job, run


def quantize(job: Job) -> None:
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM

    if not torch.accelerator.is_available():  # pinning memory, as AWQ does unasked, fails without one
        IntermediatesCache.pin_memory = lambda self, *_: None
    grid = QuantizationArgs(num_bits=job.bits, group_size=job.group_size, symmetric=True, strategy="group", type="int")
    grids: dict[str, Any] = {
        "config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=grid)},
        "ignore": ["lm_head"],
    }
    method = job.options["method"]
    rounding = GPTQModifier(**grids) if method == "gptq" else QuantizationModifier(**grids)
    recipe = [AWQModifier(), rounding] if method == "awq" else [rounding]
    windows = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in torch.tensor(job.tokens)
    ]
    # torch reads a list as well as a Dataset
    loader = torch.utils.data.DataLoader[Any](windows, batch_size=None) if method != "rtn" else None  # type: ignore[arg-type]
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16)
    with job.timed():
        oneshot(model=model, recipe=recipe, dataset=loader, num_calibration_samples=len(windows))
    model.save_pretrained(job.out, save_compressed=True)


if __name__ == "__main__":
    run(quantize, ("llmcompressor", "compressed-tensors", "torch", "transformers"))
