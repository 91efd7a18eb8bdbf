"""Answers of the model to open questions: greedy, in its chat template where it has one.

A base model has no template; it reads the question and a blank line. What it was asked, and where an answer ends, is the same for every
question of a run and is said beside the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transfer_api.errors import ModelError
from transfer_evaluator.blocks import Done
from transfer_evaluator.generation import Prompt, answer
from transfer_evaluator.judge.questions import Question
from transfer_evaluator.model import LoadedModel
from transfer_evaluator.scorer import TokenScorer


@dataclass(frozen=True)
class Answers:
    """The answers to a set of questions, in its order."""

    texts: tuple[str, ...]
    truncated: int
    """Questions that were longer than the model's context and lost their beginning."""

    @property
    def empty(self) -> int:
        """Answers without a character that is no space."""
        return sum(not text.strip() for text in self.texts)


class Answerer:
    """Asks one model.

    Args:
        loaded: the model.
        limit: most tokens of an answer; at most half of the model's positions are used for it.

    Raises:
        ModelError: the tokenizer has no end-of-text token.
    """

    def __init__(self, loaded: LoadedModel, limit: int) -> None:
        self._loaded = loaded
        self._tokenizer = loaded.tokenizer
        self.limit = min(limit, loaded.positions // 2)
        self.templated = bool(self._tokenizer.chat_template)
        self._end = self._end_of_turn()

    @property
    def mode(self) -> str:
        """How it is asked, in words."""
        form = "chat template" if self.templated else "no chat template: question and a blank line"
        return f"greedy answers of at most {self.limit} tokens, {form}"

    def answer(self, questions: Sequence[Question], done: Done, scorer: TokenScorer | None = None) -> Answers:
        """Answers all questions, as far as other pods or earlier tries have not, whose answers `scorer` finds.

        Raises:
            StorageError: the answers cannot be kept.
        """
        prompts = [self._prompt(question.text) for question in questions]
        texts = answer(self._loaded, [prompt for prompt, _ in prompts], done, scorer=scorer)
        return Answers(tuple(text.strip() for text in texts), sum(truncated for _, truncated in prompts))

    def _prompt(self, question: str) -> tuple[Prompt, bool]:
        if self.templated:
            tokens = self._rendered([{"role": "user", "content": question}], generate=True)
        else:
            tokens = self._tokenizer(f"{question}\n\n")["input_ids"]
        room = self._loaded.positions - self.limit
        # A base model that has answered begins a next question.
        until = (self._end,) if self.templated else (self._end, "\n\n")
        return Prompt(tuple(tokens[-room:]), self.limit, until), len(tokens) > room

    def _rendered(self, messages: list[dict[str, str]], *, generate: bool) -> list[int]:
        tokens: list[int] = self._tokenizer.apply_chat_template(messages, add_generation_prompt=generate, tokenize=True, return_dict=False)
        return tokens

    def _end_of_turn(self) -> str:
        """The special token behind an answer in the chat template, else EOS."""
        end = self._tokenizer.eos_token_id
        if end is None:
            step = "Set eos_token in tokenizer_config.json"
            raise ModelError("the tokenizer has no end-of-text token", field="spec.model", next_step=step)
        if not self.templated:
            return str(self._tokenizer.eos_token)
        turn = {"role": "user", "content": "x"}
        asked = self._rendered([turn], generate=True)
        answered = self._rendered([turn, {"role": "assistant", "content": "y"}], generate=False)[len(asked) :]
        special: dict[int, Any] = self._tokenizer.added_tokens_decoder
        return str(self._tokenizer.convert_ids_to_tokens(next((token for token in reversed(answered) if token in special), int(end))))
