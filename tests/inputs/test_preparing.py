from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hack.inputs import packages, prepare
from transfer_api.errors import DataError, StorageError


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makers that write one small file; the list tells how often they ran."""
    ran: list[str] = []

    def maker(part: str) -> Callable[[Path, Path], None]:
        def make(work: Path, folder: Path) -> None:
            ran.append(part)
            for place in prepare.PARTS[part]:
                (folder / place / "file").write_text(str(len(ran)))

        return make

    monkeypatch.setattr(prepare, "_MAKERS", {part: maker(part) for part in prepare.PARTS})
    return ran


def test_what_is_there_is_not_made_again(made: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        prepare.prepare(tmp_path, "documents")
    assert made == ["documents"]


def test_an_older_recipe_is_replaced(made: list[str], tmp_path: Path) -> None:
    prepare.prepare(tmp_path, "documents")
    (tmp_path / ".documents").write_text("0")
    prepare.prepare(tmp_path, "documents")
    assert (tmp_path / "texts" / "file").read_text() == "2"
    assert not list(tmp_path.glob(".making-*"))


def test_a_failure_leaves_what_was_there(made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare.prepare(tmp_path, "documents")
    (tmp_path / ".documents").write_text("0")

    def fail(work: Path, folder: Path) -> None:
        (folder / "texts" / "file").write_text("half")
        raise DataError("no network")

    monkeypatch.setitem(prepare._MAKERS, "documents", fail)
    with pytest.raises(DataError):
        prepare.prepare(tmp_path, "documents")
    assert (tmp_path / "texts" / "file").read_text() == "1"
    assert not list(tmp_path.glob(".making-*"))


def test_links_are_put_into_the_storage_again_and_again(made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert prepare.main(["--storage", str(tmp_path / "storage")]) == 0
    assert (tmp_path / "storage" / "models" / "file").read_text() == "1"
    assert made == ["model", "documents"]


def test_a_folder_of_the_user_is_not_replaced_by_a_link(made: list[str], tmp_path: Path) -> None:
    (tmp_path / "storage" / "texts").mkdir(parents=True)
    with pytest.raises(StorageError, match="not a link"):
        prepare.link(tmp_path, tmp_path / "storage", ["texts"])


def test_the_model_is_prepared_where_documents_cannot_be(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path))
    monkeypatch.setitem(prepare._MAKERS, "documents", lambda work, folder: packages.debian_packages(["some-doc"], work) and None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prepare.main(["--storage", str(tmp_path / "storage")]) == 10
    assert (tmp_path / "storage" / "models" / "file").is_file()
    said = capsys.readouterr().err
    assert "apt-get and dpkg-deb not found" in said
    assert "examples/indonesian-hub.yaml" in said


def test_a_full_disk_says_where_and_how_much(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"No space left on device.*set TRANSFER_CACHE"), prepare.space(tmp_path):
        raise OSError(28, os.strerror(28))
