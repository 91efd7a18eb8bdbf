"""Turns conversations into tokens, and says which tokens are the assistant's.

The loss counts answers only, so the mask must be exact for any chat template. Templates trim, add system prompts and treat
the last turn differently; what they do not do is mark answers. So each answer is found by rendering the conversation
twice more with the answer replaced by two different letters: what both renderings begin with stands before it, and what
both end with stands behind. Where the true rendering does not begin and end like that, the template is refused.

The whole conversation is then tokenised once, as inference code does, and a token is the assistant's when it covers
any character of an answer or of the end-of-turn token behind it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transfer_api.errors import DataError, ModelError
from transfer_pod.documents import Message
from transfer_trainer.packing import Example

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The prompt of Stanford Alpaca without its input section; later turns repeat the headings.
ALPACA = (
    "{% if messages[0]['role'] != 'system' %}Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% else %}### Response:\n{{ message['content'] }}{{ eos_token }}{% if not loop.last %}\n\n{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
# As Llama 2's chat models were tuned: the system prompt stands in the first question, and each turn is a text of its own.
LLAMA2 = (
    "{% set told = messages[0]['role'] == 'system' %}"
    "{% for message in (messages[1:] if told else messages) %}{% if message['role'] == 'user' %}"
    "{% if not loop.first %}{{ bos_token }}{% endif %}[INST] "
    "{% if told and loop.first %}<<SYS>>\n{{ messages[0]['content'] }}\n<</SYS>>\n\n{% endif %}{{ message['content'] | trim }} [/INST]"
    "{% elif message['role'] == 'assistant' and not loop.first %} {{ message['content'] | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('Llama 2 knows one system prompt, at the beginning, and then a question') }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_LLAMA3_END = "<|eot_id|>"
_CHATML_END = "<|im_end|>"  # plain text to a tokenizer that does not know it, but in a template of its own the end of a turn all the same
_SPACE = re.compile(r"\s*")
_FIELD = "spec.instructionTuning.template"


@dataclass(frozen=True)
class _Span:
    """Characters [start, end) of a rendering."""

    start: int
    end: int


class ChatTemplate:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a Rust backend.
        name: Model (the tokenizer's own, ChatML where it has none), ChatML, Alpaca, Llama2 or Llama3.

    Raises:
        ModelError: the tokenizer has no end-of-text token.
    """

    def __init__(self, tokenizer: Any, name: str = "Model") -> None:
        if tokenizer.eos_token is None:
            raise ModelError(
                "the tokenizer has no end-of-text token", field="spec.model", next_step="Set eos_token in tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self.jinja = _template(tokenizer, name)
        """The template as conversations are rendered here."""
        own = name == "Model" and tokenizer.chat_template is not None
        # A template of a model's own writes the begin-of-text token itself; a named one leaves it to the tokenizer.
        self._prefix: list[int] = [] if own else prefix(tokenizer)
        self.saved = tokenizer.chat_template if own else ("{{ bos_token }}" if self._prefix else "") + self.jinja
        """What is saved with the tuned model: `apply_chat_template` adds no begin-of-text token, so the template must."""
        self._stops = {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
        ends = {str(token.content) for token in tokenizer.added_tokens_decoder.values()} | {_CHATML_END, tokenizer.eos_token}
        self._ends = re.compile(r"\s*(?:" + "|".join(sorted(map(re.escape, ends), key=len, reverse=True)) + ")")

    def encode(self, conversation: Sequence[Message]) -> Example:
        """Tokens of a conversation, with targets on every answer up to and with the end of its turn.

        Raises:
            DataError: the template refuses this conversation, or does not show where an answer stands.
        """
        messages = [{"role": message.role, "content": message.content} for message in conversation]
        text = self._render(messages)
        spans = [self._answer(messages, number, text) for number, message in enumerate(messages) if message["role"] == "assistant"]
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens, targets = list(encoded["input_ids"]), _mask(encoded["offset_mapping"], spans)
        last = max((place for place, target in enumerate(targets) if target), default=None)
        if last is not None and tokens[last] not in self._stops:  # without an end-of-turn token the tuned model would never stop
            tokens, targets = [*tokens, self._tokenizer.eos_token_id], [*targets, 1]
        return Example([*self._prefix, *tokens], [*[0] * len(self._prefix), *targets])

    @property
    def stop(self) -> int:
        """The token after which a tuned model has said all: what ends an answer that is the last turn."""
        turns = [Message("user", "A"), Message("assistant", "B")]
        for conversation in (turns, [Message("system", "S"), *turns]):
            with contextlib.suppress(DataError):  # some templates want the one, some the other
                example = self.encode(conversation)
                return example.tokens[max(place for place, target in enumerate(example.targets) if target)]
        return int(self._tokenizer.eos_token_id)

    def _render(self, messages: list[dict[str, str]]) -> str:
        import jinja2

        try:
            return str(self._tokenizer.apply_chat_template(messages, chat_template=self.jinja, tokenize=False))
        except jinja2.TemplateError as error:
            raise DataError(
                f"the model's chat template refuses a conversation: {error}", field=_FIELD, value=[message["role"] for message in messages],
                next_step="Correct the order of the roles, or write template: ChatML",
            ) from error  # fmt: skip

    def _answer(self, messages: list[dict[str, str]], number: int, text: str) -> _Span:
        """Where the answer `messages[number]` stands in `text`, with the end-of-turn token that follows it."""

        def replaced(content: str) -> str:
            return self._render([*messages[:number], {"role": "assistant", "content": content}, *messages[number + 1 :]])

        first, second = replaced("A"), replaced("B")
        before = _common(first, second)
        behind = _common(first[::-1], second[::-1])
        start, end = before, len(text) - behind
        if first == second or start > end or text[:before] != first[:before] or text[end:] != first[len(first) - behind :]:
            raise DataError(
                "the model's chat template does not show where an answer stands", field=_FIELD, value=messages[number]["content"],
                next_step="Write template: ChatML",
            )  # fmt: skip
        # Without an end-of-turn token the space behind the answer is what ends the turn.
        followed = self._ends.match(text, end) or _SPACE.match(text, end)
        return _Span(start, followed.end() if followed else end)


def _common(first: str, second: str) -> int:
    """Number of characters with which both texts begin."""
    return next(
        (number for number, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), min(len(first), len(second))
    )


def _template(tokenizer: Any, name: str) -> str:
    if name == "Alpaca":
        return ALPACA
    if name == "Llama2":  # a tokenizer that puts nothing before a text puts nothing between turns
        return LLAMA2 if prefix(tokenizer) else LLAMA2.replace("{{ bos_token }}", "")
    if name == "Llama3":
        return _ended(LLAMA3, _LLAMA3_END, tokenizer)
    template = tokenizer.chat_template if name == "Model" else None
    if isinstance(template, dict):
        template = template.get("default")
    return template or _ended(CHATML, _CHATML_END, tokenizer)


def _ended(template: str, end: str, tokenizer: Any) -> str:
    """Spelled out in letters an end of turn stops no generation, so a tokenizer without that token ends turns with its end of text."""
    return template if end in tokenizer.get_vocab() else template.replace(end, "{{ eos_token }}")


def prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before any text: its begin-of-text token or nothing."""
    ids = tokenizer("").input_ids
    return [tokenizer.bos_token_id] if ids and ids[0] == tokenizer.bos_token_id else []


def _mask(offsets: Sequence[tuple[int, int]], spans: Sequence[_Span]) -> list[int]:
    """1 for each token that covers a character of a span.

    Byte-level tokenizers trim spaces off their offsets, so a token is taken to begin where the one before it ended; the bytes
    of one character, which all have its offsets, begin at their own.
    """
    mask, previous = [], 0
    for start, end in offsets:
        begin = min(start, previous)
        mask.append(int(any(end > span.start and begin < span.end for span in spans)))
        previous = end
    return mask
