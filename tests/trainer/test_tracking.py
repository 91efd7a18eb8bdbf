"""Runs of MLflow and W&B get each step once, from whichever process goes on, and a server that fails fails nothing else."""

from __future__ import annotations

import json
import logging
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.experiment import wait_for
from tests.support.mlflow_server import MlflowServer
from tests.support.pods import LENGTH, ROWS_PER_STEP, losses, make_storage, training_stage
from tests.support.team import train
from transfer_api.errors import SpecError
from transfer_api.spec import MLflow, NamedText, Tracking, WeightsAndBiases
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer import tracking
from transfer_trainer.ledger import LEDGER, read_ledger
from transfer_trainer.loop import Training
from transfer_trainer.parallel import Team
from transfer_trainer.tracking import TOKENS, Ending, Point, Run, Tracks, flat, run_name
from transfer_trainer.tracking_mlflow import TAG, MlflowTracker
from transfer_trainer.tracking_wandb import WandbTracker

KEY = "a" * 32
RUN = Run("0123456789abcdef", "tiny/pretraining-aaaaaaaa", "tiny", {"learningRate": "1e-3"}, {"stage": "pretraining"})
SECRETS = {"MLFLOW_TRACKING_TOKEN": "mlflow-s3cret-token", "WANDB_API_KEY": "wandb-s3cret-key-0123456789abcdef01234567"}


def tracks(server: MlflowServer, past: Sequence[Point] = ()) -> Tracks:
    return Tracks(RUN, [MlflowTracker(server.uri, "tiny")], past, pause=0.01)


def tell(told: Tracks, steps: range) -> None:
    for step in steps:
        told.add(step, 100 * step, {"training/loss": 1 / (1 + step), "speed/mfu": None})


