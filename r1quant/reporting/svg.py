"""From what matplotlib writes to an <svg> that belongs to a page: the page's colours, names of its own, alt text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from r1quant.reporting.document import Chart

# Stand for colours of the page while a chart is drawn.
INK, AXIS, GRID = "#010203", "#040506", "#070809"
NAMES = re.compile(r'(\bid="|url\(#|xlink:href="#)([^")]+)')
SPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
VIEW = re.compile(r'viewBox="([^"]*)"')


def themed(source: str, chart: Chart, palette: Sequence[str]) -> str:
    """Colours become variables of the page; ids get the chart's name in front, since a page holds several charts."""
    view = VIEW.search(source)
    assert view is not None
    body = source[source.index("<defs>") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    for drawn, shown in ((INK, "currentColor"), (AXIS, "var(--axis)"), (GRID, "var(--grid)")):
        body = body.replace(drawn, shown)
    for i, colour in enumerate(palette):
        body = body.replace(colour.lower(), f"var(--c{i})")
    body = NAMES.sub(rf"\g<1>{chart.name}-\2", body)
    body = "\n".join(line.rstrip() for line in body.splitlines())
    label = f'role="img" aria-labelledby="{chart.name}-title {chart.name}-desc"'
    return (
        f'<svg {SPACES} viewBox="{view[1]}" {label}>\n'
        f'<title id="{chart.name}-title">{escape(chart.title)}</title>\n'
        f'<desc id="{chart.name}-desc">{escape(chart.alt)}</desc>\n{body}\n'
    )
