"""Runs in an environment with onnxruntime-genai: greedy decoding of ONNX folders, one after the other in each round.

    python genai_decode.py REQUEST.json

The request has `folders` (by name), `prompt` (token ids), `count`, `threads` and `rounds`. Prints one JSON object:
for each folder the tokens that were made, and the seconds of each round: of the prompt, of decoding, and of all
processors while decoding.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime_genai as og


def load(folder: str, threads: int) -> og.Model:
    config = og.Config(folder)
    session = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": session}}))
    return og.Model(config)


def decode(model: og.Model, prompt: list[int], count: int) -> dict[str, Any]:
    """Greedy, past the end of text: the first token is made by the prompt, the others are timed."""
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + count, min_length=len(prompt) + count)
    generator = og.Generator(model, params)
    begun = time.perf_counter()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    read, used = time.perf_counter(), time.process_time()
    for _ in range(count - 1):
        generator.generate_next_token()
    ended, spent = time.perf_counter(), time.process_time()
    tokens = [int(token) for token in generator.get_sequence(0)][len(prompt) :]
    seconds = {"prompt": read - begun, "decode": ended - read, "processor": spent - used}
    return {"tokens": tokens, "seconds": seconds}


def order(names: list[str], first: int) -> list[str]:
    turned = names[first:] + names[:first]
    return turned if first % 2 else turned[::-1]


def main(request: dict[str, Any]) -> dict[str, Any]:
    models = {name: load(folder, request["threads"]) for name, folder in request["folders"].items()}
    for model in models.values():
        decode(model, request["prompt"], 4)
    names, rounds = list(models), []
    for number in range(request["rounds"]):
        first = number % len(names)  # nobody is always the first, or always after the same one
        rounds.append({name: decode(models[name], request["prompt"], request["count"]) for name in order(names, first)})
    return {
        name: {"tokens": rounds[0][name]["tokens"], "seconds": [found[name]["seconds"] for found in rounds]}
        for name in names
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text("utf-8")))))
