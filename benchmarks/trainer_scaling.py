"""Scaling from 1 to 2 processes on 2 cores: one run of two against two runs that know nothing of each other, at the same time.

    .venv/bin/python -m benchmarks.trainer_scaling [--model FOLDER] [--steps 2] [--passes 4]

Each process has one thread. Two independent runs share the cores and the memory's bandwidth as two workers do, but add no gradients
and wait for nobody: what is lost against them is the price of being one run. All train the same number of rows in a step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from benchmarks.trainer_vs_hf import MODEL
from tests.support.pods import make_dataset, training_stage
from transfer_api.spec import Precision
from transfer_api.stage import Execution
from transfer_cli.local import free_port
from transfer_pod.context import PodContext
from transfer_trainer.loop import Training
from transfer_trainer.parallel import Team

LENGTH = 256
PASS_ROWS = 4
PROCESSES = 2


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--passes", type=int, default=4, help="of a process in a step, each of 1,024 tokens")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def run_process(wanted: argparse.Namespace) -> int:
    """One process's part: a step of warm-up, then the steps that count; prints the seconds of these."""
    team = Team.join()
    rows = team.world_size * wanted.passes * PASS_ROWS
    stage = training_stage(
        "1" * 32, "d" * 32, steps=wanted.steps + 1, sequence_length=LENGTH, rows_per_step=rows, precision=Precision.FLOAT32
    ).model_copy(update={"execution": Execution(micro_batch_tokens=PASS_ROWS * LENGTH, checkpoint_steps=10**6)})
    training = Training(PodContext(stage=stage, storage=wanted.folder, pod="benchmark"), team, lambda: False, lambda progress: None)
    assert training._train_step()
    begin = time.monotonic()
    for _ in range(wanted.steps):
        assert training._train_step()
    print(time.monotonic() - begin)
    team.leave()
    return 0


def seconds(wanted: argparse.Namespace, folders: list[Path], world_size: int) -> float:
    """Time of the slowest of two processes, which are one run or two."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = []
    for rank, folder in enumerate(folders):
        environment = common | {"WORLD_SIZE": str(world_size), "RANK": str(rank % world_size), "LOCAL_RANK": str(rank % world_size)}
        command = [
            sys.executable,
            "-m",
            "benchmarks.trainer_scaling",
            "--folder",
            str(folder),
            "--steps",
            str(wanted.steps),
            "--passes",
            str(wanted.passes),
        ]
        running.append(subprocess.Popen(command, cwd=Path(__file__).parent.parent, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a process of the benchmark failed")
    return max(float(output.split()[-1]) for output in outputs)


def measure(wanted: argparse.Namespace) -> tuple[dict[str, float], dict[str, str]]:
    """Figures and notes for the table."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / each for each in ("first", "second", "together")]
        for folder in folders:
            make_dataset(folder, length=LENGTH, labels=1.0)
            (folder / "model").symlink_to(wanted.model.resolve())
        apart = seconds(wanted, folders[:2], 1)
        together = seconds(wanted, [folders[2]] * PROCESSES, PROCESSES)
    tokens = wanted.steps * PROCESSES * wanted.passes * PASS_ROWS * LENGTH
    note = f"{tokens / together:.0f} against {tokens / apart:.0f} tokens/s; {wanted.passes} passes of {PASS_ROWS * LENGTH} tokens a step"
    return {"scaling": 100 * apart / together}, {"scaling": note}


if __name__ == "__main__":
    options = arguments().parse_args()
    sys.exit(run_process(options) if options.folder else report("trainer", *measure(options)))
