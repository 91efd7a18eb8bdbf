"""Who this pod is and what it is to do, read once from the environment.

The environment is the whole interface between a backend and a pod; `PodContext.environment` and `PodContext.read` are the two ends of it,
so a process of `transfer run` and a pod of the cluster cannot drift apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transfer_api.errors import DataError, SpecError
from transfer_api.stage import StagePlan


@dataclass(frozen=True, kw_only=True)
class PodContext:
    """The task of one pod and its place in the attempt."""

    stage: StagePlan
    storage: Path
    """Root of the storage as this pod sees it."""
    pod: str
    """Name of the pod: `<attempt>-w<index>-g<generation>`."""
    attempt: str = ""
    """Name of the attempt, which is also the rendezvous id."""
    index: int = 0
    """Worker or shard index."""
    search: tuple[Path, ...] = ()
    """Folders besides the storage in which a relative input path is looked up (`transfer run`: the experiment file's)."""
    address: str = "127.0.0.1"
    """The pod's own IP."""
    port: int = 9090
    """Port of /metrics, /progress and /healthz."""
    rendezvous: str = ""
    """host:port of the rendezvous store; empty for stages that are not elastic."""
    min_nodes: int = 1
    max_nodes: int = 1
    processes: int = 1
    """Worker processes of this pod, one per GPU."""
    termination_log: Path = field(default=Path("/dev/termination-log"))

    @property
    def listen(self) -> str:
        """Where its server listens: everywhere in a pod, nowhere else than here on one machine."""
        return self.address if self.address.startswith("127.") else "0.0.0.0"  # noqa: S104

    def environment(self) -> dict[str, str]:
        """The variables from which `read` gives this context back."""
        return {
            "TRANSFER_STAGE": self.stage.model_dump_json(by_alias=True),
            "TRANSFER_STORAGE": str(self.storage),
            "TRANSFER_POD": self.pod,
            "TRANSFER_ATTEMPT": self.attempt,
            "TRANSFER_INDEX": str(self.index),
            "TRANSFER_SEARCH": json.dumps([str(folder) for folder in self.search]),
            "TRANSFER_ADDRESS": self.address,
            "TRANSFER_PORT": str(self.port),
            "TRANSFER_RENDEZVOUS": self.rendezvous,
            "TRANSFER_NODES": f"{self.min_nodes}:{self.max_nodes}",
            "TRANSFER_PROCESSES": str(self.processes),
            "TRANSFER_TERMINATION_LOG": str(self.termination_log),
        }

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> PodContext:
        """Reads the context.

        Raises:
            SpecError: TRANSFER_STAGE or TRANSFER_STORAGE is missing or malformed.
        """
        try:
            stage = StagePlan.model_validate_json(environment["TRANSFER_STAGE"])
            storage = Path(environment["TRANSFER_STORAGE"])
            low, _, high = environment.get("TRANSFER_NODES", "1:1").partition(":")
            return cls(
                stage=stage,
                storage=storage,
                pod=environment.get("TRANSFER_POD", "pod"),
                attempt=environment.get("TRANSFER_ATTEMPT", ""),
                index=int(environment.get("TRANSFER_INDEX", "0")),
                search=tuple(Path(folder) for folder in json.loads(environment.get("TRANSFER_SEARCH", "[]"))),
                address=environment.get("TRANSFER_ADDRESS", "127.0.0.1"),
                port=int(environment.get("TRANSFER_PORT", "9090")),
                rendezvous=environment.get("TRANSFER_RENDEZVOUS", ""),
                min_nodes=int(low),
                max_nodes=int(high or low),
                processes=int(environment.get("TRANSFER_PROCESSES", "1")),
                termination_log=Path(environment.get("TRANSFER_TERMINATION_LOG", "/dev/termination-log")),
            )
        except (KeyError, ValueError) as error:
            raise SpecError(
                f"the pod's environment is incomplete: {error}",
                next_step="Pods are started by the operator or by `transfer run`, not by hand",
            ) from error

    def find(self, path: str, field: str = "path") -> Path:
        """Resolves an input path: absolute, or relative to the storage, then to the folders of `search`.

        Raises:
            DataError: it is in none of them.
        """
        return find_input(path, (self.storage, *self.search), field)


def find_input(path: str, roots: tuple[Path, ...], field: str = "path") -> Path:
    """Resolves an input path (a glob matches when at least one file does); see `PodContext.find`."""
    for root in roots:
        candidate = root / path  # an absolute path stays as it is
        if candidate.exists() or (glob_characters(path) and any(True for _ in expand(candidate))):
            return candidate
    looked = ", ".join(str(root) for root in roots) if not Path(path).is_absolute() else "as given"
    raise DataError(
        "no such file or folder", field=field, value=path,
        next_step=f"Looked in: {looked}. Put it there, or write an absolute path",
    )  # fmt: skip


def glob_characters(path: str | Path) -> bool:
    """Whether a path is a pattern."""
    return any(character in str(path) for character in "*?[")


def expand(path: Path) -> list[Path]:
    """The files of a path or glob, sorted by name so that every machine reads them in one order.

    Only what does not exist as it is written is a pattern: folders may have brackets in their names.
    """
    base = Path(path.anchor or ".")
    parts = list(path.relative_to(base).parts if path.anchor else path.parts)
    while parts and (base / parts[0]).exists():
        base /= parts.pop(0)
    if not parts:
        return [base]
    return sorted(found for found in base.glob(str(Path(*parts))) if found.is_file()) if base.is_dir() else []
