"""Attention within the documents of packed rows: on GPUs by torch's kernel for rows of varying length, elsewhere by a mask.

With a mask a kernel looks at every pair of a row, and a row of many short documents costs as much as one long one. torch's
`varlen_attn` gets the borders of the documents instead, and computes no pair across them. It is registered as an implementation of
transformers' attention interface; a model whose layers go through that interface takes it without a change, and no mask is made for it.

It needs CUDA, bfloat16 and full causal attention. Whether it does what it says is tried out on the device at the start of a round, forward
and backward, against plain attention document by document; where it does not, the log says so and the mask stays. All processes of a
round take the same.

B rows, T tokens in a row, S = B · T, H heads, h heads of keys and values, D width of a head, N documents.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from transfer_api.spec import Precision
from transfer_trainer.head import PLAIN_MODELS
from transfer_trainer.parallel import Team

logger = logging.getLogger(__name__)

PACKED = "transfer_packed"
"""Name in transformers' interface."""
AGREE = 2e-2
"""Largest difference to plain attention, of numbers of about 1 in bfloat16."""


def choose_attention(model: PreTrainedModel, team: Team, precision: Precision, sequence_length: int) -> None:
    """Has a model use the kernel where every process can; before it is sharded."""
    reason = _unfit(model, precision, sequence_length) or _unable(model, team.device)
    # All or none: they would round otherwise.
    if any(team.gather(float(reason is not None))):
        if team.device.type == "cuda":
            logger.info("attention by a mask: %s", reason or "another process cannot do without")
        return
    model.set_attn_implementation(PACKED)
    logger.info("attention within documents by varlen_attn")


def uses_packed(model: nn.Module) -> bool:
    """Whether a model is to be told where documents begin."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) == PACKED


def borders(positions_BT: torch.Tensor) -> dict[str, Any]:
    """What a model that uses the kernel is called with besides: where documents begin among all tokens, and the longest one's length.

    The length is rounded up to a power of 2: it only sizes the kernel's grid, and a compiled layer is compiled for each that it meets.
    """
    starts_BT = positions_BT == 0
    starts_BT[:, 0] = True
    ends = torch.tensor([positions_BT.numel()], device=positions_BT.device)
    borders_N = torch.cat([starts_BT.flatten().nonzero().squeeze(1), ends]).to(torch.int32)
    longest = min(positions_BT.shape[1], 1 << (int(positions_BT.max())).bit_length())
    return {"cu_seq_lens_q": borders_N, "cu_seq_lens_k": borders_N, "max_length_q": longest, "max_length_k": longest}


def _packed_attention(
    module: nn.Module,
    query_BHTD: torch.Tensor,
    key_BhTD: torch.Tensor,
    value_BhTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it; the result is [B, T, H, D]."""
    assert attention_mask is None
    batch, heads, length, _ = query_BHTD.shape
    device = query_BHTD.device.type
    if torch.is_autocast_enabled(device):  # which knows torch's other attention, but not this
        dtype = torch.get_autocast_dtype(device)
        query_BHTD, key_BhTD, value_BhTD = query_BHTD.to(dtype), key_BhTD.to(dtype), value_BhTD.to(dtype)
    query_SHD, key_ShD, value_ShD = (states.transpose(1, 2).flatten(0, 1) for states in (query_BHTD, key_BhTD, value_BhTD))
    attend: Any = varlen_attn if device == "cuda" else plain_varlen
    # One tensor for both sides: the kernel takes that for a sign that they have the same borders.
    result_SHD: torch.Tensor = attend(
        query_SHD, key_ShD, value_ShD, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=(-1, 0),
        enable_gqa=heads != key_BhTD.shape[1],
    )  # fmt: skip
    return result_SHD.view(batch, length, *result_SHD.shape[1:]), None


def _no_mask(**unused: Any) -> None:
    return None


AttentionInterface.register(PACKED, _packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)


def plain_varlen(
    query_SHD: torch.Tensor,
    key_ShD: torch.Tensor,
    value_ShD: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, 0),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What `varlen_attn` computes, document by document, on any device: what it is held against."""
    assert window_size == (-1, 0)
    assert cu_seq_k is cu_seq_q
    sizes = torch.diff(cu_seq_q).tolist()
    assert max(sizes) <= min(max_q, max_k)
    pieces = [torch.split(states.transpose(0, 1), sizes, dim=1) for states in (query_SHD, key_ShD, value_ShD)]
    results = [
        scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, scale=scale, enable_gqa=enable_gqa)[0]
        for query, key, value in zip(*pieces, strict=True)
    ]
    return torch.cat(results, dim=1).transpose(0, 1)


def _unfit(model: PreTrainedModel, precision: Precision, sequence_length: int) -> str | None:
    """Why this model, trained so, has to have a mask; None where it has not."""
    config: Any = model.config
    window = getattr(config, "sliding_window", None)
    if precision is not Precision.BFLOAT16:
        return "the kernel knows bfloat16 alone"
    if config.model_type not in PLAIN_MODELS or (window is not None and window < sequence_length):
        return "the model's attention is of another kind"
    return None


def _unable(model: PreTrainedModel, device: torch.device) -> str | None:
    """Why the kernel does not do on this device; None where it has been seen to."""
    if device.type != "cuda":
        return "there is no GPU"
    config: Any = model.config
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    try:
        worst = _difference(heads, int(getattr(config, "num_key_value_heads", None) or heads), width, device)
    except (RuntimeError, TypeError, ValueError) as error:
        return f"varlen_attn does not work here ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return None if worst <= AGREE else f"varlen_attn is off by {worst:.2g} here"


def _difference(heads: int, key_heads: int, width: int, device: torch.device) -> float:
    """Largest difference between kernel and plain attention, of the result and the gradients, for a few documents."""
    positions_BT = torch.cat([torch.arange(size) for size in (1, 70, 129, 56)]).view(2, 128).to(device)
    positions_BT[1] = torch.arange(128, device=device)
    told = borders(positions_BT)
    generator = torch.Generator(device).manual_seed(0)
    found = []
    attend: Any
    for attend in (varlen_attn, plain_varlen):
        generator.manual_seed(0)
        states = [
            torch.randn(256, count, width, device=device, generator=generator).to(torch.bfloat16).requires_grad_()
            for count in (heads, key_heads, key_heads)
        ]
        result = attend(
            *states, told["cu_seq_lens_q"], told["cu_seq_lens_q"], told["max_length_q"], told["max_length_q"], window_size=(-1, 0),
            enable_gqa=heads != key_heads,
        )  # fmt: skip
        found.append([result.detach(), *torch.autograd.grad(result.float().square().mean(), states)])
    return max(
        float((kernel.float() - plain.float()).abs().max() / plain.float().abs().max().clamp_min(1e-6))
        for kernel, plain in zip(*found, strict=True)
    )
