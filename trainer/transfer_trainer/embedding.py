"""Gives a model rows for added tokens, in the input embedding and, where it is not the same matrix, in the head.

A new row begins where the model already knows something: `SubtokenMean` is the mean of the rows that the base tokenizer
would have used for the same bytes (SambaLingo, arXiv 2404.05829), or of all old rows where it knows none of them; `Mean` is the mean
of all old rows; `Multivariate` adds to it a little noise of the old rows' covariance, so that new tokens differ and none is likelier
than the old ones (Hewitt, Initializing New Word Embeddings for Pretrained Language Models, 2021); `Random` is normal noise of their
spread, the weak baseline.
`Distillation` starts as `SubtokenMean` and goes on in `distillation.py`.

Letters: V = rows of the vocabulary, A = added rows, D = width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from transfer_api.errors import ModelError
from transfer_api.spec import Initialization
from transfer_api.stage import VocabularyParameters
from transfer_pod.model import check_whole, first_sentence
from transfer_trainer.model import check_ties

MULTIVARIATE_SCALE = 1e-5
"""Share of the old rows' covariance that the noise of `Multivariate` has, as in Hewitt's code."""


def resized_model(folder: Path, pieces: Sequence[Sequence[int]], first_id: int, parameters: VocabularyParameters) -> tuple[Any, int]:
    """The model of `folder` with rows for the added tokens, in its own number format.

    Args:
        folder: a model that `check_model_folder` accepts.
        pieces: for each added token the ids that the base tokenizer uses for it; none where it does not know it.
        first_id: id of the first added token; lower rows are not changed.
        parameters: how the new rows start, to which multiple the rows are padded, and the seed of the noise.

    Returns:
        The model, and the rows of its matrix: at least `first_id + len(pieces)`, more where the base model was padded further than
        that, or where padding is asked for. Rows of padding are no token's; they are the mean of the old rows.

    Raises:
        ModelError: transformers cannot load it, weights are missing, or it ties matrices that its files keep apart.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot be loaded: {first_sentence(error)}", field="spec.model", value=str(folder), next_step="Check the model's files"
        ) from error
    check_whole(info, folder)
    check_ties(model, folder)
    embedding = model.get_input_embeddings()
    if embedding.weight.shape[0] < first_id:
        raise ModelError(
            "has fewer rows than its tokenizer has tokens", field="spec.model", value=int(embedding.weight.shape[0]),
            allowed=f"at least {first_id}", next_step="Use the tokenizer that belongs to the model",
        )  # fmt: skip
    before = int(embedding.weight.shape[0])
    multiple = parameters.pad_to_multiple_of or 1
    used = max(before, first_id + len(pieces))
    rows = -(-used // multiple) * multiple
    model.resize_token_embeddings(rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(parameters.seed)
    for weight_VD in _matrices(model):
        fill_rows(weight_VD, pieces, first_id, parameters.initialization, generator)
        if rows > used:
            with torch.no_grad():
                weight_VD[used:] = weight_VD[:first_id].float().mean(dim=0).to(weight_VD.dtype)
    return model, rows


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
    if initialization in (Initialization.SUBTOKEN_MEAN, Initialization.DISTILLATION):
        mean_D = old_VD.mean(dim=0)
        new_AD = torch.stack([old_VD[list(ids)].mean(dim=0) if ids else mean_D for ids in pieces])
    elif initialization is Initialization.MEAN:
        new_AD = old_VD.mean(dim=0).expand(len(pieces), -1)
    elif initialization is Initialization.MULTIVARIATE:
        new_AD = old_VD.mean(dim=0) + _like_rows(old_VD, len(pieces), generator) * MULTIVARIATE_SCALE**0.5
    else:
        new_AD = torch.randn(len(pieces), weight_VD.shape[1], generator=generator) * old_VD.std()
    weight_VD[first_id : first_id + len(pieces)] = new_AD.to(weight_VD.dtype)


def _like_rows(old_VD: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Normal noise [count, D] with the covariance of rows. By eigenvalues: it may be singular, where a model has fewer rows than width."""
    values_D, vectors_DD = torch.linalg.eigh(old_VD.T.cov())
    noise_AD: torch.Tensor = torch.randn(count, len(values_D), generator=generator) * values_D.clamp(min=0).sqrt()
    turned_AD: torch.Tensor = noise_AD @ vectors_DD.T
    return turned_AD
