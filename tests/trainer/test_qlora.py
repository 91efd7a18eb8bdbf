"""QLoRA: base weights in 4 bits that stay as they are, the losses of LoRA to a stated distance, a model in full precision at the end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from tests.support.documents import PRETRAINING, document
from tests.support.pods import cluster, losses, make_dataset, steady_losses, training_stage
from tests.support.tiny import save_tiny_model
from transfer_api.cost import ModelSize, stage_cost
from transfer_api.errors import ExitCode, ModelError
from transfer_api.load import experiment_from
from transfer_api.spec import Lora, Method, Optimizer, Precision
from transfer_api.stage import StagePlan, plan_stages
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.bits import functional
from transfer_trainer.ledger import LEDGER, read_ledger
from transfer_trainer.loop import Training
from transfer_trainer.lora import add_adapters
from transfer_trainer.mfu import Work
from transfer_trainer.model import arithmetic, load_model
from transfer_trainer.nf4 import Linear4bit, load_quantized
from transfer_trainer.parallel import Team

KEY = "a" * 32
CPU = torch.device("cpu")


@pytest.fixture
def storage(tmp_path: Path) -> tuple[Path, str]:
    save_tiny_model(tmp_path / "model", hidden=64)
    return tmp_path, make_dataset(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), hidden=64, tied=False)


def qlora(key: str, dataset: str, *, steps: int, targets: list[str] | None = None, **changes: Any) -> StagePlan:
    stage = training_stage(key, dataset, steps=steps, lora=True, method=Method.QLORA, **changes)
    if targets is None:
        return stage
    adapters = Lora(rank=4, alpha=8, targets=targets).model_dump(by_alias=True)
    return stage.model_copy(update={"parameters": {**stage.parameters, "lora": adapters}})


def training(folder: Path, stage: StagePlan, asked: Callable[[], bool] = lambda: False) -> Training:
    return Training(PodContext(stage=stage, storage=folder, pod="pod"), Team(), asked, lambda progress: None)


def losses_of(folder: Path, stage: StagePlan) -> list[float]:
    return losses(read_ledger(ArtifactStore(folder).path(stage.kind, stage.key) / LEDGER))


def layers_of(model: nn.Module) -> dict[str, Linear4bit]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def dense(layer: Linear4bit) -> torch.Tensor:
    weight: torch.Tensor = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight


def test_losses_stay_within_two_hundredths_of_those_of_lora_and_the_weights_stay(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    plain, small = training_stage(KEY, dataset, steps=40, lora=True), qlora("b" * 32, dataset, steps=40)
    assert training(folder, plain).run()
    run = training(folder, small)
    before = {name: layer.weight.data.clone() for name, layer in layers_of(run.model).items()}
    assert len(before) == 14
    assert run.run()
    assert all(torch.equal(layer.weight.data, before[name]) for name, layer in layers_of(run.model).items())
    expected, found = losses_of(folder, plain), losses_of(folder, small)
    assert expected[-1] < 0.97 * expected[0], "something is learned"
    assert found != expected
    assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_a_run_that_was_stopped_goes_on_with_the_same_losses(storage: tuple[Path, str], optimizer: Optimizer) -> None:
    folder, dataset = storage
    stage = qlora(KEY, dataset, steps=9, optimizer=optimizer)
    left = itertools.chain([False] * 4, itertools.repeat(True))
    assert not training(folder, stage, lambda: next(left)).run()
    work = ArtifactStore(folder).work(stage.kind, stage.key)
    kept = FileSystemReader(work / "checkpoints" / "step-00000004").read_metadata().state_dict_metadata
    assert [name for name in kept if "_proj" in name and "lora_" not in name] == [], "no weight of a linear layer, nor its scales"
    resumed = training(folder, stage)
    assert resumed.step == 4
    assert resumed.run()
    assert losses_of(folder, stage) == steady_losses(folder, stage)


def test_the_export_is_the_base_model_in_full_precision_with_the_adapters_merged(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    stage = qlora(KEY, dataset, steps=5, targets=["q_proj"])
    assert training(folder, stage).run()
    artifact = ArtifactStore(folder).path(stage.kind, stage.key)
    assert "quantization_config" not in json.loads((artifact / "model" / "config.json").read_text())
    base, model = load_model(folder / "model"), AutoModelForCausalLM.from_pretrained(artifact / "model")
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, base.state_dict()[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)}
    adapted = PeftModel.from_pretrained(load_model(folder / "model"), artifact / "adapter")
    tokens = torch.arange(3, 40)[None]
    torch.testing.assert_close(adapted(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_layer_is_a_linear_layer_of_the_rounded_weights_also_after_a_pass_without_gradients(folder: Path, precision: Precision) -> None:
    layer = layers_of(load_quantized(folder, CPU))["model.layers.0.mlp.up_proj"]
    plain = nn.Linear(64, 128, bias=False)
    plain.weight = nn.Parameter(dense(layer), requires_grad=False)
    states = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), arithmetic(precision, CPU):
        layer(states)
    found = []
    for module in (layer, plain):
        given = states.clone().requires_grad_()
        with arithmetic(precision, CPU):
            result = module(given)
        (result.float() ** 2).sum().backward()  # type: ignore[no-untyped-call]
        assert given.grad is not None
        found.append((result, given.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][0].dtype is found[1][0].dtype
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-6)


def test_the_linear_layers_are_near_what_they_were_and_all_else_is_what_it_was(folder: Path) -> None:
    model, base = load_quantized(folder, CPU), load_model(folder)
    weights = dict(base.named_parameters())
    layers = layers_of(model)
    for name, layer in layers.items():
        weight = weights.pop(f"{name}.weight")
        assert (dense(layer) - weight).norm() < 0.11 * weight.norm()
    rest = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= rest.keys()
    assert rest.keys() == weights.keys()
    assert all(torch.equal(weight, rest[name]) for name, weight in weights.items())


def test_layers_that_take_no_adapters_are_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.support.tiny import tiny_tokenizer

    tokenizer: Any = tiny_tokenizer()
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="of a kind of its own"):
        load_quantized(tmp_path, CPU)


def test_two_processes_are_refused(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    with cluster(folder, qlora(KEY, dataset, steps=3), max_nodes=1) as group:
        pod = group.start(0, processes=2)
        assert pod.wait() == ExitCode.CANNOT_WORK
        assert pod.message is not None
        assert "spec.pretraining.method" in pod.message.message
        assert "workers.replicas: 1" in pod.message.message


def test_the_work_of_a_step_is_counted_as_that_of_lora(folder: Path) -> None:
    lora = Lora(rank=4)
    expected = Work.of(add_adapters(load_model(folder), lora, 0), 32)
    assert expected is not None
    assert Work.of(add_adapters(load_quantized(folder, CPU), lora, 0), 32) == expected


def test_the_plan_counts_the_bytes_that_the_weights_take(tmp_path: Path) -> None:
    # Of a size at which the tables of a layer (16 and 256 values, twice) count for little.
    folder = save_tiny_model(tmp_path, hidden=512)
    base, model = load_model(folder), load_quantized(folder, CPU)
    config = json.loads((folder / "config.json").read_text())
    size = ModelSize.from_config(sum(weight.numel() for weight in base.parameters()), "counted", config)
    assert size.linear == sum(layer.in_features * layer.out_features for layer in layers_of(model).values())
    taken = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    for layer in layers_of(model).values():
        state = layer.weight.quant_state
        taken += sum(part.numel() * part.element_size() for part in (state.absmax, state.state2.absmax))

    def state_bytes(method: str) -> int:
        lora = {"rank": 1, "targets": ["q_proj"]}
        plan = plan_stages(experiment_from(document(pretraining={**PRETRAINING, "method": method, "lora": lora})).spec)
        return stage_cost(next(stage for stage in plan if stage.name == "pretraining"), size, None).state_bytes

    adapters = state_bytes("LoRA") - 4 * size.parameters
    assert state_bytes("QLoRA") - adapters == pytest.approx(taken, rel=1e-3)
    assert state_bytes("QLoRA") < state_bytes("LoRA") / 4
