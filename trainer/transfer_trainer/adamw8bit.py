"""AdamW whose moments take 2 bytes a parameter instead of 8 (block-wise 8-bit optimizers, arXiv 2110.02861).

Between two steps a moment is a byte for each element, an index into the 256 values of a dynamic map, and a float32 scale for each
block, its largest magnitude. A step makes float32 of them, piece by piece, does what AdamW does, and rounds back. On one core of a CPU
that takes 90 ns a parameter, AdamW 1.2: it is for the memory of GPUs. The maps are those of bitsandbytes, and so is reading them. Three
things are not as in its own optimizers:

- A block is a part of one row (the first dimension), and FSDP2 shards by rows. So no block is cut, whatever the number of workers, scales
  are sharded as the parameter is, and any number of processes loads a checkpoint.
- A value becomes the nearest of the map. On a CPU bitsandbytes rounds by a coarser table: 0 becomes 2e-5 of the block's largest, of either
  sign, and elements that never had a gradient begin to move.
- Of the second moment the root is kept, which spans half the decades, and no root becomes less than the smallest value but 0. Where it
  could become 0 and the first moment not, a step would divide by nothing but epsilon: a leap. So it errs towards small steps.

What has no rows of whole blocks (vectors; widths that 64 does not divide, such as one side of an adapter) keeps float32 moments.

R rows of a parameter, L elements of a row, K blocks of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from transfer_trainer.bits import functional
from transfer_trainer.parallel import local_part

BLOCKS = (256, 128, 64)
"""Elements of a block: the largest that divides a row. Fewer are not known to the kernels, and cost more in scales than they save."""
PIECE = 2**24
"""Elements that are float32 at once: 64 MiB for each of about four tensors."""


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with moments of 8 bits.

    Its state is complete from the start, on the device of each parameter.

    Args:
        groups: parameter groups; each has `lr` and `weight_decay`.
        betas: of the two moments.
        eps: added to the root of the second one.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], eps: float = 1e-8) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps})
        self._maps: dict[torch.device, tuple[_Map, _Map]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = _zeros(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Changes the parameters that have a gradient."""
        assert closure is None, "the loss is not computed again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer, except that bytes stay bytes: torch gives what it loads the number format of the parameter."""
        super().load_state_dict({**state_dict, "state": {}})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            self.state[parameter] = dict(state_dict["state"][number])

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] += 1
        step = int(state["step"])
        weight, gradient = local_part(parameter), local_part(parameter.grad)
        if not weight.numel():
            return  # more processes than rows
        if block_size(parameter) is None:
            _adamw(weight, gradient, local_part(state["exp_avg"]), local_part(state["exp_avg_sq"]), step, group)
            return
        firsts, roots = self._maps_on(weight.device)
        names = ("exp_avg", "exp_avg_scale", "exp_avg_root", "exp_avg_root_scale")
        tensors = [weight.flatten(1), gradient.flatten(1), *(local_part(state[name]).flatten(1) for name in names)]
        rows = max(1, PIECE // tensors[0].shape[1])
        for start in range(0, len(weight), rows):
            weight_RL, gradient_RL, codes_RL, scales_RK, roots_RL, root_scales_RK = (tensor[start : start + rows] for tensor in tensors)
            first_RL = firsts.read(codes_RL, scales_RK)
            second_RL = roots.read(roots_RL, root_scales_RK).square_()
            _adamw(weight_RL, gradient_RL, first_RL, second_RL, step, group)
            firsts.write(first_RL, codes_RL, scales_RK)
            roots.write(second_RL.sqrt_(), roots_RL, root_scales_RK)

    def _maps_on(self, device: torch.device) -> tuple[_Map, _Map]:
        """Those of the first moment and of the root of the second one."""
        if device not in self._maps:
            self._maps[device] = _Map.of(device, signed=True), _Map.of(device, signed=False)
        return self._maps[device]


def block_size(parameter: torch.Tensor) -> int | None:
    """Elements of a block of the parameter's moments; None where they stay float32."""
    row = math.prod(parameter.shape[1:]) if parameter.dim() >= 2 else 0
    return next((size for size in BLOCKS if row and row % size == 0), None)


def _zeros(parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """The state before the first step. The count is on the CPU, where a step reads it."""
    state = {"step": torch.zeros((), dtype=torch.float32)}
    size = block_size(parameter)
    if size is None:
        return state | {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
    for name in ("exp_avg", "exp_avg_root"):
        state[name] = torch.zeros_like(parameter, dtype=torch.uint8)
        state[f"{name}_scale"] = _scales(parameter, size)
    return state


def _scales(parameter: nn.Parameter, size: int) -> torch.Tensor:
    """A zero for each block, [R, K], in the hands of who holds the row; with a scale of 0 no code matters."""
    blocks = math.prod(parameter.shape[1:]) // size
    local = local_part(parameter).new_zeros(len(local_part(parameter)), blocks)
    if not isinstance(parameter, DTensor):
        return local
    shape = torch.Size((parameter.shape[0], blocks))
    scales: torch.Tensor = DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=(blocks, 1)
    )
    return scales


@dataclass(frozen=True)
class _Map:
    """The 256 values that a byte can mean, times the scale of its block."""

    values: torch.Tensor
    """Increasing, from -1 (signed) or 0 to 1."""
    middles: torch.Tensor
    """Between each two of them."""
    lowest: int
    """The least code that is written."""

    @classmethod
    def of(cls, device: torch.device, *, signed: bool) -> Self:
        """The dynamic map, on a device; unsigned ones never mean 0 once they are written."""
        values = functional.create_dynamic_map(signed=signed).to(device)
        return cls(values, (values[1:] + values[:-1]) / 2, 0 if signed else 1)

    def read(self, codes_RL: torch.Tensor, scales_RK: torch.Tensor) -> torch.Tensor:
        """The moment, float32."""
        size = codes_RL.shape[1] // scales_RK.shape[1]
        moment: torch.Tensor = functional.dequantize_blockwise(codes_RL, absmax=scales_RK.flatten(), code=self.values, blocksize=size)
        return moment

    def write(self, moment_RL: torch.Tensor, codes_RL: torch.Tensor, scales_RK: torch.Tensor) -> None:
        """Rounds a moment to codes and scales, in place."""
        parts = moment_RL.view(*scales_RK.shape, -1)
        torch.amax(parts.abs(), dim=2, out=scales_RK)
        shares = parts / scales_RK.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]
        codes_RL.copy_(torch.bucketize(shares, self.middles, out_int32=True).clamp_(min=self.lowest).flatten(1))


def _adamw(
    weight: torch.Tensor, gradient: torch.Tensor, first: torch.Tensor, second: torch.Tensor, step: int, group: dict[str, Any]
) -> None:  # fmt: skip
    """AdamW's step (arXiv 1711.05101), all in float32 and in place; in the order in which torch rounds."""
    (beta1, beta2), rate = group["betas"], group["lr"]
    weight.mul_(1 - rate * group["weight_decay"])
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    divisor = second.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    weight.addcdiv_(first, divisor, value=-rate / (1 - beta1**step))
