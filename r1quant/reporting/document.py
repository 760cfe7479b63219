"""What a report is made of: sections of sentences, tables, charts and commands. Data, without a look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """head: of the columns; rows: cells as text, as many as there are columns."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Series:
    """Points of one kind. low, high: 95 % intervals if they are known; labels: written beside the points.

    look is the number of its colour, marker and dashes: the same model looks the same in every chart.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: int
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """kind   lines, points, bars (x numbers the ticks) or stack (areas upon each other)
    ticks  names on the x axis, at 0, 1, ...
    limit  a horizontal line, and what it says
    top    of the y axis, if several charts are to be compared
    alt    what the chart shows, for those who do not see it
    """

    name: str
    title: str
    alt: str
    kind: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_y: bool = False
    ticks: tuple[str, ...] = ()
    limit: tuple[float, str] | None = None
    top: float | None = None


@dataclass(frozen=True)
class Section:
    """One heading with what is under it. folded: shown when asked for."""

    key: str
    title: str
    sentences: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    commands: tuple[str, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Document:
    """passed: whether all gates hold of the recommended model; None if there were none."""

    title: str
    verdict: str
    passed: bool | None
    figures: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...] = field(default=())

    @property
    def charts(self) -> tuple[Chart, ...]:
        return tuple(chart for section in self.sections for chart in section.charts)