def offline_rows(file: Path) -> list[dict[str, Any]]:
    """The rows that an offline run of W&B has: messages in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, message, rows = file.read_bytes(), 7, b"", []
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        message += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record, message = Record.FromString(message), b""
            if record.WhichOneof("record_type") == "history":
                rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item})
    return rows


def test_a_training_that_crashes_and_goes_on_is_one_run_with_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held-out.txt").write_text("saya makan nasi\n\nkamu minum air\n")
    for name, value in {**SECRETS, "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    with MlflowServer(f"Bearer {SECRETS['MLFLOW_TRACKING_TOKEN']}") as server:
        mlflow, wandb = MLflow(uri=server.uri, experiment="tiny"), WeightsAndBiases(project="tiny")
        stage = training_stage(
            KEY, make_storage(tmp_path), steps=30, checkpoint_steps=10, validation_steps=15, tracking=Tracking(mlflow=mlflow),
            validation_texts=[NamedText(name="held-out", path="held-out.txt", language="id")],
        )  # fmt: skip

        def crash() -> bool:
            if training.step < 14:
                return False
            wait_for(lambda: 14 in dict(server.curve("training/loss")), what="the server has the step that will be lost")
            raise RuntimeError("an unlucky moment")

        training = Training(PodContext(stage=stage, storage=tmp_path, pod="pod"), Team(), crash, lambda progress: None)
        with pytest.raises(RuntimeError, match="unlucky"):
            training.run()
        assert training.tracks is not None
        training.tracks.close(Ending.LATER)
        both = stage.execution.model_copy(update={"tracking": Tracking(mlflow=mlflow, wandb=wandb)})
        train(tmp_path, stage.model_copy(update={"execution": both}), 2, number=1)
    summary = read_ledger(ArtifactStore(tmp_path).open(stage.kind, KEY) / LEDGER)
    assert summary.lost_steps > 0
    (run,) = server.runs
    curve = server.curve("training/loss")
    assert [step for step, _ in curve] == list(range(1, 31))
    assert [value for _, value in curve] == pytest.approx(losses(summary), rel=1e-5)
    assert server.curve(TOKENS)[1:] == [(step, step * ROWS_PER_STEP * LENGTH) for step in range(1, 31)]
    assert [step for step, _ in server.curve("bits_per_byte/held-out")] == [0, 15, 30]
    assert run["statuses"][-1] == "FINISHED"
    assert run["params"]["learningRate"] == "1e-3"
    assert run["tags"]["transfer-operator.key"] == KEY
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert file.stem == f"run-{run['tags'][TAG]}"
    rows = offline_rows(file)
    assert [row["_step"] for row in rows] == list(range(31)), "what was before it too"
    assert [row["training/loss"] for row in rows[1:]] == pytest.approx(losses(summary), rel=1e-6)
    assert {"bits_per_byte/held-out", "training/loss"} <= rows[30].keys()
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        assert not any(secret.encode() in path.read_bytes() for secret in SECRETS.values()), path


def test_a_round_that_ends_leaves_the_run_to_the_next_and_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MlflowServer() as server:
        wanted = Tracking(mlflow=MLflow(uri=server.uri))
        stage = training_stage(KEY, make_storage(tmp_path), steps=6, tracking=wanted)
        context = PodContext(stage=stage, storage=tmp_path, pod="pod", experiment="llama2-indonesian")
        training = Training(context, Team(), lambda: training.step == 3, lambda progress: None)
        assert not training.run()
        assert server.runs[0]["statuses"] == ["RUNNING", "SCHEDULED"]
        training = Training(context, Team(), lambda: False, lambda progress: None)

        def refuse(*unused: Any, **named: Any) -> None:
            raise SpecError("cannot work")

        monkeypatch.setattr("transfer_trainer.loop.summed_loss", refuse)
        with pytest.raises(SpecError):
            training.run()
    assert server.runs[0]["statuses"][2:] == ["RUNNING", "FAILED"]
    assert list(server.experiments) == ["llama2-indonesian"]
    assert [step for step, _ in server.curve("training/loss")] == [1, 2, 3]


def test_what_is_trained_while_the_server_is_down_is_told_when_it_is_up(caplog: pytest.LogCaptureFixture) -> None:
    with MlflowServer() as server, caplog.at_level(logging.WARNING):
        server.down = True
        told = tracks(server)
        tell(told, range(1, 50))
        wait_for(lambda: len(server.requests) > 2, what="it is asked again")
        server.down = False
        tell(told, range(50, 60))
        told.close(Ending.COMPLETE)
        assert [step for step, _ in server.curve("training/loss")] == list(range(1, 60))
    assert [record.getMessage() for record in caplog.records] == [
        "MLflow takes no curves (MlflowError: TEMPORARILY_UNAVAILABLE: so it is); training goes on, and it is asked again",
        "MLflow takes the curves again; 0 points were dropped",
    ]


def test_a_slow_server_slows_nothing_and_what_it_did_not_take_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    with MlflowServer(slow_seconds=20) as server, caplog.at_level(logging.WARNING):
        begun = time.monotonic()
        told = tracks(server)
        tell(told, range(1, 1001))
        assert time.monotonic() - begun < 1
        told.close(Ending.LATER)
        assert time.monotonic() - begun < 4
        assert not server.runs
    assert [record.getMessage() for record in caplog.records] == ["1000 points of the curves were not told to MLflow in this round"]


def test_a_full_queue_loses_its_oldest_points(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tracking, "MOST_POINTS", 20)
    with MlflowServer() as server, caplog.at_level(logging.WARNING):
        server.down = True
        told = tracks(server)
        wait_for(lambda: server.requests, what="the server was asked")
        tell(told, range(1, 101))
        server.down = False
        told.close(Ending.COMPLETE)
        assert [step for step, _ in server.curve("training/loss")] == list(range(81, 101))
        caplog.clear()
        tracks(server, [Point(step, {"training/loss": 0.5}) for step in range(75, 103)]).close(Ending.COMPLETE)
        assert [step for step, _ in server.curve("training/loss")] == list(range(81, 103)), "the next round tells what is new"
    assert not caplog.records


def test_a_server_that_is_not_there_or_wants_another_token_is_told_of_once_without_the_token(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    with MlflowServer("Basic YW5hOnMzY3JldA==") as server, MlflowServer("Bearer other") as refusing, MlflowServer() as leading:
        leading.elsewhere = refusing.uri
        with caplog.at_level(logging.WARNING):
            for one in (server, refusing, leading):
                told = tracks(one)
                tell(told, range(1, 3))
                wait_for(lambda one=one: one.requests, what="the server was asked")
                told.close(Ending.LATER)
            asked = len(refusing.requests)
            assert len(server.curve("training/loss")) == 2
    words = [record.getMessage() for record in caplog.records]
    assert [word.partition(";")[0] for word in words if "takes no" in word] == [
        "MLflow takes no curves (MlflowError: UNAUTHENTICATED: so it is)", "MLflow takes no curves (MlflowError: HTTP 302: Found)",
    ]  # fmt: skip
    assert sum("2 points of the curves were not told" in word for word in words) == 2
    assert not any("s3cret" in word or "YW5h" in word for word in words)
    assert len(refusing.requests) == asked, "a redirect is not followed: it would take the token along"


def test_a_client_that_is_not_installed_or_breaks_costs_its_own_curves_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with MlflowServer() as server, caplog.at_level(logging.WARNING):
        trackers = [WandbTracker(WeightsAndBiases(project="tiny"), tmp_path), MlflowTracker(server.uri, "tiny")]
        told = Tracks(RUN, trackers, pause=0.01)
        tell(told, range(1, 5))
        told.close(Ending.COMPLETE)
        assert len(server.curve("training/loss")) == 4
    words = [record.getMessage() for record in caplog.records]
    assert "W&B takes no curves (ModuleNotFoundError: import of wandb halted; None in sys.modules)" in words[0]
    assert words[-1] == "4 points of the curves were not told to W&B in this round"


@pytest.mark.parametrize("content", ["", "{", '{"run": "0123"}', "[]"])
def test_the_name_of_a_run_is_kept_and_one_that_cannot_be_read_made_anew(tmp_path: Path, content: str) -> None:
    if content:
        (tmp_path / "tracking.json").write_text(content)
    name = run_name(tmp_path)
    assert name == run_name(tmp_path)
    assert (name == "0123") is ("0123" in content)


def test_parameters_are_told_by_their_names_in_the_file() -> None:
    parameters = {"learningRate": "1e-3", "lora": {"rank": 4, "targets": ["q_proj"]}, "ema": None, "snapshotTokens": []}
    assert flat(parameters) == {"learningRate": "1e-3", "lora.rank": "4", "lora.targets": '["q_proj"]'}
