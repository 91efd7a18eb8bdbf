"""A class and files that disagree on whether embedding and head are one matrix are refused, where one would be dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tests.support.tiny import save_tiny_model
from transfer_api.errors import ModelError
from transfer_trainer.model import load_model


def tie(folder: Path, said: bool) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": said}))


@pytest.mark.parametrize("tied", [True, False])
def test_files_that_agree_are_loaded(tmp_path: Path, tied: bool) -> None:
    model = load_model(save_tiny_model(tmp_path, tied=tied))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_a_class_that_ties_what_the_file_keeps_apart_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path, tied=False)

    def tie_always(self: LlamaForCausalLM, *_: object, **__: object) -> None:
        self.lm_head.weight = self.model.embed_tokens.weight

    monkeypatch.setattr(LlamaForCausalLM, "tie_weights", tie_always)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*one matrix.*config.json says that they are not tied"):
        load_model(tmp_path)


def test_a_head_of_its_own_in_files_that_are_said_to_be_tied_is_not_dropped(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, tied=False)
    tie(folder, True)
    model = load_model(folder)
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(model.get_output_embeddings().weight, weights["lm_head.weight"])


def test_a_head_that_is_a_copy_of_the_embedding_may_be_tied(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, tied=True)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, folder / "model.safetensors", {"format": "pt"})
    assert load_model(folder).get_output_embeddings() is not None
