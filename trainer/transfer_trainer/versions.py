"""What a worker runs: workers of one attempt must run the same, or the result would depend on who computed what.

The first worker that comes to the rendezvous writes what it runs into the store; who runs anything else is refused. The way out
is another attempt, whose workers are all new (and of one image): so it ends with the exit code that asks for one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping
from pathlib import Path

from transfer_api.errors import VersionMismatch
from transfer_api.stage import CONTRACT_VERSION, StageKind

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numpy")
OURS = ("transfer_api", "transfer_pod", "transfer_trainer")


def versions(kind: StageKind) -> dict[str, str]:
    """Of this process: Python, the packages that compute, the code contract of the stage, and a hash of our own code."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "contract": str(CONTRACT_VERSION[kind]), "code": _code()}


def check_versions(first: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Returns where both are the same.

    Raises:
        VersionMismatch: names each that is not, with both versions.
    """
    differ = [name for name in sorted({*first, *own}) if first.get(name) != own.get(name)]
    if differ:
        both = ", ".join(f"{name} {own.get(name, 'none')} here and {first.get(name, 'none')} there" for name in differ)
        raise VersionMismatch(
            f"this worker runs other versions than the one with which its attempt began: {both}",
            next_step="Run all workers from one image, named by its digest or by a tag that is never pushed again",
        )


@functools.cache
def _code() -> str:
    """The first digits of a SHA-256 over our own modules: a version number does not change while one develops."""
    digest = hashlib.sha256()
    for package in OURS:
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.origin is not None
        folder = Path(found.origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
