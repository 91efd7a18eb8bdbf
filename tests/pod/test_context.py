"""The environment is the whole interface between a backend and a pod."""

from pathlib import Path

import pytest

from transfer_api.errors import DataError, SpecError
from transfer_api.stage import StageKind, StagePlan
from transfer_pod.context import PodContext, expand, find_input

STAGE = StagePlan(name="pretraining", kind=StageKind.PRETRAINING, key="a" * 32, parameters={"x": "ünï"}, inputs={"dataset": "b" * 32})


def test_what_the_backend_writes_the_pod_reads() -> None:
    context = PodContext(
        stage=STAGE, storage=Path("/s"), pod="p-w1-g2", attempt="p", lineage="uid", attempt_number=3, generation=2, index=1,
        search=(Path("/a:b"), Path("/c")), address="10.0.0.7", port=9000,
        rendezvous="store:29400", min_nodes=2, max_nodes=8, processes=4, termination_log=Path("/t"),
    )  # fmt: skip
    assert PodContext.read(context.environment()) == context


@pytest.mark.parametrize("missing", ["TRANSFER_STAGE", "TRANSFER_STORAGE"])
def test_an_incomplete_environment_is_refused(missing: str) -> None:
    environment = PodContext(stage=STAGE, storage=Path("/s"), pod="p").environment()
    del environment[missing]
    with pytest.raises(SpecError, match=missing):
        PodContext.read(environment)


def test_an_input_is_looked_up_in_the_storage_first_then_beside_the_file(tmp_path: Path) -> None:
    storage, beside = tmp_path / "storage", tmp_path / "beside"
    for folder in (storage, beside):
        folder.mkdir()
    (beside / "a.jsonl").touch()
    assert find_input("a.jsonl", (storage, beside)) == beside / "a.jsonl"
    (storage / "a.jsonl").touch()
    assert find_input("a.jsonl", (storage, beside)) == storage / "a.jsonl"
    assert find_input(str(beside / "a.jsonl"), (storage,)) == beside / "a.jsonl"


def test_a_missing_input_names_the_field_and_the_folders_that_were_searched(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_input("a.jsonl", (tmp_path,), "spec.pretraining.mixture[0].path")
    assert "spec.pretraining.mixture[0].path" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("path", ["a**b.txt", "a" * 300, "a" * 300 + "*"], ids=["stars", "a long name", "a long pattern"])
def test_a_path_that_cannot_be_looked_up_names_its_field(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError) as caught:
        find_input(path, (tmp_path,), "spec.pretraining.mixture[0].path")
    assert str(caught.value).startswith("spec.pretraining.mixture[0].path: cannot be looked up: ")


def test_a_glob_gives_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).touch()
    pattern = find_input("*.txt", (tmp_path,))
    assert [path.name for path in expand(pattern)] == ["a.txt", "b.txt"]
    with pytest.raises(DataError):
        find_input("*.jsonl", (tmp_path,))


def test_brackets_in_a_folder_are_part_of_its_name_and_not_a_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]"
    folder.mkdir()
    for name in ("1.txt", "2.txt"):
        (folder / name).touch()
    assert expand(find_input("1.txt", (folder,))) == [folder / "1.txt"]
    assert expand(find_input("*.txt", (folder,))) == [folder / "1.txt", folder / "2.txt"]


@pytest.mark.parametrize("path", ["texts/**.jsonl", "a" * 300], ids=["a pattern that is none", "too long"])
def test_a_path_that_cannot_be_looked_up_is_told_with_a_way_out(tmp_path: Path, path: str) -> None:
    (tmp_path / "texts").mkdir()
    with pytest.raises(DataError, match="cannot be looked up") as raised:
        expand(tmp_path / path)
    assert raised.value.next_step
