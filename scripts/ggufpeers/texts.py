"""One calibration text for everybody: a file of windows taken in turns from several texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peers.texts import Text

from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows
from r1quant.storage import atomic

SPARE = 1  # windows of each text beyond those that are used: the file's own tokens are a few more or less


def mixed(texts: Sequence[Text], tokenizer: Tokenizer, samples: int, seq_len: int, work: Path) -> Text:
    """A text file of at least `samples` windows, as many from each text; one text that is a file is left as it is.

    The tokens are decoded, special ones written out: whoever encodes the file finds them again but where windows meet.
    """
    if len(texts) == 1 and texts[0].spec is not None and Path(texts[0].spec).suffix == ".txt":
        return texts[0]
    each = -(-samples // len(texts)) + SPARE
    parts = [windows.load(text.spec, tokenizer, each, seq_len, 0).tokens for text in texts]
    rows = [row for turn in zip(*parts, strict=False) for row in turn]
    path = work / f"{'+'.join(text.name for text in texts)}-{samples}x{seq_len}.txt"
    atomic.write_bytes(path, "".join(tokenizer.decode(row.tolist()) for row in rows).encode())
    return Text(path.stem, str(path))
