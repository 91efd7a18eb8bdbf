"""A whole experiment that takes seconds: tiny model, made-up texts, and a file that `transfer run` takes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import yaml

from tests.support.tiny import SENTENCES, save_tiny_model
from tests.support.warm import Process

T = TypeVar("T")
Run: TypeAlias = Process | subprocess.Popen[str]


def wait_for(condition: Callable[[], T | None], seconds: float = 240.0, what: str = "condition") -> T:
    """Polls until the condition is true, and fails with its name when time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true in {seconds:.0f} s")


@dataclass
class Workplace:
    """A storage, an experiment file in it, and `transfer` as a process."""

    folder: Path
    spec: dict[str, Any] = field(default_factory=dict)
    name: str = "tiny"

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def file(self) -> Path:
        path = self.folder / f"{self.name}.yaml"
        document = {
            "apiVersion": "transfer-operator.dev/v1alpha1", "kind": "TransferExperiment",
            "metadata": {"name": self.name}, "spec": self.spec,
        }  # fmt: skip
        path.write_text(json.dumps(document, indent=1))  # JSON is YAML, and keeps "1e-3" a string
        return path

    def start(self, *options: str, command: str = "run", imported: bool = True) -> Run:
        """Starts `transfer COMMAND FILE OPTIONS`: forked from a process with everything imported, as its pods are, or by `python -m`."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        arguments = [command, str(self.file), "--storage", str(self.storage), *options]
        if imported:
            _, output = tempfile.mkstemp(suffix=".txt", prefix=f"{command}-", dir=self.folder)
            return Process("transfer_cli.main", environment, arguments, folder=self.folder, output=Path(output))
        return subprocess.Popen(
            [sys.executable, "-m", "transfer_cli.main", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=self.folder,
        )  # fmt: skip

    def run(self, *options: str, timeout: float = 600) -> tuple[int | None, str]:
        """Runs it to its end; returns its exit code and what it wrote."""
        process = self.start("--output", str(self.output), *options)
        text, _ = process.communicate(timeout=timeout)
        return process.returncode, text

    def status(self) -> dict[str, Any]:
        try:
            return yaml.safe_load((self.output / "status.yaml").read_text()) or {}
        except FileNotFoundError:
            return {}

    def stage(self, name: str) -> dict[str, Any]:
        return next((stage for stage in self.status().get("stages", []) if stage["name"] == name), {})

    def artifact(self, name: str) -> Path:
        return self.storage / self.stage(name)["artifact"]["path"]

    def ledger(self, name: str = "pretraining") -> list[dict[str, Any]]:
        """Ledger lines of the finished stage, else of the unfinished one."""
        stage = self.stage(name)
        if not stage:
            return []
        finished = self.storage / "artifacts" / stage["kind"] / stage["key"] / "ledger.jsonl"
        unfinished = self.storage / "work" / stage["kind"] / stage["key"] / "ledger.jsonl"
        path = finished if finished.exists() else unfinished
        if not path.exists():
            return []
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [entry for line in lines if (entry := json.loads(line))["kind"] == "step"]


def sentences(seed: int, count: int) -> list[str]:
    """Made-up text: words of the tiny tokenizer's training sentences in random order."""
    chooser = random.Random(seed)
    words = " ".join(SENTENCES).split()
    return [" ".join(chooser.choices(words, k=chooser.randint(5, 30))) for _ in range(count)]


def write_texts(path: Path, seed: int, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(seed, count)))


def write_instructions(path: Path, seed: int, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = zip(sentences(seed, count), sentences(seed + 1, count), strict=True)
    path.write_text("".join(json.dumps({"instruction": a, "input": "", "output": b}) + "\n" for a, b in pairs))


def workplace(folder: Path, **changes: Any) -> Workplace:
    """A workplace whose experiment has every stage; `changes` replace top-level fields of the spec, None removes one."""
    place = Workplace(folder)
    save_tiny_model(place.storage / "models" / "tiny")
    write_texts(place.storage / "texts" / "id.jsonl", 1, 400)
    write_texts(place.storage / "texts" / "en.jsonl", 2, 200)
    write_texts(place.storage / "texts" / "heldout.jsonl", 3, 12)
    write_instructions(place.storage / "instructions" / "id.jsonl", 4, 60)
    spec: dict[str, Any] = {
        "model": {"path": "models/tiny"},
        "language": "id",
        "storage": {"claim": "experiments"},
        "pretraining": {
            "steps": 24, "sequenceLength": 64, "globalBatchTokens": 448, "learningRate": "1e-3", "precision": "Float32",
            "checkpointSteps": 4, "validationSteps": 12, "maxEpochs": 20,
            "mixture": [{"path": "texts/id.jsonl", "weight": 3}, {"path": "texts/en.jsonl", "weight": 1, "language": "en"}],
        },
        "instructionTuning": {
            "steps": 6, "sequenceLength": 192, "globalBatchTokens": 768, "learningRate": "1e-3", "precision": "Float32",
            "lora": {"rank": 4, "alpha": 8}, "data": [{"path": "instructions/id.jsonl"}],
        },
        "evaluation": {"suites": ["perplexity"], "texts": [{"name": "heldout", "path": "texts/heldout.jsonl"}]},
        "workers": {"min": 1, "replicas": 1, "max": 3},
    }  # fmt: skip
    place.spec = {name: value for name, value in (spec | changes).items() if value is not None}
    return place
