"""The artifact of a training stage: a model that plain transformers loads, with LoRA the adapter that peft loads too, ledger, curve.

The weights are written in the base model's own number format (float32 stays float32, bfloat16 stays bfloat16), as every
published descendant of a base model is; training itself was in float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint.state_dict as dcp_state
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from transfer_api.progress import ArtifactReference
from transfer_api.stage import StageKind, StagePlan, TrainingParameters
from transfer_pod.artifact import ArtifactStore, storage_errors, write_atomically
from transfer_trainer.chat import ChatTemplate
from transfer_trainer.fence import Fence
from transfer_trainer.ledger import LEDGER, Summary, read_ledger
from transfer_trainer.lora import add_adapters, merge_adapters, save_adapter
from transfer_trainer.model import load_model

ADAPTER = "adapter"
"""Folder of the artifact beside `model/`."""


def full_weights(model: nn.Module, *, adapters: bool) -> dict[str, Any]:
    """What was trained, whole, in the memory of rank 0 (empty elsewhere); all processes take part."""
    options = dcp_state.StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapters, strict=not adapters)
    return dcp_state.get_model_state_dict(model, options=options)


def export(
    store: ArtifactStore,
    stage: StagePlan,
    base: Path,
    weights: dict[str, Any],
    fence: Fence,
    **numbers: float,
) -> ArtifactReference:
    """Writes and commits the artifact; rank 0 only. The work folder is gone afterwards.

    Args:
        store: where to.
        stage: the plan, for its key and kind.
        base: folder of the model that training started from.
        weights: what `full_weights` gave.
        fence: the round's right to write.
        numbers: figures for the manifest.

    Raises:
        FencedError, Superseded: a newer round, or others, have taken over.
        StorageError: the disk is full or read-only.
    """
    work = store.work(stage.kind, stage.key)
    folder = work / f"artifact.{fence.token}"
    with storage_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_model(store, stage, base, weights, folder / "model", folder / ADAPTER)
        shutil.copyfile(work / LEDGER, folder / LEDGER)
        summary = read_ledger(folder / LEDGER)
        write_atomically(folder / "training.json", json.dumps(curve(summary), indent=1))
        fence.check()
        numbers |= {"lost_steps": summary.lost_steps, "productive_seconds": summary.productive_seconds}
        return store.commit(stage, folder, numbers=numbers)


def write_model(store: ArtifactStore, stage: StagePlan, base: Path, weights: dict[str, Any], folder: Path, adapter: Path | None) -> None:
    """Writes model and tokenizer as plain transformers loads them.

    Args:
        store: with the stage's data set.
        stage: the plan.
        base: folder of the model that training started from.
        weights: what `full_weights` gave.
        folder: where to.
        adapter: where the adapter goes too, if there is one; None for nowhere.
    """
    model = _plain_model(stage, base, weights, adapter)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    if stage.kind is StageKind.INSTRUCTION_TUNING:
        _make_a_chat_model(model, tokenizer, _template(store, stage))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain_model(stage: StagePlan, base: Path, weights: dict[str, Any], adapter: Path | None) -> PreTrainedModel:
    """The base model with the trained weights in it, or with the trained adapters merged, in the base's number format.

    Adapters are written to `adapter` before, in float32.
    """
    parameters = cast(TrainingParameters, stage.typed_parameters())
    model = load_model(base)
    stored = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False).dtype or torch.float32
    if parameters.lora is not None:
        adapted = add_adapters(model, parameters.lora, parameters.seed)
        missing = adapted.load_state_dict(weights, strict=False)
        assert not missing.unexpected_keys, missing.unexpected_keys
        if adapter is not None:
            save_adapter(adapted, adapter, None if "model" in stage.inputs else parameters.model)
        model = merge_adapters(adapted)
    else:
        model.load_state_dict(weights)
    return model.to(stored)


def _template(store: ArtifactStore, stage: StagePlan) -> str:
    """Name of the chat template that the data set was made with."""
    parameters = store.manifest(StageKind.DATASET, stage.inputs["dataset"])["stage"]["parameters"]
    return str(parameters.get("template", "Model"))


def _make_a_chat_model(model: PreTrainedModel, tokenizer: Any, template: str) -> None:
    """Gives the tokenizer the template that the model was tuned with, and has generation stop where its answers end."""
    chat = ChatTemplate(tokenizer, template)
    tokenizer.chat_template = chat.saved
    config = model.generation_config
    assert config is not None, "a causal language model can generate"
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.eos_token_id = list(dict.fromkeys([chat.stop, *(stop for stop in stops if stop is not None)]))


def curve(summary: Summary) -> dict[str, Any]:
    """training.json: the loss and learning rate of each step, and the measurements on held-out texts."""
    return {
        "steps": [
            {
                "step": line.step,
                "tokens": line.tokens,
                "loss": line.loss,
                "learningRate": line.learning_rate,
                "gradientNorm": line.gradient_norm,
                "worldSize": line.world_size,
            }
            for line in summary.lines
        ],
        "validation": [{"step": point["step"], "bitsPerByte": point["bits_per_byte"]} for point in summary.validation],
        "skippedSteps": [line.step for line in summary.skipped],
        "lostSteps": summary.lost_steps,
        "productiveSeconds": summary.productive_seconds,
    }
