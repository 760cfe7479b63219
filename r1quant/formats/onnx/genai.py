"""genai_config.json: what onnxruntime-genai must know beside the graph. It needs no onnx package."""

from __future__ import annotations

from r1quant.checkpoint.artifact import Artifact, generation_config
from r1quant.core.json import JsonDict
from r1quant.formats.onnx.dimensions import Dimensions
from r1quant.formats.onnx.options import OnnxOptions

CACHE_LIMIT = 1 << 33  # bytes of keys and values that the default max_length may take
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "min_length", "num_beams", "no_repeat_ngram_size")
QDQ_LEVEL = "session.qdq_matmulnbits_accuracy_level"


def config(artifact: Artifact, sizes: Dimensions, options: OnnxOptions, file: str) -> JsonDict:
    """The content of genai_config.json. `file` is the name of the graph.

    onnxruntime-genai reserves keys and values for max_length tokens when it starts, so the default is the longest
    power of two that takes CACHE_LIMIT bytes, not the context: an 8B model of 131,072 positions would take 39 GB.
    """
    generation = generation_config(artifact.side_files)
    ids = {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token_id = generation.get(key, artifact.config.get(key))
        if token_id is not None:
            ids[key] = token_id
    if "eos_token_id" in ids and "pad_token_id" not in ids:
        eos = ids["eos_token_id"]
        ids["pad_token_id"] = eos[0] if isinstance(eos, list) and eos else eos
    session: JsonDict = {"log_id": "onnxruntime-genai", "provider_options": []}
    if options.threads:
        session["intra_op_num_threads"] = options.threads
    if options.style == "qdq":
        session[QDQ_LEVEL] = str(options.accuracy_level)
    decoder = {
        "session_options": session,
        "filename": file,
        "head_size": sizes.head,
        "hidden_size": sizes.hidden,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
    }
    search: JsonDict = {"do_sample": bool(generation.get("do_sample", False))}
    search |= {key: generation[key] for key in SAMPLING if generation.get(key) is not None}
    search["max_length"] = default_length(sizes, options)
    search["past_present_share_buffer"] = options.style == "matmulnbits"
    model = ids | {
        "context_length": sizes.context,
        "decoder": decoder,
        "type": artifact.config["model_type"],
        "vocab_size": sizes.vocabulary,
    }
    return {"model": model, "search": search}


def default_length(sizes: Dimensions, options: OnnxOptions) -> int:
    """The default of max_length in tokens, prompt included."""
    width = 2 if options.dtype == "float16" else 4
    per_token = 2 * sizes.layers * sizes.kv_heads * sizes.head * width
    fitting = max(1, CACHE_LIMIT // per_token)
    return min(sizes.context, 1 << (fitting.bit_length() - 1))
