"""Charts drawn by matplotlib, as SVG that takes its colours from the page, or as PNG.

Colours are Okabe and Ito's, told apart by the colour-blind too; markers, dashes and hatches say the same again. The
same chart gives the same bytes: no date, no random names.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from r1quant.reporting.document import Chart, Series
from r1quant.reporting.formatting import power
from r1quant.reporting.svg import AXIS, GRID, INK, themed

OKABE_ITO = ("#595959", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # 0 is the baseline's
MARKERS, DASHES = "soD^vPX", ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "//", "..", "\\\\", "xx", "++", "oo")
WIDE, HIGH = 5.2, 3.3  # inches, at 72 points each: text of 10 points stays readable on a phone
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names out of records are no formulas
    "axes.unicode_minus": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": AXIS,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.prop_cycle": f"cycler('color', ['{INK}'])",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
ON_PAPER = {INK: "#1a1a1a", AXIS: "#666666", GRID: "#d9d9d9"}  # for PNG, which has no page


def version() -> str:
    """Of matplotlib, on which the bytes of a chart depend."""
    import matplotlib

    return str(matplotlib.__version__)


def svg(chart: Chart) -> str:
    """An <svg> element, to stand in an HTML page."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with rc_context({**STYLE, "svg.hashsalt": chart.name}):
        figure, content = _drawn(chart), io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(content, metadata=nothing)
    return themed(content.getvalue(), chart, OKABE_ITO)


def png(chart: Chart) -> bytes:
    """1560 x 990 pixels on white."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    style = {key: ON_PAPER.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()}
    with rc_context({**style, "figure.facecolor": "white"}):
        figure, content = _drawn(chart), io.BytesIO()
        figure.suptitle(chart.title, fontsize=11)
        figure.set_dpi(300)
        FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()


def _drawn(chart: Chart) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE, HIGH), layout="constrained")
    axes = figure.add_subplot()
    if chart.log_y:
        axes.set_yscale("log")
    {"lines": _lines, "points": _lines, "bars": _bars, "stack": _stack}[chart.kind](axes, chart)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.limit is not None:
        axes.axhline(chart.limit[0], color=AXIS, linestyle=(0, (6, 3)), linewidth=1.1)
        place = axes.get_yaxis_transform()
        axes.text(0.99, chart.limit[0], chart.limit[1], ha="right", va="bottom", fontsize=9, transform=place)
    if chart.top is not None:
        axes.set_ylim(0, chart.top)
    _thousands(axes, chart)
    named = [series.label[:40] for series in chart.series]
    if len(named) > 1 or chart.kind != "points":
        columns = max(1, min(len(named), 52 // (6 + max(map(len, named)))))
        figure.legend(loc="outside upper left", ncols=columns, handlelength=2.6)
    return figure


def _look(series: Series) -> tuple[str, str, Any]:
    number = series.look % len(OKABE_ITO)
    return OKABE_ITO[number], MARKERS[number], DASHES[number]


def _lines(axes: Any, chart: Chart) -> None:
    for series in chart.series:
        colour, marker, dashes = _look(series)
        line = {"linestyle": dashes, "linewidth": 1.6} if chart.kind == "lines" else {"linestyle": "none"}
        axes.errorbar(
            series.x, series.y, yerr=_errors(series), color=colour, marker=marker, markersize=6, capsize=3,
            label=series.label[:40], **line,
        )  # fmt: skip
    if chart.kind == "points":
        axes.margins(x=0.12, y=0.12)


def _bars(axes: Any, chart: Chart) -> None:
    width = 0.82 / len(chart.series)
    for i, series in enumerate(chart.series):
        colour, _, _ = _look(series)
        x = [value + (i - (len(chart.series) - 1) / 2) * width for value in series.x]
        hatch = HATCHES[series.look % len(HATCHES)]
        axes.bar(
            x, series.y, width * 0.94, yerr=_errors(series), color=colour, ecolor=INK, capsize=2, hatch=hatch,
            edgecolor=INK, linewidth=0.5, label=series.label[:40],
        )  # fmt: skip
    sparse = max(1, -(-len(chart.ticks) // 8))
    axes.set_xticks(range(0, len(chart.ticks), sparse), chart.ticks[::sparse])
    axes.grid(visible=False, axis="x")
    axes.locator_params(axis="y", integer=_whole([y for series in chart.series for y in series.y]))


def _stack(axes: Any, chart: Chart) -> None:
    x, below = list(chart.series[0].x), [0.0] * len(chart.series[0].x)
    for series in chart.series:
        above = [a + b for a, b in zip(below, series.y, strict=True)]
        colour, hatch = OKABE_ITO[series.look + 1], HATCHES[series.look]
        axes.fill_between(
            x, below, above, facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.5, label=series.label[:40]
        )
        below = above
    axes.set_xlim(x[0], x[-1])


def _errors(series: Series) -> list[list[float]] | None:
    """How far each bar of error goes down and up from its point."""
    if series.low is None or series.high is None:
        return None
    down = [max(0.0, y - low) for y, low in zip(series.y, series.low, strict=True)]
    up = [max(0.0, high - y) for y, high in zip(series.y, series.high, strict=True)]
    return [down, up]


def _thousands(axes: Any, chart: Chart) -> None:
    """131k instead of 131072; ticks of logarithmic axes as plain numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def short(value: float, _: Any = None) -> str:
        return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"

    if not chart.ticks:
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        if _whole([x for series in chart.series for x in series.x]) and chart.kind == "lines":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if chart.log_y:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))


def _whole(values: Sequence[float]) -> bool:
    return all(value == int(value) for value in values)
