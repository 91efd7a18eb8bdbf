"""An evaluation by four pods of which one is killed, beside one that nobody disturbs: `transfer evaluate --shards 4`, a tiny model.

    .venv/bin/python -m benchmarks.shard_lost

Pods are processes of the local backend. One is killed with -9 in a block that it computes, as the kernel's table of locks says. Done again
is this block, and every one that was written twice. Scores and items are compared to the last bit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from tests.support.experiment import wait_for
from tests.support.tiny import SENTENCES, save_tiny_model

SHARDS = 4
DOCUMENTS = 800
SENTENCES_EACH = 12
KILL_AFTER = 0.3
"""Share of the blocks that are done before the pod is killed."""
LOOK_EVERY = 0.005
BLOCKS = "work/evaluation/*/blocks"


class Watch:
    """Which blocks were written, and how often, as far as a look every few milliseconds sees."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.written: dict[str, set[int]] = defaultdict(set)
        """Inodes by block: whoever writes a block again puts another file in its place."""

    def look(self) -> int:
        """Looks, and returns how many blocks have been written so far."""
        for path in self.storage.glob(f"{BLOCKS}/*.json"):
            try:
                self.written[path.stem].add(path.stat().st_ino)
            except FileNotFoundError:
                continue
        return len(self.written)

    def held(self, process: int) -> list[str]:
        """Blocks that a process computes now."""
        inodes = {
            int(fields[5].split(":")[2])
            for fields in map(str.split, Path("/proc/locks").read_text().splitlines())
            if fields[1] == "FLOCK" and int(fields[4]) == process
        }
        return [path.stem for path in self.storage.glob(f"{BLOCKS}/*.lock") if path.stat().st_ino in inodes]


@contextmanager
def evaluating(folder: Path, storage: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command; what is left of it at the end is killed, and its pods with it."""
    command = [
        sys.executable, "-m", "transfer_cli.main", "evaluate", str(folder / "model"), "--texts", f"id={folder / 'texts.jsonl'}",
        "--shards", str(SHARDS), "--storage", str(storage), "--output", str(output),
    ]  # fmt: skip
    with (folder / f"{output.name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(folder: Path, name: str, *, blocks: int | None) -> tuple[dict[str, Any], Watch, list[str], float]:
    """One evaluation; a pod of it is killed where it is known how many blocks there are.

    Returns:
        Its figures, its blocks, those that the pod was at, and seconds.
    """
    storage, output, lost, began = folder / f"storage-{name}", folder / name, list[str](), time.monotonic()
    watch = Watch(storage)
    with evaluating(folder, storage, output) as process:
        while process.poll() is None:
            done = watch.look()
            if blocks is not None and not lost and done >= KILL_AFTER * blocks:
                lost = _kill_one(process.pid, watch)
            time.sleep(LOOK_EVERY)
        if process.returncode:
            raise SystemExit((folder / f"{name}.log").read_text())
    return _figures(output), watch, lost, time.monotonic() - began


def _kill_one(parent: int, watch: Watch) -> list[str]:
    """Kills a pod that computes, and returns the block that it was at; nothing where it has just finished it."""
    for child in psutil.Process(parent).children():
        if watch.held(child.pid):
            child.send_signal(signal.SIGSTOP)  # so that what is seen of it is true when it dies
            wait_for(lambda one=child: one.status() == psutil.STATUS_STOPPED, 5, "the pod stands still")
            watch.look()
            held = [block for block in watch.held(child.pid) if block not in watch.written]
            child.send_signal(signal.SIGKILL if held else signal.SIGCONT)
            return held
    return []


def _figures(output: Path) -> dict[str, Any]:
    items = {path.name: path.read_text() for path in sorted((output / "items" / "evaluation").glob("*.jsonl"))}
    return {"scores": json.loads((output / "results.json").read_text())["scores"], **items}


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the pods end too
    with tempfile.TemporaryDirectory(prefix="shards-") as name:
        folder = Path(name)
        save_tiny_model(folder / "model", layers=4, hidden=128)
        texts = (" ".join(f"{n}.{k} {SENTENCES[(n + k) % 4]}" for k in range(SENTENCES_EACH)) for n in range(DOCUMENTS))
        (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        steady, watch, _, seconds = run(folder, "steady", blocks=None)
        blocks = len(watch.written)
        struck, again, lost, longer = run(folder, "struck", blocks=blocks)
    repeated = len(lost) + sum(len(inodes) - 1 for inodes in again.written.values())
    different = sum(steady[key] != struck.get(key) for key in steady) + len(struck.keys() - steady.keys())
    note = f"{repeated} of {blocks} blocks; {seconds:.0f} s undisturbed, {longer:.0f} s with the kill"
    figures = {"shards_done_again": repeated / (blocks / SHARDS), "shards_different": float(different), "shards_killed": float(len(lost))}
    return report("shards", figures, {"shards_done_again": note})


if __name__ == "__main__":
    sys.exit(main())
