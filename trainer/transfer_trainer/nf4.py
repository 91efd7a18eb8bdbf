"""QLoRA (arXiv 2305.14314): the frozen weights of the decoder's linear layers in 4 bits, beside them adapters in float32.

The model is read matrix by matrix, each rounded to NF4 in blocks of 64 whose scales are rounded to 8 bits (0.52 bytes a weight), by
transformers and bitsandbytes. Embeddings, head, norms and biases stay float32. A layer makes its weights anew in each pass, forward and
backward, in the number format of the pass, and keeps none of them.

To peft these layers are linear modules, so adapters have the names, the start and the arithmetic that they have in LoRA. At the end
they are merged into the weights as the base model has them (export.py): 1.816 bits per byte where over the rounded weights it were 1.834
(docs/concepts.md). Those in 4 bits are nowhere written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from transfer_api.errors import ModelError
from transfer_trainer.bits import bitsandbytes
from transfer_trainer.model import load_model


class Linear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
    """A frozen linear layer of 4 bits, without three habits of bitsandbytes' own.

    On processors with AVX512-BF16 that one turns its weights over to a kernel of lower precision, for good, in its first pass without
    gradients (a validation, or the first layer), and no gradient passes it any more. It gives its result in the number format of
    what it was given, where autocast gives bfloat16. And it puts its scales into every checkpoint of the adapters.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """As a linear layer under autocast, or without."""
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        result: torch.Tensor = bitsandbytes.matmul_4bit(states.to(dtype), self.weight, quant_state=self.weight.quant_state, bias=bias)
        return result

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Weights and bias alone, without scales: what is frozen is left out by its name, and made of the base model again."""
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)


def load_quantized(folder: Path, device: torch.device) -> PreTrainedModel:
    """Loads a model onto a device with its linear layers, but for the head, in 4 bits.

    Raises:
        ModelError: transformers cannot load it, weights are missing, or its layers are of no kind that takes adapters.
    """
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )  # fmt: skip
    model = load_model(folder, quantization_config=config, device_map={"": str(device)})
    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    if not all(layer.source_cls is nn.Linear for layer in layers) or not layers:
        raise ModelError(
            "has linear layers of a kind of its own, to which adapters cannot be merged", field="spec.model", value=str(folder),
            next_step="Set method: Full",
        )  # fmt: skip
    for layer in layers:
        layer.__class__ = Linear4bit  # as FSDP2 does: what it holds is the same
    model.is_loaded_in_4bit = False  # what peft goes by to take a layer of its own in place of that for linear modules
    return model
