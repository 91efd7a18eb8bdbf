"""Log-probabilities of continuations, each token computed once.

Questions share prefixes: the options of one question its whole text, the questions of one subject their examples. Sorted,
neighbouring requests are laid into one row as a tree: a token that two requests share stands there once, each token sees
its own ancestors only (a 4-D attention mask) and has its depth as position. So nothing is computed twice, there is no
padding, and logits are taken at the needed nodes alone. The idea is that of tree attention (SpecInfer, arXiv 2305.09781).

Models for which such a mask could mean something else (sliding windows, ALiBi, learned state) go the plain way: padded
batches, one sequence a row. Both ways answer alike; tests hold them together.

Shapes: B rows, L nodes of a row, T positions, K needed logits, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

ROW_TOKENS = {"cpu": 512, "cuda": 4096}
"""Nodes of a row: enough to fill the matrix products, few enough that the square of attention stays small beside them."""
SHARED_ROW_FACTOR = 4
"""A row may grow to this many times a request where it mostly shares its tokens: a longer row is cheaper than the prefix again."""
TREE_MODELS = frozenset({"llama", "qwen2", "qwen3", "mistral", "olmo2", "smollm3", "granite"})
"""Rotary models with full attention in every layer."""
TREE_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary scalings that do not depend on the length of the batch."""


@dataclass(frozen=True)
class Request:
    """Tokens to score after tokens that are given. Both non-empty; together at most positions + 1."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: everything but the last token."""
        return self.context + self.continuation[:-1]


@dataclass(frozen=True)
class TokenScore:
    """Sum of the log-probabilities of the continuation, and whether each token of it was the likeliest."""

    log_probability: float
    greedy: bool


Done = Callable[[int, int], None]
"""Told after each forward pass: requests finished by it, tokens computed in it."""
Begin = Callable[[int], Done]
"""Told how many requests come; gives what is to be told after each pass."""


def silent(requests: int) -> Done:
    """For callers that need no progress."""
    return lambda finished, tokens: None


