"""Initialisation `Distillation`: rows of added tokens learn to stand for the tokens that they replace.

Token Distillation (Dobler et al., arXiv 2505.20133): the model reads a snippet with an added token and, as its own teacher, with the
base tokens of the same bytes; the row of the added token is moved until the hidden states from it on agree (mean squared error
of the last layer). A row then carries what the first layers build out of the parts, which no mean of rows does.

Rows of the head are another matter: they say when a token is due, and no hidden state tells that. They learn by cross-entropy on the
same snippets, from states that take no gradient. In a tied model both objectives move the one matrix. All else stands still.

    choose    windows of the corpus in its order, while one of their added tokens has been seen in fewer than `snippets` windows
    shuffle   by the seed
    distil    Adam over the rows of the tokens that are in a batch; the learning rate falls to 0 on a line

Everything is a function of corpus, seed and settings; arithmetic is float32.

Letters: B windows of a batch, T their added-vocabulary tokens, O their base tokens, A added rows, D width, N places compared.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from transfer_api.errors import ModelError
from transfer_api.spec import Distillation
from transfer_trainer.head import PLAIN_MODELS, chunked_loss

logger = logging.getLogger(__name__)

WINDOW = 48
"""Tokens of a snippet; the paper has 50."""
BATCH = 16
"""Snippets of an update."""
BETAS = (0.9, 0.95)

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Added:
    """The added tokens: ids from `first_id` on, and the base tokens of the same bytes."""

    first_id: int
    pieces: Sequence[Sequence[int]]

    def expand(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The ids with base tokens for added ones, and for each place the place where its last base token is."""
        parts = [self.pieces[number - self.first_id] if number >= self.first_id else (number,) for number in ids]
        ends = list(itertools.accumulate(map(len, parts)))
        return list(itertools.chain.from_iterable(parts)), [end - 1 for end in ends]


def choose(documents: Iterable[Sequence[int]], added: Added, snippets: int) -> list[Ids]:
    """Windows of documents, tokenised with the added tokens, that have a token seen in fewer than `snippets` windows before.

    Common tokens have their share soon, and later windows are taken for the rare ones alone: so there are far fewer windows than
    tokens times `snippets`. A token that the documents have less often is seen as often as they have it.
    """
    seen = np.zeros(len(added.pieces), np.int64)
    chosen: list[Ids] = []
    for document in documents:
        for start in range(0, len(document), WINDOW):
            window = np.array(document[start : start + WINDOW], np.int32)
            new = np.unique(window[window >= added.first_id]) - added.first_id
            if len(window) > 1 and (seen[new] < snippets).any():
                seen[new] += 1
                chosen.append(window)
                if (seen >= snippets).all():
                    return chosen
    return chosen


