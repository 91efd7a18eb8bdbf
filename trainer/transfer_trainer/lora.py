"""Low-rank adapters (arXiv 2106.09685) by peft: put on the model that training starts from, merged into plain weights at export."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from transfer_api.errors import SpecError
from transfer_api.spec import Lora, Method, ModelSource
from transfer_pod.model import check_lora
from transfer_trainer.model import is_tied, load_model
from transfer_trainer.parallel import Team


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Has a package that nobody has imported yet count as not installed for a while."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


# peft imports bitsandbytes wherever it is installed, and that initialises CUDA. The nursery, which imports all this once, could then fork
# no worker that uses a GPU (workers.py). What peft would do with it is not needed: to it a layer of 4 bits is a linear module (nf4.py).
with _hidden("bitsandbytes"):
    from peft import LoraConfig, PeftModel, get_peft_model


def base_model(folder: Path, method: Method, team: Team, section: str) -> PreTrainedModel:
    """The model that training starts from: in float32, or for QLoRA with its linear layers in 4 bits.

    Raises:
        SpecError: weights of 4 bits would have to be spread.
        ModelError: it cannot be loaded.
    """
    if method is not Method.QLORA:
        return load_model(folder)
    if team.world_size > 1:
        raise SpecError(
            f"trains in one process, and there are {team.world_size}", field=f"{section}.method", value=method.value,
            next_step="Set workers.replicas: 1 with one GPU at most (`transfer run`: CUDA_VISIBLE_DEVICES=0), or method: LoRA",
        )  # fmt: skip
    from transfer_trainer.nf4 import load_quantized  # asks CUDA for its devices, as only a forked worker may: see above

    return load_quantized(folder, team.device)


def add_adapters(model: PreTrainedModel, lora: Lora, seed: int, section: str = "spec.pretraining") -> PeftModel:
    """Freezes the model and adds adapters, initialised from `seed` alone.

    With `train_embeddings` the embeddings are trained in full. A head tied to them stays tied: one matrix is trained
    and exported, not two copies that drift apart.

    Raises:
        SpecError: a target names no linear module, or the rank is larger than a matrix.
    """
    check_lora(_smallest_sides(model), lora, f"{section}.lora")
    embeddings = _embedding_names(model) if lora.train_embeddings else []
    tied = is_tied(model)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
        modules_to_save=embeddings[:1] if tied else embeddings or None, ensure_weight_tying=tied and lora.train_embeddings,
    )  # fmt: skip
    torch.manual_seed(seed)
    with _hidden("bitsandbytes"):  # 1.5 s in every worker of every round, for a kind of layer that is not there
        return cast(PeftModel, get_peft_model(model, config))


def save_adapter(model: PeftModel, folder: Path, base: ModelSource | None) -> None:
    """Writes what was trained as peft's own files, which name the base model as the experiment does (None: an earlier stage made it).

    Embeddings are in it only where they were trained beside the adapters.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = (base.name or base.path) if base else None
    config.revision = base.revision if base else None
    trained = bool(config.modules_to_save)
    model.save_pretrained(folder, save_embedding_layers=trained)
    (folder / "README.md").unlink(missing_ok=True)  # peft's, with nothing in it


def merge_adapters(model: PeftModel) -> PreTrainedModel:
    """The plain model with the adapters added to its weights."""
    return cast(PreTrainedModel, model.merge_and_unload())


def _embedding_names(model: PreTrainedModel) -> list[str]:
    """Last part of the names of the input embeddings and of the head."""
    wanted = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [name.rpartition(".")[2] for module in wanted for name, found in model.named_modules() if found is module]


def _smallest_sides(model: PreTrainedModel) -> dict[str, int]:
    """Last part of each linear module's name to the smaller side of its matrix; the head is none of them."""
    head = model.get_output_embeddings()
    sides: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            last, side = name.rpartition(".")[2], min(module.in_features, module.out_features)
            sides[last] = min(side, sides.get(last, side))
    return sides
