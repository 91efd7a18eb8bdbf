"""Attention that is told where documents begin is attention with a mask between them, for every family of models that may take it.

The kernel itself runs on GPUs alone; here its place is taken by what it is held against there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.support.tiny import save_tiny_model
from tests.trainer.test_activations import backward
from transfer_api.spec import Lora, Precision
from transfer_trainer import attention
from transfer_trainer.activations import checkpoint_activations
from transfer_trainer.attention import PACKED, borders, choose_attention, plain_varlen, uses_packed
from transfer_trainer.head import PLAIN_MODELS
from transfer_trainer.lora import add_adapters
from transfer_trainer.model import load_model
from transfer_trainer.parallel import Team, decoder_layers

GPU = Team(device=torch.device("cuda"))


def model_of(family: str, **changes: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(
        family, vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=0.2, head_dim=8, **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.eval()


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a device count as one on which the kernel works."""
    monkeypatch.setattr(attention, "_difference", lambda *unused: 0.0)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("family", sorted(PLAIN_MODELS))
def test_every_family_has_the_gradients_that_it_has_with_a_mask(family: str, precision: Precision) -> None:
    plain, told = model_of(family), model_of(family)
    choose_attention(told, GPU, Precision.BFLOAT16, 48)
    assert uses_packed(told)
    _, expected = backward(plain, precision)
    _, gradients = backward(told, precision)
    assert gradients.keys() == expected.keys()
    exact = precision is Precision.FLOAT32
    for name, gradient in gradients.items():
        scale = float(expected[name].abs().max()) + 1e-9
        worst = float((gradient - expected[name]).abs().max()) / scale
        assert worst < (1e-5 if exact else 5e-2), f"{name}: {worst}"


@pytest.mark.usefixtures("on_gpu")
def test_adapters_layers_that_are_computed_again_and_compiled_ones_are_told_too(tmp_path: Path) -> None:
    torch.compiler.reset()

    def model(*, told: bool) -> Any:
        found = load_model(save_tiny_model(tmp_path / str(told)))
        if told:
            choose_attention(found, GPU, Precision.BFLOAT16, 48)
        return add_adapters(found, Lora(rank=4, targets=["q_proj", "up_proj"]), 0)

    told = model(told=True)
    checkpoint_activations(told, 2)
    for layer in decoder_layers(told):
        layer.forward = torch.compile(layer.forward, backend="eager")
    _, expected = backward(model(told=False))
    _, gradients = backward(told)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_documents_begin_where_positions_do_and_each_row_begins_one() -> None:
    positions_BT = torch.tensor([[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 0, 1]])
    told = borders(positions_BT)
    assert told["cu_seq_lens_q"].tolist() == [0, 3, 4, 6, 12, 13, 16, 18]
    assert told["cu_seq_lens_q"].dtype is torch.int32
    assert told["cu_seq_lens_q"] is told["cu_seq_lens_k"]
    assert told["max_length_q"] == 6
    assert borders(positions_BT[:1])["max_length_q"] == 4


@pytest.mark.parametrize(
    ("changes", "precision", "device"),
    [
        pytest.param({}, Precision.BFLOAT16, "cpu", id="no GPU"),
        pytest.param({}, Precision.FLOAT32, "cuda", id="float32"),
        pytest.param({"sliding_window": 16}, Precision.BFLOAT16, "cuda", id="a window shorter than a row"),
    ],
)
@pytest.mark.usefixtures("on_gpu")
def test_the_mask_stays_where_the_kernel_does_not_fit(changes: dict[str, Any], precision: Precision, device: str) -> None:
    model = model_of("mistral", **changes)
    choose_attention(model, Team(device=torch.device(device)), precision, 48)
    assert not uses_packed(model)


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        pytest.param(plain_varlen, None, id="works"),
        pytest.param(lambda *states, **told: plain_varlen(*states, **told) * 1.1, "is off by", id="computes something else"),
        pytest.param(attention.varlen_attn, "does not work here", id="refuses: this machine has no such kernel"),
    ],
)
def test_a_kernel_is_tried_out_before_it_is_used(monkeypatch: pytest.MonkeyPatch, kernel: Any, says: str | None) -> None:
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    tried = attention._difference
    monkeypatch.setattr(attention, "_difference", lambda *how: tried(*how[:3], torch.device("cpu")))
    found = attention._unable(model_of("llama"), torch.device("cuda"))
    assert (found is None) if says is None else (found is not None and says in found)


@pytest.mark.usefixtures("on_gpu")
def test_one_process_that_cannot_keeps_all_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Team, "gather", lambda self, value: [value, 1.0])
    model = model_of("llama")
    choose_attention(model, GPU, Precision.BFLOAT16, 48)
    assert model.config._attn_implementation != PACKED
