"""Each worker gets its share of the GPUs that this process may use."""

from __future__ import annotations

import pytest

from transfer_api.errors import SpecError
from transfer_cli.gpus import usable_gpus, worker_share


@pytest.mark.parametrize(
    ("variable", "names"),
    [("", []), ("-1", []), ("0", ["0"]), ("2, 5", ["2", "5"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"]), ("0,-1,1", ["0"])],
)
def test_the_variable_is_read_as_cuda_reads_it(monkeypatch: pytest.MonkeyPatch, variable: str, names: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert usable_gpus() == names


def test_every_gpu_has_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    shares = [worker_share(2, index) for index in range(2)]
    assert shares == [["0", "2", "4"], ["1", "3"]]


def test_without_gpus_any_number_of_workers_shares_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert worker_share(8, 7) == []


def test_more_workers_than_gpus_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(SpecError, match=r"spec\.workers\.replicas"):
        worker_share(2, 0)
