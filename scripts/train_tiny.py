"""Trains the embedded model tiny-r1 from nothing: tokenizer, Qwen3-architecture decoder, held-out problems.

    python scripts/train_tiny.py --out r1quant/tinyr1/model
    python scripts/train_tiny.py --out r1quant/tinyr1/model --steps 2350 --resume

The two made the model that ships: the second takes the rate up again to a sixth and down to nothing. Everything is
seeded. On two CPU cores with bf16 matrix units it takes about an hour; `--resume` continues from the state saved
every 250 steps.
"""

from __future__ import annotations

import itertools
import json
import math
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from r1quant.tinyr1.problems import ArithmeticProblem, problems

BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
CONTROL = [BOS, EOS, "<｜▁pad▁｜>", USER, ASSISTANT]
THINK = ["<think>", "</think>"]
HELD_OUT_SEED, TRAIN_SEED, TOKENIZER_SEED = 1_000_003, 1, 2
HELD_OUT = 400
VOCABULARY = 512

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{{ message['content'] }}"
    "{%- elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] + '<｜Assistant｜>' }}"
    "{%- elif message['role'] == 'assistant' %}{{ message['content'].split('</think>')[-1].strip() + eos_token }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt and messages[-1]['role'] != 'user' %}{{ '<｜Assistant｜>' }}{% endif %}"
)


def held_out() -> list[ArithmeticProblem]:
    return list(itertools.islice(problems(HELD_OUT_SEED), HELD_OUT))


def write_tokenizer(out: Path) -> None:
    """A byte-level BPE with one token per digit, trained on generated problems; R1's special tokens and template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{L}+|\s?[^\s\p{L}\p{N}]|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 64,
        min_frequency=200,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (p.prompt + p.solution for p in itertools.islice(problems(TOKENIZER_SEED), 4000))
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in THINK])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": CONTROL[2],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", "utf-8")


def build_config() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        attention_bias=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def batches(tokenizer: Any, rows: int, length: int, skip: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Packed rows of problems, with -100 labels on all but the solution tokens. Made on a thread of their own."""
    exclude = frozenset(p.question for p in held_out())
    source = problems(TRAIN_SEED, exclude)
    made: queue.Queue[tuple[np.ndarray, np.ndarray]] = queue.Queue(maxsize=4)

    def work() -> None:
        ids: list[int] = []
        labels: list[int] = []
        for step in itertools.count():
            while len(ids) < rows * length:
                chunk = list(itertools.islice(source, 64))
                prompts = tokenizer.encode_batch([BOS + USER + p.prompt + ASSISTANT for p in chunk])
                answers = tokenizer.encode_batch([p.solution + EOS for p in chunk])
                for prompt, answer in zip(prompts, answers, strict=True):
                    ids += prompt.ids + answer.ids
                    labels += [-100] * len(prompt.ids) + answer.ids
            if step >= skip:
                shape = (rows, length)
                made.put(
                    (np.array(ids[: rows * length]).reshape(shape), np.array(labels[: rows * length]).reshape(shape))
                )
            ids, labels = ids[rows * length :], labels[rows * length :]

    threading.Thread(target=work, daemon=True).start()
    while True:
        yield made.get()


def accuracy(model: Any, tokenizer: Any, chosen: Sequence[ArithmeticProblem], max_new_tokens: int = 900) -> float:
    """Share of problems answered right, greedily."""
    import torch

    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(chosen), 100):
            part = chosen[start : start + 100]
            prompts = [tokenizer.encode(BOS + USER + p.prompt + ASSISTANT).ids for p in part]
            width = max(map(len, prompts))
            ids = torch.tensor([[2] * (width - len(p)) + p for p in prompts])
            out = model.generate(
                input_ids=ids, attention_mask=(ids != 2).long(), do_sample=False, max_new_tokens=max_new_tokens
            )
            for problem, row in zip(part, out[:, width:].tolist(), strict=True):
                text = tokenizer.decode([t for t in row if t != 2], skip_special_tokens=False)
                right += f"</think>\n\n\\boxed{{{problem.answer}}}" in text
    model.train()
    return right / len(chosen)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--state", type=click.Path(path_type=Path), default=Path("train_tiny_state.pt"), show_default=True)
@click.option("--steps", default=1900, show_default=True)
@click.option("--rows", default=24, show_default=True)
@click.option("--length", default=512, show_default=True)
@click.option("--rate", default=2e-2, show_default=True)
@click.option("--resume", is_flag=True)
def main(out: Path, state: Path, steps: int, rows: int, length: int, rate: float, resume: bool) -> None:
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(0)
    write_tokenizer(out)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    config = build_config()
    config._attn_implementation = "sdpa"
    model = Qwen3ForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; {tokenizer.get_vocab_size()} tokens", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "layers" not in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, momentum=0.95, ns_steps=4),
        torch.optim.AdamW(others, lr=rate / 5, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    peaks = [rate, rate / 5]
    first = 0
    if resume and state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, kept in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        first = saved["step"]

    @torch.compile
    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[:, :-1])
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())

    held = held_out()
    begun, source = time.time(), batches(tokenizer, rows, length, first)
    for step in range(first, steps):
        scale = min(1.0, (step + 1) / 60) * (0.005 + 0.995 * (1 - step / steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
        ids, labels = (torch.from_numpy(a) for a in next(source))
        loss = loss_of(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            speed = (step - first + 1) * rows * length / (time.time() - begun)
            print(f"step {step} loss {loss.item():.4f} {speed:.0f} tokens/s", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            kept = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"model": model.state_dict(), "optimizers": kept, "step": step + 1}, state)
        if not math.isfinite(loss.item()):
            raise SystemExit("the loss is not finite")

    model = model.to(torch.bfloat16)
    print(f"bf16 held-out accuracy {accuracy(model, tokenizer, held):.4f} of {len(held)}", flush=True)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads(config.to_json_string(use_diff=False))
    written = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "rope_theta": 1000000.0,
        "rope_scaling": None,
    }
    keys = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
        "attention_bias", "attention_dropout", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id",
        "use_cache",
    )  # fmt: skip
    written |= {k: fields[k] for k in keys}
    (out / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", "utf-8")
    generation: dict[str, float] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": True}
    generation |= {"temperature": 0.6, "top_p": 0.95}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
    lines = (
        json.dumps({"family": p.family, "steps": p.steps, "problem": p.question, "answer": p.answer}) for p in held
    )
    (out.parent / "heldout.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
