"""Two runs with one storage: a stage that both need is made once."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.support.experiment import wait_for, workplace
from tests.support.warm import Process

pytestmark = pytest.mark.timeout(600)


def test_a_second_run_waits_for_the_stage_that_the_first_makes_and_takes_it(tmp_path: Path) -> None:
    place = workplace(tmp_path, instructionTuning=None, evaluation=None)
    place.spec["pretraining"] |= {"steps": 60, "maxEpochs": 50}
    del place.spec["pretraining"]["validationSteps"]
    first = place.start("--output", str(place.output))
    wait_for(lambda: place.stage("pretraining-dataset").get("state") == "Running", what="the first run makes the dataset")
    making = wait_for(lambda: psutil.Process(first.pid).children(), what="its pod is there")
    for pod in making:
        pod.suspend()  # or it would be done before the second run is there
    second = place.start("--output", str(tmp_path / "second"))
    assert isinstance(second, Process)
    wait_for(lambda: "pretraining-dataset: waits for another run on this storage" in second.said, what="the second run waits")
    for pod in making:
        pod.resume()
    said = second.communicate(timeout=300)[0]
    told = first.communicate(timeout=300)[0]
    assert (first.returncode, second.returncode) == (0, 0), told + said
    assert "pretraining-dataset: already there" in said
    # Whoever comes first makes the next stage; nothing is made by both.
    logs = [log.name for output in ("output", "second") for log in (tmp_path / output / "logs").glob("*-w*.log")]
    assert len(logs) == 2, logs
