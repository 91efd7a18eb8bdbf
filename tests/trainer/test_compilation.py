"""Compiled layers train as plain ones do: the same gradients, losses and names, whatever else is done to the model.

Cases compile to operators of torch (backend `aot_eager`): all of Dynamo and autograd, and no C++, which takes a minute a graph here. With
EXHAUSTIVE=1 one compiles real code, where there is a compiler.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.distributed.fsdp import fully_shard

from tests.support.pods import losses, make_storage, training_stage
from tests.support.tiny import save_tiny_model
from tests.trainer.test_activations import backward
from transfer_api.errors import ExitCode, SpecError
from transfer_api.spec import ActivationCheckpointing, Compilation, Lora, NamedText, Precision
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_pod.toolchain import check_toolchain
from transfer_trainer import compilation
from transfer_trainer.activations import checkpoint_activations
from transfer_trainer.compilation import compile_layers
from transfer_trainer.ledger import LEDGER, read_ledger
from transfer_trainer.loop import Training
from transfer_trainer.lora import add_adapters
from transfer_trainer.model import load_model
from transfer_trainer.parallel import Team, decoder_layers
from transfer_trainer.straggler import ComputeTimer

CPU = torch.device("cpu")
BACKENDS = ["aot_eager", *(["inductor"] if os.environ.get("EXHAUSTIVE") and shutil.which("g++") else [])]
LAYERS = 12


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    monkeypatch.setattr(compilation, "check_toolchain", lambda section, gpu: None)
    torch.compiler.reset()
    counters.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), layers=LAYERS)


@pytest.mark.parametrize(
    ("precision", "lora", "again"),
    [
        pytest.param(Precision.FLOAT32, False, 0, id="plain"),
        pytest.param(Precision.BFLOAT16, True, 5, id="adapters, in bfloat16, some layers computed again"),
    ],
)
def test_all_layers_share_a_graph_and_gradients_are_those_of_the_plain_path(
    folder: Path, precision: Precision, lora: bool, again: int
) -> None:
    def model() -> Any:
        plain = load_model(folder)
        return add_adapters(plain, Lora(rank=4, targets=["q_proj", "up_proj"]), 0) if lora else plain

    plain, compiled = model(), model()
    checkpoint_activations(compiled, again)
    compile_layers(compiled, CPU, "spec.pretraining")
    _, expected = backward(plain, precision)
    _, gradients = backward(compiled, precision)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert 0 < counters["stats"]["unique_graphs"] <= 3 < LAYERS
    assert not counters["recompile_limit"]


@pytest.mark.usefixtures("group")
def test_a_sharded_model_is_compiled_between_its_hooks(folder: Path) -> None:
    model = load_model(folder)
    checkpoint_activations(model, 4)
    compile_layers(model, CPU, "spec.pretraining")
    for layer in decoder_layers(model):
        fully_shard(layer)
    fully_shard(model)
    timer = ComputeTimer(decoder_layers(model), CPU)
    _, expected = backward(load_model(folder))
    _, gradients = backward(model)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-7)
    assert not counters["graph_break"]
    assert timer.take() > 0


def run(folder: Path, dataset: str, key: str, compiled: Compilation, until: int | None = None, **changes: Any) -> list[float]:
    """Losses of a small run, up to a step after which all is saved."""
    stage = training_stage(key, dataset, steps=6, compile=compiled, **changes)
    context = PodContext(stage=stage, storage=folder, pod="pod")
    training = Training(context, Team(), lambda: training.step == until, lambda progress: None)
    assert training.run() is (until is None)
    store = ArtifactStore(folder)
    return losses(read_ledger((store.work(stage.kind, key) if until else store.open(stage.kind, key)) / LEDGER))


def test_a_run_that_is_compiled_then_plain_then_compiled_has_the_losses_of_the_plain_one(tmp_path: Path) -> None:
    (tmp_path / "held-out.txt").write_text("saya makan nasi\n\nkamu minum air\n")
    dataset = make_storage(tmp_path)
    texts = {"validation_steps": 2, "validation_texts": [NamedText(name="held-out", path="held-out.txt", language="id")]}
    expected = run(tmp_path, dataset, "a" * 32, Compilation.NONE)
    run(tmp_path, dataset, "b" * 32, Compilation.LAYERS, until=2, **texts)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs <= 3, "rows of a pass, of the last one, and none for the held-out texts"
    run(tmp_path, dataset, "b" * 32, Compilation.NONE, until=4, **texts)
    assert counters["stats"]["unique_graphs"] == graphs
    found = run(tmp_path, dataset, "b" * 32, Compilation.LAYERS, **texts)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("precision", "agree"), [(Precision.FLOAT32, 1e-6), (Precision.BFLOAT16, 2e-3)])
def test_compiled_code_has_the_losses_of_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, precision: Precision, agree: float
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", backend)
    dataset = make_storage(tmp_path)
    how = {"precision": precision, "activation_checkpointing": ActivationCheckpointing.ALWAYS}
    expected = run(tmp_path, dataset, "a" * 32, Compilation.NONE, **how)
    found = run(tmp_path, dataset, "b" * 32, Compilation.LAYERS, **how)
    assert found == pytest.approx(expected, rel=agree)


@pytest.fixture
def compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has all that is needed, whatever this one has."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    for name in ("gcc", "g++"):
        (tmp_path / name).touch(mode=0o755)


@pytest.mark.parametrize(
    ("gpu", "says"), [(False, "needs a C++ compiler, and there is none"), (True, "needs a C compiler, and there is none")]
)
@pytest.mark.usefixtures("compilers")
def test_without_a_compiler_it_is_refused_with_the_field_and_the_way_out(monkeypatch: pytest.MonkeyPatch, gpu: bool, says: str) -> None:
    check_toolchain("spec.pretraining", gpu=gpu)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SpecError, match=r"spec\.pretraining\.compile: ") as caught:
        check_toolchain("spec.pretraining", gpu=gpu)
    assert says in str(caught.value)
    assert "apt-get install g++ python3-dev" in str(caught.value)
    assert caught.value.exit_code is ExitCode.CANNOT_WORK


@pytest.mark.usefixtures("compilers")
def test_without_pythons_headers_no_layer_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "check_toolchain", check_toolchain)
    (tmp_path / "Python.h").unlink()
    with pytest.raises(SpecError, match="needs the headers of Python"):
        compile_layers(torch.nn.Linear(1, 1), CPU, "spec.pretraining")
