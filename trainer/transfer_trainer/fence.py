"""Keeps a zombie out: only the processes of the newest round may commit a checkpoint or an artifact.

Rank 0 of each round writes itself into `fence.json`, and reads that back before every commit. A process whose node was cut off,
so that others went on without it, finds a newer one there and ends. Who is newer does not depend on who wrote last:

    one term                    the later round
    one lineage                 the later attempt; of a pod that trains alone, the later generation
    two stores of one attempt   the one that came later: the fence remembers which terms are over, and none of them comes back
    two lineages                likewise. An experiment can take a stage over from any other (that one was deleted or suspended), so no
                                order of the experiments is right; the operator decides who goes on, by whose pods it starts

Reading and writing are two steps. So an older one may write over a newer one that came in between; the newer one, which knows that
it is, then writes itself again.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from transfer_api.errors import Superseded
from transfer_pod.artifact import write_atomically
from transfer_pod.context import PodContext

FENCE = "fence.json"


class FencedError(Exception):
    """A newer round of the same pods has taken over; this process has nothing more to say, its pod may join the next one."""


@dataclass(frozen=True)
class Term:
    """Those whose rounds are counted together: the pods that meet at one rendezvous store, or one pod that trains alone."""

    lineage: str
    attempt: int
    generation: int
    """0 where pods meet: they are of different generations then."""
    incarnation: str
    """Of the rendezvous store; empty where there is none."""

    @classmethod
    def of(cls, context: PodContext, incarnation: str) -> Self:
        """The term of a pod. One whose lineage nobody told is a lineage of its own."""
        generation = 0 if incarnation else context.generation
        return cls(context.lineage or secrets.token_hex(8), context.attempt_number, generation, incarnation)

    def before(self, other: Term) -> bool:
        """Whether the numbers say that the other is newer."""
        return self.lineage == other.lineage and (self.attempt, self.generation) < (other.attempt, other.generation)

    def __str__(self) -> str:
        generation = f", generation {self.generation}" if self.generation else ""
        return f"attempt {self.attempt}{generation} of {self.lineage}"


@dataclass(frozen=True)
class Fence:
    """The right of one round to write."""

    path: Path
    term: Term
    round: int
    token: str

    @classmethod
    def take(cls, folder: Path, term: Term, round_: int) -> Fence:
        """Takes the fence of a stage's work folder for a round.

        Raises:
            FencedError: a newer round of the term holds it.
            Superseded: the term is over.
        """
        fence = cls(folder / FENCE, term, round_, secrets.token_hex(8))
        fence._write(_read(fence.path))
        return fence

    def check(self) -> None:
        """Returns while this round is the newest.

        Raises:
            FencedError: a newer round of the term holds the fence, or the stage's work folder is gone.
            Superseded: the term is over.
        """
        held = _read(self.path)
        if held is None:
            raise FencedError(f"{self.path} is gone")
        if held.token != self.token:
            self._write(held)

    def _write(self, held: _Holder | None) -> None:
        """Writes this round into the fence, unless what holds it is newer."""
        over = (*held.past, held.term) if held is not None else ()
        if held is not None and held.term == self.term:
            if held.round >= self.round:
                raise FencedError(f"round {held.round} has taken over from round {self.round}")
        elif held is not None and any(term == self.term or self.term.before(term) for term in over):
            raise Superseded(f"{held.term} has taken the stage over from {self.term}", next_step=self._way_out(held))
        # What an order by numbers keeps out need not be remembered.
        past = tuple(term for term in dict.fromkeys(over) if term != self.term and not term.before(self.term))
        write_atomically(self.path, json.dumps(asdict(_Holder(self.term, self.round, self.token, past))))

    def _way_out(self, held: _Holder) -> str:
        """For the case that this pod is wanted; else nobody reads it."""
        if held.term.lineage == self.term.lineage:
            return f"Where no such attempt runs, remove {self.path}"
        return f"Have one experiment or run at a time make a stage in a storage: both write into {self.path.parent}"


@dataclass(frozen=True)
class _Holder:
    """What `fence.json` holds."""

    term: Term
    round: int
    token: str
    past: tuple[Term, ...]
    """Terms that are over, as far as numbers do not tell."""


def _read(path: Path) -> _Holder | None:
    try:
        found = json.loads(path.read_text())
        past = tuple(Term(**term) for term in found["past"])
        return _Holder(Term(**found["term"]), int(found["round"]), str(found["token"]), past)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
