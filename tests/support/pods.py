"""Training pods as processes of this machine: a tiny model, a tiny store, a rendezvous and launchers that can be killed.

Shared by the elastic tests and by benchmarks/elastic_losses.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from tests.support.experiment import wait_for
from tests.support.tiny import save_tiny_model
from tests.support.warm import Process
from transfer_api.progress import Activity, Progress, ResultMessage
from transfer_api.spec import Lora, Method, ModelSource, Precision, Schedule
from transfer_api.stage import DatasetParameters, Execution, StageKind, StagePlan, TrainingParameters
from transfer_cli.local import free_port
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.ledger import LEDGER, Summary, read_ledger
from transfer_trainer.rows import RowOrder

LENGTH, ROWS_PER_STEP, SEED = 32, 7, 3  # seven rows divide among neither two nor three workers
STEADY = "e" * 32
"""Key of the stage that one worker does beside the one under test."""
SOURCES = {"id": (3, 40), "en": (1, 17)}  # name to weight and rows
ORDER = RowOrder(SEED, tuple(weight for weight, _ in SOURCES.values()), tuple(rows for _, rows in SOURCES.values()))


def make_dataset(
    storage: Path, length: int = LENGTH, labels: float = 0.8, tokens_of: Mapping[int, npt.NDArray[np.int64]] | None = None
) -> str:
    """Commits a dataset of packed rows, this share of whose tokens have a label; returns its key. Tokens are random unless given."""
    key = "d" * 32
    parameters = DatasetParameters(model=ModelSource(path="model"), sequence_length=length, seed=SEED)
    stage = StagePlan(name="dataset", kind=StageKind.DATASET, key=key, parameters=parameters.model_dump(mode="json", by_alias=True))
    store = ArtifactStore(storage)
    rows = store.work(stage.kind, key) / "artifact" / "rows"
    rows.mkdir(parents=True)
    random = np.random.default_rng(0)
    index = []
    for number, (name, (weight, count)) in enumerate(SOURCES.items()):
        tokens = random.integers(3, 300, (count, length)) if tokens_of is None else tokens_of[number]
        cuts = random.integers(4, length - 4, count)
        positions = np.arange(length)[None] - np.where(np.arange(length)[None] >= cuts[:, None], cuts[:, None], 0)
        targets = (positions > 0) & (random.random((count, length)) < labels)  # less than all: rows with different numbers of them
        tokens.astype("<u4").tofile(rows / f"{number}.tokens")
        positions.astype("<i4").tofile(rows / f"{number}.positions")
        targets.astype("u1").tofile(rows / f"{number}.targets")
        facts = {"tokens": count * length, "targets": int(targets.sum()), "documents": 2 * count, "bytes": 2 * count * length}
        index.append({"name": name, "weight": weight, "rows": count, **facts})
    content = {"sequence_length": length, "seed": SEED, "tokenizer": "tiny", "sources": index}
    (rows / "index.json").write_text(json.dumps(content))
    store.commit(stage, rows.parent)
    return key


def training_stage(
    key: str, dataset: str, *, steps: int | None, lora: bool = False, checkpoint_steps: int = 5, **changes: Any
) -> StagePlan:
    """A small float32 training stage; `changes` are parameters or fields of its execution."""
    how = {name: changes.pop(name) for name in list(changes) if name in Execution.model_fields}
    parameters = TrainingParameters(
        model=ModelSource(path="model"), method=Method.LORA if lora else Method.FULL,
        lora=Lora(rank=4, alpha=8, targets=["q_proj", "up_proj"], train_embeddings=True) if lora else None,
        sequence_length=LENGTH, rows_per_step=ROWS_PER_STEP, tokens=None, steps=steps, epochs=None,
        learning_rate="1e-3", embedding_learning_rate="5e-4", schedule=Schedule.COSINE, warmup="0.1", weight_decay="0.01",
        gradient_clipping="1.0", precision=Precision.FLOAT32, seed=SEED,
    ).model_copy(update=changes)  # fmt: skip
    return StagePlan(
        name="pretraining", kind=StageKind.PRETRAINING, key=key, parameters=parameters.model_dump(mode="json", by_alias=True),
        inputs={"dataset": dataset}, execution=Execution(micro_batch_tokens=2 * LENGTH, checkpoint_steps=checkpoint_steps, **how),
    )  # fmt: skip


@dataclass
class Pod:
    """A launcher that runs as a process group of its own."""

    context: PodContext
    process: Process | subprocess.Popen[bytes]

    @property
    def progress(self) -> Progress:
        """Answer of /progress; empty while the pod does not serve."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.context.port}/progress", timeout=2) as answer:
                return Progress.model_validate_json(answer.read())
        except OSError:
            return Progress()

    @property
    def message(self) -> ResultMessage | None:
        """Termination message, once there is one."""
        path = self.context.termination_log
        return ResultMessage.decode(path.read_text()) if path.exists() else None

    def workers(self) -> list[int]:
        """Process ids of its workers: the children of its nursery."""
        return [worker for nursery in _children(self.process.pid) for worker in _children(nursery)]

    def kill(self) -> None:
        """kill -9 of the whole process group; returns when its workers, which the kernel kills then, are gone too."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert not psutil.wait_procs(family, timeout=20)[1], "a worker outlived its launcher"

    def ask(self) -> None:
        """SIGTERM, as the kubelet sends it."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 240) -> int:
        """Exit code."""
        return self.process.wait(seconds)


