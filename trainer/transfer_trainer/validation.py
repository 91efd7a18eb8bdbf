"""Bits per byte of held-out texts while training, so that a curve can be shown over runs with different vocabularies.

A few documents of each text are enough for a curve (the suite `perplexity` scores them whole afterwards). Each document is cut
into windows that start with the beginning-of-text token, so every byte of it is predicted and the bits add up.

B windows, T tokens in a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from transfer_api.spec import Precision
from transfer_trainer.model import arithmetic, summed_loss
from transfer_trainer.parallel import Team

MOST_TOKENS = 512
"""Of each text: four texts of a 135M model take 6 s on two slow cores (360 tokens/s), for each measurement."""


@dataclass(frozen=True)
class HeldOut:
    """A held-out text, tokenised. `windows` are token ids of at most the sequence length, first the one that begins a text."""

    name: str
    windows: list[list[int]]
    bytes: int


def tokenise(name: str, documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> HeldOut:
    """The first documents of a text, up to `MOST_TOKENS` tokens; the last one is cut at a window, which is no longer than that."""
    begin = next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), 0)
    width = min(sequence_length - 1, MOST_TOKENS)
    windows: list[list[int]] = []
    size = total = 0
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        pieces = [ids[start : start + width] for start in range(0, len(ids), width)]
        kept = pieces[: max(1, (MOST_TOKENS - total) // width)]
        text = document if len(kept) == len(pieces) else tokenizer.decode([token for piece in kept for token in piece])
        windows += [[begin, *piece] for piece in kept]
        size += len(text.encode())
        total += sum(len(piece) for piece in kept)
        if total >= MOST_TOKENS:
            break
    return HeldOut(name, windows, size)


def bits_per_byte(model: nn.Module, texts: list[HeldOut], team: Team, precision: Precision, micro_batch_tokens: int) -> dict[str, float]:
    """Bits per byte of each text; all processes take part and get the same answer.

    Every process runs the same number of forward passes, the last ones empty where windows run out: a sharded model gathers
    its weights in each.
    """
    result = {}
    for text in texts:
        longest = max((len(window) for window in text.windows), default=2)
        rows = max(1, micro_batch_tokens // longest)
        mine = text.windows[team.rank :: team.world_size]
        passes = math.ceil(math.ceil(len(text.windows) / team.world_size) / rows)
        nats = 0.0
        for number in range(passes):
            nats += _nats(model, mine[number * rows : (number + 1) * rows], longest, team.device, precision)
        result[text.name] = team.sum(nats)[0] / math.log(2) / max(1, text.bytes)
    return result


def _nats(model: nn.Module, windows: list[list[int]], longest: int, device: torch.device, precision: Precision) -> float:
    tokens_BT = np.zeros((max(1, len(windows)), longest), dtype=np.int64)
    targets_BT = np.zeros_like(tokens_BT, dtype=bool)
    for row, window in enumerate(windows):
        tokens_BT[row, : len(window)] = window
        targets_BT[row, 1 : len(window)] = True
    positions_BT = np.broadcast_to(np.arange(longest), tokens_BT.shape).copy()
    with torch.no_grad(), arithmetic(precision, device):
        tokens, positions, targets = (torch.from_numpy(array).to(device) for array in (tokens_BT, positions_BT, targets_BT))
        return float(summed_loss(model, tokens, positions, targets, torch.ones(len(tokens_BT), device=device)).nats)
