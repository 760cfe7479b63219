"""Options are checked when they are made, and what they ask of a model before anything is written."""

from __future__ import annotations

import subprocess
import sys

import pytest

from r1quant.errors import RecipeError
from r1quant.formats.gguf.options import GgufOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "q4_k"}, "type 'q4_k' is not known"),
        ({"embedding": "q4_0"}, "embedding 'q4_0' is not known"),
        ({"head": "f32"}, "head 'f32' is not known"),
        ({"split_bytes": 1000}, "1000 bytes is too small"),
    ],
)
def test_unknown_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        GgufOptions(**values)  # type: ignore[arg-type]
    assert caught.value.hint


def test_what_a_format_can_hold_is_known_without_its_package() -> None:
    code = (
        "import sys, r1quant.formats.gguf.options as o; from r1quant.checkpoint.artifact import LinearSpec;"
        "o.problem(LinearSpec((32, 64), 4, 64, (8, 8)));"
        "print(sorted({'torch', 'gguf', 'tokenizers', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