@dataclass(frozen=True)
class _Batch:
    """Windows side by side, padded on the right, where nothing that counts can see it."""

    tokens_BT: torch.Tensor
    base_BO: torch.Tensor
    ends_BT: torch.Tensor
    """Place in the base tokens where a token ends."""
    real_BT: torch.Tensor
    compared_BT: torch.Tensor
    """From the first added token on: what is before has the same states on both sides."""

    @classmethod
    def of(cls, windows: Sequence[Ids], added: Added, prefix: Sequence[int], device: torch.device) -> _Batch:
        rows = [[*prefix, *map(int, window)] for window in windows]
        expanded = [added.expand(row) for row in rows]
        tokens_BT = _padded(rows, device)
        real_BT = _padded([[1] * len(row) for row in rows], device).bool()
        return cls(
            tokens_BT, _padded([base for base, _ in expanded], device), _padded([ends for _, ends in expanded], device), real_BT,
            real_BT & ((tokens_BT >= added.first_id).cumsum(dim=1) > 0),
        )  # fmt: skip


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    result = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for number, row in enumerate(rows):
        result[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return result.to(device)


def check_distillable(model: PreTrainedModel) -> None:
    """Refuses models that scale embeddings or logits, where a row is not what is read.

    Raises:
        ModelError: the model is of such a class.
    """
    kind = str(model.config.model_type)
    if kind not in PLAIN_MODELS:
        raise ModelError(
            "is of a kind whose rows cannot be distilled", field="spec.vocabulary.initialization", value=kind,
            allowed=", ".join(sorted(PLAIN_MODELS)), next_step="Write initialization: SubtokenMean",
        )  # fmt: skip


def distil(
    model: PreTrainedModel,
    windows: Sequence[Ids],
    added: Added,
    settings: Distillation,
    *,
    prefix: Sequence[int] = (),
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Trains the added rows of a float32 model in place; they are to have their start (`fill_rows`) already.

    Args:
        model: already resized, on the device to be used.
        windows: what `choose` gave; without any nothing is done.
        added: the added tokens.
        settings: learning rate.
        prefix: what the tokenizer puts before any text.
        seed: of the order.
        report: told updates done and in all.

    Returns:
        Means over the first and last tenth of the updates: `state_error` and `token_loss` (nats), each `_first` and `_last`.

    Raises:
        ModelError: see `check_distillable`.
    """
    check_distillable(model)
    rows = _Rows(model, added.first_id, len(added.pieces))
    model.requires_grad_(False)
    order = np.random.default_rng(seed).permutation(len(windows))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    optimizer = torch.optim.SparseAdam(rows.parameters(), lr=float(settings.learning_rate), betas=BETAS)
    history = []
    for number, members in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = float(settings.learning_rate) * (1 - number / len(batches))
        batch = _Batch.of([windows[index] for index in members], added, prefix, model.device)
        error, loss = _objectives(model, rows, batch)
        (error + loss).backward()  # type: ignore[no-untyped-call]
        rows.keep_gradients_of(torch.unique(batch.tokens_BT[batch.tokens_BT >= added.first_id]) - added.first_id)
        optimizer.step()  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        history.append((float(error.detach()), float(loss.detach())))
        report(number + 1, len(batches))
    rows.write()
    return _summary(history)


class _Rows:
    """The rows in training, and the matrices that they are rows of: one where head and embedding are tied, else two."""

    def __init__(self, model: PreTrainedModel, first_id: int, count: int) -> None:
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        embedding, head = (cast(torch.Tensor, cast(Any, module).weight) for module in ends)
        self._first, self._end = first_id, first_id + count
        self._matrices = [embedding] if embedding is head else [embedding, head]
        self._trained = [nn.Parameter(matrix[self._first : self._end].detach().clone()) for matrix in self._matrices]

    def parameters(self) -> list[nn.Parameter]:
        return self._trained

    def embedding(self) -> torch.Tensor:
        """[V, D] that embeds tokens."""
        return self._whole(0)

    def head(self) -> torch.Tensor:
        """[V, D] that predicts them."""
        return self._whole(-1)

    def _whole(self, which: int) -> torch.Tensor:
        return torch.cat([self._matrices[which][: self._first], self._trained[which]])

    def keep_gradients_of(self, present: torch.Tensor) -> None:
        """Leaves gradients only to these rows: Adam would move the others as far, on next to nothing."""
        for parameter in self._trained:
            assert parameter.grad is not None
            parameter.grad = torch.sparse_coo_tensor(present[None], parameter.grad[present], tuple(parameter.shape), check_invariants=False)

    @torch.no_grad()
    def write(self) -> None:
        for matrix, rows in zip(self._matrices, self._trained, strict=True):
            matrix[self._first : self._end] = rows


def _objectives(model: PreTrainedModel, rows: _Rows, batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error of the hidden states, and mean cross-entropy of the next tokens in nats."""
    with torch.no_grad():
        teacher_BOD = model.base_model(input_ids=batch.base_BO, use_cache=False).last_hidden_state
    embedded_BTD = nn.functional.embedding(batch.tokens_BT, rows.embedding())
    student_BTD = model.base_model(inputs_embeds=embedded_BTD, use_cache=False).last_hidden_state
    aligned_BTD = teacher_BOD.gather(1, batch.ends_BT[..., None].expand(-1, -1, teacher_BOD.shape[-1]))
    error = nn.functional.mse_loss(student_BTD[batch.compared_BT], aligned_BTD[batch.compared_BT])
    labelled_BT = batch.real_BT[:, 1:]
    labels_N = batch.tokens_BT[:, 1:][labelled_BT]
    states_ND = student_BTD.detach()[:, :-1][labelled_BT]
    loss = chunked_loss(states_ND, rows.head(), labels_N, torch.full((len(labels_N),), 1 / len(labels_N), device=states_ND.device))
    return error, loss.objective


def _summary(history: Sequence[tuple[float, float]]) -> dict[str, float]:
    tenth = max(1, len(history) // 10)
    ends = {"first": history[:tenth], "last": history[-tenth:]}
    means = {name: np.mean(part, axis=0) for name, part in ends.items() if part}
    names = ("state_error", "token_loss")
    return {f"{what}_{name}": float(value) for name, mean in means.items() for what, value in zip(names, mean, strict=True)}


def batches_of(texts: Iterable[str], tokenizer: Any, size: int = 256) -> Iterator[list[int]]:
    """Ids of each text, without begin- and end-of-text tokens; so many texts at once."""
    pending = iter(texts)
    while batch := list(itertools.islice(pending, size)):
        yield from (encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False))
