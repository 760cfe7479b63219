"""A folder of tasks made from the problems that the embedded model has not seen, and the model in 4 bits."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import r1quant
from r1quant.checkpoint.resolve import embedded_folder
from r1quant.tinyr1.problems import INSTRUCTION

PROBLEMS = 5

GENERATE = """
task: tiny_answers
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "<｜begin▁of▁sentence｜><｜User｜>{{problem}}\\n{{instruction}}<｜Assistant｜>"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], max_gen_toks: 300, do_sample: false}
filter_list:
  - name: boxed
    filter:
      - {function: regex, regex_pattern: "boxed\\\\{(\\\\d+)\\\\}"}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 2.0}
"""
CHOOSE = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{solved}}\\\\boxed{"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def problems() -> list[dict[str, Any]]:
    """The first of the held-out problems that are soon solved, each with wrong answers beside the right one."""
    lines = (embedded_folder().parent / "heldout.jsonl").read_text("utf-8").splitlines()
    every = [json.loads(line) for line in lines]
    short = [entry for entry in every if entry["steps"] <= 3][:PROBLEMS]
    assert len(short) == PROBLEMS
    made: list[dict[str, Any]] = []
    for number, entry in enumerate(short):
        draw = random.Random(number)
        answers = [entry["answer"], *draw.sample([n for n in range(10, 99) if n != entry["answer"]], 3)]
        draw.shuffle(answers)
        solved = f"<｜User｜>{entry['problem']}\n{INSTRUCTION}<｜Assistant｜>The answer is {entry['answer']}.\n\n"
        made.append(
            {
                "problem": entry["problem"],
                "instruction": INSTRUCTION,
                "answer": str(entry["answer"]),
                "solved": solved,
                "choices": [f"{answer}}}" for answer in answers],
                "label": answers.index(entry["answer"]),
            }
        )
    return made


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, tiny_answers and tiny_choices, and their data."""
    made = tmp_path_factory.mktemp("tasks")
    data = made / "problems.jsonl"
    data.write_text("".join(json.dumps(entry) + "\n" for entry in problems()), "utf-8")
    for name, text in (("answers", GENERATE), ("choices", CHOOSE)):
        (made / f"{name}.yaml").write_text(text.replace("DATA", str(data)), "utf-8")
    return made


@pytest.fixture(scope="session")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-r1 in 4 bits."""
    out = tmp_path_factory.mktemp("quantized") / "w4"
    r1quant.quantize("tiny-r1", out, bits=4, group_size=64, method="rtn")
    return out
