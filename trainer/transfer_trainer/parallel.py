"""The processes of a round: who they are, how their numbers are added, how a model is spread over them.

One process is a plain model without a process group; more are FSDP2, a unit per decoder layer, or replicas of that plain
model (replicas.py). Control values (counts, losses, requests) travel as CPU tensors over gloo also where gradients go over NCCL,
so they never wait for a kernel.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from transfer_api.errors import ModelError
from transfer_api.spec import Sharding

COLLECTIVE_TIMEOUT = "TRANSFER_COLLECTIVE_TIMEOUT"
"""Environment variable: seconds after which a silent peer counts as lost. A killed peer is noticed at once (its sockets
close); only a frozen one costs this long. Must exceed the slowest step."""
DEFAULT_TIMEOUT_SECONDS = 300
SAVE_TIMEOUT = dt.timedelta(hours=1)
"""Longest that one process writes its part of a checkpoint while the others wait. A lost peer is noticed by training itself."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process among the `world_size` processes of a round."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    """Processes of this pod."""
    round: int = 0
    incarnation: str = ""
    """Of the rendezvous store; empty where there is none."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    background: dist.ProcessGroup | None = None
    """For what goes on beside training, in threads of their own; lives as long as the round."""

    @classmethod
    def join(cls, environment: Mapping[str, str] = os.environ) -> Team:
        """Meets the other processes at MASTER_ADDR:MASTER_PORT, as the launcher set them."""
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        gpu = torch.cuda.is_available()
        device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
        if gpu:
            torch.cuda.set_device(device)
        world_size = int(environment.get("WORLD_SIZE", "1"))
        background: dist.ProcessGroup | None = None
        if world_size > 1:
            timeout = dt.timedelta(seconds=float(environment.get(COLLECTIVE_TIMEOUT, DEFAULT_TIMEOUT_SECONDS)))
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timeout)
            background = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=SAVE_TIMEOUT))
        rank = int(environment.get("RANK", "0"))
        return cls(
            rank=rank, local_rank=local_rank, world_size=world_size, device=device, background=background,
            local_world_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
            round=int(environment.get("TRANSFER_ROUND", "0")), incarnation=environment.get("TRANSFER_INCARNATION", ""),
        )  # fmt: skip

    @property
    def ranks_of_pod(self) -> range:
        """The ranks of this pod's processes."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_world_size)

    def sum(self, *values: float) -> list[float]:
        """Adds each value over all processes, in float64."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(total)
        return list(total.tolist())

    def gather(self, value: float) -> list[float]:
        """The values of all processes, by rank."""
        return self.sum(*(value if rank == self.rank else 0.0 for rank in range(self.world_size)))

    def tell(self, *values: int) -> list[int]:
        """The values of rank 0, on every process; all pass the same number of them."""
        told = torch.tensor(values, dtype=torch.int64)
        if self.world_size > 1:
            dist.broadcast(told, src=0)
        return [int(value) for value in told.tolist()]

    def wait(self, *, patiently: bool = False) -> None:
        """Returns once every process has come here.

        Args:
            patiently: give one that writes as long as a checkpoint may take. None may be under way: the group is the same.
        """
        if patiently and self.background is not None:
            dist.all_reduce(torch.zeros(1), group=self.background)
        else:
            self.sum(0.0)

    def leave(self) -> None:
        """Closes the process groups, if there are any."""
        if dist.is_initialized():
            dist.destroy_process_group()


def shard(model: nn.Module, team: Team, sharding: Sharding = Sharding.FULL) -> nn.Module:
    """Moves the model to the device and spreads it over the team, in place, or leaves it whole in every process.

    Parameters and reductions stay in float32: the precision of the arithmetic is autocast's (model.py), the same for one
    process and for many, so that the losses do not depend on how many there are.

    Raises:
        ModelError: the model has no list of decoder layers.
    """
    model.to(team.device)
    if team.world_size == 1 or sharding is Sharding.NONE:
        return model
    for layer in decoder_layers(model):
        fully_shard(layer)
    fully_shard(model)
    return model


def local_part(tensor: Any) -> torch.Tensor:
    """What of a tensor this process holds."""
    part: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part.detach()


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The longest list of modules of one class: the decoder layers of every transformers language model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len({type(item) for item in module}) == 1]
    if not lists:
        raise ModelError("has no list of decoder layers", field="spec.model", next_step="Use a decoder-only model of transformers")
    return max(lists, key=len)
