"""Activation checkpointing: less is kept, and everything that is computed is the same."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.support.pods import losses, make_storage, training_stage
from tests.support.tiny import save_tiny_model
from transfer_api.spec import ActivationCheckpointing, Lora, Precision
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer import activations
from transfer_trainer.activations import checkpoint_activations, checkpointed_layers
from transfer_trainer.ledger import LEDGER, read_ledger
from transfer_trainer.loop import Training
from transfer_trainer.lora import add_adapters
from transfer_trainer.model import arithmetic, load_model, summed_loss
from transfer_trainer.parallel import Team, decoder_layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), layers=6)


def backward(model: nn.Module, precision: Precision = Precision.FLOAT32) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that autograd keeps for packed rows, and the gradients by name."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(0)
    tokens_BT, positions_BT = torch.randint(3, 300, (3, 48)), torch.arange(48).repeat(3, 1)
    for row, cut in enumerate((0, 7, 30)):
        positions_BT[row, cut:] = torch.arange(48 - cut)
    with arithmetic(precision, torch.device("cpu")), saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = summed_loss(model, tokens_BT, positions_BT, positions_BT > 0, torch.ones(3), 1e-3)
    loss.objective.backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return sum(kept.values()), {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in gradients.items()}


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_gradients_are_those_of_the_plain_path_and_less_is_kept(folder: Path, lora: bool, precision: Precision) -> None:
    def model() -> Any:
        plain = load_model(folder)
        return add_adapters(plain, Lora(rank=4, targets=["q_proj", "up_proj"]), 0) if lora else plain

    again = model()
    checkpoint_activations(again, 6)
    before, expected = backward(model(), precision)
    after, gradients = backward(again, precision)
    assert gradients.keys() == expected.keys()
    assert len(gradients) > 6, "every layer has some"
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name
    assert after < before / 4


@pytest.mark.usefixtures("group")
def test_gradients_of_a_sharded_model_are_the_same_too(folder: Path) -> None:
    model = load_model(folder)
    checkpoint_activations(model, 4)
    for layer in decoder_layers(model):
        fully_shard(layer)
    fully_shard(model)
    _, expected = backward(load_model(folder))
    _, gradients = backward(model)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-7)


def test_a_run_has_the_same_losses_with_and_without(tmp_path: Path) -> None:
    dataset, found = make_storage(tmp_path), []
    for key, wanted in (("a" * 32, ActivationCheckpointing.NEVER), ("b" * 32, ActivationCheckpointing.ALWAYS)):
        stage = training_stage(key, dataset, steps=4, activation_checkpointing=wanted)
        assert Training(PodContext(stage=stage, storage=tmp_path, pod="pod"), Team(), lambda: False, lambda progress: None).run()
        found.append(losses(read_ledger(ArtifactStore(tmp_path).open(stage.kind, key) / LEDGER)))
    assert found[0] == found[1]


def peak(model: nn.Module) -> int:
    """Most bytes that one pass has in memory at once, as torch's tracker counts storages."""
    tracker = MemTracker()
    with tracker:
        backward(model)
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def test_each_layer_that_is_computed_again_lowers_the_measured_peak_and_changes_no_gradient(folder: Path) -> None:
    _, expected = backward(load_model(folder))
    peaks = []
    for layers in (0, 2, 4, 5):
        model = load_model(folder)
        checkpoint_activations(model, layers)
        _, gradients = backward(model)
        assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients.items())
        model.zero_grad(set_to_none=True)
        peaks.append(peak(model))
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


def test_auto_decides_by_the_memory_that_a_process_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = PodContext(stage=training_stage("a" * 32, make_storage(tmp_path), steps=1), storage=tmp_path, pod="pod")
    assert checkpointed_layers(context, Team(), 2, 64) == 0
    # 28,832 parameters of 16 bytes, and 6,912 bytes for each of 64 tokens: 0.9 MB (tests/trainer/test_oom.py).
    monkeypatch.setattr(activations, "memory_limit", lambda: 1_800_000)
    assert checkpointed_layers(context, Team(), 2, 64) == 0
    assert checkpointed_layers(context, Team(local_world_size=2), 2, 64) == 1, "two processes of a pod share its memory"
    assert checkpointed_layers(context, Team(local_world_size=8), 2, 64) == 2, "where nothing is enough, all"


def test_a_run_has_the_losses_of_the_plain_path_with_what_auto_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, found, counts = make_storage(tmp_path), [], []
    for key, available in (("a" * 32, 2**40), ("b" * 32, 950_000)):
        monkeypatch.setattr(activations, "memory_limit", lambda available=available: available)
        stage = training_stage(key, dataset, steps=3)
        training = Training(PodContext(stage=stage, storage=tmp_path, pod="pod"), Team(), lambda: False, lambda progress: None)
        assert training.run()
        counts.append(sum(isinstance(layer.forward, functools.partial) for layer in decoder_layers(training.model)))
        found.append(losses(read_ledger(ArtifactStore(tmp_path).open(stage.kind, key) / LEDGER)))
    assert counts == [0, 1]
    assert found[0] == found[1]
