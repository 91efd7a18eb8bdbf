"""MFU: the work is what torch counts, the peak is the card's, and where one is unknown nothing is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from tests.support.pods import LENGTH, ROWS_PER_STEP, make_storage, training_stage
from tests.support.tiny import save_tiny_model
from transfer_api.gpu import peak_flops
from transfer_api.progress import Progress
from transfer_api.spec import Lora, Precision
from transfer_cli.display import describe
from transfer_pod.context import PodContext
from transfer_trainer.batch import Batch
from transfer_trainer.loop import Training
from transfer_trainer.lora import add_adapters
from transfer_trainer.mfu import WINDOW_STEPS, Pace, Work, round_peak
from transfer_trainer.model import load_model, summed_loss
from transfer_trainer.parallel import Team


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_work_of_a_step_is_what_torch_counts(tmp_path: Path, lora: bool, tied: bool) -> None:
    model: torch.nn.Module = load_model(save_tiny_model(tmp_path, tied=tied))
    assert isinstance(model, PreTrainedModel)
    model.set_attn_implementation("eager")  # whose matrix products torch counts: of every token with every other
    if lora:
        model = add_adapters(model, Lora(rank=4, targets=["q_proj", "up_proj"], train_embeddings=True), 0)
    work = Work.of(model, 24)
    assert work is not None
    tokens_BT, positions_BT = torch.randint(3, 300, (3, 24)), torch.arange(24).repeat(3, 1)
    targets_BT = positions_BT % 3 > 0
    with FlopCounterMode(display=False) as counter:
        summed_loss(model, tokens_BT, positions_BT, targets_BT, torch.ones(3), chunked=False).objective.backward()  # type: ignore[no-untyped-call]
    # Beside it torch counts the angles of the rotary embedding, 8 FLOPs a token.
    assert work.flops(3 * 24, int(targets_BT[:, 1:].sum()), 3 * 24 * 24) == pytest.approx(counter.get_total_flops(), rel=2e-4)


def test_a_model_of_another_shape_has_no_work(tmp_path: Path) -> None:
    model = load_model(save_tiny_model(tmp_path))
    model.config.sliding_window = 16
    assert Work.of(model, 16) is not None
    assert Work.of(model, 17) is None
    model.config.sliding_window = None
    model.config.model_type = "mixtral"
    assert Work.of(model, 16) is None


def test_a_token_is_paired_with_those_before_it_in_its_document() -> None:
    positions_BT = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 3]])
    batch = Batch(torch.zeros_like(positions_BT), positions_BT, positions_BT > 0, 0)
    assert batch.pairs == (1 + 2 + 3) + 1 + (1 + 2 + 3 + 4)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A100 80GB PCIe", 312e12), ("NVIDIA A10", 125e12), ("NVIDIA A10G", 70e12),
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12), ("NVIDIA H200", 989e12),
        ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("Tesla V100-SXM2-16GB", None), ("NVIDIA GeForce RTX 4090", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("", None),
    ],
)  # fmt: skip
def test_the_peak_is_the_cards_or_unknown(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak


def test_mfu_is_the_work_of_the_last_steps_over_their_time_and_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace = Pace()
    for _ in range(3):
        now += 100
        pace.step(1e12)
    assert (pace.seconds, pace.mfu(1e11)) == (100, 0.1)
    for _ in range(WINDOW_STEPS):
        now += 2
        pace.step(1e12)
    assert (pace.seconds, pace.mfu(1e12), pace.mfu(None)) == (2, 0.5, None)
    now += 50
    pace.begin()
    now += 4
    pace.step(1e12)
    assert (pace.seconds, pace.mfu(1e12)) == (4, 0.25)
    assert "MFU 25%, loss 2.000" in describe(Progress(mfu=pace.mfu(1e12), loss=2.0))


def test_without_gpus_a_run_tells_padding_and_speed_but_no_mfu(tmp_path: Path) -> None:
    stage = training_stage("a" * 32, make_storage(tmp_path), steps=2)
    reports: list[Progress] = []
    training = Training(PodContext(stage=stage, storage=tmp_path, pod="pod"), Team(), lambda: False, reports.append)
    assert training.run()
    assert training.flops is not None
    assert (reports[-1].mfu, reports[-1].padding_ratio) == (None, 0.0)
    assert reports[-1].tokens_per_second > ROWS_PER_STEP * LENGTH / 60
    assert round_peak(Team(), Precision.BFLOAT16) is None
