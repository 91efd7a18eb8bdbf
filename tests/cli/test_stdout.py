"""A standard output that is full, closed, of another code or read by nobody: one line about it, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.documents import document
from transfer_api.errors import ExitCode

BUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "möglich.yaml"
    path.write_text(yaml.safe_dump(document()), encoding="utf-8")
    return path


def shell(redirected: str, *arguments: str | Path, **variables: str) -> tuple[int, str, str]:
    """`transfer ARGUMENTS` with its output redirected; exit code, output and errors."""
    command = ["bash", "-c", f'"$0" -m transfer_cli.main "$@" {redirected}', sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    return ended.returncode, ended.stdout, ended.stderr


@BUFFERED
def test_what_a_full_output_does_not_take_is_told(file: Path, unbuffered: str) -> None:
    told = "transfer: standard output cannot be written: No space left on device\n"
    assert shell("> /dev/full", "validate", file, PYTHONUNBUFFERED=unbuffered) == (ExitCode.CANNOT_WORK, "", told)
    assert shell("> /dev/full", "--version", PYTHONUNBUFFERED=unbuffered) == (ExitCode.CANNOT_WORK, "", told)


@BUFFERED
def test_a_reader_that_has_gone_is_no_error(file: Path, unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        arguments = [sys.executable, "-m", "transfer_cli.main", "validate", file]
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        ended = subprocess.run(arguments, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (ExitCode.COMPLETE, "")


def test_a_closed_output_gets_nothing_and_changes_nothing(file: Path) -> None:
    assert shell(">&-", "validate", file) == (ExitCode.COMPLETE, "", "")
    assert shell(">&-", "plan", file) == (ExitCode.COMPLETE, "", "")
    code, _, errors = shell(">&-", "validate", file.parent / "none.yaml")
    assert code == ExitCode.REFUSED
    assert "no such file" in errors


def test_characters_that_the_output_lacks_become_question_marks(file: Path) -> None:
    assert shell("", "validate", file, PYTHONIOENCODING="ascii") == (ExitCode.COMPLETE, f"{file.parent}/m?glich.yaml: ok\n", "")


def test_an_error_elsewhere_is_not_taken_for_one_of_the_output(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    from transfer_cli import validate
    from transfer_cli.main import main

    def fails(options: object) -> int:
        raise OSError("of a disk")

    monkeypatch.setattr(validate, "run", fails)
    with pytest.raises(OSError, match="of a disk"):
        main(["validate", str(file)])
