"""What a browser would make of a page: its elements, and whatever in it could load or run something."""

from __future__ import annotations

from html.parser import HTMLParser

EMPTY = {"meta", "link", "br", "img", "input", "hr"}
LOADS = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}


class Page(HTMLParser):
    """tags: of all elements; active: what loads or runs; text: all that is shown; open: what was not closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.active: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in EMPTY:
            self.open.append(tag)
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form", "foreignobject"):
            self.active.append(tag)
        for name, value in attrs:
            inner = (value or "").strip()
            if name.startswith("on") or (name in LOADS and not inner.startswith("#")):
                self.active.append(f"{tag} {name}={inner}")
            if name == "style" and ("url(" in inner.replace("url(#", "") or "expression" in inner):
                self.active.append(f"{tag} style={inner}")
            if name == "id":
                self.ids.append(inner)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)
