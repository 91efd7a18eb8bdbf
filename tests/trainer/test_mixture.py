"""A mixture is tokenised piece by piece: the same rows however many do it, and nothing is done twice."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support import data_hub
from tests.support.experiment import sentences
from tests.support.tiny import save_tiny_model
from transfer_api.errors import ArtifactError, DataError
from transfer_api.spec import ModelSource, WeightedSource
from transfer_api.stage import DatasetParameters, StageKind, StagePlan
from transfer_pod import documents
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_pod.hub import HubUnreachableError, newest_commit
from transfer_trainer import dataset, mixture
from transfer_trainer.packing import pack_stream
from transfer_trainer.store import RowStore

KEY = "f" * 32
MIXTURE = [WeightedSource(path="plain.jsonl", weight=3), WeightedSource(path="many/*"), WeightedSource(path="plain.jsonl", weight=0)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    save_tiny_model(root / "model")
    lines = [json.dumps({"text": text}) for text in sentences(1, 300)]
    (root / "plain.jsonl").write_text("\n".join(lines[:100]) + "\n\n" + "\n".join(lines[100:]))
    (root / "many").mkdir()
    (root / "many" / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[:40]).encode()))
    table = pa.Table.from_pylist([json.loads(line) for line in lines[40:90]])
    parquet.write_table(table, root / "many" / "b.parquet", row_group_size=7)
    (root / "many" / "c.txt").write_text("\n\n".join(sentences(2, 20)))
    return root


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "PART_BYTES", 1500)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def pod(storage: Path, inputs: Path, index: int = 0, pods: int = 1, **more: Any) -> PodContext:
    parameters = DatasetParameters(
        model=ModelSource(path=str(inputs / "model")), sequence_length=32, seed=0,
        mixture=[
            source if source.path is None else source.model_copy(update={"path": str(inputs / source.path)})
            for source in more.pop("mixture", MIXTURE)
        ],
    )  # fmt: skip
    stage = StagePlan(name="d", kind=StageKind.DATASET, key=KEY, parameters=parameters.model_dump(mode="json", by_alias=True))
    return PodContext(stage=stage, storage=storage, pod=f"p{index}", index=index, max_nodes=pods, **more)


def rows(storage: Path) -> dict[str, bytes]:
    folder = ArtifactStore(storage).open(StageKind.DATASET, KEY) / "rows"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def expected(inputs: Path) -> list[bytes]:
    """The rows as the plain way gives them: every document by the tokenizer, one after the other, laid end to end."""
    tokenizer = dataset.load_tokenizer(inputs / "model")
    found = []
    for source in MIXTURE[:2]:
        context = pod(inputs, inputs)
        read = documents.iter_documents(source, context, "f")
        tokens = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in read]
        packed = list(pack_stream(tokens, 32, tokenizer.eos_token_id))
        found += [b"".join(row.tokens_T.tobytes() for row in packed), b"".join(row.positions_T.tobytes() for row in packed)]
        found.append(b"".join(row.targets_T.tobytes() for row in packed))
    return found


def test_one_pod_makes_the_rows_of_the_plain_way(tmp_path: Path, inputs: Path, expected: list[bytes]) -> None:
    dataset.run(pod(tmp_path, inputs), lambda progress: None)
    made = rows(tmp_path)
    assert [made[f"{n}.{kind}"] for n in (0, 1) for kind in ("tokens", "positions", "targets")] == expected
    assert not ArtifactStore(tmp_path).root.joinpath("work", "dataset", KEY).exists()
    store = RowStore.open(ArtifactStore(tmp_path).path(StageKind.DATASET, KEY) / "rows")
    assert [(source.documents, source.weight) for source in store.sources] == [(300, 3), (110, 1), (0, 0)]
    assert store.sources[0].bytes == sum(len(text.encode()) for text in sentences(1, 300))


def test_several_pods_at_once_make_the_same_rows(tmp_path: Path, inputs: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    dataset.run(pod(one, inputs), lambda progress: None)
    results = []

    def work(index: int) -> None:
        results.append(dataset.run(pod(many, inputs, index, 3), lambda progress: None))

    threads = [threading.Thread(target=work, args=[index]) for index in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(one) == rows(many)
    assert [result.numbers["documents"] for result in results] == [410] * 3
    assert sum(not result.reused for result in results) == 1, "one packs, the others find what it made"


@pytest.mark.parametrize("when", ["while the tokenizer is loaded", "after two pieces"])
def test_a_pod_whose_work_others_have_done_stops_and_leaves_nothing_behind(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    load, make, made = dataset.load_tokenizer, mixture.make, list[mixture.Piece]()
    others = threading.Thread(target=lambda: dataset.run(pod(tmp_path, inputs, 0, 2), lambda progress: None))

    def others_do_all() -> None:
        monkeypatch.undo()
        monkeypatch.setattr(mixture, "PART_BYTES", 1500)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        others.start()
        others.join()
        monkeypatch.setattr(mixture, "make", counted)

    def counted(piece: mixture.Piece, *how: Any) -> None:
        made.append(piece)
        make(piece, *how)
        if when == "after two pieces" and len(made) == 2:
            others_do_all()

    def loaded(folder: Path) -> Any:
        tokenizer = load(folder)
        if when == "while the tokenizer is loaded":
            others_do_all()
        return tokenizer

    monkeypatch.setattr(dataset, "load_tokenizer", loaded)
    monkeypatch.setattr(mixture, "make", counted)
    result = dataset.run(pod(tmp_path, inputs, 1, 2), lambda progress: None)
    assert result.reused
    assert len(made) == (0 if when == "while the tokenizer is loaded" else 3), "the one that finds the folder gone is the last"
    assert not (tmp_path / "work" / "dataset" / KEY).exists()


def test_processes_of_a_pod_make_the_same_rows(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    told: list[int] = []
    dataset.run(pod(tmp_path / "two", inputs), lambda progress: told.append(progress.step))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    dataset.run(pod(tmp_path / "one", inputs), lambda progress: None)
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    assert max(told) >= 410


def test_what_another_process_refuses_is_told_whole(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "bad.jsonl").write_text((inputs / "plain.jsonl").read_text() + "\nnot JSON\n")
    with pytest.raises(DataError, match="line 302 is not JSON") as caught:
        dataset.run(pod(tmp_path, inputs, mixture=[WeightedSource(path=str(tmp_path / "bad.jsonl"))]), lambda progress: None)
    assert caught.value.field == "spec.pretraining.mixture[0].path"
    assert caught.value.next_step


class Stopped(Exception):
    """The pod is gone."""


def interrupted(context: PodContext, monkeypatch: pytest.MonkeyPatch, after: int) -> list[str]:
    """Runs a pod until it has made so many pieces; returns which."""
    made: list[str] = []
    whole = mixture.make

    def make(piece: mixture.Piece, *rest: Any) -> None:
        if len(made) == after:
            raise Stopped
        whole(piece, *rest)
        made.append(piece.folder.name)

    with monkeypatch.context() as patch:
        patch.setattr(mixture, "make", make)
        try:
            dataset.run(context, lambda progress: None)
        except Stopped:
            return made
    return made


def test_a_piece_that_is_done_is_not_done_again(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = interrupted(pod(tmp_path, inputs), monkeypatch, 5)
    half = tmp_path / "work" / "dataset" / KEY / "parts" / ".0-9.here.1"
    half.mkdir()  # of a process that was killed
    second = interrupted(pod(tmp_path, inputs, generation=2), monkeypatch, 10_000)
    assert len(first) == 5
    assert len(second) > 5
    assert not set(first) & set(second)
    dataset.run(pod(tmp_path / "other", inputs), lambda progress: None)
    assert rows(tmp_path) == rows(tmp_path / "other")


def test_a_lone_pod_of_three_does_the_work_of_all(tmp_path: Path, inputs: Path) -> None:
    result = dataset.run(pod(tmp_path, inputs, index=2, pods=3), lambda progress: None)
    assert result.numbers["documents"] == 410


def test_a_pod_that_packs_and_is_silent_is_taken_over_from(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "_SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(mixture, "_POLL_SECONDS", 0.01)
    context = pod(tmp_path, inputs, pods=2)
    record = ArtifactStore(tmp_path).work(StageKind.DATASET, KEY) / "merge.json"
    record.write_text('{"pod": "gone", "beat": 3}')
    beats: list[int] = []
    with mixture.turn_to_pack(context, lambda: beats.append(1)) as mine:
        assert mine
        assert json.loads(record.read_text())["pod"] == "p0"
    assert beats


def copied(inputs: Path, folder: Path) -> list[WeightedSource]:
    (folder / "own.jsonl").write_text((inputs / "plain.jsonl").read_text())
    return [WeightedSource(path=str(folder / "own.jsonl"))]


def test_a_hub_data_set_that_moves_between_attempts_is_read_as_the_first_one_found_it(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str | None] = []

    def parts(source: WeightedSource, *_: object) -> list[documents.Part]:
        return [documents.Part(start=number, end=number + 1) for number in range(4)]

    def iter_part(source: WeightedSource, part: documents.Part, field: str) -> Iterator[str]:
        read.append(source.revision)
        return iter([f"{source.hub} {part.start}"])

    monkeypatch.setattr(mixture, "parts", parts)
    monkeypatch.setattr(mixture, "iter_part", iter_part)
    monkeypatch.setattr(mixture, "newest_commit", lambda name, field: name[0] * 40)
    sources = [
        WeightedSource(hub="a/set"),
        WeightedSource(hub="b/set", revision="1" * 40),
        WeightedSource(hub="c/set", weight=0),
        WeightedSource(hub="a/set", subset="other", revision="2" * 40),
    ]
    context = pod(tmp_path, inputs, mixture=sources)
    interrupted(context, monkeypatch, 2)
    monkeypatch.setattr(mixture, "newest_commit", lambda name, field: "f" * 40)
    dataset.run(context, lambda progress: None)
    assert set(read) == {"a" * 40, "1" * 40, "2" * 40}


@pytest.mark.parametrize(("status", "error"), [(200, None), (404, DataError), (503, HubUnreachableError)])
def test_the_hub_says_which_commit_is_the_newest(monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception] | None) -> None:
    with data_hub.serve() as hub:
        hub.files["a/set"] = {"one.jsonl": b"{}"}
        hub.status = status
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        with pytest.raises(error) if error else contextlib.nullcontext():
            assert newest_commit("a/set", "f") == data_hub.COMMIT


def test_offline_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert newest_commit("a/set", "f") is None


def test_a_file_that_changes_between_attempts_is_refused_with_code_11(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copied(inputs, tmp_path)
    context = pod(tmp_path, inputs, mixture=source, lineage="a")
    interrupted(context, monkeypatch, 3)
    file = tmp_path / "own.jsonl"
    file.write_text(file.read_text().replace("Semua", "Segala", 3))
    with pytest.raises(ArtifactError, match="has changed while this experiment reads it") as caught:
        dataset.run(context, lambda progress: None)
    assert (caught.value.exit_code, caught.value.value) == (11, str(file))
    assert str(tmp_path / "work") in str(caught.value.next_step)


def test_a_file_that_was_only_copied_anew_is_gone_on_with(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = copied(inputs, tmp_path)
    first = interrupted(pod(tmp_path, inputs, mixture=source, lineage="a"), monkeypatch, 3)
    os.utime(tmp_path / "own.jsonl", ns=(1, 1))
    second = interrupted(pod(tmp_path, inputs, mixture=source, lineage="a"), monkeypatch, 10_000)
    assert not set(first) & set(second)


def test_another_experiment_starts_from_the_file_as_it_is_now(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = copied(inputs, tmp_path)
    first = interrupted(pod(tmp_path, inputs, mixture=source, lineage="a"), monkeypatch, 3)
    (tmp_path / "own.jsonl").write_text(json.dumps({"text": "Baru."}))
    interrupted(pod(tmp_path, inputs, mixture=source, lineage="b"), monkeypatch, 10_000)
    store = RowStore.open(ArtifactStore(tmp_path).path(StageKind.DATASET, KEY) / "rows")
    assert first
    assert store.sources[0].documents == 1


def test_a_source_without_a_document_is_refused(tmp_path: Path, inputs: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n" * 4000)
    with pytest.raises(DataError, match="has no document"):
        dataset.run(pod(tmp_path, inputs, mixture=[WeightedSource(path=str(tmp_path / "empty.jsonl"))]), lambda progress: None)


MEASURED = """
import json, resource, sys
from pathlib import Path
from transfer_trainer.mixture import Piece, make
from transfer_trainer.tokenising import Tokeniser
from transfer_api.spec import WeightedSource
from transfer_pod.documents import Part
from tests.support.tiny import tiny_tokenizer
source = WeightedSource(path=sys.argv[1])
tokeniser = Tokeniser(tiny_tokenizer().backend_tokenizer, [], 0)
make(Piece(source, "f", Part(sys.argv[1]), Path(sys.argv[2])), tokeniser, lambda documents, tokens: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(folder: Path, count: int) -> int:
    """Most memory in MB of a process that tokenises so many times 250 kB."""
    file = folder / f"{count}.jsonl"
    block = "".join(json.dumps({"text": text}) + "\n" for text in sentences(count, 2000))
    with file.open("w") as out:
        for _ in range(count):
            out.write(block)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, str(file), str(folder / f"made-{count}")], capture_output=True, text=True, check=True
    )
    return int(ran.stdout) // 1024


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    small, large = peak(tmp_path, 2), peak(tmp_path, 20)
    assert large < small + 12, f"{small} MB for 0.5 MB of text, {large} MB for ten times as much"


