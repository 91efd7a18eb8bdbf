"""Products of 8-bit floats are those of rounded matrices, and training with them is training in bfloat16 but for that rounding."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from tests.support.pods import losses, make_dataset, training_stage
from tests.support.tiny import save_tiny_model
from tests.trainer.test_activations import backward
from transfer_api.errors import ExitCode, SpecError
from transfer_api.spec import Compilation, Float8, Lora, Precision
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer import compilation, float8
from transfer_trainer.activations import checkpoint_activations
from transfer_trainer.compilation import compile_layers
from transfer_trainer.float8 import TYPE, Float8Linear, multiply, rounded, unable, use_float8
from transfer_trainer.ledger import LEDGER, read_ledger
from transfer_trainer.loop import Training
from transfer_trainer.lora import add_adapters
from transfer_trainer.model import load_model
from transfer_trainer.parallel import Team, decoder_layers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), hidden=64)


def close(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], agree: float) -> None:
    """Whether gradients are the same up to this share of their norm."""
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        off = float((gradient - expected[name]).norm() / expected[name].norm().clamp_min(1e-12))
        assert off < agree, f"{name}: {off}"


def test_rows_are_rounded_by_a_scale_that_is_a_power_of_two_and_the_largest_element_fits() -> None:
    torch.manual_seed(0)
    matrix_RK = torch.randn(40, 64) * torch.logspace(-6, 6, 40)[:, None]
    matrix_RK[7] = 0
    in_8_bits, scale_R1 = rounded(matrix_RK)
    assert torch.equal(torch.exp2(torch.log2(scale_R1).round()), scale_R1)
    again = in_8_bits.float() * scale_R1
    assert torch.isfinite(again).all()
    largest = matrix_RK.abs().amax(dim=1, keepdim=True)
    assert float(((again - matrix_RK).abs() / largest.clamp_min(1e-30)).max()) <= 2**-4, "3 bits of mantissa"
    assert not again[7].any()
    assert int((in_8_bits.float().abs().amax(dim=1) > torch.finfo(TYPE).max / 2.001).sum()) >= 39, "no bit of the range is left unused"


def test_a_product_is_that_of_the_rounded_matrices() -> None:
    torch.manual_seed(0)
    left_SK, right_RK = torch.randn(21, 64), torch.randn(32, 64)
    (left, of_left), (right, of_right) = rounded(left_SK), rounded(right_RK)
    expected = (left.float() * of_left) @ (right.float() * of_right).t()
    torch.testing.assert_close(multiply(left_SK, right_RK).float(), expected, rtol=4e-3, atol=1e-2)
    assert unable(CPU) is None


@pytest.mark.parametrize("lora", [False, True], ids=["full", "adapters"])
def test_gradients_point_where_those_of_bfloat16_do_and_names_stay(folder: Path, lora: bool) -> None:
    def model(*, eight: bool) -> Any:
        found = load_model(folder)
        if eight:
            use_float8(found, CPU, "spec.pretraining")
        return add_adapters(found, Lora(rank=16, targets=["q_proj", "up_proj"], train_embeddings=True), 0) if lora else found

    plain, eight = model(eight=False), model(eight=True)
    assert eight.state_dict().keys() == plain.state_dict().keys()
    layers = [module for module in eight.modules() if isinstance(module, Float8Linear)]
    assert len(layers) == 2 * 7, "every linear layer of the decoder, no adapter and not the head"
    _, expected = backward(plain, Precision.BFLOAT16)
    _, gradients = backward(eight, Precision.BFLOAT16)
    assert gradients.keys() == expected.keys()
    both = [torch.cat([found[name].flatten() for name in expected]) for found in (gradients, expected)]
    assert 0.97 < float(torch.cosine_similarity(*both, dim=0)) < 0.9999, "3 bits of mantissa turn them by ten degrees"
    assert any(not torch.equal(gradient, expected[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("rounds", [True, False], ids=["of the same rounded matrices", "of matrices that are not rounded"])
def test_gradients_are_those_of_plain_products(folder: Path, monkeypatch: pytest.MonkeyPatch, rounds: bool) -> None:
    def plainly(left_SK: torch.Tensor, right_RK: torch.Tensor) -> torch.Tensor:
        if not rounds:
            return left_SK.to(torch.bfloat16) @ right_RK.to(torch.bfloat16).t()
        (left, of_left), (right, of_right) = rounded(left_SK), rounded(right_RK)
        return ((left.float() * of_left) @ (right.float() * of_right).t()).to(torch.bfloat16)

    eight, other = load_model(folder), load_model(folder)
    use_float8(eight, CPU, "spec.pretraining")
    if rounds:
        use_float8(other, CPU, "spec.pretraining")
        _, gradients = backward(eight, Precision.BFLOAT16)
    monkeypatch.setattr(float8, "multiply", plainly)
    _, expected = backward(other, Precision.BFLOAT16)
    if not rounds:  # then it is bfloat16 itself
        _, gradients = backward(eight, Precision.BFLOAT16)
    close(gradients, expected, 0.02)


@pytest.mark.usefixtures("group")
def test_layers_that_are_sharded_compiled_and_computed_again_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    monkeypatch.setattr(compilation, "check_toolchain", lambda section, gpu: None)
    torch.compiler.reset()
    plain, other = load_model(folder), load_model(folder)
    for model in (plain, other):
        use_float8(model, CPU, "spec.pretraining")
    checkpoint_activations(other, 2)
    compile_layers(other, CPU, "spec.pretraining")
    for layer in decoder_layers(other):
        fully_shard(layer)
    fully_shard(other)
    _, expected = backward(plain, Precision.BFLOAT16)
    _, gradients = backward(other, Precision.BFLOAT16)
    close(gradients, expected, 1e-6)


def test_a_run_has_the_losses_of_bfloat16_within_half_a_percent(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", hidden=64)
    dataset, found = make_dataset(tmp_path), []
    for key, eight in (("a" * 32, Float8.NONE), ("b" * 32, Float8.ROWWISE)):
        stage = training_stage(key, dataset, steps=20, precision=Precision.BFLOAT16, float8=eight)
        assert Training(PodContext(stage=stage, storage=tmp_path, pod="pod"), Team(), lambda: False, lambda progress: None).run()
        found.append(losses(read_ledger(ArtifactStore(tmp_path).open(stage.kind, key) / LEDGER)))
    plain, eight_bits = found
    assert eight_bits == pytest.approx(plain, rel=5e-3)
    assert eight_bits != plain


@pytest.mark.parametrize(
    ("capability", "says"),
    [
        pytest.param((8, 0), "A100 has compute capability 8.0 and no such products", id="too old"),
        pytest.param(None, "torch does not multiply them (Multiplication of two Float8", id="no kernel"),
    ],
)
def test_a_device_without_such_products_is_refused_with_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, says: str
) -> None:
    device = CPU
    if capability is not None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
        device = torch.device("cuda")

    def refuse(*unused: Any, **named: Any) -> None:
        raise RuntimeError("Multiplication of two Float8_e4m3fn matrices is not for this device\nException raised from …")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    with pytest.raises(SpecError, match=r"spec\.pretraining\.float8: cannot be had here") as caught:
        use_float8(load_model(folder), device, "spec.pretraining")
    assert says in str(caught.value)
    assert caught.value.exit_code is ExitCode.CANNOT_WORK


def test_products_that_are_wrong_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "multiply", lambda left, right: 1.05 * left @ right.t())
    assert "off by" in (unable(CPU) or "")


def test_matrices_that_do_not_fit_stay_and_a_model_of_them_alone_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    class Layer(nn.Module):
        def __init__(self, *sides: tuple[int, int]) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({str(number): nn.Linear(*side) for number, side in enumerate(sides)})

    with caplog.at_level(logging.INFO):
        use_float8(nn.ModuleList([Layer((16, 32), (24, 32)), Layer((16, 32), (24, 32))]), CPU, "spec.pretraining")
    assert "2 of 4 linear layers multiply 8-bit floats, emulated" in caplog.text
    with pytest.raises(SpecError, match="fits none of the model's 2 linear layers"):
        use_float8(nn.ModuleList([Layer((24, 32)), Layer((24, 32))]), CPU, "spec.pretraining")


def test_compilation_and_8_bit_floats_are_off_unless_asked_for() -> None:
    stage = training_stage("a" * 32, "d" * 32, steps=1)
    assert stage.execution.compile is Compilation.NONE
    assert "float8" not in stage.parameters, "keys of runs without it stay as they were"