@dataclass
class Cluster:
    """One attempt at a stage."""

    folder: Path
    stage: StagePlan
    min_nodes: int = 1
    max_nodes: int = 3
    number: int = 1
    port: int = field(default_factory=free_port)
    pods: list[Pod] = field(default_factory=list)
    _store: Process | None = None

    @property
    def work(self) -> Path:
        """The stage's work folder."""
        return self.folder / "work" / self.stage.kind.value / self.stage.key

    @property
    def artifact(self) -> Path:
        """The stage's artifact."""
        return self.folder / "artifacts" / self.stage.kind.value / self.stage.key

    @property
    def ledger(self) -> Summary:
        """The ledger as it is now, in the work folder or in the artifact."""
        done = self.artifact / LEDGER
        return read_ledger(done if done.exists() else self.work / LEDGER)

    @property
    def saved(self) -> int:
        """Step of the newest complete checkpoint, 0 before there is one."""
        return max((int(path.name.removeprefix("step-")) for path in (self.work / "checkpoints").glob("step-*")), default=0)

    def start(self, index: int, processes: int = 1, *, store: bool = True, imported: bool = True) -> Pod:
        """Starts a pod with so many worker processes, and the rendezvous store before the first unless it is somebody else's.

        With `imported=False` by `python -m`, which finds its code by $PYTHONPATH; else forked.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFER_COLLECTIVE_TIMEOUT": "60"}
        if store and self._store is None and self.max_nodes > 1:
            self.start_store()
        attempt, generation = f"a{self.number}", 1 + sum(pod.context.index == index for pod in self.pods)
        name = f"{attempt}-w{index}-g{generation}"
        context = PodContext(
            stage=self.stage, storage=self.folder, pod=name, attempt=attempt, lineage="experiment", attempt_number=self.number,
            generation=generation, index=index, port=free_port(),
            rendezvous=f"127.0.0.1:{self.port}" if self.max_nodes > 1 else "", min_nodes=self.min_nodes,
            max_nodes=self.max_nodes, processes=processes,
            termination_log=self.folder / f"{name}-{self.port}.termination",
        )  # fmt: skip
        environment |= context.environment()
        process: Process | subprocess.Popen[bytes]
        if imported:
            process = Process("transfer_trainer", environment)
        else:
            process = subprocess.Popen([sys.executable, "-m", "transfer_trainer"], env=environment, start_new_session=True)
        self.pods.append(Pod(context, process))
        return self.pods[-1]

    def start_store(self) -> None:
        """Starts the rendezvous store of the attempt."""
        self._store = Process("transfer_trainer.rendezvous", {**os.environ, "TRANSFER_RENDEZVOUS": f"127.0.0.1:{self.port}"})

    def lose_store(self) -> None:
        """kill -9 of the rendezvous store."""
        assert self._store is not None
        self._store.kill()
        self._store.wait()
        self._store = None

    def close(self) -> None:
        """Ends whatever still runs."""
        for pod in self.pods:
            if pod.process.poll() is None:
                pod.kill()
        if self._store is not None:
            self._store.terminate()
            self._store.wait()
            self._store = None


@contextlib.contextmanager
def cluster(folder: Path, stage: StagePlan, **settings: Any) -> Iterator[Cluster]:
    """An attempt whose processes are gone afterwards."""
    attempt = Cluster(folder, stage, **settings)
    try:
        yield attempt
    finally:
        attempt.close()


def steps_at(group: Cluster, world_size: int, after: int = 0) -> Callable[[], bool]:
    """Whether some steps after step `after` were done by so many processes."""
    return lambda: sum(line.world_size == world_size and line.step > after for line in group.ledger.lines) >= 3


def join(group: Cluster, index: int, held: Pod) -> Pod:
    """Starts a pod while training is held, so that the run cannot end before the pod is there."""
    workers = held.workers()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    pod = group.start(index)
    wait_for(lambda: pod.progress.activity is Activity.RENDEZVOUS, what="the pod comes to the rendezvous")
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    return pod


def resize(group: Cluster) -> tuple[Pod, Pod]:
    """Takes a run from its start to its end over 2, 3, 1 and 2 workers; returns the pods that end it.

    A worker joins, then two are killed at once (one of them holds rank 0), then a replacement joins.
    """
    first, second = group.start(0), group.start(1)
    wait_for(steps_at(group, 2), what="two workers train")
    third = join(group, 2, first)
    wait_for(steps_at(group, 3), what="three workers train")
    assert group.ledger.lost_steps == 0, "a joining worker loses no step"
    joined = next(line.step for line in group.ledger.lines if line.world_size == 3)
    wait_for(lambda: group.saved >= joined, what="what three workers did is saved")
    first.kill()
    second.kill()
    wait_for(steps_at(group, 1), what="the survivor goes on alone")
    fourth = join(group, 0, third)
    alone = max(line.step for line in group.ledger.lines if line.world_size == 1)
    wait_for(steps_at(group, 2, after=alone), what="two workers train again")
    assert (third.wait(), fourth.wait()) == (0, 0)
    return third, fourth


def make_storage(folder: Path) -> str:
    """A storage root with the tiny model and the dataset; returns the dataset's key."""
    save_tiny_model(folder / "model")
    return make_dataset(folder)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def steady_losses(storage: Path, stage: StagePlan) -> list[float]:
    """Losses of the same stage, done by one worker in this process without any interruption."""
    from transfer_trainer.loop import Training
    from transfer_trainer.parallel import Team

    steady = stage.model_copy(update={"key": STEADY})
    context = PodContext(stage=steady, storage=storage, pod="steady")
    assert Training(context, Team(), lambda: False, lambda progress: None).run()
    return losses(read_ledger(ArtifactStore(storage).path(steady.kind, steady.key) / LEDGER))


def losses(summary: Summary) -> list[float]:
    """Loss of each step."""
    return [line.loss for line in summary.lines]
