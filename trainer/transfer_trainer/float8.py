"""Linear layers of the decoder with products of 8-bit floats, each row with a scale of its own.

A weight stays float32 and is rounded anew in each pass, as its input is (E4M3: 4 bits of exponent, 3 of mantissa, up to 448). Of the three
products of a layer two are of such numbers, summed up in float32; the third stays bfloat16, since the gradient of the weights suffers
most from rounding (the recipe `rowwise_with_gw_hp` of torchao, whose package this needs not):

    result_SO     = round(input_SI)    · round(weight_OI)ᵀ    a scale for each token, and for each output
    d input_SI    = round(d result_SO) · round(weight_OI)     a scale for each token, and for each input
    d weight_OI   = d result_SOᵀ · input_SI                   in bfloat16

Scales are powers of 2, so they round nothing themselves. Embeddings, head, norms and attention are as they are without it; so are matrices
with a side that 16 does not divide. Without the hardware torch adds up the same products one by one: the same losses, and no speed.

S tokens of a pass, I inputs, O outputs, R and K rows and columns of any matrix.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from transfer_api.errors import SpecError
from transfer_api.spec import Float8
from transfer_trainer.parallel import decoder_layers

logger = logging.getLogger(__name__)

TYPE = torch.float8_e4m3fn
MULTIPLE = 16
"""What the kernels want the sides of a matrix to be a multiple of."""
CAPABILITY = (8, 9)
"""Of CUDA devices that multiply 8-bit floats: Ada, Hopper and later."""
AGREE = 1e-2
"""Largest difference of the kernel to the same product in float32, relative to its largest element; bfloat16 rounds by 4e-3."""


class Float8Linear(nn.Linear):
    """A linear layer whose products are of 8-bit floats."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """As a linear layer under autocast."""
        result: torch.Tensor = _Product.apply(states.to(torch.bfloat16).flatten(0, -2), self.weight)
        if self.bias is not None:
            result = result + self.bias.to(result.dtype)
        return result.view(*states.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """`(input_SI, weight_OI)` to `result_SO`."""

    @staticmethod
    def forward(ctx: Any, input_SI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
        # The weight itself: FSDP2 lets it go, and gathers it again.
        ctx.save_for_backward(input_SI if ctx.needs_input_grad[1] else None, weight_OI)
        return multiply(input_SI, weight_OI)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input_SI, weight_OI = ctx.saved_tensors
        gradient_SO = gradients[0].to(torch.bfloat16)
        grad_input_SI = multiply(gradient_SO, weight_OI.t()) if ctx.needs_input_grad[0] else None
        grad_weight_OI = (gradient_SO.t() @ input_SI).to(weight_OI.dtype) if ctx.needs_input_grad[1] else None
        return grad_input_SI, grad_weight_OI


def multiply(left_SK: torch.Tensor, right_RK: torch.Tensor) -> torch.Tensor:
    """`left @ right.T` in bfloat16, of rows that are rounded to 8 bits."""
    left, of_left = rounded(left_SK)
    right, of_right = rounded(right_RK)
    return torch._scaled_mm(left, right.t(), scale_a=of_left, scale_b=of_right.t(), out_dtype=torch.bfloat16)


def rounded(matrix_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in 8 bits, and the scale [R, 1] by which each row is to be multiplied: a power of 2 that lets its largest element fit."""
    matrix_RK = matrix_RK.float()
    largest_R1 = matrix_RK.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    scale_R1 = torch.exp2(torch.ceil(torch.log2(largest_R1 / torch.finfo(TYPE).max)))
    return (matrix_RK / scale_R1).clamp(-torch.finfo(TYPE).max, torch.finfo(TYPE).max).to(TYPE).contiguous(), scale_R1


def use_float8(model: nn.Module, device: torch.device, section: str) -> None:
    """Has the linear layers of the decoder multiply 8-bit floats; before adapters are added, so that these are as they were.

    Raises:
        SpecError: the device does not, or no layer has sides that fit.
        ModelError: the model has no list of decoder layers.
    """
    if (reason := unable(device)) is not None:
        raise SpecError(
            f"cannot be had here: {reason}", field=f"{section}.float8", value=Float8.ROWWISE.value,
            allowed="GPUs of compute capability 8.9 or more (L4, L40S, H100, …), and CPUs to try it out",
            next_step="Remove float8, or ask for such GPUs in spec.workers and spec.scheduling",
        )  # fmt: skip
    linear = [module for module in decoder_layers(model).modules() if type(module) is nn.Linear]
    fitting = [module for module in linear if module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0]
    if not fitting:
        raise SpecError(
            f"fits none of the model's {len(linear)} linear layers: a side of each is no multiple of {MULTIPLE}", field=f"{section}.float8",
            value=Float8.ROWWISE.value, next_step="Remove float8",
        )  # fmt: skip
    for module in fitting:
        module.__class__ = Float8Linear  # as FSDP2 does: what it holds is the same
    how = "" if device.type == "cuda" else ", emulated: slower than without"
    logger.info("%d of %d linear layers multiply 8-bit floats%s", len(fitting), len(linear), how)


def unable(device: torch.device) -> str | None:
    """Why a device does not multiply 8-bit floats; None where it has been seen to."""
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        if found < CAPABILITY:
            return f"{torch.cuda.get_device_name(device)} has compute capability {found[0]}.{found[1]} and no such products"
    generator = torch.Generator(device).manual_seed(0)
    left_SK, right_RK = (torch.randn(rows, 64, device=device, generator=generator) for rows in (48, 32))
    try:
        product_SR = multiply(left_SK, right_RK).float()
    except (RuntimeError, TypeError, ValueError) as error:
        return f"torch does not multiply them ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    (left, of_left), (right, of_right) = rounded(left_SK), rounded(right_RK)
    expected_SR = (left.float() * of_left) @ (right.float() * of_right).t()
    worst = float((product_SR - expected_SR).abs().max() / expected_SR.abs().max())
    return None if worst <= AGREE else f"its products are off by {worst:.2g}"
