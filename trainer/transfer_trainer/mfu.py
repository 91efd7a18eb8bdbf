"""MFU, model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B): the work that a model needs over what its GPUs could do.

    MFU = FLOPs of a step / (seconds of a step · peak FLOP/s of all GPUs of the round)

    body        6·P a token      of P parameters in matrices: 2 forward, 2 for the gradient of the inputs, 2 for that of the weights
                4·P              where the weights are frozen: LoRA, whose adapters count 6 as other trained matrices do
    head        6·D·V a label    tokens without a label do not pass it (model.py); 4·D·V where it is frozen
    attention   12·L·H a pair    L layers, H = heads · width of a head; a pair is a token and one that it sees, itself included

So embeddings, which are looked up, count nothing; packed documents see only themselves, and no more than that is counted; what is
computed again by activation checkpointing is not counted either. Padding is, as any token (`padding_ratio` tells of it). Optimizer,
norms and softmax are left out, as everywhere.

There is no MFU rather than a wrong one: without GPUs, on a card that is not in the table (transfer_api/gpu.py), in Float32, whose
peak is another, and for models of other shapes (experts, sliding windows).
"""

from __future__ import annotations

import collections
import logging
import time
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import nn

from transfer_api.gpu import peak_flops
from transfer_api.spec import Precision
from transfer_trainer.head import PLAIN_MODELS
from transfer_trainer.parallel import Team

logger = logging.getLogger(__name__)

WINDOW_STEPS = 20
"""Steps over which speed is taken: smooth enough for an ETA, short enough to show a resize."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of forward and backward pass, by what they grow with."""

    token: float
    label: float
    pair: float

    @classmethod
    def of(cls, model: nn.Module, sequence_length: int) -> Self | None:
        """Counts a causal language model of transformers, with its adapters; call it before sharding.

        Args:
            model: with what is not trained frozen.
            sequence_length: of the rows; a sliding window that is shorter makes other pairs.

        Returns:
            None for a model that these formulas do not describe.
        """
        whole = cast(Any, model)
        config, embedding, head = whole.config, whole.get_input_embeddings(), whole.get_output_embeddings()
        window = getattr(config, "sliding_window", None)
        if config.model_type not in PLAIN_MODELS or (window is not None and window < sequence_length):
            return None
        ends = {id(weight) for module in (embedding, head) for weight in module.parameters()}
        looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        body = [weight for weight in model.parameters() if id(weight) not in ends | looked_up and weight.dim() == 2]
        # Two weights of 4 bits are one element.
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        sizes = {id(module.weight): module.in_features * module.out_features for module in linear}
        heads = int(config.num_attention_heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        trained = any(weight.requires_grad for weight in head.parameters())
        return cls(
            token=sum((6.0 if weight.requires_grad else 4.0) * sizes.get(id(weight), weight.numel()) for weight in body),
            label=(6.0 if trained else 4.0) * config.hidden_size * config.vocab_size,
            pair=12.0 * config.num_hidden_layers * heads * width,
        )

    def flops(self, tokens: int, labels: float, pairs: float) -> float:
        """Of a step."""
        return self.token * tokens + self.label * labels + self.pair * pairs


def round_peak(team: Team, precision: Precision) -> float | None:
    """Peak FLOP/s of all GPUs of the round; None where one is unknown. All processes take part."""
    name = torch.cuda.get_device_name(team.device) if team.device.type == "cuda" else ""
    peak = peak_flops(name) if precision is Precision.BFLOAT16 else None
    peaks = team.gather(peak or 0.0)
    if not all(peaks):
        return None
    logger.info("MFU is over %.0f TFLOP/s of %d GPUs (here %s), dense bfloat16", sum(peaks) / 1e12, len(peaks), name)
    return sum(peaks)


class Pace:
    """Time and work of the last `WINDOW_STEPS` steps."""

    def __init__(self) -> None:
        self._times: collections.deque[float] = collections.deque(maxlen=WINDOW_STEPS + 1)
        self._flops: collections.deque[float] = collections.deque(maxlen=WINDOW_STEPS)
        self.begin()

    def begin(self) -> None:
        """Counts from now: what came before was no step."""
        self._flops.clear()
        self._times.clear()
        self._times.append(time.monotonic())

    def step(self, flops: float) -> None:
        """Adds a step that has just ended."""
        self._times.append(time.monotonic())
        self._flops.append(flops)

    @property
    def seconds(self) -> float:
        """Of a step; there must have been one."""
        return (self._times[-1] - self._times[0]) / len(self._flops)

    def mfu(self, peak: float | None) -> float | None:
        """Share of the peak, 0 to 1; None where the peak is unknown."""
        return None if peak is None else sum(self._flops) / (self._times[-1] - self._times[0]) / peak
