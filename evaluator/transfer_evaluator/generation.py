"""Greedy answers, many at a time.

Prompts with the same limit and stop strings are answered together; a step costs nearly the same for sixteen answers as for one, since it
reads the same weights. They are read as the scorer reads questions, so that what they share is computed once and nothing is
padded; then each takes its keys and values along into the batch. A row that has given a stop string or EOS leaves the batch. Answers
are those of one prompt at a time up to the rounding of sums in another order.

Models that cannot be read as trees, or whose settings say more than "the likeliest token", are left to transformers' `generate`.

Shapes: B answers of a batch, W tokens of its longest prompt, S = W + tokens so far, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicLayer, StoppingCriteria, StoppingCriteriaList

from transfer_evaluator.blocks import Block, Done
from transfer_evaluator.model import LoadedModel
from transfer_evaluator.scorer import Request, TokenScorer

CACHE_BYTES = {"cpu": 2**30, "cuda": 2**33}
"""Keys and values of a batch: of SmolLM2-135M in float32, 23 thousand tokens on a CPU."""
BLOCK_ANSWERS = 64
"""Answers of a block that pods share work by: a batch that keeps a GPU busy."""
FINISHED_SHARE = 0.125
"""When so many of a batch have ended, the others go on without them: to leave them out copies the cache of the rest."""
MORE_THAN_GREEDY = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "num_beams": 1, "guidance_scale": 1.0,
    "bad_words_ids": (), "suppress_tokens": (), "begin_suppress_tokens": (), "sequence_bias": (), "forced_bos_token_id": (),
    "forced_eos_token_id": (), "exponential_decay_length_penalty": (), "penalty_alpha": (),
}  # fmt: skip
"""Settings of a model's generation_config that change greedy answers, with the value at which they do not."""


@dataclass(frozen=True)
class Prompt:
    """Tokens to go on from."""

    tokens: tuple[int, ...]
    limit: int
    """Most tokens of the answer."""
    until: tuple[str, ...]
    """The answer ends before the first of these strings."""


@torch.inference_mode()
def answer(
    loaded: LoadedModel, prompts: Sequence[Prompt], done: Done, *, scorer: TokenScorer | None = None, cache_bytes: int | None = None
) -> list[str]:
    """Answers in the order of the prompts.

    Args:
        loaded: the model.
        prompts: what to answer; each leaves its model room for its limit.
        done: told after each batch.
        scorer: of the same model; its blocks, where it has some, are those of the answers too.
        cache_bytes: in place of `CACHE_BYTES`.
    """
    scorer = scorer or TokenScorer(loaded.model)
    if scorer.blocks is None:
        return _answer(loaded, prompts, done, scorer, cache_bytes)

    def compute(indices: Sequence[int], tell: Done) -> list[str]:
        return _answer(loaded, [prompts[index] for index in indices], tell, scorer, cache_bytes)

    answers: list[str] = scorer.blocks.share(cut_blocks(prompts), compute, done)
    return answers


def cut_blocks(prompts: Sequence[Prompt]) -> list[Block]:
    """Cuts prompts into blocks of `BLOCK_ANSWERS`, those that can be answered together side by side."""
    order = sorted(range(len(prompts)), key=lambda index: (prompts[index].limit, prompts[index].until, prompts[index].tokens))
    cut = [order[start : start + BLOCK_ANSWERS] for start in range(0, len(order), BLOCK_ANSWERS)]
    return [Block(tuple(block), _digest([prompts[index] for index in block])) for block in cut]


def _digest(prompts: Sequence[Prompt]) -> str:
    content = ["answers", *([prompt.tokens, prompt.limit, prompt.until] for prompt in prompts)]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _answer(loaded: LoadedModel, prompts: Sequence[Prompt], done: Done, scorer: TokenScorer, cache_bytes: int | None) -> list[str]:
    answers = [""] * len(prompts)
    budget = (cache_bytes or CACHE_BYTES.get(loaded.device.type, CACHE_BYTES["cpu"])) // cache_bytes_per_token(loaded.model)
    for batch in _batches(prompts, budget):
        rows = [prompts[index] for index in batch]
        stops = Stops(loaded, rows[0].until)
        tokens = [row.tokens or (loaded.prefix_token,) for row in rows]
        ours = scorer.tree and is_plainly_greedy(loaded.model)
        new = _decode(scorer, tokens, rows[0].limit, stops) if ours else _generate(loaded, tokens, rows[0].limit, stops)
        for index, found in zip(batch, new, strict=True):
            answers[index] = cut(loaded.tokenizer.decode(found, skip_special_tokens=True), rows[0].until)
        done(len(batch), sum(map(len, new)))
    return answers


