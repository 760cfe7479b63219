"""GGUF files as checkpoints: against transformers' own reader, llama.cpp's own tokenizer and the written arrays."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from r1quant.arch.rope import llama3_factors
from r1quant.arch.tables import architectures
from r1quant.checkpoint.gguf import source
from r1quant.checkpoint.gguf.header import read_gguf_header
from r1quant.checkpoint.gguf.source import gguf_names, open_gguf
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.floats import round_to
from r1quant.errors import CheckpointError, NumericError

from .gguf_files import HEADS, HIDDEN, KV_HEADS, LAYERS, metadata, smollm_path, tensors, write

Q8_0, Q4_1 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1
Q_PROJ = "model.layers.1.self_attn.q_proj"
QKV = ("attn_q", "attn_k", "attn_v")


@pytest.fixture(scope="module")
def smollm() -> Checkpoint:
    return open_gguf(smollm_path())


def test_smollm_config_is_the_models_own(smollm: Checkpoint) -> None:
    assert json.loads(smollm.config_text) == smollm.config
    assert smollm.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert '"rms_norm_eps": 1e-05' in smollm.config_text
    assert (smollm.name, smollm.dtype) == ("SmolLM2-135M-Instruct.Q4_1", "BF16")
    assert set(smollm.side_files) == {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert json.loads(smollm.side_files["generation_config.json"])["eos_token_id"] == 2


def test_smollm_tensors_are_those_of_the_model_class(smollm: Checkpoint) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**smollm.config))
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert {name: info.shape for name, info in smollm.tensors.items()} == expected
    assert all(info.nbytes == 2 * np.prod(info.shape) for info in smollm.tensors.values())
    offsets = [info.offset for info in smollm.tensors.values()]
    assert offsets == sorted(offsets)


def test_blocks_of_smollm_read_as_transformers_reads_them(smollm: Checkpoint, tmp_path: Path) -> None:
    """Two of its layers in a file without the vocabulary, which transformers needs long to read."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    header = read_gguf_header(smollm_path())
    raw = np.memmap(smollm_path(), np.uint8, "r")
    arrays, kinds = {}, {}
    for name, tensor in header.tensors.items():
        if not name.startswith("blk.") or int(name.split(".")[1]) < LAYERS:
            array = np.array(raw[tensor.offset : tensor.offset + tensor.nbytes])
            kinds[name] = gguf.GGMLQuantizationType(tensor.kind)
            arrays[name] = array.view(np.float32) if tensor.kind == 0 else array.reshape(-1, tensor.row_bytes)
    values = {k: v for k, v in header.metadata.items() if not k.startswith("tokenizer.") and k.startswith("llama.")}
    path = write(
        tmp_path / "two.gguf", "llama", values | {"llama.block_count": LAYERS, "general.name": "two"}, arrays, kinds
    )
    checkpoint = open_gguf(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**checkpoint.config))
    loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model, torch_dtype=torch.float32)
    assert set(loaded["tensors"]) == set(checkpoint.tensors)
    for name, tensor in loaded["tensors"].items():
        assert torch.equal(checkpoint.read(name), tensor.to(torch.bfloat16)), name
        if name in smollm.tensors:
            assert torch.equal(checkpoint.read(name), smollm.read(name)), name


