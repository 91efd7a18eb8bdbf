"""Checkpoints are whole or not used, of this stage or refused, and of the newest round or not written."""

from __future__ import annotations

import io
import pickle
import secrets
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from transfer_api.errors import ArtifactError, Superseded
from transfer_trainer.checkpoint import Checkpoints
from transfer_trainer.fence import Fence, Term
from transfer_trainer.parallel import Team


class Run:
    """A model and optimizer that take a step at a time."""

    def __init__(self, folder: Path, key: str = "key") -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.checkpoints = Checkpoints(folder / "checkpoints", key, Team())
        self.fence = Fence.take(folder, Term(secrets.token_hex(8), 1, 1, ""), 0)

    def train(self) -> None:
        self.model(torch.ones(1, 4)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, step: int) -> None:
        self.checkpoints.save(step, self.model, self.optimizer, self.fence)

    def load(self) -> int:
        return self.checkpoints.load(self.model, self.optimizer)

    def state(self) -> list[torch.Tensor]:
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*(parameter.detach().clone() for parameter in self.model.parameters()), *moments]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = Run(tmp_path)
    for step in range(1, 5):
        run.train()
        run.save(step)
    return tmp_path


def folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in (path / "checkpoints").iterdir())


def test_a_run_goes_on_exactly_where_it_was_saved(saved: Path) -> None:
    (saved / "steady").mkdir()
    steady, resumed = Run(saved / "steady"), Run(saved)
    for _ in range(5):
        steady.train()
    assert resumed.load() == 4
    resumed.train()
    for expected, got in zip(steady.state(), resumed.state(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_the_last_two_are_kept(saved: Path) -> None:
    assert folders(saved) == ["step-00000003", "step-00000004"]


def test_without_a_checkpoint_the_run_begins_at_the_beginning(tmp_path: Path) -> None:
    assert Run(tmp_path).load() == 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut short", "one bit flipped", "missing"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "manifest.json"])
def test_a_damaged_newest_is_passed_over_for_the_one_before(saved: Path, damage: Any, name: str) -> None:
    if damage is flip and name == "manifest.json":
        damage = cut
    damage(saved / "checkpoints" / "step-00000004" / name)
    run = Run(saved)
    assert run.load() == 3
    run.train()
    run.save(4)
    assert Run(saved).load() == 4, "the damaged one is replaced"


def test_when_none_can_be_read_nothing_is_begun_again_in_silence(saved: Path) -> None:
    for folder in folders(saved):
        cut(saved / "checkpoints" / folder / "__0_0.distcp")
    with pytest.raises(ArtifactError, match="none of the 2 checkpoints"):
        Run(saved).load()


def test_a_checkpoint_of_another_stage_is_refused(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="another stage"):
        Run(saved, key="other").load()


def test_an_index_that_would_run_code_is_not_read(saved: Path) -> None:
    from transfer_trainer.checkpoint import _Unpickler

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("ran",))

    path = saved / "evil"
    path.write_bytes(pickle.dumps(Evil()))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match="no place"):
        _Unpickler(file).load()


def test_a_zombie_writes_no_checkpoint(saved: Path) -> None:
    zombie = Run(saved)
    newer = Run(saved)
    with pytest.raises(Superseded):
        zombie.save(9)
    newer.save(5)
    assert "step-00000009" not in folders(saved)


def test_what_a_dying_round_left_half_written_is_cleared(saved: Path) -> None:
    (saved / "checkpoints" / ".step-00000005.abc").mkdir()
    run = Run(saved)
    assert run.load() == 4
    run.save(5)
    assert folders(saved) == ["step-00000004", "step-00000005"]


class Attribute:
    """Pickles as a call of getattr."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return getattr, self.arguments


def test_a_member_of_an_enumeration_is_read_as_older_pythons_wrote_it():
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    from transfer_trainer.checkpoint import _Unpickler

    text = pickle.dumps(Attribute(_MEM_FORMAT_ENCODING, "TORCH_CHANNELS_LAST"))
    assert _Unpickler(io.BytesIO(text)).load() is _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST


@pytest.mark.parametrize("name", ["__class__", "mro", "__subclasses__"])
def test_getattr_reaches_nothing_but_members(name: str):
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    from transfer_trainer.checkpoint import _Unpickler

    with pytest.raises(pickle.UnpicklingError, match="no place"):
        _Unpickler(io.BytesIO(pickle.dumps(Attribute(_MEM_FORMAT_ENCODING, name)))).load()
