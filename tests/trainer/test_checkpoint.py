"""Checkpoints are whole or not used, of this stage or refused, and of the newest round or not written."""

from __future__ import annotations

import errno
import io
import pickle
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from transfer_api.errors import ArtifactError, StorageError, Superseded
from transfer_trainer.checkpoint import Checkpoints, Saved
from transfer_trainer.fence import Fence, FencedError, Term
from transfer_trainer.parallel import Team


class Run:
    """A model and optimizer that take a step at a time."""

    def __init__(self, folder: Path, key: str = "key", kept: int = 2) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.fence = Fence.take(folder, Term(secrets.token_hex(8), 1, 1, ""), 0)
        self.checkpoints = Checkpoints(folder / "checkpoints", key, Team(), self.fence, kept=kept)

    def train(self) -> None:
        self.model(torch.ones(1, 4)).square().sum().backward()
        self.checkpoints.settle()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def begin(self, step: int, before_commit: Callable[[], None] | None = None) -> None:
        self.checkpoints.begin(step, self.model, self.optimizer, before_commit)

    def save(self, step: int) -> Saved:
        self.begin(step)
        return self.checkpoints.finish()

    def load(self) -> int:
        return self.checkpoints.load(self.model, self.optimizer)

    def state(self) -> list[torch.Tensor]:
        moments = [value.clone() for state in self.optimizer.state.values() for value in state.values()]
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


@pytest.mark.parametrize("kept", [1, 3])
def test_as_many_are_kept_as_are_wanted(tmp_path: Path, kept: int) -> None:
    run = Run(tmp_path, kept=kept)
    for step in range(1, 6):
        run.train()
        run.save(step)
    assert folders(tmp_path) == [f"step-{step:08d}" for step in range(6 - kept, 6)]


def test_training_goes_on_while_a_checkpoint_is_written_and_is_not_in_it(tmp_path: Path) -> None:
    run, written = Run(tmp_path), threading.Event()
    run.train()
    run.begin(1, lambda: assert_set(written))
    before = run.state()
    for _ in range(3):
        run.train()
        assert run.checkpoints.running
        assert not run.checkpoints.done
        assert not list((tmp_path / "checkpoints").glob("step-*")), "it is not there before all of it is"
    written.set()
    saved = run.checkpoints.finish()
    assert (saved.step, run.checkpoints.running) == (1, False)
    assert min(saved.stall, saved.seconds) > 0
    resumed = Run(tmp_path)
    assert resumed.load() == 1
    for expected, got in zip(before, resumed.state(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def assert_set(event: threading.Event) -> None:
    assert event.wait(60)


def test_weights_do_not_change_before_they_are_copied(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train()
    run.begin(1)
    before = run.state()
    run.checkpoints.settle()
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.fill_(7.0)
    run.checkpoints.finish()
    resumed = Run(tmp_path)
    resumed.load()
    for expected, got in zip(before, resumed.state(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_save_that_fails_says_why_and_leaves_the_checkpoint_before(saved: Path) -> None:
    run = Run(saved)
    run.load()

    def full() -> None:
        raise OSError(errno.ENOSPC, "no space left")

    run.begin(5, full)
    with pytest.raises(StorageError, match="no space left"):
        run.checkpoints.finish()
    assert [name for name in folders(saved) if not name.startswith(".")] == ["step-00000003", "step-00000004"]
    assert Run(saved).load() == 4


def test_the_folder_of_a_stage_that_others_have_finished_is_not_made_again(saved: Path) -> None:
    run = Run(saved)
    shutil.rmtree(saved)
    run.train()
    with pytest.raises(FencedError, match="is gone"):
        run.save(5)
    assert not saved.exists()


def test_a_torn_newest_is_not_counted_as_kept_and_the_log_says_why_it_was_passed_over(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(saved / "checkpoints" / "step-00000004" / "__0_0.distcp")
    run = Run(saved)
    assert run.load() == 3
    assert run.checkpoints.torn == [4]
    assert "step-00000004 is passed over: __0_0.distcp is not the file that was written" in caplog.text
    run.save(5)
    assert folders(saved) == ["step-00000003", "step-00000005"]


def test_folders_that_are_no_checkpoints_are_left_alone(saved: Path) -> None:
    (saved / "checkpoints" / "step-by-step").mkdir()
    run = Run(saved)
    assert run.load() == 4
    run.save(5)
    assert folders(saved) == ["step-00000004", "step-00000005", "step-by-step"]


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