def test_smollm_knows_its_language(smollm: Checkpoint, tmp_path: Path) -> None:
    """End to end: config, weights and tokenizer are of one model, and the rows of q and k lie right."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    for name, content in smollm.side_files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(smollm.config_text)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
    model.load_state_dict({name: smollm.read(name) for name in smollm.tensors}, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    chat = [{"role": "user", "content": "Name the capital of France."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt + "The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        reply = model(ids).logits[0, -1].argmax()
        text = tokenizer("The sun rises in the east and sets in the west.", return_tensors="pt")["input_ids"]
        right = model(text, labels=text).loss.item()
        for layer in model.model.layers:
            weight = layer.self_attn.q_proj.weight
            shuffled = weight.reshape(9, 2, 32, 576).swapaxes(1, 2).reshape(576, 576)
            layer.self_attn.q_proj.weight = torch.nn.Parameter(shuffled, requires_grad=False)
        wrong = model(text, labels=text).loss.item()
    assert prompt.endswith("<|im_start|>user\nName the capital of France.<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(reply) == " Paris"

    assert right < 3.0 and wrong > 6.0, (right, wrong)


def test_the_undone_row_order_turns_interleaved_rotation_into_rotation_by_halves(tmp_path: Path) -> None:
    """The scores q·k of a rotated pair of positions, computed as llama.cpp does on the stored rows and as transformers
    does on the rows read."""
    arrays = tensors("llama", biases=(*QKV, "attn_output"))
    path = write(tmp_path / "m.gguf", "llama", metadata("llama"), arrays)
    checkpoint, head = open_gguf(path), HIDDEN // HEADS
    x = np.random.default_rng(1).standard_normal((2, HIDDEN))
    angle = np.array([[0.0], [5.0]]) * 1000000.0 ** (-np.arange(0, head, 2) / head)

    def interleaved(y: np.ndarray) -> np.ndarray:
        a, b = y[..., 0::2], y[..., 1::2]
        turned = np.stack([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)
        return turned.reshape(y.shape)

    def by_halves(y: np.ndarray) -> np.ndarray:
        a, b = y[..., : head // 2], y[..., head // 2 :]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)

    scores = []
    for turn, stored in ((interleaved, True), (by_halves, False)):
        projected = []
        for module, stem, heads in (("q_proj", "attn_q", HEADS), ("k_proj", "attn_k", KV_HEADS)):
            name = f"model.layers.0.self_attn.{module}"
            weight = arrays[f"blk.0.{stem}.weight"] if stored else checkpoint.read(f"{name}.weight").numpy()
            bias = arrays[f"blk.0.{stem}.bias"] if stored else checkpoint.read(f"{name}.bias").numpy()
            projected.append(turn((x @ weight.T + bias).reshape(2, heads, head).swapaxes(0, 1)))
        query, key = projected
        scores.append(query @ np.repeat(key, HEADS // KV_HEADS, 0).swapaxes(1, 2))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)
    assert not np.array_equal(checkpoint.read(f"{Q_PROJ}.weight").numpy(), arrays["blk.1.attn_q.weight"])


@pytest.mark.parametrize(("arch", "head_dim", "biases"), [("qwen2", 16, QKV), ("qwen3", 32, ())])
def test_unpermuted_families_read_what_was_written(
    tmp_path: Path, arch: str, head_dim: int, biases: tuple[str, ...]
) -> None:
    arrays = tensors(arch, head_dim, tied=False, biases=biases)
    lengths = {"ARCH__attention__key_length": head_dim, "ARCH__attention__value_length": head_dim}
    checkpoint = open_gguf(write(tmp_path / "m.gguf", arch, metadata(arch, **lengths), arrays))
    names = gguf_names(architectures()[arch], LAYERS)
    assert {names[name] for name in checkpoint.tensors} == set(arrays)
    for name in checkpoint.tensors:
        assert np.array_equal(checkpoint.read(name).numpy(), arrays[names[name]]), name
    assert checkpoint.config["architectures"] == [architectures()[arch].model_class]
    assert checkpoint.config["head_dim"] == head_dim
    assert checkpoint.config["rms_norm_eps"] == 1e-6
    assert checkpoint.config["attention_bias"] is bool(biases)
    assert checkpoint.config["tie_word_embeddings"] is False
    assert checkpoint.config["torch_dtype"] == "float32" and checkpoint.dtype == "F32"


@pytest.mark.parametrize(("file_type", "dtype"), [(1, torch.float16), (32, torch.bfloat16), (7, torch.bfloat16)])
def test_every_tensor_has_the_dtype_of_the_file(tmp_path: Path, file_type: int, dtype: torch.dtype) -> None:
    arrays = tensors("qwen2", biases=QKV)
    kinds = {name: Q8_0 for name in arrays if name.endswith("ffn_up.weight")}
    written = {name: gguf.quants.quantize(a, Q8_0) if name in kinds else a for name, a in arrays.items()}
    path = write(tmp_path / "m.gguf", "qwen2", metadata("qwen2", general__file_type=file_type), written, kinds)
    checkpoint = open_gguf(path)
    names = gguf_names(architectures()["qwen2"], LAYERS)
    for name in checkpoint.tensors:
        stored = names[name]
        floats = gguf.quants.dequantize(written[stored], Q8_0) if stored in kinds else arrays[stored]
        assert torch.equal(checkpoint.read(name), torch.from_numpy(floats).to(dtype)), name


def test_rounding_agrees_with_torch() -> None:
    bits = np.random.default_rng(3).integers(0, 1 << 32, 200_000, np.uint32)
    edges = [0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x3F808000, 0x3F818000, 0x00000001, 0xFFFFFFFF, 0x7F800001, 0x477FF000]
    values = np.concatenate([bits, np.array(edges, np.uint32)]).view(np.float32)
    for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)):
        ours = torch.from_numpy(round_to(values, name)).view(dtype)
        torch.testing.assert_close(ours, torch.from_numpy(values).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("chunk", [1, 3000, 1 << 24])
def test_chunks_are_the_bytes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    arrays = tensors("llama", biases=(*QKV, "attn_output"))
    checkpoint = open_gguf(write(tmp_path / "m.gguf", "llama", metadata("llama"), arrays))
    whole = {name: checkpoint.read_bytes(info) for name, info in checkpoint.tensors.items()}
    monkeypatch.setattr(source, "CHUNK", chunk)
    for name, info in checkpoint.tensors.items():
        pieces = list(checkpoint.chunks(info))
        assert np.array_equal(np.concatenate(pieces), whole[name]) and whole[name].size == info.nbytes
        assert max(p.size for p in pieces) <= max(chunk, 16 * HIDDEN * 4)  # at least one head


def test_survey_hashes_the_file_and_names_the_tensor_that_is_not_finite(tmp_path: Path) -> None:
    arrays = tensors("llama")
    path = write(tmp_path / "m.gguf", "llama", metadata("llama"), arrays)
    checkpoint = open_gguf(path)
    steps: list[int] = []
    assert checkpoint.survey(steps.append) == {"m.gguf": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert sum(steps) == sum(info.nbytes for info in checkpoint.tensors.values())
    arrays["blk.1.attn_q.weight"][3, 5] = np.nan
    with pytest.raises(NumericError, match=f"{Q_PROJ}.weight holds NaN"):
        open_gguf(write(tmp_path / "nan.gguf", "llama", metadata("llama"), arrays)).survey()


def test_survey_finds_a_block_whose_scale_is_not_finite(tmp_path: Path) -> None:
    arrays = tensors("qwen2", biases=QKV)
    blocks = gguf.quants.quantize(arrays["blk.0.ffn_up.weight"], Q4_1)
    blocks[2, :2] = np.array([np.inf], np.float16).view(np.uint8)
    arrays["blk.0.ffn_up.weight"] = blocks
    values = metadata("qwen2", general__file_type=3)
    path = write(tmp_path / "m.gguf", "qwen2", values, arrays, {"blk.0.ffn_up.weight": Q4_1})
    with pytest.raises(NumericError, match=r"model.layers.0.mlp.up_proj.weight"):
        open_gguf(path).survey()


def test_yarn(tmp_path: Path) -> None:
    yarn = {
        "ARCH__rope__scaling__type": "yarn",
        "ARCH__rope__scaling__factor": 4.0,
        "ARCH__rope__scaling__original_context_length": 128,
        "ARCH__rope__scaling__attn_factor": 0.8782488562869419,
        "ARCH__rope__scaling__yarn_beta_fast": 16.0,
    }
    path = write(tmp_path / "m.gguf", "qwen3", metadata("qwen3", **yarn), tensors("qwen3"))
    scaling = open_gguf(path).config["rope_scaling"]
    assert scaling.pop("attention_factor") == pytest.approx(1.0, abs=1e-6)
    assert scaling == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16.0
    }  # fmt: skip


@pytest.mark.parametrize(("factor", "head_dim", "theta"), [(8.0, 128, 500000.0), (32.0, 64, 500000.0)])
def test_llama3_scaling_is_recovered_from_its_table(tmp_path: Path, factor: float, head_dim: int, theta: float) -> None:
    """The table comes from transformers' own frequencies."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(head_dim=head_dim, rope_parameters={**parameters, "rope_theta": theta})
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].numpy()
    plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    table = (plain / scaled).astype(np.float32)
    table[table.argmax() :] = factor  # as the converter has it: exact where the stretch is whole
    np.testing.assert_allclose(llama3_factors(head_dim, theta, factor, (1.0, 4.0, 8192)), table, rtol=1e-5)
    arrays = tensors("llama", head_dim) | {"rope_freqs.weight": table}
    values = metadata("llama", ARCH__rope__freq_base=theta, ARCH__attention__key_length=head_dim)
    checkpoint = open_gguf(write(tmp_path / "m.gguf", "llama", values, arrays))
    assert checkpoint.config["rope_scaling"] == parameters
    assert not any("rope" in name for name in checkpoint.tensors)
    arrays["rope_freqs.weight"] = table * np.linspace(1, 1.1, len(table), dtype=np.float32)
    with pytest.raises(CheckpointError, match="rope_freqs") as caught:
        open_gguf(write(tmp_path / "odd.gguf", "llama", values, arrays))
    assert "safetensors" in caught.value.hint


def test_opening_does_not_import_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "qwen2", metadata("qwen2"), tensors("qwen2", biases=QKV))
    code = (
        "import sys; from pathlib import Path; from r1quant.checkpoint.resolve import open_model;"
        f"open_model({str(path)!r}); print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_without_a_tokenizer_carries_none(tmp_path: Path) -> None:
    values = {k: v for k, v in metadata("llama").items() if not k.startswith("tokenizer.")}
    checkpoint = open_gguf(write(tmp_path / "m.gguf", "llama", values, tensors("llama")), "named so")
    assert set(checkpoint.side_files) == {"generation_config.json"}
    assert checkpoint.source == "named so"
    assert replace(checkpoint, source="a/b.gguf").name == "b"
