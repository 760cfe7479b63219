"""The document as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from importlib import resources

from r1quant.reporting import plots
from r1quant.reporting.document import Document
from r1quant.storage.provenance import VERSION


def page(document: Document) -> str:
    """Whatever the records say is escaped; the charts alone are put in as they were drawn."""
    import jinja2
    from markupsafe import Markup

    source = resources.files("r1quant").joinpath("reporting", "templates", "report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    charts = {chart.name: Markup(plots.svg(chart)) for chart in document.charts}
    stamp = generator()
    return environment.from_string(source).render(document=document, charts=charts, generator=stamp)


def generator() -> str:
    """What the bytes of a page depend on, beside its facts."""
    return f"r1quant {VERSION}; matplotlib {plots.version()}"
