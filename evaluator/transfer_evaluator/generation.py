"""Greedy answers, many at a time.

Requests with the same limit and stop strings are sorted by length and decoded together, padded on the left; a step costs nearly
the same for sixteen answers as for one, since it reads the same weights. A row that has given a stop string or EOS is done,
and a batch ends with its last row. Answers are those of one request at a time up to the rounding of sums in another order.

Shapes: B requests of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from transfer_evaluator.model import LoadedModel
from transfer_evaluator.scorer import Done

BATCH_TOKENS = {"cpu": 8192, "cuda": 131_072}
"""Rows of a batch times the longest that one may become: bounds the KV cache."""


@dataclass(frozen=True)
class Prompt:
    """Tokens to go on from."""

    tokens: tuple[int, ...]
    limit: int
    """Most tokens of the answer."""
    until: tuple[str, ...]
    """The answer ends before the first of these strings."""


@torch.inference_mode()
def answer(loaded: LoadedModel, prompts: Sequence[Prompt], end: int, done: Done, batch_tokens: int | None = None) -> list[str]:
    """Answers in the order of the prompts.

    Args:
        loaded: the model.
        prompts: what to answer; each leaves its model room for its limit.
        end: id of the token that ends an answer.
        done: told after each batch.
        batch_tokens: in place of `BATCH_TOKENS`.
    """
    answers = [""] * len(prompts)
    budget = batch_tokens or BATCH_TOKENS.get(loaded.device.type, BATCH_TOKENS["cpu"])
    for batch in _batches(prompts, budget):
        rows = [prompts[index] for index in batch]
        width = max(len(row.tokens) for row in rows)
        input_ids_BT = torch.tensor([[end] * (width - len(row.tokens)) + list(row.tokens) for row in rows], device=loaded.device)
        mask_BT = torch.tensor([[0] * (width - len(row.tokens)) + [1] * len(row.tokens) for row in rows], device=loaded.device)
        stopping = StoppingCriteriaList([_Until(loaded.tokenizer, rows[0].until, width, len(rows))] if rows[0].until else [])
        output_BT = loaded.model.generate(
            input_ids_BT, attention_mask=mask_BT, do_sample=False, max_new_tokens=rows[0].limit, eos_token_id=end, pad_token_id=end,
            stopping_criteria=stopping, use_cache=True,
        )  # fmt: skip
        new = [_before(tokens, end) for tokens in output_BT[:, width:].tolist()]
        for index, tokens in zip(batch, new, strict=True):
            answers[index] = cut(loaded.tokenizer.decode(tokens, skip_special_tokens=True), rows[0].until)
        done(len(batch), sum(map(len, new)))
    return answers


def _batches(prompts: Sequence[Prompt], budget: int) -> Iterator[list[int]]:
    """Indices of prompts that go together, the longest first: what does not fit shows at once."""
    alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for index, prompt in enumerate(prompts):
        alike.setdefault((prompt.limit, prompt.until), []).append(index)
    for (limit, _), indices in alike.items():
        left = sorted(indices, key=lambda index: len(prompts[index].tokens), reverse=True)
        while left:
            rows = max(1, budget // (len(prompts[left[0]].tokens) + limit))
            yield left[:rows]
            left = left[rows:]


def _before(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def cut(text: str, until: Sequence[str]) -> str:
    """What stands before the first stop string."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


class _Until(StoppingCriteria):  # type: ignore[misc]
    """Says of each row whether its answer has a stop string."""

    def __init__(self, tokenizer: Any, until: Sequence[str], start: int, rows: int) -> None:
        self._tokenizer = tokenizer
        self._until = [stop for stop in until if stop]
        self._start = start
        self._done = [False] * rows
        # A token is a byte or more. What stood before the last so many was looked at in earlier steps.
        self._tail = max((len(stop.encode()) for stop in self._until), default=0) + 8

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._tail) :].tolist()
        for row, tokens in enumerate(tails):
            if not self._done[row]:
                text = self._tokenizer.decode(tokens, skip_special_tokens=True)
                self._done[row] = any(stop in text for stop in self._until)
        return torch.tensor(self._done, device=input_ids.device)
