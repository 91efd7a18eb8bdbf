"""The loss of the head, chunk by chunk, is that of all logits at once; so are its gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

from tests.support.tiny import save_tiny_model
from transfer_api.spec import Lora
from transfer_trainer import head
from transfer_trainer.head import HeadLoss, chunked_loss, plain_head, plain_loss
from transfer_trainer.lora import add_adapters
from transfer_trainer.model import load_model, summed_loss

LABELS, WIDTH, ROWS = 23, 12, 50


@pytest.fixture(params=[4 * ROWS, 4 * ROWS * 7, 2**24], ids=["a label a chunk", "seven labels a chunk", "one chunk"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", request.param)


def both(z_loss: float, shares_N: torch.Tensor, count: int = LABELS) -> list[tuple[HeadLoss, torch.Tensor, torch.Tensor]]:
    """Loss, gradient of the states and gradient of the weight, chunked and plain; the loss is scaled, as training scales it."""
    found = []
    for chunked in (True, False):
        generator = torch.Generator().manual_seed(0)
        states_ND = torch.randn(count, WIDTH, generator=generator).requires_grad_()
        weight_VD = (torch.randn(ROWS, WIDTH, generator=generator) / WIDTH**0.5).requires_grad_()
        labels_N = torch.randint(0, ROWS, (count,), generator=generator)
        if chunked:
            loss = chunked_loss(states_ND, weight_VD, labels_N, shares_N, z_loss)
        else:
            loss = plain_loss(states_ND @ weight_VD.T, labels_N, shares_N, z_loss)
        (loss.objective * 0.37).backward()  # type: ignore[no-untyped-call]
        assert states_ND.grad is not None
        assert weight_VD.grad is not None
        found.append((loss, states_ND.grad, weight_VD.grad))
    return found


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_and_gradients_are_those_of_all_logits_at_once(z_loss: float) -> None:
    shares_N = torch.ones(LABELS)
    shares_N[5:9] = 0.0
    chunked, plain = both(z_loss, shares_N)
    for ours, theirs in zip((*chunked[0], *chunked[1:]), (*plain[0], *plain[1:]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not chunked[1][5:9].any(), "labels of weight 0 move nothing"


def test_no_label_is_no_loss_and_still_has_a_gradient() -> None:
    loss, states, weight = both(0.1, torch.ones(0), count=0)[0]
    assert loss.objective.item() == 0
    assert (states.shape, weight.any().item()) == ((0, WIDTH), False)


def test_under_autocast_it_is_as_near_to_float32_as_the_plain_way() -> None:
    exact = both(0.0, torch.ones(LABELS))[1]
    with torch.autocast("cpu", torch.bfloat16):
        chunked, plain = both(0.0, torch.ones(LABELS))
    assert chunked[0].nats != exact[0].nats
    for ours, theirs, true in zip(chunked[1:], plain[1:], exact[1:], strict=True):
        assert isinstance(ours, torch.Tensor)
        assert isinstance(theirs, torch.Tensor)
        assert isinstance(true, torch.Tensor)
        assert float((ours - true).norm()) < 1.5 * float((theirs - true).norm()) + 1e-6


@pytest.mark.parametrize("kind", ["tied", "untied", "adapters", "adapters and embeddings"])
def test_a_model_learns_the_same_by_chunks(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 4 * 512 * 5)
    folder = save_tiny_model(tmp_path, tied=kind == "tied")
    torch.manual_seed(0)
    tokens_BT, positions_BT = torch.randint(3, 300, (3, 16)), torch.arange(16).repeat(3, 1)
    targets_BT, weight_B = torch.rand(3, 16) < 0.7, torch.tensor([1.0, 0.0, 1.0])
    gradients = []
    for chunked in (True, False):
        model: nn.Module = load_model(folder)
        if kind.startswith("adapters"):
            model = add_adapters(load_model(folder), Lora(rank=4, alpha=8, train_embeddings="embeddings" in kind), seed=1)
        assert plain_head(model) is not None
        loss = summed_loss(model, tokens_BT, positions_BT, targets_BT, weight_B, 1e-3, chunked=chunked)
        loss.objective.backward()  # type: ignore[no-untyped-call]
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None} | {"nats": loss.nats})
    assert gradients[0].keys() == gradients[1].keys()
    for name, ours in gradients[0].items():
        theirs = gradients[1][name]
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm()) + 1e-8, name
    assert all("forward" not in vars(module) for module in model.modules()), "the head is what it was"


def test_a_model_that_scales_its_logits_goes_the_plain_way(tmp_path: Path) -> None:
    config = GraniteConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=8.0,
    )
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain_head(model) is None
    tokens_BT = torch.randint(0, 64, (1, 8))
    found = summed_loss(model, tokens_BT, torch.arange(8)[None], torch.ones(1, 8, dtype=torch.bool), torch.ones(1))
    wanted = nn.functional.cross_entropy(model(tokens_BT).logits[0, :-1], tokens_BT[0, 1:], reduction="sum")
    torch.testing.assert_close(found.nats, wanted.detach())
