"""The exponential moving average of what is trained, in float32 beside it; what is measured on the way and exported where it is asked for.

After update t the average of the weights w_1 … w_t is

    e_t = Σ d^(t-i) · w_i / Σ d^(t-i)        d: decay

kept as e_t = e_(t-1) + (1-d) / (1-d^t) · (w_t - e_(t-1)). So it begins with the first weights that were trained, as the moments of
AdamW do with their correction, and a run shorter than 1 / (1-d) steps is not drawn to the base model. It is taken shard by shard,
element by element, so no membership has a say in it; average and number of updates are in the checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from transfer_trainer.parallel import local_part


class Ema:
    """The average of a model's trainable parameters.

    Args:
        model: after sharding, which replaces the parameters.
        decay: d, more than 0 and less than 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._updates = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are after a step of the optimizer."""
        self._updates += 1
        share = (1 - self._decay) / (1 - self._decay ** int(self._updates))
        torch._foreach_lerp_(_local(self._average), _local(self._weights), share)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the tensors themselves, sharded as the parameters are; loading writes into them."""
        return {"average": self._average, "updates": self._updates}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Has the model be the average for a while; then its weights are the same bits again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # After a forward pass without a backward pass FSDP2 keeps the root's weights gathered, and would use those.
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for weight, average in zip(_local(self._weights), _local(self._average), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def _local(tensors: dict[str, Any]) -> list[torch.Tensor]:
    """What of each this process holds."""
    return [local_part(tensor) for tensor in tensors.values()]
