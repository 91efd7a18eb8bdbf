"""Loss of the head without its logits: computed and differentiated a few labels at a time.

The logits of all labels are the largest tensor of a step: labels × vocabulary, in float32, three times over in plain autograd
(logits, log-softmax, gradient). An extended vocabulary makes it larger still. Here a chunk of labels is multiplied, turned into
its loss and, in the same buffer, into its gradient, which is multiplied back at once. The products are the same three as in
plain autograd, nothing is computed twice, and a chunk stays in the processor's cache.

The idea is that of Liger's and torch's own fused linear cross-entropy (arXiv 2410.10989). torch's knows no z-loss.

Shapes: N labels, n labels of a chunk, D width of the model, V rows of the vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import nn

CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Of the float32 logits of a chunk: small enough for a cache on a CPU, large enough to fill a GPU."""
PLAIN_MODELS = frozenset({"llama", "qwen2", "qwen3", "mistral", "olmo2", "smollm3", "gpt2"})
"""Models whose logits are what the head gives: others scale or cap them afterwards."""


class HeadLoss(NamedTuple):
    """Two scalars; see `summed_loss`."""

    nats: torch.Tensor
    objective: torch.Tensor


class _ChunkedLoss(torch.autograd.Function):
    """`(states, weight, labels, shares, z_loss, grad)` to `(nats, objective)`; only the objective has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        states_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        labels_N: torch.Tensor,
        shares_N: torch.Tensor,
        z_loss: float,
        grad: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = states_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        wants_states, wants_weight = (grad and wanted for wanted in ctx.needs_input_grad[:2])
        grad_states_ND = torch.empty_like(states_ND) if wants_states else None
        grad_weight_VD = torch.zeros_like(weight_VD) if wants_weight else None
        nats = states_ND.new_zeros((), dtype=torch.float32)
        squares = states_ND.new_zeros((), dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            head_VD = weight_VD.to(dtype)
            size = max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (4 * len(head_VD)))
            for start in range(0, len(states_ND), size):
                chunk = slice(start, start + size)
                states_nD, labels_n, shares_n = states_ND[chunk].to(dtype), labels_N[chunk, None], shares_N[chunk]
                logits_nV = (states_nD @ head_VD.T).float()
                chosen_n = logits_nV.gather(1, labels_n).squeeze(1)
                normalizer_n = logits_nV.logsumexp(dim=1)
                nats += ((normalizer_n - chosen_n) * shares_n).sum()
                if z_loss:
                    squares += (normalizer_n.square() * shares_n).sum()
                if grad_states_ND is None and grad_weight_VD is None:
                    continue
                # d/dlogits of s(lse - chosen + z lse²) = s((1 + 2 z lse) softmax - onehot), where the logits were.
                gradient_nV = logits_nV.sub_(normalizer_n[:, None]).exp_()
                gradient_nV.mul_((shares_n * (1 + 2 * z_loss * normalizer_n))[:, None])
                gradient_nV.scatter_add_(1, labels_n, -shares_n[:, None])
                gradient_nV = gradient_nV.to(dtype)
                if grad_states_ND is not None:
                    grad_states_ND[chunk] = gradient_nV @ head_VD
                if grad_weight_VD is not None:
                    if dtype == grad_weight_VD.dtype:
                        grad_weight_VD.addmm_(gradient_nV.T, states_nD)
                    else:
                        grad_weight_VD += gradient_nV.T @ states_nD
        ctx.save_for_backward(grad_states_ND, grad_weight_VD)
        ctx.mark_non_differentiable(nats)
        return nats, nats + z_loss * squares

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_states_ND, grad_weight_VD = ctx.saved_tensors
        scale = gradients[1]
        return (
            grad_states_ND * scale if grad_states_ND is not None else None,
            # In place: nobody else has it, and it is as large as the head.
            grad_weight_VD.mul_(scale) if grad_weight_VD is not None else None,
            None, None, None, None,
        )  # fmt: skip


def chunked_loss(
    states_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor, shares_N: torch.Tensor, z_loss: float = 0.0
) -> HeadLoss:
    """Summed loss of labels under `softmax(states @ weight.T)`.

    Args:
        states_ND: what the head reads where a label is predicted.
        weight_VD: of the head.
        labels_N: int64.
        shares_N: float32; each label's loss is multiplied by it.
        z_loss: weight of the squared log-normaliser.
    """
    return HeadLoss(*_ChunkedLoss.apply(states_ND, weight_VD, labels_N, shares_N, z_loss, torch.is_grad_enabled()))


def plain_loss(logits_NV: torch.Tensor, labels_N: torch.Tensor, shares_N: torch.Tensor, z_loss: float = 0.0) -> HeadLoss:
    """The same from logits, for models that do more to them than multiply."""
    logits_NV = logits_NV.float()
    nats = (nn.functional.cross_entropy(logits_NV, labels_N, reduction="none") * shares_N).sum()
    if not z_loss:
        return HeadLoss(nats.detach(), nats)
    return HeadLoss(nats.detach(), nats + z_loss * (logits_NV.logsumexp(dim=-1).square() * shares_N).sum())


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The head where logits are its product and nothing else; None for other models."""
    head = cast(Any, model).get_output_embeddings()
    if hasattr(head, "modules_to_save"):  # peft's wrapper of a head that is trained beside adapters
        head = head.modules_to_save[head.active_adapters[0]]
    if getattr(cast(Any, model).config, "model_type", "") not in PLAIN_MODELS or not isinstance(head, nn.Linear):
        return None
    bias: torch.Tensor | None = head.bias
    return head if bias is None else None


@contextlib.contextmanager
def forward_of(module: nn.Module, function: Any) -> Iterator[None]:
    """Has a module compute something else for a while. Its hooks stay, so that FSDP2 still gathers its weights."""
    assert "forward" not in vars(module)
    module.forward = function
    try:
        yield
    finally:
        del module.forward  # that of its class is there again
