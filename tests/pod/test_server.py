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
from transfer_pod.series import METRIC, PREFIX, SERIES, table
from transfer_pod.server import PodServer, ProgressFile


@pytest.fixture
def file(tmp_path: Path) -> ProgressFile:
    return ProgressFile(tmp_path / "progress.json")


@pytest.fixture
def server(file: ProgressFile) -> Iterator[PodServer]:
    server = PodServer(0, file.read, host="127.0.0.1", labels={"experiment": "indonesian", "namespace": "team"}).start()
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


def test_every_series_is_documented_typed_and_says_whose_it_is(server: PodServer, file: ProgressFile) -> None:
    everything = {name: 1.0 for name, field in Progress.model_fields.items() if field.annotation in (float, float | None)}
    file.write(Progress(stage="pretraining", checkpoint_step=1, metrics={"bits_per_byte/udhr": 1.5}, **everything))
    families = {family.name: family for family in text_string_to_metric_families(get(server, "/metrics"))}
    wanted = {PREFIX + one.name.removesuffix("_total"): one.kind for one in SERIES} | {PREFIX + METRIC: "gauge"}
    assert {name: family.type for name, family in families.items()} == wanted
    for family in families.values():
        for sample in family.samples:
            assert sample.name.endswith("_total") is (family.type == "counter")
            assert sample.labels.items() >= {"experiment": "indonesian", "namespace": "team", "stage": "pretraining"}.items()
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert table() in page.read_text(), "python -m transfer_pod.series prints the table"


def test_a_counter_never_falls_and_a_gauge_does(server: PodServer, file: ProgressFile) -> None:
    for seconds in (10.0, 9.5):
        file.write(Progress(stage="pretraining", step=int(seconds), productive_seconds=seconds))
        text = get(server, "/metrics")
    labels = 'experiment="indonesian",namespace="team",stage="pretraining"'
    assert f"transfer_stage_productive_seconds_total{{{labels}}} 10.0" in text
    assert f"transfer_stage_step{{{labels}}} 9.0" in text
