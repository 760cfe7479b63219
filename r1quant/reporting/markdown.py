"""The document as Markdown: the same sentences and tables. What charts show is in the tables and their alt texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1quant.reporting.document import Document, Section, Table

SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")
MARK = {True: "✔ ", False: "✘ ", None: ""}


def page(document: Document) -> str:
    parts = [f"# {escaped(document.title)}", f"**{MARK[document.passed]}{escaped(document.verdict)}**"]
    if document.figures:
        parts.append(
            _table(Table("", tuple(name for name, _ in document.figures), (tuple(v for _, v in document.figures),)))
        )
    parts += [part for section in document.sections for part in _section(section)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is. Code between backquotes in our own sentences stays code: see `_sentence`."""
    return SPECIAL.sub(r"\\\1", text)


def _section(section: Section) -> list[str]:
    parts = [f"## {escaped(section.title)}", *map(_sentence, section.sentences)]
    parts += [f"*{escaped(chart.title)}*: {escaped(chart.alt)}." for chart in section.charts]
    for table in section.tables:
        parts += [f"*{escaped(table.caption)}*", _table(table)]
    if section.commands:
        parts.append("\n".join(f"    {line}" for line in section.commands))
    return parts


def _sentence(text: str) -> str:
    """Pairs of backquotes hold code, which cannot hold one."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return escaped(text)
    return "".join(f"`{piece}`" if i % 2 else escaped(piece) for i, piece in enumerate(pieces))


def _table(table: Table) -> str:
    lines = [_row(table.head), "|" + "---|" * len(table.head), *map(_row, table.rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"
