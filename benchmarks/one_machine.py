"""The newcomer's figures: `make demo` from a fresh clone, then the commands that should answer at once.

    .venv/bin/python -m benchmarks.one_machine [--clone DIR] [--tests]

Takes as long as the demo. With --clone the clone is kept, and a demo that is complete there is not run again. With --tests `make test`
is measured too, in the same clone: minutes and coverage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report

FILE = "examples/indonesian.yaml"
OUTPUT = Path("runs/indonesian")


class PeakMemory(threading.Thread):
    """Samples the proportional resident memory (PSS) of a process tree, so that shared libraries count once."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak, self.done = root, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(1.0):
            total = 0
            for process in self._tree():
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.root)
            return [root, *root.children(recursive=True)]
        except psutil.Error:
            return []


def demo(clone: Path) -> dict[str, float]:
    started = time.monotonic()
    # An empty cache: tools, model and texts are fetched as on a machine that has seen none of them.
    environment = os.environ | {"TRANSFER_CACHE": str(clone.parent / "cache")}
    process = subprocess.Popen(["make", "demo"], cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    memory = PeakMemory(process.pid)
    memory.start()
    setup = None
    assert process.stdout
    for line in process.stdout:
        print(line, end="")
        if match := re.search(r"set-up took (\d+) s", line):
            setup = int(match[1])
    code = process.wait()
    memory.done.set()
    if code:
        raise SystemExit(f"make demo ended with {code}")
    return {
        "demo_minutes": (time.monotonic() - started) / 60,
        "setup_minutes": (setup if setup is not None else float("nan")) / 60,
        "peak_memory": memory.peak / 1e9,
    }


def scores(clone: Path) -> tuple[dict[str, float], dict[str, str]]:
    found = json.loads((clone / OUTPUT / "results.json").read_text())["scores"]

    def pick(task: str, metric: str) -> dict:
        return next(score for score in found if score["task"] == task and score["metric"] == metric)

    indonesian = pick("guide-id", "perplexity")
    english = pick("udhr-en", "bits_per_byte")
    change = 100 * (english["value"] / english["baseline"] - 1)
    figures = {"perplexity_after": indonesian["value"], "english_change": change}
    return figures, {"perplexity_after": f"before: {indonesian['baseline']:.1f}"}


def tests(clone: Path) -> dict[str, float]:
    """Runs all tests once, which also counts the coverage."""
    started = time.monotonic()
    done = subprocess.run(["make", "test"], cwd=clone, stdout=subprocess.PIPE, text=True)
    print(done.stdout[-2000:])
    branches = re.search(r"^branches: .* ([\d.]+) % \(", done.stdout, re.M)
    if done.returncode or not branches:
        raise SystemExit(f"make test ended with {done.returncode}")
    return {"test_minutes": (time.monotonic() - started) / 60, "branch_coverage": float(branches[1])}


def seconds(clone: Path, command: list[str], runs: int) -> float:
    def once() -> float:
        started = time.monotonic()
        subprocess.run(command, cwd=clone, check=True, capture_output=True)
        return time.monotonic() - started

    return statistics.median(once() for _ in range(runs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clone", type=Path)
    parser.add_argument("--tests", action="store_true", help="measure `make test` too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = options.clone or Path(temporary) / "clone"
        figures: dict[str, float] = {}
        if not clone.exists():
            subprocess.run(["git", "clone", "-q", ".", str(clone)], check=True)
        if not (clone / OUTPUT / "results.json").exists():
            figures |= demo(clone)
        measured, notes = scores(clone)
        figures |= measured
        transfer = str(clone / ".venv/bin/transfer")
        figures["second_run"] = seconds(clone, [transfer, "run", FILE], 3)
        figures["validate"] = seconds(clone, [transfer, "validate", FILE], 5)
        figures["help"] = seconds(clone, [transfer, "--help"], 5)
        if options.tests:
            figures |= tests(clone)
        return report("one-machine", figures, notes)


if __name__ == "__main__":
    sys.exit(main())
