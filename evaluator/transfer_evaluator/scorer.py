"""Log-probabilities of continuations, each token computed once.

Questions share prefixes: the options of one question its whole text, the questions of one subject their examples. Sorted,
neighbouring requests are laid into one row as a tree: a token that two requests share stands there once, each token sees
its own ancestors only (a 4-D attention mask) and has its depth as position. Where the next row goes on from a prefix of the
last one, that prefix, the trunk, is taken from the last row's KV cache. So nothing is computed twice, there is no padding, and logits
are taken at the needed nodes alone. The idea is that of tree attention (SpecInfer, arXiv 2305.09781).

Models for which such a mask could mean something else (sliding windows, ALiBi, learned state) go the plain way: padded
batches, one sequence a row. Both ways answer alike; tests hold them together.

Shapes: B rows, T tokens of a trunk, L nodes after it, S = T + L, K needed logits, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from transfer_evaluator.blocks import Block, Blocks, Done

ROW_TOKENS = {"cpu": 512, "cuda": 4096}
"""Nodes of a row: enough to fill the matrix products, few enough that the square of attention stays small beside them."""
LEAST_TRUNK = 16
"""A shared prefix of fewer tokens is computed again: to attend to a cache costs about as much."""
BLOCK_TOKENS = 32_768
"""Tokens of a block that pods share work by: half a minute on two cores, a second on a GPU. Each computes its shared beginnings anew."""
SOFTMAX_ROWS = 64
"""Logits are normalised so many rows at a time: what is set beside them stays small, and every thread has enough to do."""
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
        blocks: where results are shared with other pods, and kept from earlier tries; None for neither.
    """

    def __init__(self, model: Any, *, tree: bool | None = None, row_tokens: int | None = None, blocks: Blocks | None = None) -> None:
        self.model = model
        self.blocks = blocks
        self.device: torch.device = model.device
        self.tree = allows_tree(model.config) if tree is None else tree
        self.row_tokens = row_tokens or ROW_TOKENS.get(self.device.type, 512)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def score(self, requests: Sequence[Request], done: Done | None = None) -> list[TokenScore]:
        """Scores in the order of the requests, whatever order they are computed in."""
        if self.blocks is None:
            return self._score(requests, done)

        def compute(indices: Sequence[int], tell: Done) -> list[list[float | bool]]:
            return [[score.log_probability, score.greedy] for score in self._score([requests[index] for index in indices], tell)]

        found = self.blocks.share(cut_blocks(requests), compute, done or silent(0))
        return [TokenScore(float(log_probability), bool(greedy)) for log_probability, greedy in found]

    def _score(self, requests: Sequence[Request], done: Done | None) -> list[TokenScore]:
        scores: list[TokenScore | None] = [None] * len(requests)
        rows = self._tree_rows(requests) if self.tree else self._padded_batches(requests)
        for indices, found, tokens in rows:
            for index, score in zip(indices, found, strict=True):
                scores[index] = score
            if done:
                done(len(indices), tokens)
        assert all(score is not None for score in scores)
        return [score for score in scores if score is not None]

    def rows(self, requests: Sequence[Request], *, keep: bool = False) -> Iterator[ComputedRow]:
        """Computes requests as trees, row by row; with `keep` each row has the cache of its nodes until the next one is asked for."""
        cache: Any = None
        for row, goes_on in _with_next(plan_rows(requests, self.row_tokens)):
            if row.trunk:
                self._keep(cache, row.trunk)
            else:
                cache = DynamicCache() if goes_on or keep else None
            logits_KV, places = self._row_logits(row, [requests[index] for index in row.requests], cache)
            yield ComputedRow(row, logits_KV, places, cache)

    def _tree_rows(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], list[TokenScore], int]]:
        for computed in self.rows(requests):
            continuations = [requests[index].continuation for index in computed.row.requests]
            yield computed.row.requests, _read(computed.logits_KV, computed.places, continuations), len(computed.row.tokens)

    def _keep(self, cache: Any, trunk: Sequence[int]) -> None:
        """Leaves in the cache of the last row what is the trunk of this one."""
        kept_T = torch.tensor(trunk, device=self.device)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.index_select(-2, kept_T), layer.values.index_select(-2, kept_T)

    def _row_logits(self, row: Row, requests: Sequence[Request], cache: Any) -> tuple[torch.Tensor, list[list[int]]]:
        """Logits at the nodes that predict a continuation [K, V], and for each request where in K its nodes are."""
        needed = sorted({n for request, path in zip(requests, row.paths, strict=True) for n in path[-len(request.continuation) :]})
        input_ids_BL = torch.tensor([row.tokens], device=self.device)
        kwargs: dict[str, Any] = {"past_key_values": cache, "use_cache": cache is not None}
        if row.trunk or not row.is_path:
            mask_LS = torch.from_numpy(row.mask()).to(self.device)
            lowest = torch.finfo(self.model.dtype).min
            kwargs["attention_mask"] = torch.where(mask_LS, 0.0, lowest).to(self.model.dtype)[None, None]
            kwargs["position_ids"] = torch.tensor([row.depths], device=self.device)
        trunk = len(row.trunk)
        keep_K = torch.tensor([node - trunk for node in needed], device=self.device)
        logits_BKV = self._logits(input_ids_BL, keep_K, **kwargs)
        at = {node: place for place, node in enumerate(needed)}
        predicting = [path[len(path) - len(request.continuation) :] for request, path in zip(requests, row.paths, strict=True)]
        return logits_BKV[0], [[at[node] for node in nodes] for nodes in predicting]

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
        logits: torch.Tensor = self.model(input_ids=input_ids_BT, **{"use_cache": False, **kwargs}).logits
        return logits if self._keeps else logits[:, keep_K]


