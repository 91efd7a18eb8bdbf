"""`transfer push` and the model card: what goes, what is refused, and what a hub is sent."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.finished import finished
from transfer_api.load import load_experiment
from transfer_api.progress import Score
from transfer_api.stage import StageKind, plan_stages
from transfer_api.status import ExperimentStatus, Phase, StageState, StageStatus
from transfer_cli.inputs import fingerprints
from transfer_cli.main import main
from transfer_cli.outputs import MODEL, STAMP, STATUS
from transfer_cli.push import PUSHED, push_to_folder, pushable
from transfer_pod.artifact import ArtifactStore

SCORE = Score(
    suite="perplexity", task="guide-id", language="id", metric="bits_per_byte", value=1.568, baseline=2.18, difference=-0.612,
    interval=(-0.68, -0.554), items=40, higher_is_better=False, harness="ours 1",
)  # fmt: skip
NUMBERS = {
    StageKind.VOCABULARY: {"effective_size": 420, "rows": 448, "bytes_per_token_before": 1.5, "bytes_per_token_after": 3.25},
    StageKind.PRETRAINING: {"steps": 9, "tokens": 40_960, "loss": 2.125},
}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the finished run `demo`: artifacts with small model folders, and its outputs."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path, numbers=NUMBERS, scores=[SCORE])
    assert main(["run", "experiment.yaml", "--storage", "storage"]) == 0
    return tmp_path


def write_status(output: Path, stages: list[StageStatus], phase: Phase = Phase.COMPLETE) -> None:
    status = ExperimentStatus(phase=phase, stages=stages).model_dump(mode="json", by_alias=True, exclude_none=True)
    (output / STATUS).write_text(yaml.safe_dump(status))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_card_says_what_the_model_was_made_of_and_what_it_scored(ran: Path) -> None:
    card = (ran / "runs" / "demo" / MODEL / "README.md").read_text()
    facts = yaml.safe_load(card.split("---")[1])
    assert facts["language"] == ["id", "en"]
    assert facts["pipeline_tag"] == "text-generation"
    assert "effective size 420, padded size 448; held out 1.5 → 3.25 bytes per token" in card
    assert "9 steps, 40,960 tokens" in card
    assert "| guide-id | id | bits_per_byte | 1.568 | 2.18 | -0.612 | -0.68 … -0.554 | 40 | ours 1 |" in card
    assert "- pretraining: `id.txt`, weight" in card
    store, experiment = ArtifactStore(ran / "storage"), load_experiment(ran / "experiment.yaml")
    made = plan_stages(experiment.spec, fingerprints(experiment, storage=store.root, search=(ran,)))
    for stage in made:
        reference = store.find(stage.kind, stage.key)
        assert reference is not None
        assert (stage.key in card and reference.digest in card) == (stage.kind is not StageKind.EVALUATION)


GIVEN = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "adapter/adapter_config.json"}


def test_a_folder_gets_the_model_with_its_card_and_the_adapter_again_and_again(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["push", "demo", "given"]) == 0
        assert names(ran / "given") == GIVEN | {PUSHED}
    assert "5 files" in capsys.readouterr().out
    weights = (ran / "given" / "model.safetensors").read_bytes()
    assert weights == (ran / "runs" / "demo" / MODEL / "model.safetensors").read_bytes()


def test_what_others_put_into_the_folder_stays_and_what_is_no_longer_of_the_model_goes(ran: Path) -> None:
    assert main(["push", "demo", "given"]) == 0
    (ran / "given" / ".git").mkdir()
    for name in (".git/HEAD", "notes.txt"):
        (ran / "given" / name).write_text("mine")
    for name in ("runs/demo/model/tokenizer.json", "runs/demo/.written"):
        (ran / name).write_text((ran / name).read_text().replace('"model/tokenizer.json",', ""))
    (ran / "runs/demo/model/tokenizer.json").unlink()
    assert main(["push", "demo", "given"]) == 0
    assert names(ran / "given") == GIVEN - {"tokenizer.json"} | {PUSHED, ".git/HEAD", "notes.txt"}


@pytest.mark.parametrize("name", ["README.md", "generation_config.json"], ids=["changed since", "never pushed"])
def test_a_file_that_is_not_as_a_push_left_it_is_not_replaced(ran: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "demo", "given"]) == 0
    (ran / "given" / name).write_text("my words")
    (ran / "runs" / "demo" / MODEL / name).write_text("the model's")
    assert main(["push", "demo", "given"]) == 2
    assert f"not as a push left them: {name} (got 'given')" in capsys.readouterr().err
    assert (ran / "given" / name).read_text() == "my words"


def test_a_push_that_was_interrupted_is_done_again(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("transfer_cli.push.shutil.copyfile", cut)
        with pytest.raises(KeyboardInterrupt):
            push_to_folder(pushable(ran / "runs" / "demo", "demo"), ran / "given")
    assert main(["push", "demo", "given"]) == 0
    assert names(ran / "given") == GIVEN | {PUSHED}


@pytest.mark.parametrize("target", ["runs/demo", "runs/demo/model", "runs/demo/model/copy"])
def test_a_run_is_not_pushed_into_itself(ran: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(ran / "runs")
    assert main(["push", "demo", target]) == 2
    assert "lies in the run's own folder" in capsys.readouterr().err
    assert names(ran / "runs") == before


def test_a_folder_with_something_else_in_it_is_left_alone(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ran / "mine").mkdir()
    (ran / "mine" / "README.md").write_text("my own")
    assert main(["push", "demo", "mine"]) == 2
    assert "holds files that no push has put there" in capsys.readouterr().err
    assert names(ran / "mine") == {"README.md"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nobody", "given"], 2, "RUN: has no run here (got 'nobody')"),
        (["demo", "hub:nobody"], 2, "TARGET: is not a repository (got 'hub:nobody'); allowed: hub:OWNER/NAME"),
        (["demo", "hub:a/b/c"], 2, "TARGET: is not a repository"),
        (
            ["demo", "s3://bucket/models"],
            2,
            "TARGET: is an address, and only a hub or a folder takes a model",
        ),
        (["demo", "given", "--public"], 2, "--public: is for a hub"),
        (["demo", "given", "--branch", "x"], 2, "--branch: is for a hub"),
        (["demo", "experiment.yaml"], 2, "TARGET: is not a folder"),
    ],
)
def test_what_cannot_be_pushed_is_said(
    ran: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", *arguments]) == code
    assert message in capsys.readouterr().err
    assert not (ran / "given").exists()


def test_a_run_without_a_model_an_unfinished_one_and_a_torn_one_are_told_apart(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ran / "runs" / "demo"
    write_status(output, [StageStatus(name="evaluation", kind=StageKind.EVALUATION, key="e" * 32, state=StageState.COMPLETE)])
    assert main(["push", "demo", "given"]) == 2
    assert "only evaluated a model" in capsys.readouterr().err
    stages = [StageStatus(name="pretraining", kind=StageKind.PRETRAINING, key="p" * 32, state=StageState.RUNNING)]
    write_status(output, stages, Phase.RUNNING)
    assert main(["push", "demo", "given"]) == 2
    assert "is not complete (Running)" in capsys.readouterr().err
    write_status(output, stages)
    (output / MODEL / "config.json").unlink()
    (output / MODEL / "model.safetensors").unlink()
    assert main(["push", "demo", "given"]) == 11
    told = capsys.readouterr().err
    assert "runs/demo is not whole: it lacks model/config.json, model/model.safetensors" in told
    assert "transfer run FILE --output runs/demo" in told
    (output / STAMP).write_bytes(b"")
    assert main(["push", "demo", "given"]) == 11
    assert "was not written to its end" in capsys.readouterr().err


class Hub(ThreadingHTTPServer):
    """The part of a model hub's interface that a push needs; keeps what it is sent. `allowed` is the token that may write."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.allowed = "secret"
        super().__init__(("127.0.0.1", 0), _Answers)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.server.requests.append((self.path, lines))
        if self.headers.get("Authorization") != f"Bearer {self.server.allowed}":
            return self._answer({"error": "no right to write"}, 403)
        if self.path.endswith("/preupload/main"):
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]]
            return self._answer({"files": modes})
        if self.path.endswith("/commit/main"):
            for line in lines:
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{self.server.address}/me/indonesian/commit/abc"
            return self._answer({"success": True, "commitOid": "abc", "commitUrl": address, "hookOutput": ""})
        return self._answer({"url": f"{self.server.address}/me/indonesian", "errors": [], "warnings": []})

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def push(hub: Hub, folder: Path, *arguments: str, token: str = "secret") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the hub's library reads its address when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "transfer_cli.main", "push", "demo", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_hub_repository_gets_every_file_in_one_commit_and_is_private(ran: Path, hub: Hub) -> None:
    done = push(hub, ran, "hub:me/indonesian")
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/me/indonesian/commit/abc" in done.stdout
    output = ran / "runs" / "demo"
    assert hub.files == {
        **{name: (output / MODEL / name).read_bytes() for name in names(output / MODEL)},
        "adapter/adapter_config.json": b"{}",
    }
    created = next(lines[0] for path, lines in hub.requests if path == "/api/repos/create")
    assert (created["organization"], created["name"], created["visibility"]) == ("me", "indonesian", "private")
    assert sum(path.endswith("/commit/main") for path, _ in hub.requests) == 1


def test_a_hub_that_refuses_is_quoted_with_the_way_out(ran: Path, hub: Hub) -> None:
    done = push(hub, ran, "hub:me/indonesian", token="wrong")
    assert done.returncode == 2
    assert "the hub refuses (answer 403)" in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert not hub.files
