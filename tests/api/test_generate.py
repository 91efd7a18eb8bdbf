"""Generated files are up to date, and --check says so with a diff and its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfer_api.errors import ExitCode
from transfer_api.generate import ROOT, generated, main
from transfer_api.reference import EXIT_CODES, reference
from transfer_api.spec import Optimization, Workers
from transfer_api.status import Reason


def test_the_files_in_the_repository_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--check", "--root", str(ROOT)])
    assert code == 0, f"run `python -m transfer_api.generate`:\n{capsys.readouterr().out[:2000]}"


def test_writing_then_checking_finds_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.is_file()} == set(generated())


def test_a_file_edited_by_hand_is_shown_as_a_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--root", str(tmp_path)])
    path = tmp_path / "crds" / "transferexperiments.yaml"
    path.write_text(path.read_text().replace("Namespaced", "Cluster"))
    assert main(["--check", "--root", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "-  scope: Cluster" in shown
    assert "+  scope: Namespaced" in shown


def test_a_missing_file_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert "+# Reference" in capsys.readouterr().out


def test_the_reference_has_every_field_with_its_default() -> None:
    page = reference()
    for model in (Optimization, Workers):
        for name, info in model.model_fields.items():
            assert f"| `{info.alias or name}` |" in page
    assert "| `sequenceLength` | integer, 8 to 1048576 | `2048` | Tokens in a packed row. |" in page
    assert "| `tokens` | amount |  | Budget in tokens, such as 500M. |" in page
    assert "| `model` | object | **required** | The base model. |" in page


def test_the_reference_has_every_reason_and_exit_code() -> None:
    page = reference()
    assert all(f"| `{reason.value}` |" in page for reason in Reason)
    assert {code.split(",")[0] for code, _, _ in EXIT_CODES} >= {str(int(code)) for code in ExitCode}