def _read(logits_KV: torch.Tensor, places: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[TokenScore]:
    """Scores of continuations whose tokens are predicted at `places` of K."""
    flat_places = torch.tensor([place for request in places for place in request], device=logits_KV.device)
    flat_tokens = torch.tensor([token for tokens in continuations for token in tokens], device=logits_KV.device)
    chosen = logits_KV[flat_places, flat_tokens]
    log_probabilities = (chosen.double() - _normalizers(logits_KV).double()[flat_places]).cpu().numpy()
    greedy = _likeliest(logits_KV, flat_places, flat_tokens, chosen).cpu().numpy()
    ends = np.cumsum([len(tokens) for tokens in continuations])
    return [
        TokenScore(float(log_probabilities[end - len(tokens) : end].sum()), bool(greedy[end - len(tokens) : end].all()))
        for end, tokens in zip(ends, continuations, strict=True)
    ]


def _normalizers(logits_KV: torch.Tensor) -> torch.Tensor:
    """The log-sum-exp of each row [K], in float32. On a CPU log_softmax takes half the time of logsumexp, and tells as much."""
    parts = (part.float() for part in torch.split(logits_KV, SOFTMAX_ROWS))
    return torch.cat([part[:, 0] - part.log_softmax(dim=-1)[:, 0] for part in parts])


def _likeliest(logits_KV: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Whether each token is the likeliest at its place. argmax is slow on a CPU and is asked only where several may be the greatest."""
    greatest = chosen == logits_KV.amax(dim=-1)[places]
    greatest[greatest.clone()] = logits_KV[places[greatest]].argmax(dim=-1) == tokens[greatest]
    return greatest


@dataclass
class Row:
    """A forest of token sequences laid out in one row, after a trunk that is known from the row before.

    Nodes are numbered from the first of the trunk on, so that a node's number is its place in the KV cache.
    """

    trunk: list[int] = field(default_factory=list)
    """Nodes of the row before that are this row's first nodes: tokens 0, 1, … of its last request."""
    tokens: list[int] = field(default_factory=list)
    """Of the nodes after the trunk, as are `depths` and `parents`."""
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

    def add(self, index: int, request: Request, shared: int) -> None:
        """Appends a request whose first `shared` tokens are those of the last one added, or of the trunk."""
        inputs, first = request.inputs, len(request.context) - 1
        before = self.paths[-1] if self.paths else range(len(self.trunk))
        if first < shared and before[first] < len(self.trunk):
            shared = first  # a cache has no logits: the first node that predicts is computed again
        path = list(before[:shared])
        for depth in range(shared, len(inputs)):
            self.parents.append(path[-1] if path else -1)
            path.append(len(self.trunk) + len(self.tokens))
            self.tokens.append(inputs[depth])
            self.depths.append(depth)
        self.requests.append(index)
        self.paths.append(path)

    def mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """[L, S]: whether a node after the trunk sees a node, which is itself or an ancestor of it."""
        trunk = len(self.trunk)
        mask_LS = np.zeros((len(self.tokens), trunk + len(self.tokens)), dtype=np.bool_)
        for place, parent in enumerate(self.parents):
            if parent >= trunk:
                mask_LS[place] = mask_LS[parent - trunk]
            else:
                mask_LS[place, : parent + 1] = True
            mask_LS[place, trunk + place] = True
        return mask_LS


@dataclass(frozen=True)
class ComputedRow:
    """A row after its forward pass."""

    row: Row
    logits_KV: torch.Tensor
    places: list[list[int]]
    """For each request of the row, the places in K that predict its continuation."""
    cache: Any
    """Keys and values of the S nodes, trunk included."""


def plan_rows(requests: Sequence[Request], row_tokens: int) -> Iterator[Row]:
    """Lays requests out in rows of about `row_tokens` new nodes; one with more of them has a row of its own."""
    row = Row()
    previous: tuple[int, ...] = ()
    for index in sorted(range(len(requests)), key=lambda i: requests[i].inputs):
        inputs = requests[index].inputs
        shared = _shared_prefix(previous, inputs)
        if row.requests and len(row.tokens) + len(inputs) - shared > row_tokens:
            yield row
            shared = min(shared, len(requests[index].context) - 1)
            shared = shared if shared >= LEAST_TRUNK else 0
            row = Row(trunk=row.paths[-1][:shared])
        row.add(index, requests[index], shared)
        previous = inputs
    if row.requests:
        yield row


def cut_blocks(requests: Sequence[Request]) -> list[Block]:
    """Cuts requests into blocks of about `BLOCK_TOKENS` tokens to compute, those with the same beginning together."""
    blocks: list[list[int]] = [[]]
    previous: tuple[int, ...] = ()
    tokens = 0
    for index in sorted(range(len(requests)), key=lambda i: (requests[i].inputs, requests[i].continuation)):
        inputs = requests[index].inputs
        new = len(inputs) - _shared_prefix(previous, inputs)
        if blocks[-1] and tokens + new > BLOCK_TOKENS:
            blocks.append([])
            tokens, new = 0, len(inputs)
        blocks[-1].append(index)
        tokens += new
        previous = inputs
    return [Block(tuple(block), _digest([requests[index] for index in block])) for block in blocks if block]


def _digest(requests: Sequence[Request]) -> str:
    digest = hashlib.sha256(b"scores")
    for request in requests:
        digest.update(np.array([len(request.context), *request.context, *request.continuation], dtype="<u4").tobytes())
    return digest.hexdigest()


def _with_next(rows: Iterable[Row]) -> Iterator[tuple[Row, bool]]:
    """Each row, and whether the next one goes on from it."""
    for row, following in itertools.pairwise(itertools.chain(rows, [Row()])):
        yield row, bool(following.trunk)


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
