"""What every command has in common: version, exit codes, and what is said of a status that cannot be read."""

from __future__ import annotations

import errno
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.support.documents import EVALUATION, document
from tests.support.folders import write_experiment
from transfer_api.errors import ExitCode, StorageError
from transfer_api.load import load_experiment
from transfer_api.status import ExperimentStatus
from transfer_cli import outputs, run
from transfer_cli.main import INTERRUPTED, main
from transfer_cli.outputs import STATUS, read_status


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"transfer {version('transfer-operator')}\n"


WHOLE = yaml.safe_dump(ExperimentStatus().model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=False)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param(WHOLE[: len(WHOLE) // 2], id="cut short"),
        pytest.param("phase: [", id="not YAML"),
        pytest.param("kind: Pod\n", id="of something else"),
        pytest.param("- 1\n", id="a list"),
        pytest.param(WHOLE.replace("stages: []", "stages: many"), id="of another type"),
    ],
)
@pytest.mark.parametrize("command", ["status", "report"])
def test_a_status_that_cannot_be_read_ends_with_eleven_and_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, content: str
) -> None:
    file, output = write_experiment(tmp_path, document(evaluation=EVALUATION)), tmp_path / "output"
    output.mkdir()
    (output / STATUS).write_text(content)
    options = [str(output)] if command == "status" else [str(file), "--output", str(output), "--storage", str(tmp_path / "storage")]
    assert main([command, *options]) == ExitCode.UNREADABLE
    told = "".join(capsys.readouterr())
    assert f"{output / STATUS} is not a readable status" in told
    assert "`transfer run` of the same file moves it aside" in told


def test_a_whole_status_is_read(tmp_path: Path) -> None:
    (tmp_path / STATUS).write_text(WHOLE)
    assert read_status(tmp_path) == ExperimentStatus()
    assert read_status(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("command", "error", "code"),
    [
        ("run", KeyboardInterrupt(), ExitCode.SAVED),
        ("validate", KeyboardInterrupt(), 130),
        ("report", StorageError("no space left"), ExitCode.CANNOT_WORK),
    ],
    ids=["run stopped before it began", "validate stopped", "report on a full disk"],
)
def test_how_a_command_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, error: BaseException, code: int) -> None:
    import importlib

    def raises(options: object) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module(f"transfer_cli.{command}"), "run", raises)
    assert main([command, str(tmp_path / "file.yaml")]) == code


def test_ctrl_c_inside_an_exec_of_text_still_ends_with_the_saved_code(tmp_path: Path) -> None:
    """`python -m` dies by SIGINT itself where a plain KeyboardInterrupt rose there, whatever it was turned into later."""
    (tmp_path / "stopped.py").write_text(
        "import os, signal, sys, types\n"
        "from transfer_cli.main import main\n"
        "command = types.ModuleType('transfer_cli.run')\n"
        "command.add_arguments = lambda _: exec('os.kill(os.getpid(), signal.SIGINT)')\n"
        "sys.modules[command.__name__] = command\n"
        "sys.exit(main(['run']))\n"
    )
    ended = subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (ExitCode.SAVED, "transfer run: stopped\n")


@pytest.mark.parametrize("code", sorted({*map(int, ExitCode), INTERRUPTED}))
def test_every_exit_code_is_in_the_documentation(code: int) -> None:
    assert f"\n| {code} | " in (Path(__file__).resolve().parents[2] / "docs" / "concepts.md").read_text()


def test_a_full_output_disk_is_called_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    experiment = load_experiment(write_experiment(tmp_path))
    session: Any = SimpleNamespace(output=tmp_path / "output", backend=SimpleNamespace(create=full))
    monkeypatch.setattr(outputs, "write_atomically", full)
    monkeypatch.setattr(Path, "touch", full)
    decision: Any = SimpleNamespace(status=ExperimentStatus(), actions=[object.__new__(run.CreatePod)])
    monkeypatch.setattr(outputs, "_copy_model", full)
    (tmp_path / "output").mkdir()
    writes = {
        "the status": lambda: run.Session._write(session, ExperimentStatus(), decision),
        "the mark": lambda: outputs.claim(session.output, "demo"),
        "the log of a pod": lambda: run.Session._act(session, decision),
        "the model": lambda: outputs.write_outputs(experiment, (), decision.status, storage=tmp_path, output=session.output),
    }
    for what, write in writes.items():
        with pytest.raises(StorageError) as caught:
            write()
        assert (caught.value.field, caught.value.value) == ("output", str(session.output)), what
        assert "--output" in str(caught.value)


def test_the_port_that_was_chosen_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import urllib.request

    from transfer_cli.display import Display, open_console

    session: Any = SimpleNamespace(progress=None, experiment=load_experiment(write_experiment(tmp_path)))
    with run._metrics(0, session, Display(open_console(), "id", None)):
        address = capsys.readouterr().out.split("Metrics: ")[1].strip()
        with urllib.request.urlopen(address.replace("/metrics", "/healthz"), timeout=10) as answer:
            assert answer.read() == b"ok\n"