def is_plainly_greedy(model: Any) -> bool:
    """Whether the likeliest token is all that the model's generation_config asks for."""
    config = model.generation_config
    return all((getattr(config, name, None) or neutral or 0) == (neutral or 0) for name, neutral in MORE_THAN_GREEDY.items())


def cache_bytes_per_token(model: Any) -> int:
    """Of keys and values in all layers; no less, where layers keep a window only."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def _batches(prompts: Sequence[Prompt], budget: int) -> Iterator[list[int]]:
    """Indices of prompts that go together: those that begin alike beside each other, as many as the cache holds at their longest."""
    alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for index, prompt in enumerate(prompts):
        alike.setdefault((prompt.limit, prompt.until), []).append(index)
    for (limit, _), indices in alike.items():
        batch: list[int] = []
        longest = 0
        for index in sorted(indices, key=lambda index: prompts[index].tokens):
            longer = max(longest, len(prompts[index].tokens))
            if batch and (len(batch) + 1) * (longer + limit) > budget:
                yield batch
                batch, longer = [], len(prompts[index].tokens)
            batch.append(index)
            longest = longer
        yield batch


class Stops:
    """What ends an answer."""

    def __init__(self, loaded: LoadedModel, until: Sequence[str]) -> None:
        self._tokenizer = loaded.tokenizer
        named = loaded.model.generation_config.eos_token_id
        special = loaded.tokenizer.get_added_vocab()
        self.tokens = {loaded.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
        # A stop string that is a token of its own would not be in text without special tokens.
        self.tokens |= {special[stop] for stop in until if stop in special}
        self._strings = [stop for stop in until if stop and stop not in special]
        # A token is a byte or more. What stood before the last so many was looked at in earlier steps.
        self._tail = max((len(stop.encode()) for stop in self._strings), default=0) + 8

    def in_text(self, tokens: Sequence[int]) -> bool:
        """Whether a stop string is in the last tokens of an answer."""
        if not self._strings:
            return False
        text = self._tokenizer.decode(tokens[-self._tail :], skip_special_tokens=True)
        return any(stop in text for stop in self._strings)


def _decode(scorer: TokenScorer, prompts: Sequence[Sequence[int]], limit: int, stops: Stops) -> list[list[int]]:
    """New tokens of each prompt, without the token that ended it."""
    running = _Running(scorer, prompts, limit)
    found: list[list[int]] = [[] for _ in prompts]
    finished: set[int] = set()
    while True:
        for row, token in zip(running.rows, running.likeliest.tolist(), strict=True):
            if row in finished:
                continue
            if token not in stops.tokens:
                found[row].append(token)
            if token in stops.tokens or len(found[row]) >= limit or stops.in_text(found[row]):
                finished.add(row)
        if len(finished) == len(prompts):
            return found
        left = [place for place, row in enumerate(running.rows) if row not in finished]
        if len(left) <= (1 - FINISHED_SHARE) * len(running.rows):
            running.keep(left)
        running.step()


class _Running:
    """A batch of answers on their way."""

    def __init__(self, scorer: TokenScorer, prompts: Sequence[Sequence[int]], limit: int) -> None:
        self._model = scorer.model
        self.rows = list(range(len(prompts)))
        """Which prompt each row of the batch answers."""
        width = max(map(len, prompts))
        lowest = torch.finfo(self._model.dtype).min
        place_S = torch.arange(width + limit)
        padding_B = torch.tensor([width - len(prompt) for prompt in prompts])
        self._mask_BS = torch.where(place_S < padding_B[:, None], lowest, 0.0).to(self._model.dtype).to(scorer.device)
        self._next_B = (width - padding_B).to(scorer.device)
        """Position of the token that comes next."""
        self._layers: list[_Slots] = []
        self.likeliest = torch.zeros(len(prompts), dtype=torch.long, device=scorer.device)
        """The last token found for each row [B]."""
        for computed in scorer.rows([Request(tuple(prompt), (0,)) for prompt in prompts], keep=True):
            layers = computed.cache.layers
            self._layers = self._layers or [_Slots(layer.keys, layer.values, len(prompts), width, limit) for layer in layers]
            for row, path, (place,) in zip(computed.row.requests, computed.row.paths, computed.places, strict=True):
                self.likeliest[row] = computed.logits_KV[place].argmax()
                nodes = torch.tensor(path, device=scorer.device)
                for slots, layer in zip(self._layers, layers, strict=True):
                    slots.fill(row, layer.keys[0].index_select(-2, nodes), layer.values[0].index_select(-2, nodes))

    def step(self) -> None:
        """Computes one more token of each row."""
        seen = self._layers[0].get_seq_length() + 1
        logits_BV = self._model(
            input_ids=self.likeliest[:, None], position_ids=self._next_B[:, None], past_key_values=Cache(layers=self._layers),
            attention_mask=self._mask_BS[:, None, None, :seen], use_cache=True,
        ).logits[:, -1]  # fmt: skip
        self.likeliest = logits_BV.argmax(dim=-1)
        self._next_B = self._next_B + 1

    def keep(self, places: Sequence[int]) -> None:
        """Goes on with these rows of the batch only."""
        kept = torch.tensor(places, device=self.likeliest.device)
        self.rows = [self.rows[place] for place in places]
        self.likeliest, self._next_B, self._mask_BS = self.likeliest[kept], self._next_B[kept], self._mask_BS[kept]
        for slots in self._layers:
            slots.keep(kept)


class _Slots(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer with room for the whole answer, so that a new token is written in place and nothing is copied.

    Args:
        keys, values: of any row of the same layer, for their heads and sizes.
        rows: B.
        width: W; shorter prompts stand at the end of it.
        limit: tokens that may follow.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: int, width: int, limit: int) -> None:
        super().__init__()
        self._keys, self._values = (one.new_zeros(rows, one.shape[1], width + limit, one.shape[-1]) for one in (keys, values))
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._show(width)

    def _show(self, seen: int) -> None:
        self.keys, self.values = self._keys[:, :, :seen], self._values[:, :, :seen]

    def fill(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Sets those of a prompt."""
        length = keys.shape[-2]
        self.keys[row, :, -length:], self.values[row, :, -length:] = keys, values

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the next token of each row."""
        seen = self.get_seq_length()
        self._show(seen + key_states.shape[-2])
        self.keys[:, :, seen:], self.values[:, :, seen:] = key_states, value_states
        return self.keys, self.values

    def keep(self, rows: torch.Tensor) -> None:
        """Leaves these rows only."""
        seen = self.get_seq_length()
        self._keys, self._values = self._keys[rows], self._values[rows]
        self._show(seen)


def _generate(loaded: LoadedModel, prompts: Sequence[Sequence[int]], limit: int, stops: Stops) -> list[list[int]]:
    """The same by transformers, padded on the left."""
    end = min(stops.tokens, default=0)  # only fills up
    width = max(map(len, prompts))
    input_ids_BT = torch.tensor([[end] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=loaded.device)
    mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=loaded.device)
    output_BT = loaded.model.generate(
        input_ids_BT, attention_mask=mask_BT, do_sample=False, max_new_tokens=limit, eos_token_id=sorted(stops.tokens) or None,
        pad_token_id=end, stopping_criteria=StoppingCriteriaList([_Until(stops, width, len(prompts))]), use_cache=True,
    )  # fmt: skip
    return [_before(tokens, stops.tokens) for tokens in output_BT[:, width:].tolist()]


def _before(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def cut(text: str, until: Sequence[str]) -> str:
    """What stands before the first stop string."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


class _Until(StoppingCriteria):  # type: ignore[misc]
    """Says of each row whether its answer has a stop string."""

    def __init__(self, stops: Stops, start: int, rows: int) -> None:
        self._stops = stops
        self._start = start
        self._done = [False] * rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, tokens in enumerate(input_ids[:, self._start :].tolist()):
            self._done[row] = self._done[row] or self._stops.in_text(tokens)
        return torch.tensor(self._done, device=input_ids.device)
