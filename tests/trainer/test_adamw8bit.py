"""AdamW with moments of 8 bits: the losses of AdamW to a stated distance, the same through stops, and over several workers."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.documents import PRETRAINING, document
from tests.support.experiment import wait_for
from tests.support.pods import LENGTH, cluster, losses, make_dataset, steady_losses, steps_at, training_stage
from tests.support.tiny import save_tiny_model
from transfer_api.cost import ModelSize, stage_cost
from transfer_api.load import experiment_from
from transfer_api.spec import Optimizer
from transfer_api.stage import StagePlan, plan_stages
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.adamw8bit import BLOCKS, AdamW8bit, block_size
from transfer_trainer.ledger import LEDGER, read_ledger
from transfer_trainer.loop import Training
from transfer_trainer.optimizer import BETAS
from transfer_trainer.parallel import Team

KEY = "a" * 32


@pytest.fixture
def storage(tmp_path: Path) -> tuple[Path, str]:
    save_tiny_model(tmp_path / "model", hidden=64)  # rows of one block of 64 and of 128
    return tmp_path, make_dataset(tmp_path)


def training(folder: Path, stage: StagePlan, asked: Callable[[], bool] = lambda: False) -> Training:
    return Training(PodContext(stage=stage, storage=folder, pod="pod"), Team(), asked, lambda progress: None)


def losses_of(folder: Path, stage: StagePlan) -> list[float]:
    return losses(read_ledger(ArtifactStore(folder).path(stage.kind, stage.key) / LEDGER))


def test_losses_stay_within_a_thousandth_of_those_of_adamw(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    plain = training_stage(KEY, dataset, steps=40)
    small = training_stage("b" * 32, dataset, steps=40, optimizer=Optimizer.ADAMW_8BIT)
    assert training(folder, plain).run()
    run = training(folder, small)
    matrices = [weight for weight in run.model.parameters() if weight.dim() == 2]
    assert len(matrices) == 15
    assert all(run.optimizer.state[weight]["exp_avg"].dtype is torch.uint8 for weight in matrices)
    assert run.run()
    expected, found = losses_of(folder, plain), losses_of(folder, small)
    assert expected[-1] < 0.99 * expected[0], "something is learned"
    assert found != expected
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_that_was_stopped_goes_on_with_the_same_losses(storage: tuple[Path, str], lora: bool) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=9, lora=lora, optimizer=Optimizer.ADAMW_8BIT, embeddings_first="0.3")
    left = itertools.chain([False] * 4, itertools.repeat(True))
    assert not training(folder, stage, lambda: next(left)).run()
    resumed = training(folder, stage)
    assert resumed.step == 4
    kinds = {value.dtype for state in resumed.optimizer.state.values() for value in state.values()}
    assert kinds == {torch.uint8, torch.float32}
    assert resumed.run()
    assert losses_of(folder, stage) == steady_losses(folder, stage)


def test_several_workers_share_the_moments_and_one_goes_on_with_them(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=40, optimizer=Optimizer.ADAMW_8BIT)
    with cluster(folder, stage, max_nodes=3) as group:
        pods = [group.start(index) for index in range(3)]
        wait_for(steps_at(group, 3), what="three workers train")
        pods[0].ask()
        pods[1].ask()
        assert pods[2].wait() == 0
        sizes = {line.world_size for line in group.ledger.lines}
        assert {1, 3} <= sizes
        found = losses(group.ledger)
    assert found == pytest.approx(steady_losses(folder, stage), rel=1e-4)


def test_an_element_beside_a_much_larger_one_takes_no_leap() -> None:
    weights = [nn.Parameter(torch.zeros(1, 64)) for _ in range(2)]
    kind = {"lr": 1e-3, "weight_decay": 0.0}
    small, plain = AdamW8bit([{"params": weights[:1], **kind}], BETAS), torch.optim.AdamW(weights[1:], betas=BETAS, **kind)
    for step in range(20):
        gradient = torch.zeros(1, 64)
        gradient[0, 0] = 1.0
        gradient[0, 1:8] = 10.0 ** -torch.arange(1, 8) * (step == 0)
        for weight in weights:
            weight.grad = gradient.clone()
        small.step()
        plain.step()
    assert weights[0][0, :3].tolist() == pytest.approx(weights[1][0, :3].tolist(), rel=0.1)
    assert bool((weights[0].abs() <= 3 * weights[1].abs()).all()), "with few values near 0, AdamW's own steps up to a factor"
    assert int(weights[0].count_nonzero()) == 8, "what never had a gradient does not move"


def test_what_has_no_rows_of_whole_blocks_is_treated_as_adamw_does() -> None:
    torch.manual_seed(0)
    shapes = [(576,), (3, 16), (5, 100)]
    weights = [[nn.Parameter(torch.full(shape, 0.5)) for shape in shapes] for _ in range(2)]
    kind = {"lr": 1e-2, "weight_decay": 0.1}
    small, plain = AdamW8bit([{"params": weights[0], **kind}], BETAS), torch.optim.AdamW(weights[1], betas=BETAS, **kind)
    for _ in range(5):
        for one, other in zip(*weights, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        small.step()
        plain.step()
    for one, other in zip(*weights, strict=True):
        assert block_size(one) is None
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("width", "size"), [(4096, 256), (576, 64), (896, 128), (64, 64), (32, None), (100, None)])
def test_a_block_is_the_largest_that_divides_a_row(width: int, size: int | None) -> None:
    assert block_size(torch.empty(2, width)) == size
    assert size is None or size in BLOCKS


def test_the_plan_counts_two_bytes_for_the_moments() -> None:
    size = ModelSize.like_llama(1_000_000_000, "declared")

    def bytes_of(**changes: str) -> tuple[int, int]:
        stages = plan_stages(experiment_from(document(pretraining={**PRETRAINING, **changes})).spec)
        cost = stage_cost(next(stage for stage in stages if stage.name == "pretraining"), size, None)
        return cost.state_bytes, cost.work_bytes

    assert bytes_of() == (16_000_000_000, 3 * 12_000_000_000)
    assert bytes_of(optimizer="AdamW8bit") == (10_031_250_000, 3 * 6_031_250_000)


def test_it_is_another_stage_and_the_default_is_in_no_key() -> None:
    def stage(**changes: str) -> StagePlan:
        plan = plan_stages(experiment_from(document(pretraining={**PRETRAINING, **changes})).spec)
        return next(stage for stage in plan if stage.name == "pretraining")

    assert stage(optimizer="AdamW").key == stage().key
    assert "optimizer" not in stage().parameters
    assert stage(optimizer="AdamW8bit").key != stage().key


def test_who_forks_workers_has_not_asked_cuda_for_its_devices() -> None:
    code = "import sys, transfer_trainer.loop, transfer_trainer.worker; sys.exit('bitsandbytes' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_step_of_rows_in_pieces_is_the_step_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found = []
    for piece in (2**24, 3 * LENGTH * 2):
        monkeypatch.setattr("transfer_trainer.adamw8bit.PIECE", piece)
        weight = nn.Parameter(torch.ones(7, 64))
        optimizer = AdamW8bit([{"params": [weight], "lr": 1e-2, "weight_decay": 0.0}], BETAS)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            weight.grad = torch.randn(7, 64, generator=generator)
            optimizer.step()
        found.append(weight.detach().clone())
    assert torch.equal(*found)
    assert math.isfinite(float(found[0].sum()))
