"""Paragraphs out of HTML (DocBook's and npm's) and Mallard XML, with nothing but the standard library."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

_BLOCK_TAGS = """
html body div section article header p li ul ol dl dd dt table thead tbody tr td th h1 h2 h3 h4 h5 h6 pre blockquote
"""
_BLOCKS = frozenset(_BLOCK_TAGS.split())
_PROSE = frozenset({"p", "li", "dd", "div"})
_VOID = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"})
_SKIPPED = frozenset({"script", "style", "head", "pre", "table"})
_NAVIGATION = frozenset({"navheader", "navfooter", "docnav", "toc", "titlepage", "index"})


def html_paragraphs(markup: str) -> list[str]:
    """The paragraphs of a page in order: text of p, li, dd and div, without headings, code, tables and navigation."""
    parser = _Paragraphs()
    parser.feed(markup)
    parser.close()
    return parser.found


class _Paragraphs(HTMLParser):
    """Gives each piece of text to the innermost open block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._open: list[tuple[str, list[str], bool]] = []  # tag, text so far, skipped

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self._add(" " if tag == "br" else "")
            return
        if tag not in _BLOCKS and tag not in _SKIPPED:
            return
        if tag == "p" and self._open and self._open[-1][0] == "p":
            self._close()  # </p> may be left out
        classes = set((dict(attrs).get("class") or "").split())
        above = self._open[-1][2] if self._open else False
        if self._open:
            self._emit()
        self._open.append((tag, [], above or tag in _SKIPPED or bool(classes & _NAVIGATION)))

    def handle_endtag(self, tag: str) -> None:
        if not any(name == tag for name, _, _ in self._open):
            return
        while self._open:
            name = self._open[-1][0]
            self._close()
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        self._add(data)

    def _add(self, data: str) -> None:
        if self._open and data:
            self._open[-1][1].append(data)

    def _emit(self) -> None:
        tag, pieces, skipped = self._open[-1]
        text = squeeze("".join(pieces))
        pieces.clear()
        if text and tag in _PROSE and not skipped:
            self.found.append(text)

    def _close(self) -> None:
        self._emit()
        self._open.pop()


def mallard_paragraphs(markup: bytes) -> list[str]:
    """The `p` elements of a Mallard page in order, without those of its `info`."""
    root = ET.fromstring(markup)  # noqa: S314 - from a package whose signature apt has checked
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) == "info":
                parent.remove(child)
    texts = (squeeze("".join(element.itertext())) for element in root.iter() if _local(element.tag) == "p")
    return [text for text in texts if text]


def _local(tag: object) -> str:
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def squeeze(text: str) -> str:
    """One line, single spaces."""
    return re.sub(r"\s+", " ", text.replace("\u200b", "")).strip()
