"""The model in training: loaded in float32, fed packed rows, asked for logits only where there is a label.

B rows, T tokens in a row, N labels among them, D width, V vocabulary.

Packed rows hold several documents; `positions_BT` restarts at each. transformers makes the mask between documents from
these positions, for every row of the batch, but only when there is no attention mask and no cache: so none is passed
and `use_cache` is off (with a cache, documents see each other; tests/trainer/test_loop.py). On GPUs a kernel is told where documents
begin instead (attention.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from transfer_api.errors import ModelError, SpecError
from transfer_api.spec import Precision
from transfer_pod.model import check_whole, first_sentence, read_config
from transfer_trainer.attention import borders, uses_packed
from transfer_trainer.head import HeadLoss, chunked_loss, forward_of, plain_head, plain_loss


def load_model(folder: Path, dtype: torch.dtype = torch.float32, **how: Any) -> PreTrainedModel:
    """Loads safetensors with a class of transformers, without dropout.

    Args:
        folder: of the model.
        dtype: number format of the weights.
        how: what else `from_pretrained` is told.

    Raises:
        ModelError: transformers cannot load it, or weights are missing.
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False, attn_implementation="sdpa",
            output_loading_info=True, **how,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"cannot be loaded: {first_sentence(error)}",
            field="spec.model",
            value=str(folder),
            next_step="Try AutoModelForCausalLM.from_pretrained on it",
        ) from error
    check_whole(info, folder)
    check_ties(model, folder)
    # Evaluation mode only switches dropout off, wherever the architecture has it; gradients flow all the same.
    return cast(PreTrainedModel, model.eval())


def check_ties(model: PreTrainedModel, folder: Path) -> None:
    """Refuses a model whose class has one matrix for embedding and head where its file says two: one of them would be dropped.

    The other way round transformers keeps both: where the file says one and the weights have two that differ.

    Raises:
        ModelError: config.json says that they are not tied.
    """
    if is_tied(model) and read_config(folder).get("tie_word_embeddings") is False:
        raise ModelError(
            f"its class ({type(model).__name__}) uses one matrix for embedding and head, but config.json says that they are not tied",
            field="spec.model", value=str(folder), allowed="a class and a file that agree",
            next_step="Write tie_word_embeddings: true into config.json, or use a model whose class keeps them apart",
        )  # fmt: skip


def is_tied(model: PreTrainedModel) -> bool:
    """Whether embedding and head are one matrix, whatever the configuration says."""
    embedding, head = (getattr(module, "weight", None) for module in (model.get_input_embeddings(), model.get_output_embeddings()))
    return embedding is not None and embedding is head


def check_length(model: PreTrainedModel, sequence_length: int, section: str) -> None:
    """Refuses rows that are longer than the model's positions.

    Raises:
        SpecError: they are.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and sequence_length > positions:
        raise SpecError(
            "is longer than the model's positions", field=f"{section}.sequenceLength", value=sequence_length,
            allowed=f"at most {positions}", next_step="Shorten it",
        )  # fmt: skip


@contextlib.contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Number format of forward and backward: autocast on any device and any number of processes, or plain float32."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision is Precision.BFLOAT16):
        yield


def summed_loss(
    model: torch.nn.Module,
    tokens_BT: torch.Tensor,
    positions_BT: torch.Tensor,
    targets_BT: torch.Tensor,
    weight_B: torch.Tensor,
    z_loss: float = 0.0,
    *,
    chunked: bool = True,
) -> HeadLoss:
    """Runs the model and sums the loss over all labels, each times the weight of its row.

    Args:
        model: a causal language model of transformers, plain, sharded or with adapters.
        tokens_BT: int64.
        positions_BT: int64, from 0 in each document.
        targets_BT: bool; token j is a label, predicted from the state at j-1.
        weight_B: float32; 0 for rows that only keep the processes in step.
        z_loss: weight of the squared log-normaliser (PaLM, arXiv 2204.02311, section 5).
        chunked: without the logits of all labels at once, where the model allows it.

    Returns:
        Negative log-likelihood in nats, which is shown and compared and has no gradient; and the objective: the same, and the
        z-loss where one is asked for.
    """
    labelled_BT = targets_BT[:, 1:]
    labels_N = tokens_BT[:, 1:][labelled_BT]
    weight_N = weight_B[:, None].expand_as(labelled_BT)[labelled_BT]
    # The head runs inside the model (FSDP2 gathers its weights there), but only on the states that have a label, and where it can
    # it gives their loss in place of their logits.
    found: list[HeadLoss] = []
    linear = plain_head(model) if chunked else None

    def loss_of(states_ND: torch.Tensor) -> torch.Tensor:
        assert linear is not None
        found.append(chunked_loss(states_ND, linear.weight, labels_N, weight_N, z_loss))
        return found[0].objective

    with contextlib.ExitStack() as changes:
        changes.enter_context(_states_at(model, labelled_BT))
        if linear is not None:
            changes.enter_context(forward_of(linear, loss_of))
        told = borders(positions_BT) if uses_packed(model) else {}
        output = model(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False, **told).logits
    return HeadLoss(found[0].nats, output) if found else plain_loss(output, labels_N, weight_N, z_loss)


@contextlib.contextmanager
def _states_at(model: torch.nn.Module, labelled_BT: torch.Tensor) -> Iterator[None]:
    """Lets the head see [N, D] instead of [B, T, D]: `logits_to_keep` takes indices of one row, and rows differ."""
    head = cast(torch.nn.Module, cast(Any, model).get_output_embeddings())

    def select(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states_BTD = inputs[0]
        return (states_BTD[:, :-1][labelled_BT], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
