"""Replicas: every process has the whole model, and their gradients are added once a step.

Beside FSDP2 (parallel.py), for a model that fits into each process with its optimizer. No weights are gathered: what travels in a step
is its gradients, once, however many passes it has. The model is the very one that a single process has, and so is all that reads or
changes it: AdamW and AdamW8bit, the average, the norm, adapters. After the sum all processes have the same bits of every gradient.

The gradients are views of flat buckets. All passes add into them; while the last one goes backward, a bucket is summed as soon as its
parameters are done, beside the others that are still computed. DistributedDataParallel works so too, but it wraps the model under
other names, and either waits for parameters that get no gradient or gives them zeros. Here one that had none in any process has none
afterwards: AdamW passes it by, as it does in a single process.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn

BUCKET_BYTES = 25 * 2**20
"""As of DistributedDataParallel: large enough for the network's full speed, small enough to leave while others are computed."""


@dataclass
class _Bucket:
    """Gradients that travel together."""

    parameters: list[nn.Parameter]
    flat: torch.Tensor
    """The gradients, and after them for each parameter whether it had one; the sum counts the processes that had."""
    views: list[torch.Tensor]
    touched: set[int] = field(default_factory=set)
    done: int = 0
    """Parameters that have the gradient of the last pass too."""

    @classmethod
    def of(cls, parameters: list[nn.Parameter]) -> _Bucket:
        sizes = [parameter.numel() for parameter in parameters]
        flat = parameters[0].new_zeros(sum(sizes) + len(sizes))
        pieces = torch.split(flat[: sum(sizes)], sizes)
        return cls(parameters, flat, [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)])

    @property
    def flags(self) -> torch.Tensor:
        return self.flat[-len(self.parameters) :]


class Replicas:
    """The gradients of a model that every process has whole. A step is `begin`, its passes with `last` before the last one, `finish`.

    Args:
        model: as it is trained; every process has the same bits of it.
        bucket_bytes: of the gradients that travel together, unless one alone is larger.
    """

    def __init__(self, model: nn.Module, bucket_bytes: int = BUCKET_BYTES) -> None:
        # The backward pass comes to the last parameters first.
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad][::-1]
        self._buckets = [_Bucket.of(parameters) for parameters in _packed(wanted, bucket_bytes)]
        self._handles = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._done, bucket, index))  # type: ignore[no-untyped-call]
            for bucket in self._buckets
            for index, parameter in enumerate(bucket.parameters)
        ]
        self._last = False
        self._under_way: list[dist.Work] = []

    def begin(self) -> None:
        """Makes all gradients 0."""
        self._last = False
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.touched.clear()
            bucket.done = 0
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view

    def last(self) -> None:
        """Tells that the next backward pass is the last one of the step."""
        self._last = True

    def finish(self) -> None:
        """Returns when every gradient is the sum over all processes."""
        for bucket in self._buckets[len(self._under_way) :]:
            self._send(bucket)
        for work in self._under_way:
            work.wait()
        self._under_way.clear()
        # One look at the device for all buckets.
        had = torch.cat([bucket.flags for bucket in self._buckets]).tolist()
        for parameter, count in zip((one for bucket in self._buckets for one in bucket.parameters), had, strict=True):
            if not count:
                parameter.grad = None

    def close(self) -> None:
        """Lets go of the model and of the memory of its gradients."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._buckets.clear()

    def _done(self, bucket: _Bucket, index: int, parameter: torch.Tensor) -> None:
        """After a backward pass has added to a gradient."""
        assert parameter.grad is bucket.views[index], "autograd adds in place"
        bucket.touched.add(index)
        if not self._last:
            return
        bucket.done += 1
        # In one order on all processes, whatever the order in which they are done: messages are matched by it.
        while len(self._under_way) < len(self._buckets) and self._is_done(self._buckets[len(self._under_way)]):
            self._send(self._buckets[len(self._under_way)])

    def _is_done(self, bucket: _Bucket) -> bool:
        return bucket.done == len(bucket.parameters)

    def _send(self, bucket: _Bucket) -> None:
        if len(bucket.touched) == len(bucket.parameters):
            bucket.flags.fill_(1)
        else:
            for index in bucket.touched:
                bucket.flags[index] = 1
        work = dist.all_reduce(bucket.flat, async_op=True)
        assert work is not None, "this process is one of the group"
        self._under_way.append(work)


def _packed(parameters: list[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Neighbours of one number format, together at most so many bytes."""
    buckets: list[list[nn.Parameter]] = []
    room = -math.inf
    for parameter in parameters:
        room -= parameter.numel() * parameter.element_size()
        if room < 0 or parameter.dtype is not buckets[-1][-1].dtype:
            buckets.append([])
            room = bucket_bytes - parameter.numel() * parameter.element_size()
        buckets[-1].append(parameter)
    return buckets
