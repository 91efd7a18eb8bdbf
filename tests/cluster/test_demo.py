"""The examples' own experiment, with the real model and texts: the cluster gives the scores of `transfer run`.

Both compute in float32, with as many processes, so that only what the cluster does differently could make a difference. The short form
(a few steps and items of every stage) runs always; the whole of it is `slow`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hack.shorten import shorten
from tests.support.testbed import ROOT, TRIAL, Testbed
from tests.support.trial import Trial
from transfer_api.progress import Score, judged_as_english

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def trial(bed: Testbed) -> Iterator[Trial]:
    """A namespace with the inputs of the examples."""
    trial = DemoTrial(bed).open()
    yield trial
    trial.close()


class DemoTrial(Trial):
    """A trial whose storage holds the inputs of the examples instead of a tiny model, as hack/cluster/storage puts them there."""

    def open(self) -> DemoTrial:
        subprocess.run([str(ROOT / "hack/cluster/storage"), self.name, "--inputs"], check=True, capture_output=True)
        self.kube.ask("PATCH", f"/api/v1/namespaces/{self.name}", {"metadata": {"labels": {TRIAL: "true"}}}, "application/merge-patch+json")
        return self


def inputs() -> Path:
    """What `make inputs` has made."""
    made = Path(os.environ.get("TRANSFER_CACHE", Path.home() / ".cache/transfer-operator")) / "inputs"
    assert (made / "NOTICE").exists(), "the inputs of the examples are not there: run `make inputs`"
    return made


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["short", "whole"])
def test_the_demo_scores_on_the_cluster_as_on_one_machine(trial: Trial, tmp_path: Path, short: bool) -> None:
    document = yaml.safe_load((ROOT / "examples/indonesian.yaml").read_text())
    document = shorten(document) if short else document
    for training in ("pretraining", "instructionTuning"):
        document["spec"][training]["precision"] = "Float32"
    document["metadata"]["namespace"] = trial.name
    name = document["metadata"]["name"]

    trial.apply(document)
    status = trial.ends("Complete", name, seconds=3000)

    file, output, storage = tmp_path / "demo.yaml", tmp_path / "output", ROOT / "runs/.storage"
    if not (storage / "models").exists():  # else what `make demo` or `make demo-short` has made of the same stages need not be made again
        storage = tmp_path / "storage"
        storage.mkdir()
        for part in ("models", "texts", "instructions", "tasks"):
            (storage / part).symlink_to(inputs() / part)
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "transfer_cli.main", "run", str(file), "--storage", str(storage), "--output", str(output)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=3000, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert run.returncode == 0, run.stdout + run.stderr

    local = json.loads((output / "results.json").read_text())["scores"]
    cluster = json.loads((trial.storage / status["results"]["artifact"]["path"] / "results.json").read_text())["scores"]
    assert [(score["task"], score["metric"]) for score in cluster] == [(score["task"], score["metric"]) for score in local]
    for here, there in zip(local, cluster, strict=True):
        for number in ("value", "baseline"):
            assert there[number] == pytest.approx(here[number], rel=1e-4), (here["task"], here["metric"], number)
    told = {(score["task"], score["metric"]): float(score["value"]) for score in status["results"]["scores"]}
    # As many as fit into a pod's message: the first and those of English, then the others from the beginning.
    order = sorted(range(len(cluster)), key=lambda place: place > 0 and not judged_as_english(Score.model_validate(cluster[place])))
    kept = [cluster[place] for place in order[: len(told)]]
    assert told == {(score["task"], score["metric"]): pytest.approx(score["value"], rel=1e-4) for score in kept}
