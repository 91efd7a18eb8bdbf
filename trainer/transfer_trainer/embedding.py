"""Gives a model rows for added tokens, in the input embedding and, where it is not the same matrix, in the head.

A new row begins where the model already knows something: `SubtokenMean` is the mean of the rows that the base tokenizer
would have used for the same bytes (SambaLingo, arXiv 2404.05829); `Mean` is the mean of all old rows; `Random` is normal
noise of their spread, the weak baseline.

Letters: V = rows of the vocabulary, A = added rows, D = width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from transfer_api.errors import ModelError
from transfer_api.spec import Initialization
from transfer_pod.model import check_whole


def resize_model(
    folder: Path, target: Path, pieces: Sequence[Sequence[int]], first_id: int, initialization: Initialization, seed: int
) -> int:
    """Saves the model of `folder` with rows for the added tokens into `target`, in its own number format.

    Args:
        folder: a model that `check_model_folder` accepts.
        target: gets config and safetensors.
        pieces: for each added token the ids that the base tokenizer uses for it.
        first_id: id of the first added token; lower rows are not changed.
        initialization: how the new rows start.
        seed: of the noise of `Random`.

    Returns:
        Rows of the matrix: at least `first_id + len(pieces)`, more where the base model was padded further than that.

    Raises:
        ModelError: transformers cannot load it, or weights are missing.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot be loaded: {error}", field="spec.model", value=str(folder), next_step="Check the model's files"
        ) from error
    check_whole(info, folder)
    embedding = model.get_input_embeddings()
    if embedding.weight.shape[0] < first_id:
        raise ModelError(
            "has fewer rows than its tokenizer has tokens", field="spec.model", value=int(embedding.weight.shape[0]),
            allowed=f"at least {first_id}", next_step="Use the tokenizer that belongs to the model",
        )  # fmt: skip
    rows = max(int(embedding.weight.shape[0]), first_id + len(pieces))
    model.resize_token_embeddings(rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    for weight_VD in _matrices(model):
        fill_rows(weight_VD, pieces, first_id, initialization, generator)
    model.save_pretrained(target)
    return rows


def _matrices(model: Any) -> list[torch.Tensor]:
    """Input embedding and head, once each where they are tied."""
    found = [module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    return found[:1] if len(found) == 2 and found[0] is found[1] else found


@torch.no_grad()
def fill_rows(
    weight_VD: torch.Tensor, pieces: Sequence[Sequence[int]], first_id: int, initialization: Initialization, generator: torch.Generator
) -> None:
    """Writes the rows `first_id` to `first_id + len(pieces)` in place, computed in float32; rows below are what they start from."""
    old_VD = weight_VD[:first_id].float()
    if initialization is Initialization.SUBTOKEN_MEAN:
        new_AD = torch.stack([old_VD[list(ids)].mean(dim=0) for ids in pieces])
    elif initialization is Initialization.MEAN:
        new_AD = old_VD.mean(dim=0).expand(len(pieces), -1)
    else:
        new_AD = torch.randn(len(pieces), weight_VD.shape[1], generator=generator) * old_VD.std()
    weight_VD[first_id : first_id + len(pieces)] = new_AD.to(weight_VD.dtype)
