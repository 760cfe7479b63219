"""tiny-r1's own questions as prompts."""

from __future__ import annotations

import json

from r1quant.backends import Prompt
from r1quant.checkpoint.resolve import embedded_folder, open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.tinyr1.problems import INSTRUCTION

STOP = frozenset([1])


def questions(count: int) -> list[Prompt]:
    """Held-out problems from all over the file, each with a seed of its own."""
    lines = (embedded_folder().parent / "heldout.jsonl").read_text("utf-8").splitlines()
    tokenizer = Tokenizer.of(open_model("tiny-r1"))
    found = []
    for seed, line in enumerate(lines[:: len(lines) // count][:count]):
        message = {"role": "user", "content": f"{json.loads(line)['problem']}\n{INSTRUCTION}"}
        tokens = tokenizer.encode(tokenizer.render([message], add_generation_prompt=True))
        found.append(Prompt(str(seed), (message,), tuple(tokens), seed))
    return found
