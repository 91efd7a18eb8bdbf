"""An artifact is complete or not there, whatever happened while it was made."""

import errno
import json
import os
from pathlib import Path

import pytest

from transfer_api.errors import ArtifactError, StorageError
from transfer_api.progress import UNJUDGED
from transfer_api.stage import StageKind, StagePlan
from transfer_pod.artifact import MANIFEST, ArtifactStore, storage_errors, write_atomically

STAGE = StagePlan(name="vocabulary", kind=StageKind.VOCABULARY, key="0" * 32, parameters={})


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def fill(store: ArtifactStore, text: str = "weights") -> Path:
    folder = store.work(STAGE.kind, STAGE.key) / "artifact"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights.txt").write_text(text)
    return folder


def committed(store: ArtifactStore) -> Path:
    store.commit(STAGE, fill(store), numbers={"added": 3.0})
    return store.path(STAGE.kind, STAGE.key)


def test_a_folder_without_manifest_is_not_an_artifact(store: ArtifactStore) -> None:
    fill(store)
    assert store.find(STAGE.kind, STAGE.key) is None


def test_a_committed_folder_is_found_with_the_digest_of_its_manifest(store: ArtifactStore) -> None:
    reference = store.commit(STAGE, fill(store), numbers={"added": 3.0})
    assert store.find(STAGE.kind, STAGE.key) == reference
    assert reference.path == f"artifacts/vocabulary/{STAGE.key}"
    assert store.manifest(STAGE.kind, STAGE.key)["numbers"] == {"added": 3.0}
    assert (store.open(STAGE.kind, STAGE.key) / "model" / "weights.txt").read_text() == "weights"


def test_all_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_work_goes(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target, fsync, rename = fill(store), store.path(STAGE.kind, STAGE.key), os.fsync, Path.rename
    done: list[str] = []

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append("the name" if path == target.parent else str(path.relative_to(folder)))
        assert folder.parent.exists() or path != target.parent
        fsync(descriptor)

    def renamed(path: Path, to: Path) -> Path:
        if path == folder:
            done.append("renamed")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    store.commit(STAGE, folder)
    assert {"model", "model/weights.txt", "."} <= set(done[: done.index("renamed")])
    assert done[done.index("renamed") :] == ["renamed", "the name"]


def test_who_may_read_the_storage_may_read_what_was_written_for_its_owner_alone(store: ArtifactStore) -> None:
    folder = fill(store)
    (folder / "model" / "weights.txt").chmod(0o600)
    store.commit(STAGE, folder)
    before = os.umask(0o022)
    os.umask(before)
    mode = (store.path(STAGE.kind, STAGE.key) / "model" / "weights.txt").stat().st_mode
    assert mode & 0o777 == 0o666 & ~before


def test_a_pod_that_was_given_up_spoils_nothing_of_its_replacement(store: ArtifactStore) -> None:
    first, second = store.draft(STAGE, "w0-g1"), store.draft(STAGE, "w0-g2")
    for folder in (first, second):
        folder.mkdir()
        (folder / "weights.txt").write_text(folder.name)
    store.commit(STAGE, second)
    assert (store.open(STAGE.kind, STAGE.key) / "weights.txt").read_text() == second.name
    assert not first.exists(), "nobody needs it any more"


def test_the_first_commit_of_a_key_stays(store: ArtifactStore) -> None:
    first = store.commit(STAGE, fill(store))
    second = store.commit(STAGE, fill(store))
    assert first == second
    assert not (store.work(STAGE.kind, STAGE.key) / "artifact").exists()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "model/weights.txt").write_text("weight"), id="a file is cut short"),
        pytest.param(lambda folder: (folder / "model/weights.txt").write_text("WEIGHTS"), id="a file is altered"),
        pytest.param(lambda folder: (folder / "model/weights.txt").unlink(), id="a file is missing"),
        pytest.param(lambda folder: (folder / MANIFEST).write_text("{"), id="the manifest is cut short"),
        pytest.param(lambda folder: (folder / MANIFEST).write_text("[]"), id="the manifest is something else"),
        pytest.param(
            lambda folder: (folder / MANIFEST).write_text(json.dumps({"key": "1" * 32, "files": {}})), id="the manifest is another's"
        ),
    ],
)
def test_a_damaged_artifact_is_refused_and_the_message_names_the_folder(store: ArtifactStore, damage) -> None:
    folder = committed(store)
    damage(folder)
    with pytest.raises(ArtifactError, match=r"Remove .* to have it made again") as caught:
        store.open(STAGE.kind, STAGE.key)
    assert str(folder) in str(caught.value)


def test_an_altered_file_of_the_same_size_passes_only_where_verification_is_left_out(store: ArtifactStore) -> None:
    folder = committed(store)
    (folder / "model/weights.txt").write_text("WEIGHTS")
    assert store.open(STAGE.kind, STAGE.key, verify=False) == folder


def test_a_part_is_checked_without_the_rest(store: ArtifactStore) -> None:
    folder = committed(store)
    (folder / "other.txt").write_text("was not there")
    (folder / "rows.txt").unlink(missing_ok=True)
    assert store.open(STAGE.kind, STAGE.key, part="model") == folder / "model"
    with pytest.raises(ArtifactError, match="has no snapshots/5"):
        store.open(STAGE.kind, STAGE.key, part="snapshots/5")
    (folder / "model/weights.txt").write_text("WEIGHTS")
    with pytest.raises(ArtifactError, match="not the file that was written"):
        store.open(STAGE.kind, STAGE.key, part="model")


def test_one_file_is_checked_without_the_others(store: ArtifactStore) -> None:
    folder = committed(store)
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    (folder / names[0]).write_text("altered")
    with pytest.raises(ArtifactError, match="not the file that was written"):
        store.file(STAGE.kind, STAGE.key, names[0])
    assert all(store.file(STAGE.kind, STAGE.key, name) == folder / name for name in names[1:])
    with pytest.raises(ArtifactError, match=r"manifest\.json names no other\.txt"):
        store.file(STAGE.kind, STAGE.key, "other.txt")


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "cannot be written"),
        (errno.EXDEV, "several file systems"),
    ],
)
def test_a_disk_that_takes_nothing_is_an_error_with_a_way_out(number: int, problem: str) -> None:
    with pytest.raises(StorageError, match=problem) as caught, storage_errors(Path("/data")):
        raise OSError(number, "disk")
    assert "/data" in str(caught.value)
    assert caught.value.next_step


def test_a_file_that_found_no_room_leaves_no_half_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "report.html", "<p>")
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_system_stay_what_they_are() -> None:
    with pytest.raises(FileNotFoundError), storage_errors(Path("/data")):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_a_provisional_artifact_keeps_the_work_and_gives_its_place_to_the_next(store: ArtifactStore) -> None:
    work = store.work(STAGE.kind, STAGE.key)
    store.commit(STAGE, fill(store, "without scores"), numbers={UNJUDGED: 2.0})
    (work / "blocks").mkdir()
    found = store.result(STAGE.kind, STAGE.key)
    assert found is not None
    assert found.provisional
    reference = store.commit(STAGE, fill(store, "with scores"), numbers={})
    assert (store.open(STAGE.kind, STAGE.key) / "model" / "weights.txt").read_text() == "with scores"
    assert store.find(STAGE.kind, STAGE.key) == reference
    assert not work.exists()
    store.commit(STAGE, fill(store, "a third"), numbers={UNJUDGED: 1.0})
    assert (store.open(STAGE.kind, STAGE.key) / "model" / "weights.txt").read_text() == "with scores", "what is whole stays"