class TokenScorer:
    """Scores requests on one model.

    Args:
        model: a transformers causal language model in evaluation mode.
        tree: lay requests out as trees; default: where the model allows it.
        row_tokens: nodes of a row, or tokens of a padded batch.
    """

    def __init__(self, model: Any, *, tree: bool | None = None, row_tokens: int | None = None) -> None:
        self.model = model
        self.device: torch.device = model.device
        self.tree = allows_tree(model.config) if tree is None else tree
        self.row_tokens = row_tokens or ROW_TOKENS.get(self.device.type, 512)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def score(self, requests: Sequence[Request], done: Done | None = None) -> list[TokenScore]:
        """Scores in the order of the requests, whatever order they are computed in."""
        scores: list[TokenScore | None] = [None] * len(requests)
        rows = self._tree_rows(requests) if self.tree else self._padded_batches(requests)
        for indices, found, tokens in rows:
            for index, score in zip(indices, found, strict=True):
                scores[index] = score
            if done:
                done(len(indices), tokens)
        assert all(score is not None for score in scores)
        return [score for score in scores if score is not None]

    def _tree_rows(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], list[TokenScore], int]]:
        for row in plan_rows([request.inputs for request in requests], self.row_tokens):
            logits_KV, at = self._row_logits(row, [requests[index] for index in row.requests])
            nodes = [
                [at[node] for node in path[len(path) - len(requests[index].continuation) :]]
                for index, path in zip(row.requests, row.paths, strict=True)
            ]
            continuations = [requests[index].continuation for index in row.requests]
            yield row.requests, _read(logits_KV, nodes, continuations), len(row.tokens)

    def _row_logits(self, row: Row, requests: Sequence[Request]) -> tuple[torch.Tensor, dict[int, int]]:
        """Logits at the nodes that predict a continuation [K, V], and where in K each node is."""
        needed = sorted({n for request, path in zip(requests, row.paths, strict=True) for n in path[-len(request.continuation) :]})
        input_ids_BL = torch.tensor([row.tokens], device=self.device)
        kwargs: dict[str, Any] = {}
        if not row.is_path:
            mask_LL = torch.from_numpy(row.mask()).to(self.device)
            lowest = torch.finfo(self.model.dtype).min
            kwargs["attention_mask"] = torch.where(mask_LL, 0.0, lowest).to(self.model.dtype)[None, None]
            kwargs["position_ids"] = torch.tensor([row.depths], device=self.device)
        logits_BKV = self._logits(input_ids_BL, torch.tensor(needed, device=self.device), **kwargs)
        return logits_BKV[0], {node: place for place, node in enumerate(needed)}

    def _padded_batches(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], list[TokenScore], int]]:
        sharing: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            sharing.setdefault(request.inputs, []).append(index)
        for batch in _batches(sorted(sharing, key=len, reverse=True), self.row_tokens):
            width = len(batch[0])
            # Padded on the right: causal attention never looks there, so no mask is needed.
            input_ids_BT = torch.tensor([[*inputs, *[0] * (width - len(inputs))] for inputs in batch], device=self.device)
            first = min(len(inputs) - len(requests[index].continuation) for inputs in batch for index in sharing[inputs])
            logits_BKV = self._logits(input_ids_BT, torch.arange(first, width, device=self.device))
            indices, scores = [], []
            for logits_KV, inputs in zip(logits_BKV, batch, strict=True):
                for index in sharing[inputs]:
                    continuation = requests[index].continuation
                    places = list(range(len(inputs) - len(continuation) - first, len(inputs) - first))
                    indices.append(index)
                    scores += _read(logits_KV, [places], [continuation])
            yield indices, scores, sum(map(len, batch))

    def _logits(self, input_ids_BT: torch.Tensor, keep_K: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self._keeps:
            kwargs["logits_to_keep"] = keep_K
        logits: torch.Tensor = self.model(input_ids=input_ids_BT, use_cache=False, **kwargs).logits
        return logits if self._keeps else logits[:, keep_K]


def _read(logits_KV: torch.Tensor, places: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[TokenScore]:
    """Scores of continuations whose tokens are predicted at `places` of K."""
    normalizer_K = torch.logsumexp(logits_KV.float(), dim=-1).double().cpu().numpy()
    likeliest_K = logits_KV.argmax(dim=-1).cpu().numpy()
    flat_places = torch.tensor([place for request in places for place in request], device=logits_KV.device)
    flat_tokens = torch.tensor([token for tokens in continuations for token in tokens], device=logits_KV.device)
    chosen = logits_KV[flat_places, flat_tokens].double().cpu().numpy()
    scores, start = [], 0
    for request, tokens in zip(places, continuations, strict=True):
        at = np.asarray(request)
        log_probability = float((chosen[start : start + len(at)] - normalizer_K[at]).sum())
        scores.append(TokenScore(log_probability, bool((likeliest_K[at] == np.asarray(tokens)).all())))
        start += len(at)
    return scores


@dataclass
class Row:
    """A forest of token sequences laid out in one row."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Node before this one in its sequence; -1 for a first token."""
    requests: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    """For each request, the nodes of its inputs from first to last."""

    @property
    def is_path(self) -> bool:
        """Whether there is one branch only, so that plain causal attention does."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def add(self, index: int, inputs: Sequence[int], shared: int) -> None:
        """Appends a request whose first `shared` tokens are those of the last one added."""
        path = list(self.paths[-1][:shared]) if shared else []
        for depth in range(shared, len(inputs)):
            self.parents.append(path[-1] if path else -1)
            path.append(len(self.tokens))
            self.tokens.append(inputs[depth])
            self.depths.append(depth)
        self.requests.append(index)
        self.paths.append(path)

    def mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """[L, L]: whether node i sees node j, which is i itself or an ancestor of it."""
        length = len(self.tokens)
        mask_LL = np.zeros((length, length), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask_LL[node] = mask_LL[parent]
            mask_LL[node, node] = True
        return mask_LL


def plan_rows(sequences: Sequence[tuple[int, ...]], row_tokens: int) -> Iterator[Row]:
    """Lays sequences out in rows of about `row_tokens` nodes; a longer sequence has a row of its own."""
    row = Row()
    previous: tuple[int, ...] = ()
    for index in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        inputs = sequences[index]
        shared = _shared_prefix(previous, inputs) if row.requests else 0
        mostly_shared = 2 * shared >= len(inputs)
        limit = max(row_tokens, SHARED_ROW_FACTOR * len(inputs)) if mostly_shared else row_tokens
        if row.requests and len(row.tokens) + len(inputs) - shared > limit:
            yield row
            row, shared = Row(), 0
        row.add(index, inputs, shared)
        previous = inputs
    if row.requests:
        yield row


def _shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))


def _batches(sequences: Sequence[tuple[int, ...]], budget: int) -> Iterator[list[tuple[int, ...]]]:
    """Groups sequences, sorted from long to short, so that rows times the longest stay within the budget."""
    start = 0
    while start < len(sequences):
        rows = max(1, budget // len(sequences[start]))
        yield list(sequences[start : start + rows])
        start += rows


def allows_tree(config: Any) -> bool:
    """Whether a tree mask means the same to this model as separate sequences."""
    if getattr(config, "model_type", "") not in TREE_MODELS:
        return False
    layers = getattr(config, "layer_types", None) or []
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    rotary = getattr(config, "rope_parameters", None) or {}
    kind = rotary.get("rope_type", "default") if isinstance(rotary, dict) else "default"
    return not windowed and all(layer == "full_attention" for layer in layers) and kind in TREE_ROTARY
