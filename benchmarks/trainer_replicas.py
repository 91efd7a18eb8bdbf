"""Replicas against shards on 2 processes of 2 cores: `sharding: None` against `Full`, the same rows, a step of each in turn.

    .venv/bin/python -m benchmarks.trainer_replicas [--model FOLDER] [--steps 3] [--passes 4] [--pass-tokens 256]

Both trainings are in the same two processes, of one thread each, and take turns, so that whatever else the machine does slows both.
Their sockets are those of one machine, where gathering weights costs little; over a network it costs more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from benchmarks.trainer_vs_hf import MODEL
from tests.support.pods import make_dataset, training_stage
from transfer_api.spec import Precision, Sharding
from transfer_api.stage import Execution
from transfer_cli.local import free_port
from transfer_pod.context import PodContext
from transfer_trainer.loop import Training
from transfer_trainer.parallel import Team

LENGTH = 256
PROCESSES = 2


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=3, help="of each, after one that does not count")
    parser.add_argument("--passes", type=int, default=4, help="of a process in a step")
    parser.add_argument("--pass-tokens", type=int, default=LENGTH, help="of a pass; a multiple of 256")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def run_process(wanted: argparse.Namespace) -> int:
    """One process's part; prints the median seconds of a step of shards and of one of replicas."""
    team = Team.join()
    trainings = [_training(wanted, team, sharding) for sharding in (Sharding.FULL, Sharding.NONE)]
    seconds: list[list[float]] = [[], []]
    for _ in range(wanted.steps + 1):
        for training, taken in zip(trainings, seconds, strict=True):
            team.wait()
            begin = time.monotonic()
            assert training._train_step()
            taken.append(time.monotonic() - begin)
    print(*(statistics.median(taken[1:]) for taken in seconds))
    team.leave()
    return 0


def _training(wanted: argparse.Namespace, team: Team, sharding: Sharding) -> Training:
    rows = PROCESSES * wanted.passes * wanted.pass_tokens // LENGTH
    stage = training_stage(
        ("1" if sharding is Sharding.FULL else "2") * 32, "d" * 32, steps=wanted.steps + 1, sequence_length=LENGTH, rows_per_step=rows,
        precision=Precision.FLOAT32,
    )  # fmt: skip
    execution = Execution(micro_batch_tokens=wanted.pass_tokens, checkpoint_steps=10**6, sharding=sharding)
    stage = stage.model_copy(update={"execution": execution})
    return Training(PodContext(stage=stage, storage=wanted.folder, pod="benchmark"), team, lambda: False, lambda progress: None)


def measure(wanted: argparse.Namespace) -> tuple[dict[str, float], dict[str, str]]:
    """Figures and notes for the table."""
    with tempfile.TemporaryDirectory() as name:
        make_dataset(Path(name), length=LENGTH, labels=1.0)
        (Path(name) / "model").symlink_to(wanted.model.resolve())
        common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        options = {"--folder": name, "--steps": wanted.steps, "--passes": wanted.passes, "--pass-tokens": wanted.pass_tokens}
        command = [sys.executable, "-m", "benchmarks.trainer_replicas", *(str(part) for option in options.items() for part in option)]
        running = [
            subprocess.Popen(
                command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True,
                env=common | {"WORLD_SIZE": str(PROCESSES), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(PROCESSES)
        ]  # fmt: skip
        outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a process of the benchmark failed")
    shards, replicas = (max(float(output.split()[place]) for output in outputs) for place in (-2, -1))
    tokens = PROCESSES * wanted.passes * wanted.pass_tokens
    note = f"{tokens / replicas:.0f} against {tokens / shards:.0f} tokens/s; {wanted.passes} passes of {wanted.pass_tokens} tokens a step"
    return {"replicas_against_shards": shards / replicas}, {"replicas_against_shards": note}


if __name__ == "__main__":
    options = arguments().parse_args()
    sys.exit(run_process(options) if options.folder else report("trainer", *measure(options)))
