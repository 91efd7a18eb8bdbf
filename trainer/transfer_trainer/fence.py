"""Keeps a zombie out: only the processes of the newest round may commit a checkpoint or an artifact.

Rank 0 of each round writes a token of its own into `fence.json` and reads it back before every commit. A process of an
older round (its node was cut off, the others went on without it) finds another token there and ends. The rounds
of one rendezvous store are ordered, so an older one cannot take the fence back either.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from transfer_pod.artifact import write_atomically


class FencedError(Exception):
    """A newer round has taken over; this process has nothing more to say."""


@dataclass(frozen=True)
class Fence:
    """The right of one round to write."""

    path: Path
    token: str

    @classmethod
    def take(cls, folder: Path, incarnation: str, round_: int) -> Fence:
        """Takes the fence for a round; the rounds of one incarnation of a rendezvous store are ordered ("" for no store).

        Raises:
            FencedError: a newer round of the same incarnation holds it.
        """
        path = folder / "fence.json"
        held = _read(path)
        if incarnation and held.get("incarnation") == incarnation and int(held.get("round", 0)) > round_:
            raise FencedError(f"round {held['round']} has taken over from round {round_}")
        fence = cls(path, secrets.token_hex(8))
        write_atomically(path, json.dumps({"incarnation": incarnation, "round": round_, "token": fence.token}))
        return fence

    def check(self) -> None:
        """Returns while this round is the newest.

        Raises:
            FencedError: it is not.
        """
        held = _read(self.path)
        if held.get("token") != self.token:
            raise FencedError(f"round {held.get('round')} has taken over")


def _read(path: Path) -> dict[str, str]:
    try:
        held = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
