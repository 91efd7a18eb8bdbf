"""Texts and instructions: what is read, and what is said of a file that cannot be used."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from transfer_api.errors import DataError
from transfer_api.spec import InstructionSource, ModelSource, TextSource
from transfer_api.stage import DatasetParameters, StageKind, StagePlan
from transfer_pod.context import PodContext
from transfer_pod.documents import Message, check_source, count_rows, iter_documents, iter_instructions, iter_part, parts

FIELD = "spec.pretraining.mixture[0]"


@pytest.fixture
def context(tmp_path: Path) -> PodContext:
    parameters = DatasetParameters(model=ModelSource(path="m"), sequence_length=8, seed=0).model_dump(mode="json", by_alias=True)
    return PodContext(stage=StagePlan(name="d", kind=StageKind.DATASET, key="k", parameters=parameters), storage=tmp_path, pod="p")


def write(path: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    if path.suffix == ".zst":
        with pa.output_stream(path, compression="zstd") as stream:
            stream.write(data)
    elif path.suffix == ".parquet":
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path.name


def documents(context: PodContext, path: str, field: str = "text") -> list[str]:
    return list(iter_documents(TextSource(path=path, field=field), context, FIELD))


def conversations(context: PodContext, path: str) -> list[list[Message]]:
    return list(iter_instructions(InstructionSource(path=path), context, "spec.instructionTuning.data[0]"))


JSON_LINES = '{"text": "Satu.", "title": "a"}\n\n{"text": "  "}\n{"text": "Dua.\\nTiga."}\n'
TURNS = [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B")]
BLANK_PARTED = "\ufeff\nSatu.\r\n\r\n \nDua.\r\nTiga.\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.jsonl", JSON_LINES, id="JSON Lines"),
        pytest.param("a.jsonl.gz", JSON_LINES, id="compressed JSON Lines"),
        pytest.param("a.jsonl.zst", JSON_LINES, id="JSON Lines by zstd"),
        pytest.param("a.parquet", JSON_LINES, id="Parquet"),
        pytest.param("a.txt.zst", BLANK_PARTED, id="text by zstd"),
        pytest.param("a.txt", BLANK_PARTED, id="text parted by blank lines, with a byte order mark and Windows line ends"),
        pytest.param("a.txt.gz", BLANK_PARTED, id="compressed text"),
    ],
)
def test_every_format_gives_the_same_documents(context: PodContext, tmp_path: Path, name: str, content: str) -> None:
    assert documents(context, write(tmp_path / name, content)) == ["Satu.", "Dua.\nTiga."]


def test_a_glob_is_read_in_order_of_name(context: PodContext, tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.txt"):
        write(tmp_path / name, name[0])
    assert documents(context, "*.txt") == ["a", "b", "c"]


def test_an_empty_file_among_others_is_passed_over(context: PodContext, tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "")
    write(tmp_path / "b.txt", "b")
    assert documents(context, "*.txt") == ["b"]


def test_nul_characters_and_half_surrogate_pairs_are_left_out(context: PodContext, tmp_path: Path) -> None:
    assert documents(context, write(tmp_path / "a.jsonl", '{"text": "a\\u0000b\\ud800c"}')) == ["abc"]
    assert documents(context, write(tmp_path / "a.txt", "a\0b")) == ["ab"]


def test_a_document_of_megabytes_is_read_whole(context: PodContext, tmp_path: Path) -> None:
    text = "kata " * 1_000_000
    assert documents(context, write(tmp_path / "a.jsonl", json.dumps({"text": text}))) == [text]


def test_documents_are_read_one_at_a_time(context: PodContext, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "first"}\nnot JSON\n')
    assert next(iter_documents(TextSource(path=path), context, FIELD)) == "first"


def in_parts(context: PodContext, path: str, size: int) -> list[list[str]]:
    source = TextSource(path=path)
    return [list(iter_part(source, part, FIELD)) for part in parts(source, context, FIELD, size)]


@pytest.mark.parametrize("size", [1, 7, 20, 64, 1000])
def test_the_parts_of_a_file_are_the_whole_of_it_wherever_it_is_cut(context: PodContext, tmp_path: Path, size: int) -> None:
    texts = ["Satu.", "Dua.\n\nTiga.", "é" * 9, "4"]
    lines = "\n\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    write(tmp_path / "a.jsonl", f"\ufeff{lines}")
    write(tmp_path / "b.jsonl", f"\n{lines}\n\n")
    found = in_parts(context, "*.jsonl", size)
    assert [text for part in found for text in part] == texts * 2
    assert len(found) > 2 or size > 100
    table = pa.Table.from_pylist([{"text": text} for text in texts])
    parquet.write_table(table, tmp_path / "c.parquet", row_group_size=1)
    assert [text for part in in_parts(context, "c.parquet", size) for text in part] == texts


def test_compressed_files_and_texts_are_one_part_each(context: PodContext, tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        write(tmp_path / name, '{"text": "a"}\n{"text": "b"}')
    write(tmp_path / "c.txt", "a\n\nb")
    assert in_parts(context, "*", 1) == [["a", "b"]] * 3


def test_an_error_in_a_part_names_the_line_of_the_file(context: PodContext, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n{"text": "c"}\n{"text": 7}\n')
    assert "line 5: field text is a number" in refused(lambda: in_parts(context, "a.jsonl", 16) and None)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b"}\n{"text": "\xff"}\n')
    assert "line 3, byte 11 is 0xff" in refused(lambda: in_parts(context, "a.jsonl", 16) and None)


@pytest.mark.parametrize(
    ("name", "content", "field", "expected"),
    [
        pytest.param("a.jsonl", "", "text", ["path", "a.jsonl", "is empty"], id="empty"),
        pytest.param("a.txt", "\n \n", "text", ["path", "a.txt", "no document"], id="only blank lines"),
        pytest.param("a.jsonl", '{"text": " "}', "text", ["no document"], id="only blank texts"),
        pytest.param("a.txt", b"ok\nabc\xe4d", "text", ["not UTF-8", "line 2", "byte 4", "0xe4", "iconv"], id="not UTF-8"),
        pytest.param("a.txt", "ok".encode("utf-16"), "text", ["UTF-16", "iconv"], id="UTF-16"),
        pytest.param("a.jsonl", '{"text": "a"}\n{"text":', "text", ["line 2", "not JSON"], id="not JSON"),
        pytest.param("a.jsonl", "[" * 100_000, "text", ["line 1", "not JSON"], id="nested without end"),
        pytest.param("a.jsonl", '["a"]', "text", ["line 1", "a list"], id="not an object"),
        pytest.param("a.jsonl", '{"body": "a", "title": "b"}', "text", [f"{FIELD}.field", "'text'", "body, title"], id="field lacking"),
        pytest.param("a.jsonl", '{"text": 7}', "text", [f"{FIELD}.field", "line 1", "a number"], id="field is a number"),
        pytest.param("a.jsonl", '{"text": null}', "text", ["null"], id="field is null"),
        pytest.param("a.csv", "a,b", "text", ["unknown format", ".jsonl"], id="unknown format"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_way_out(
    context: PodContext, tmp_path: Path, name: str, content: str | bytes, field: str, expected: list[str]
) -> None:
    path = write(tmp_path / name, content)

    def by_reading() -> None:
        documents(context, path, field)

    def by_checking() -> None:
        check_source(tmp_path / path, field, FIELD)

    for find in (by_reading, by_checking):
        message = refused(find)
        assert [part for part in [FIELD, *expected] if part not in message] == [], message


def refused(find: Callable[[], None]) -> str:
    with pytest.raises(DataError) as caught:
        find()
    assert caught.value.next_step
    return str(caught.value)


def test_a_folder_is_refused_with_a_glob_to_write(context: PodContext, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    assert "texts/*.jsonl" in refused(lambda: documents(context, "texts") and None)


def test_a_gzip_file_cut_short_is_refused(context: PodContext, tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc" * 1000)[:-10])
    assert "not a complete gzip file" in refused(lambda: documents(context, "a.txt.gz") and None)


def test_a_zstd_file_cut_short_is_refused_and_one_of_two_frames_is_read_whole(context: PodContext, tmp_path: Path) -> None:
    write(tmp_path / "a.txt.zst", "abc\n" * 100_000)
    whole = (tmp_path / "a.txt.zst").read_bytes()
    (tmp_path / "b.txt.zst").write_bytes(whole + whole)
    assert len(documents(context, "b.txt.zst")[0]) == 2 * 400_000 - 1
    (tmp_path / "a.txt.zst").write_bytes(whole[:-10])
    assert "not a complete zstd file" in refused(lambda: documents(context, "a.txt.zst") and None)


def test_a_parquet_file_without_the_column_or_broken_is_refused_by_what_it_has(context: PodContext, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", '{"content": "Satu.", "title": "a"}')
    told = refused(lambda: documents(context, "a.parquet") and None)
    assert f"{FIELD}.field" in told
    assert "content, title" in told
    assert documents(context, "a.parquet", "content") == ["Satu."]
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-3])
    assert "cannot be read as Parquet" in refused(lambda: documents(context, "b.parquet") and None)


def test_instructions_of_a_parquet_file_are_those_of_json_lines(context: PodContext, tmp_path: Path) -> None:
    lines = json.dumps({"instruction": "Q", "input": "", "output": "A"}) + "\n" + json.dumps({"instruction": "R", "output": "B"})
    assert conversations(context, write(tmp_path / "a.parquet", lines)) == conversations(context, write(tmp_path / "a.jsonl", lines))


def test_rows_are_counted_in_every_format(tmp_path: Path) -> None:
    lines = '{"text": "a"}\n\n{"text": "b"}\n'
    for name, rows in (("a.jsonl", 2), ("a.jsonl.gz", 2), ("a.jsonl.zst", 2), ("a.parquet", 2)):
        write(tmp_path / name, lines)
        assert count_rows(tmp_path / name) == rows
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert count_rows(tmp_path / "broken.parquet") == 0


def test_the_check_reads_only_the_first_lines(context: PodContext, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n' * 100 + "not JSON\n")
    check_source(tmp_path / path, "text", FIELD)
    assert "line 101" in refused(lambda: documents(context, path) and None)


def test_the_check_does_not_call_a_file_empty_that_only_begins_blank(tmp_path: Path) -> None:
    check_source(tmp_path / write(tmp_path / "a.txt", "\n" * 500 + "text"), "text", FIELD)


def test_the_check_imports_nothing_heavy() -> None:
    code = "import sys, transfer_pod.documents; print([m for m in ('torch', 'numpy', 'datasets', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_hub_data_set_is_streamed(context: PodContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the library takes a folder for a data set
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", '{"text": "a"}\n{"text": ""}\n{"text": "b"}\n')
    source = TextSource(hub="set")
    assert list(iter_documents(source, context, FIELD)) == ["a", "b"]
    whole = [text for part in parts(source, context, FIELD) for text in iter_part(source, part, FIELD)]
    assert whole == ["a", "b"], "the files of a data set, one after the other"
    message = refused(lambda: list(iter_documents(source.model_copy(update={"split": "test"}), context, FIELD)) and None)
    assert f"{FIELD}.hub" in message
    assert "split" in message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"instruction": "Q", "input": "", "output": "A"}, [("user", "Q"), ("assistant", "A")], id="without input"),
        pytest.param({"instruction": "Q", "input": "I", "output": "A"}, [("user", "Q\nI"), ("assistant", "A")], id="with input"),
        pytest.param({"instruction": "Q", "input": None, "output": "A", "id": 3}, [("user", "Q"), ("assistant", "A")], id="input is null"),
        pytest.param(
            {"messages": [{"role": role, "content": content} for role, content in TURNS]},
            TURNS,
            id="several turns",
        ),
    ],
)  # fmt: skip
def test_both_forms_of_instructions_become_conversations(
    context: PodContext, tmp_path: Path, row: dict[str, object], expected: list[tuple[str, str]]
) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    assert conversations(context, path) == [[Message(*turn) for turn in expected]]
    check_source(tmp_path / path, None, "spec.instructionTuning.data[0]")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"question": "Q", "output": "A"}, ["no field instruction", "output, question"], id="field lacking"),
        pytest.param({"instruction": "Q", "output": ["A"]}, ["output", "a list"], id="answer is a list"),
        pytest.param({"messages": [{"role": "bot", "content": "A"}]}, ["messages[0]", "assistant"], id="unknown role"),
        pytest.param({"messages": [{"role": "user", "content": "Q"}]}, ["nothing to learn"], id="no answer"),
        pytest.param({"messages": [{"role": "assistant"}]}, ["messages[0].content", "null"], id="no content"),
    ],
)
def test_instructions_that_cannot_be_used_are_named(
    context: PodContext, tmp_path: Path, row: dict[str, object], expected: list[str]
) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    message = refused(lambda: conversations(context, path) and None)
    assert [part for part in ["spec.instructionTuning.data[0].path", "line 1", *expected] if part not in message] == [], message


def test_a_pipe_or_a_device_is_refused_before_it_is_opened(context: PodContext, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.txt", str(tmp_path / "pipe.txt")):
        with pytest.raises(DataError, match="pipe, a socket or a device") as caught:
            documents(context, name)
        assert caught.value.field == f"{FIELD}.path"
    write(tmp_path / "real.txt", "Satu.")
    assert documents(context, "*.txt") == ["Satu."], "a glob takes files only"
