"""What a pod shows while it works."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from transfer_api.errors import SpecError
from transfer_api.progress import Progress
from transfer_pod.server import PodServer, ProgressFile


@pytest.fixture
def file(tmp_path: Path) -> ProgressFile:
    return ProgressFile(tmp_path / "progress.json")


@pytest.fixture
def server(file: ProgressFile) -> Iterator[PodServer]:
    server = PodServer(0, file.read, host="127.0.0.1").start()
    yield server
    server.stop()


def get(server: PodServer, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
        return answer.read().decode()


def test_before_the_first_progress_the_pod_is_healthy_and_starting(server: PodServer) -> None:
    assert get(server, "/healthz") == "ok\n"
    assert json.loads(get(server, "/progress"))["activity"] == "Starting"
    assert list(text_string_to_metric_families(get(server, "/metrics"))) == []


def test_progress_is_served_as_json_and_as_series(server: PodServer, file: ProgressFile) -> None:
    file.write(Progress(stage="pretraining", step=7, total_steps=40, loss=2.5, world_size=2, metrics={"bits_per_byte/udhr": 1.5}))
    assert json.loads(get(server, "/progress"))["step"] == 7
    samples = {
        (sample.name, sample.labels.get("name")): sample.value
        for family in text_string_to_metric_families(get(server, "/metrics"))
        for sample in family.samples
        if sample.labels["stage"] == "pretraining"
    }
    assert samples["transfer_stage_step", None] == 7
    assert samples["transfer_stage_loss", None] == 2.5
    assert samples["transfer_stage_metric", "bits_per_byte/udhr"] == 1.5
    assert ("transfer_stage_gradient_norm", None) not in samples


def test_a_diverged_loss_does_not_break_the_answer(server: PodServer, file: ProgressFile) -> None:
    file.path.write_text('{"loss": NaN, "step": 3}')
    assert json.loads(get(server, "/progress")) == json.loads(get(server, "/progress")) | {"loss": None, "step": 3}


def test_an_unknown_path_is_not_found(server: PodServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server, "/secrets")


def test_a_port_in_use_is_refused_with_its_number(server: PodServer) -> None:
    with pytest.raises(SpecError, match=str(server.port)):
        PodServer(server.port, lambda: None, host="127.0.0.1")
