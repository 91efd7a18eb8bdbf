"""`transfer validate`: one line a file, all problems, exit codes 0 and 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.documents import changed, document
from transfer_cli.main import main


def write(folder: Path, name: str, wanted: object) -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    return str(path)


def test_a_good_file_is_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "good.yaml", document())
    assert main(["validate", path]) == 0
    assert capsys.readouterr().out == f"{path}: ok\n"


def test_every_file_is_checked_and_every_problem_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path, "good.yaml", document())
    wrong = changed(changed(document(), "spec.language", "xx"), "spec.pretraining.tokens", "many")
    bad, missing = write(tmp_path, "bad.yaml", wrong), str(tmp_path / "missing.yaml")
    assert main(["validate", bad, missing, good]) == 2
    shown = capsys.readouterr()
    assert shown.out == f"{good}: ok\n"
    assert f"{bad}: 2 problems" in shown.err
    assert "spec.language: is not a language code that exists" in shown.err
    assert "spec.pretraining.tokens: is not an amount (got 'many')" in shown.err
    assert f"{missing}: no such file" in shown.err


def test_neither_model_nor_data_are_looked_for(tmp_path: Path) -> None:
    assert main(["validate", write(tmp_path, "good.yaml", changed(document(), "spec.model.path", "/nowhere"))]) == 0
