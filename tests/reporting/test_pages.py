"""HTML, Markdown and charts: one file without network or script, the same bytes each time, readable by everyone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1quant.jobs.report.hardware import hardware
from r1quant.records.quantization import Quantization
from r1quant.reporting import html, markdown, plots
from r1quant.reporting.document import Document
from r1quant.reporting.sections import document
from r1quant.reporting.summarize import summarize
from r1quant.reporting.variants import grouped
from tests.models import config
from tests.reporting import records
from tests.reporting.pages import Page

HOSTILE = "</title></svg></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'`|$\\frac{$\x00‮\ud800"


def made(found: list[tuple[str, dict[str, Any]]]) -> Document:
    variants = grouped(records.read(*found))
    made = {one.name: one.quantization for one in variants if one.quantization}
    return document(summarize(variants, hardware(config("llama"), made), {one.name: ["r1quant x"] for one in variants}))


@pytest.fixture(scope="module")
def full() -> Document:
    return made(records.everything(8, 4, 2))


@pytest.fixture(scope="module")
def page(full: Document) -> str:
    return html.page(full)


def test_a_full_record_has_every_chart(full: Document, page: str) -> None:
    names = {chart.name.rstrip("0123456789") for chart in full.charts}
    assert names == {
        "kl-size",
        "perplexity-size",
        "kl-position",
        "loss-layer",
        "kl-layer",
        "lengths-",
        "memory-",
        "decode",
    }
    assert page.count("<svg ") == len(full.charts) == len({chart.name for chart in full.charts})


def test_the_page_is_sound_and_needs_nothing_else(page: str) -> None:
    found = Page(page)
    assert found.open == [] and found.active == []
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"@import|url\((?!#)", page)


def test_charts_have_text_as_text_with_title_and_description(full: Document, page: str) -> None:
    for chart in full.charts:
        drawn = plots.svg(chart)
        assert chart.x_label in drawn and "<text" in drawn and drawn.count("<title ") == drawn.count("<desc ") == 1
        assert f'aria-labelledby="{chart.name}-title {chart.name}-desc"' in drawn


def test_charts_take_their_colours_from_the_page(full: Document, page: str) -> None:
    """Whatever is drawn is a variable of the page, which both colour schemes define."""
    used = set(re.findall(r"var\((--\w+)\)", "".join(map(plots.svg, full.charts))))
    light, dark = (page.split("--paper:")[i] for i in (1, 2))
    assert {"--axis", "--grid", "--c1"} <= used
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", "".join(map(plots.svg, full.charts)))


def test_series_of_a_chart_differ_in_more_than_colour(full: Document) -> None:
    for chart in full.charts:
        looks = [series.look for series in chart.series]
        assert len(looks) == len(set(looks)), chart.name
    assert (
        len(set(plots.MARKERS)) == len(set(map(str, plots.DASHES))) == len(set(plots.HATCHES)) == len(plots.OKABE_ITO)
    )


def test_the_same_records_give_the_same_bytes(full: Document, page: str) -> None:
    again = made(records.everything(8, 4, 2))
    assert html.page(again) == page and markdown.page(again) == markdown.page(full)
    assert plots.png(full.charts[0]) == plots.png(again.charts[0])


def test_markdown_has_the_sections_and_sound_tables(full: Document) -> None:
    text = markdown.page(full)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [each.title for each in full.sections]
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def hostile(value: Any) -> Any:
    """A record all of whose texts and names are hostile, but for those that decide what it is."""
    if isinstance(value, Mapping):
        return {key: value[key] if key == "schema" else hostile(value[key]) for key in value}
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("change", [hostile, lambda record: record | {"by_class": {HOSTILE: {"kl": {"mean": 1.0}}}}])
def test_hostile_texts_stay_text(change: Callable[[Any], Any]) -> None:
    found = made([(HOSTILE, change(record)) for _, record in records.everything(4, 2)])
    source = html.page(found)
    page = Page(source)
    assert page.active == [] and page.open == [] and "<script" not in source
    source.encode("utf-8")
    text = markdown.page(found)
    text.encode("utf-8")
    assert not re.search(r"(?<!\\)<(?:script|img|/)", text)


@pytest.mark.parametrize("allocation", [False, True, [], 1.5, "4", {"bits": True}, {"bits": [4]}])
def test_an_allocation_that_is_none_counts_as_none(allocation: Any) -> None:
    """The sizes are then those of the recipe's bits."""
    (_, run), *_ = records.everything(4)
    good, junk = (
        Quantization.from_json(record, lenient=True)
        for record in (run["record"], run["record"] | {"allocation": allocation})
    )
    sizes = hardware(config("llama"), {"4 bits": good})
    assert sizes is not None and hardware(config("llama"), {"4 bits": junk}) == sizes


def test_a_config_of_a_billion_layers_has_no_sizes() -> None:
    """Refused by its number, before a name of each of its tensors is made."""
    assert hardware(config("llama") | {"num_hidden_layers": 10**9}, {}) is None


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_stands_in_a_record_gives_a_report(data: st.DataObject) -> None:
    """One value after another of good records is replaced by junk."""
    found = json.loads(json.dumps([record for _, record in records.everything(4)]))
    for record in found:
        places: list[tuple[Any, Any]] = []

        def collect(value: Any, places: list[tuple[Any, Any]] = places) -> None:
            pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for key, inner in pairs:
                places.append((value, key))
                collect(inner)

        collect(record)
        for _ in range(3):
            holder, key = data.draw(st.sampled_from(places))
            if key != "schema":
                holder[key] = data.draw(JUNK)
    shown = made([("f", record) for record in found])
    markdown.page(shown).encode("utf-8")
    assert all(section.title for section in shown.sections)
