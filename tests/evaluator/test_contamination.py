"""The overlap of evaluation sets with training rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from transfer_evaluator.contamination import Overlap, document_text, overlaps, words

TWENTY = [f"kata{number}" for number in range(20)]


def found(items: list[str], *blocks: str) -> Overlap:
    beats: list[int] = []
    (overlap,) = overlaps({("s", "t"): items}, iter(blocks), lambda: beats.append(1))
    return overlap


@pytest.mark.parametrize(
    ("item", "blocks", "contaminated"),
    [
        pytest.param(TWENTY, [" ".join(["x", *TWENTY, "y"])], True, id="all of it"),
        pytest.param(TWENTY, [" ".join(TWENTY[3:16])], True, id="thirteen words of it"),
        pytest.param(TWENTY, [" ".join(TWENTY[3:15])], False, id="twelve words of it"),
        pytest.param(TWENTY, [" ".join([*TWENTY[:12], "x", *TWENTY[12:]])], False, id="never thirteen in a row"),
        pytest.param(TWENTY, [" ".join(TWENTY[:9]), " ".join(TWENTY[9:16])], True, id="across two blocks"),
        pytest.param(TWENTY, [", ".join(TWENTY[:13]).upper()], True, id="in capitals, with commas"),
        pytest.param(TWENTY, [" ".join(reversed(TWENTY))], False, id="in another order"),
        pytest.param(TWENTY, [], False, id="no training text"),
    ],
)
def test_thirteen_words_in_a_row_are_contamination(item: list[str], blocks: list[str], contaminated: bool) -> None:
    assert found([" ".join(item)], *blocks) == Overlap("s", "t", 1, int(contaminated), 0)


def test_characters_count_where_a_script_has_no_spaces() -> None:
    text = "人人生而自由在尊严和权利上一律平等"
    assert found([text], f"x {text[2:15]} y").contaminated == 1
    assert found([text], f"x {text[2:14]} y").contaminated == 0
    assert words("สวัสดี") == list("สวัสดี")
    assert words("हिन्दी में, Kata_dua!") == ["हिन्दी", "में", "kata", "dua"]


def test_items_that_are_too_short_are_counted_apart() -> None:
    overlap = found([" ".join(TWENTY), "kata0 kata1", ""], " ".join(TWENTY))
    assert overlap == Overlap("s", "t", 1, 1, 2)
    assert overlap.share == 1.0
    assert found(["x"], "x").share == 0.0


def test_each_task_is_told_of_alone_and_training_is_read_once() -> None:
    other = [f"other{number}" for number in range(13)]
    tasks = {("a", "1"): [" ".join(TWENTY), " ".join(other)], ("b", "2"): [" ".join(other)]}
    read: list[str] = []

    def training() -> Iterator[str]:
        for block in ("nothing of it", " ".join(TWENTY)):
            read.append(block)
            yield block

    assert [(one.task, one.items, one.contaminated) for one in overlaps(tasks, training(), lambda: None)] == [("1", 2, 1), ("2", 1, 0)]
    assert len(read) == 2


def test_the_text_of_a_question_is_all_its_strings() -> None:
    assert document_text({"question": "Q", "choices": ["A", "B"], "answer": 1, "more": {"x": "C"}, "none": None}) == "Q\nA\nB\n\nC\n"
