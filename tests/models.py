"""Tiny random checkpoints of every architecture, laid out as the Hub has them, with a tokenizer of their own.

Nothing here is taken from r1quant: names and shapes are written down a second time, so that a test compares two
independent statements.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCABULARY = 64, 96, 2, 4, 2, 512
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
MODEL_TYPES = tuple(CLASSES)
BOS, EOS, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    "{{ bos_token }}{%- for m in messages %}"
    "{%- if m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + eos_token }}"
    "{%- else %}{{ '<|user|>' + m['content'] }}{%- endif %}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)
SUBJECTS = ("the number", "a prime", "this sum", "every even integer", "the last digit", "one of the factors")
VERBS = ("divides", "is larger than", "equals", "cannot be", "is the same as", "grows faster than")
OBJECTS = ("seven", "the square of ten", "what we wanted", "an odd divisor", "twice the answer", "zero, so wait")


def text(sentences: int = 400) -> str:
    """Prose without end that repeats only after 216 sentences: about ten tokens a sentence."""
    lines = []
    for i in range(sentences):
        words = SUBJECTS[i % 6], VERBS[i // 6 % 6], OBJECTS[i // 36 % 6]
        lines.append(f"{' '.join(words).capitalize()}; step {i} follows.")
    return "\n".join(lines)


def config(model_type: str, **overrides: Any) -> dict[str, Any]:
    """config.json as transformers 4 wrote it. A value of None drops the key."""
    values: dict[str, Any] = {
        "architectures": [CLASSES[model_type]],
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if model_type == "llama":
        values |= {"attention_bias": False, "mlp_bias": False, "head_dim": HIDDEN // HEADS}
    if model_type == "mistral":
        values |= {"sliding_window": None, "head_dim": HIDDEN // HEADS}
    if model_type == "qwen2":
        values |= {"use_sliding_window": False, "sliding_window": 2048, "max_window_layers": LAYERS}
    if model_type == "qwen3":
        values |= {
            "attention_bias": False,
            "head_dim": 32,  # not hidden_size / heads, as in the larger models of the family
            "rope_theta": 1000000.0,
            "use_sliding_window": False,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 512,
                "attn_factor": 0.8782488562869419,
            },
        }
    if model_type == "gemma3_text":  # as in gemma-3-1b-it, whose config.json leaves out that the head is tied
        values |= {
            "hidden_act": None,
            "hidden_activation": "gelu_pytorch_tanh",
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": None,
            "sliding_window": 8,
            "sliding_window_pattern": 6,
        }
    values |= overrides
    if model_type == "gemma3_text" and values["tie_word_embeddings"]:
        values["tie_word_embeddings"] = None
    kept_null = {"sliding_window"} - set(overrides)
    return {key: value for key, value in values.items() if value is not None or key in kept_null}


def shapes(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model that a config describes, biases of qwen2 included."""
    hidden, inner, vocabulary = values["hidden_size"], values["intermediate_size"], values["vocab_size"]
    head = values.get("head_dim") or hidden // values["num_attention_heads"]
    q, kv = values["num_attention_heads"] * head, values["num_key_value_heads"] * head
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(values["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        found |= {
            f"{prefix}self_attn.q_proj.weight": (q, hidden),
            f"{prefix}self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, q),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
        }
        if values["model_type"] == "qwen2":
            found |= {f"{prefix}self_attn.{n}_proj.bias": (rows,) for n, rows in (("q", q), ("k", kv), ("v", kv))}
        if values["model_type"] == "gemma3_text":
            found |= {f"{prefix}{n}_feedforward_layernorm.weight": (hidden,) for n in ("pre", "post")}
        if values["model_type"] in ("qwen3", "gemma3_text"):
            found |= {f"{prefix}self_attn.{n}_norm.weight": (head,) for n in "qk"}
    found["model.norm.weight"] = (hidden,)
    if not values.get("tie_word_embeddings", True):
        found["lm_head.weight"] = (vocabulary, hidden)
    return found


def state(values: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Random float32 tensors by name: activations neither vanish nor explode, and input channels differ in size."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(values).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            scaled_later = values["model_type"] == "gemma3_text"
            tensors[name] = noise if "embed" in name and not scaled_later else noise * shape[1] ** -0.5
        else:
            norm = 0.3 * noise if values["model_type"] == "gemma3_text" else 1 + 0.5 * noise  # the former adds one
            tensors[name] = noise * 0.1 if name.endswith("bias") else norm
    return tensors


def write_model(
    folder: Path,
    model_type: str,
    *,
    tied: bool = False,
    shards: int = 1,
    dtype: str = "bfloat16",
    seed: int = 0,
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Writes a checkpoint into a new folder, which it returns; overrides are keys of config.json.

    shards  how many files the tensors are spread over, with an index if there is more than one
    dtype   bfloat16, float16 or float32
    """
    import torch
    from safetensors.torch import save_file

    values = config(model_type, tie_word_embeddings=tied, torch_dtype=dtype, **overrides)
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state(values, seed).items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6}\n')
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        names = list(tensors)
        per_shard = -(-len(names) // shards)
        weight_map: dict[str, str] = {}
        for i in range(shards):
            shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = names[i * per_shard : (i + 1) * per_shard]
            save_file({name: tensors[name] for name in part}, folder / shard, {"format": "pt"})
            weight_map |= dict.fromkeys(part, shard)
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    if tokenizer:
        (folder / "tokenizer.json").write_bytes(tokenizer_json())
        (folder / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "bos_token": BOS,
                    "eos_token": EOS,
                    "chat_template": TEMPLATE,
                    "model_max_length": values["max_position_embeddings"],
                    "tokenizer_class": "PreTrainedTokenizerFast",
                },
                indent=2,
            )
        )
    return folder


@cache
def tokenizer_json() -> bytes:
    """A byte-level BPE of 480 entries, the rest of the vocabulary being padding, as models have it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=478,
        special_tokens=[BOS, EOS, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(text(216).splitlines(), trainer)
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<think>", "</think>")])
    return backend.to_str().encode()
