"""Pages as a browser reads them."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)></details></body>"
"""What a model may write."""
VOID = {"meta"}


class Page(HTMLParser):
    """The page as a browser reads it: every tag closed in its turn, what stands in the text, what it would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.titles: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for key, value in attrs:
            assert not key.startswith("on")
            assert key not in ("src", "srcset", "action")
            if key == "href":
                self.links.add(value or "")
            if key == "id":
                assert value not in self.ids
                self.ids.add(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "title":
            self.titles.append(data)
        elif "style" not in self._open:
            self.text += f"{data}\n"


def whole_page(text: str) -> Page:
    """A page that needs nothing else, whose links lead to places on it."""
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "http" not in text
    assert "url(" not in text
    assert {link for link in page.links if not link.startswith("#")} == set()
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    return page