def test_what_is_dropped_is_counted_by_reason_and_the_rest_is_packed(tmp_path: Path, inputs: Path) -> None:
    kept = [f"{text} {number}" for number, text in enumerate(sentences(5, 40))]
    lines = [*kept, *kept[:7], "x", "a" * 3000, *(f"{text}!" for text in kept[:1])]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    source = WeightedSource.model_validate(
        {"path": str(file), "deduplicate": "Near", "filter": {"minCharacters": 2, "maxRepetition": "0.9"}}
    )
    for pods in (1, 3):
        storage = tmp_path / f"of-{pods}"
        result = dataset.run(pod(storage, inputs, index=pods - 1, pods=pods, mixture=[source]), lambda progress: None)
        dropped = {name: count for name, count in result.numbers.items() if name.startswith("dropped")}
        near = dropped.pop("dropped_near_duplicates")
        assert dropped == {"dropped_short": 1, "dropped_repetitive": 1, "dropped_duplicates": 7}
        assert result.numbers["documents"] == 41 - near
        if near == 1:
            assert result.numbers["bytes"] == sum(map(len, kept))
    assert rows(tmp_path / "of-1") == rows(tmp_path / "of-3")


def test_a_filter_that_leaves_nothing_is_refused_with_what_it_dropped(tmp_path: Path, inputs: Path) -> None:
    source = WeightedSource.model_validate({"path": "plain.jsonl", "filter": {"minCharacters": 100_000}})
    with pytest.raises(DataError, match="300 short") as caught:
        dataset.run(pod(tmp_path, inputs, mixture=[source]), lambda progress: None)
    assert caught.value.field == "spec.pretraining.mixture[0].filter"


