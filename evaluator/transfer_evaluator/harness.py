"""Our scorer as a model of lm-evaluation-harness, so that its tasks, prompts and metrics are used as they are.

Encoding (how context and continuation are cut, where BOS goes) is the harness's; only the forward passes are ours. Its own
`hf` model must give the same log-likelihoods: tests/evaluator compare them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from transfer_api.errors import DataError, SpecError
from transfer_evaluator.generation import Prompt, answer
from transfer_evaluator.model import LoadedModel
from transfer_evaluator.scorer import Begin, Request, TokenScorer, silent

MAX_GENERATED = 256
"""Tokens of an answer where the task sets no limit; the harness's default."""


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A causal language model for `lm_eval.evaluator`."""

    def __init__(self, loaded: LoadedModel, scorer: TokenScorer, begin: Begin = silent) -> None:
        super().__init__()
        self.loaded = loaded
        self.tokenizer = loaded.tokenizer
        self.scorer = scorer
        self.begin = begin
        self._device = loaded.device

    @property
    def eot_token_id(self) -> int:
        """EOS of the tokenizer."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Stands before a continuation without context."""
        return self.loaded.prefix_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; special tokens as the tokenizer adds them, but not a second BOS."""
        special: dict[str, bool] = {}
        if add_special_tokens is not None:
            special["add_special_tokens"] = add_special_tokens
        elif string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            special["add_special_tokens"] = False
        ids: list[int] = self.tokenizer.encode(string, **special)
        return ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether it is the greedy one."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        wanted = [_fit(context, continuation, self.loaded.positions) for _, context, continuation in requests]
        scores = self.scorer.score(wanted, self.begin(len(wanted)))
        return [(score.log_probability, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each whole text, in windows cut by the harness."""
        owners: list[int] = []
        wanted: list[Request] = []
        for index, request in enumerate(requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id,
                max_seq_len=self.loaded.positions, context_len=1,
            )  # fmt: skip
            for context, continuation in map(make_disjoint_window, cut):
                owners.append(index)
                wanted.append(Request(tuple(context), tuple(continuation)))
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self.scorer.score(wanted, self.begin(len(wanted))), strict=True):
            totals[owner] += score.log_probability
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Greedy answers, cut at the first stop string.

        Raises:
            SpecError: the task asks for sampling.
        """
        prompts = [self._prompt(*request.args) for request in requests]
        return answer(self.loaded, prompts, self.eot_token_id, self.begin(len(prompts)))

    def _prompt(self, context: str, settings: Mapping[str, Any]) -> Prompt:
        if settings.get("do_sample") and float(settings.get("temperature", 1.0)) > 0:
            raise SpecError(
                "a task asks for sampled answers, which are not repeatable", field="spec.evaluation.suites",
                allowed="tasks with log-likelihoods or greedy answers", next_step="Set do_sample: false in the task's generation_kwargs",
            )  # fmt: skip
        limit = int(settings.get("max_gen_toks", settings.get("max_new_tokens", MAX_GENERATED)))
        room = max(1, self.loaded.positions - limit)
        until = settings.get("until") or ()
        return Prompt(tuple(self.tok_encode(context)[-room:]), limit, (until,) if isinstance(until, str) else tuple(until))


def _fit(context: Sequence[int], continuation: Sequence[int], positions: int) -> Request:
    """Cuts a request that is too long from the left, as the harness does.

    Raises:
        DataError: the continuation alone does not fit.
    """
    if not 0 < len(continuation) <= positions:
        raise DataError(
            "an answer has no tokens, or more than the model has positions", field="spec.evaluation.suites",
            value=len(continuation), allowed=f"1 to {positions} tokens", next_step="Shorten or remove that item of the task",
        )  # fmt: skip
    surplus = max(0, len(context) + len(continuation) - positions - 1)
    return Request(tuple(itertools.islice(context, surplus, None)), tuple(continuation))
