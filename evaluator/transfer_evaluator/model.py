"""Loads a model folder for scoring: safetensors only, no code of the repository, no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from transfer_api.errors import ModelError
from transfer_api.spec import Precision
from transfer_pod.model import check_whole, first_sentence

DTYPE = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}
DEFAULT_POSITIONS = 2048
"""Positions of a model whose config names none; the harness's own fallback."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A causal language model in evaluation mode with its tokenizer."""

    folder: Path
    model: Any
    tokenizer: Any
    positions: int
    """Most tokens in one forward pass."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def prefix_token(self) -> int:
        """Stands before the first token of a text: BOS, or EOS where there is none, as in the harness."""
        token = self.tokenizer.bos_token_id
        if token is None:
            token = self.tokenizer.eos_token_id
        if token is None:
            raise ModelError(
                "the tokenizer has neither a BOS nor an EOS token", field="spec.model", value=str(self.folder),
                next_step="Set one of them: the first token of a text is predicted from it",
            )  # fmt: skip
        return int(token)


def load_model(folder: Path, precision: Precision, device: torch.device | None = None) -> LoadedModel:
    """Loads model and tokenizer; on a GPU where there is one, or on the device that is given.

    Raises:
        ModelError: transformers cannot load it as a causal language model, or weights are missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPE[precision], local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"cannot be loaded: {type(error).__name__}: {first_sentence(error)}", field="spec.model", value=str(folder),
            allowed="a causal language model of transformers", next_step="Try AutoModelForCausalLM.from_pretrained(folder)",
        ) from error  # fmt: skip
    check_whole(info, folder)
    model.eval().to(device)
    return LoadedModel(folder=folder, model=model, tokenizer=tokenizer, positions=model_positions(model.config))


def model_positions(config: Any) -> int:
    """Longest input of a model, looked up as the harness does."""
    text = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(text, name, None)
        if value is not None:
            return int(value)
    return DEFAULT_POSITIONS
