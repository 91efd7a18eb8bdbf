"""Who joins: workers that run the same; and how far their clocks are apart, on which nothing depends."""

from __future__ import annotations

import logging
import multiprocessing
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.support.experiment import wait_for
from tests.support.pods import cluster, make_storage, steps_at, training_stage
from transfer_api.errors import ExitCode, VersionMismatch
from transfer_api.stage import StageKind
from transfer_cli.local import free_port
from transfer_trainer.clock import Offset, compare_clocks
from transfer_trainer.parallel import Team
from transfer_trainer.versions import check_versions, versions

OWN = {"torch": "2.15.0", "contract": "2", "code": "abc"}


def test_the_same_versions_may_join() -> None:
    check_versions(OWN, dict(OWN))
    check_versions(versions(StageKind.PRETRAINING), versions(StageKind.PRETRAINING))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"torch": "2.13.0"}, "torch 2.15.0 here and 2.13.0 there"),
        ({"contract": "1"}, "contract 2 here and 1 there"),
        ({"code": "abd", "torch": "2.13.0"}, "code abc here and abd there, torch 2.15.0 here and 2.13.0 there"),
        ({"numpy": "2"}, "numpy none here and 2 there"),
    ],
)
def test_others_are_refused_with_both_versions(change: dict[str, str], says: str) -> None:
    with pytest.raises(VersionMismatch, match=says) as raised:
        check_versions(OWN | change, OWN)
    assert raised.value.exit_code == ExitCode.SUPERSEDED
    assert raised.value.next_step


def test_a_worker_of_another_version_is_refused_and_the_others_train_on(tmp_path: Path) -> None:
    """The other version is a real one: the same code with one more line, on the path of that worker alone."""
    dataset = make_storage(tmp_path)
    with cluster(tmp_path, training_stage("a" * 32, dataset, steps=300, checkpoint_steps=1000), max_nodes=2) as group:
        first = group.start(0)
        wait_for(steps_at(group, 1), what="one trains")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(other_code(tmp_path / "code")))
            second = group.start(1, imported=False)
        assert second.wait() == 78
        assert second.message is not None
        assert second.message.reason == "VersionMismatch"
        own, other = versions(StageKind.PRETRAINING)["code"], second.message.message
        assert f" here and {own} there" in other
        assert first.wait() == 0
        assert {line.world_size for line in group.ledger.lines} == {1}
        assert {line.round for line in group.ledger.lines} == {0}, "it did not even notice"


def other_code(folder: Path) -> Path:
    """A copy of the trainer's package with another line in it, for PYTHONPATH."""
    import shutil

    import transfer_trainer

    origin = Path(transfer_trainer.__file__).parent
    shutil.copytree(origin, folder / "transfer_trainer", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "transfer_trainer" / "process.py").open("a") as file:
        file.write("\n# Another version.\n")
    return folder


@pytest.mark.parametrize(
    ("before", "told", "after", "seconds", "uncertainty", "large"),
    [
        pytest.param(10.0, 10.1, 10.2, 0.0, 0.1, False, id="the same"),
        pytest.param(15.0, 10.0, 15.2, 5.1, 0.1, True, id="ahead"),
        pytest.param(5.0, 10.0, 5.2, -4.9, 0.1, True, id="behind"),
        pytest.param(10.0, 11.0, 16.0, 2.0, 3.0, False, id="too slow an answer to tell"),
        pytest.param(10.75, 10.0, 11.75, 1.25, 0.5, False, id="perhaps below the bound"),
    ],
)
def test_an_offset_lies_between_two_readings(
    before: float, told: float, after: float, seconds: float, uncertainty: float, large: bool
) -> None:
    offset = Offset.between(before, told, after)
    assert (offset.seconds, offset.uncertainty, offset.large) == (pytest.approx(seconds), pytest.approx(uncertainty), large)


def _process(rank: int, port: int, ahead: float, answers: multiprocessing.Queue[tuple[int, list[Offset], list[str]]]) -> None:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transfer_trainer.clock").addHandler(handler)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=120))
    answers.put((rank, compare_clocks(Team(rank=rank, world_size=2), lambda: time.time() + ahead * rank), told))
    dist.destroy_process_group()


def test_a_clock_that_is_ahead_is_told_by_its_pod_and_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    start = multiprocessing.get_context("fork")
    answers, port = start.Queue(), free_port()
    processes = [start.Process(target=_process, args=(rank, port, 30.0, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = {rank: (offsets, told) for rank, offsets, told in (answers.get(timeout=200) for _ in processes)}
    for process in processes:
        process.join()
    assert found[0][0] == found[1][0], "both know both"
    (zero, one) = found[0][0]
    assert zero == Offset(0.0, 0.0)
    assert abs(one.seconds - 30.0) <= one.uncertainty + 1e-3
    assert found[0][1] == found[1][1]
    assert "the clock of process 1 is 3" in found[0][1][0]
    assert "ahead of that of process 0" in found[0][1][0]