def test_documents_of_awkward_kinds_become_rows_and_nothing_is_lost(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 MB in one document, one character a million times, nothing at all, NUL, half a surrogate pair, one character alone."""
    monkeypatch.setattr(mixture, "PART_BYTES", 32_000_000)
    texts = ["kata lain " * 1_000_000, "a" * 1_000_000, "", "x\0y\ud800z", "b"]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = WeightedSource(path=str(tmp_path / "own.jsonl"))
    result = dataset.run(pod(tmp_path, inputs, mixture=[source]), lambda progress: None)
    assert result.numbers["documents"] == 4
    assert result.numbers["bytes"] == 10_000_000 + 1_000_000 + 3 + 1
    store = RowStore.open(ArtifactStore(tmp_path).path(StageKind.DATASET, KEY) / "rows")
    tokens = store.row(0, np.arange(store.sources[0].rows)).tokens_BT.ravel()[: store.sources[0].tokens]
    decoded = dataset.load_tokenizer(inputs / "model").decode(tokens[-20:].tolist())
    assert decoded.endswith("aaa<|endoftext|>xyz<|endoftext|>b<|endoftext|>")
    filtered = WeightedSource.model_validate({"path": source.path, "filter": {"maxRepetition": "0.9", "minCharacters": 2}})
    numbers = dataset.run(pod(tmp_path / "filtered", inputs, mixture=[filtered]), lambda progress: None).numbers
    assert (numbers["documents"], numbers["dropped_repetitive"], numbers["dropped_short"]) == (1, 2, 1)
