"""What saving and failing cost: the time the loop stands still for a checkpoint, and the share of time that is training.

    .venv/bin/python -m benchmarks.checkpointing [--model FOLDER] [--saves 3]      stall, and goodput of 64 workers by simulation
    .venv/bin/python -m benchmarks.checkpointing --kill-run 15                     15 minutes of real processes, one killed every 60 s

Stall: steps of the real loop on a real model, with a checkpoint beside every third. The save itself is the same checkpoint written
while nothing else is done, in the same run. Both are medians. How much longer the steps beside a save take than the others is
printed too: where training is on the processors that also write and hash, as here, that is felt; on GPUs it is not.

Goodput is the share of the wall time in which steps were done for the first time. The simulation kills by exponential times; every
kill throws the run back to the last snapshot whose write was complete, and costs a restart, in which it may be killed again. It must
agree with the closed form (the renewal argument of Daly 2006, equation 20, with a write of w seconds beside training)

    goodput = τ·exp(-(w + R)/M) / (M·(exp((τ + δ)/M) - 1))

    τ  training between two saves, by Young/Daly as the trainer chooses it     M  mean time between failures of the whole group
    δ  standing still for a save            w  until the save is complete      R  from a failure to the first new step
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.bars import BARS, report
from tests.support.experiment import wait_for
from tests.support.pods import ORDER, ROWS_PER_STEP, cluster, make_dataset, make_storage, steps_at, training_stage
from transfer_api.spec import Precision
from transfer_api.stage import Execution
from transfer_pod.context import PodContext
from transfer_trainer.interval import daly
from transfer_trainer.ledger import verify_ledger
from transfer_trainer.loop import Training
from transfer_trainer.parallel import Team

WARM_UP, APART = 3, 3
LENGTH, ROWS = 256, 8
KILL_SECONDS = 60.0


@dataclass(frozen=True)
class Failing:
    """A run that fails. Seconds throughout."""

    mtbf: float
    stall: float
    write: float
    restart: float

    @property
    def interval(self) -> float:
        """Training between two saves, as the trainer chooses it."""
        return max(daly(self.stall, self.mtbf), 2 * self.write)

    def expected(self) -> float:
        """Goodput by the closed form."""
        passed = math.exp(-(self.write + self.restart) / self.mtbf)
        return self.interval * passed / (self.mtbf * math.expm1((self.interval + self.stall) / self.mtbf))

    def simulated(self, failures: int, seed: int = 0) -> float:
        """Goodput of a run with so many failures."""
        chance = random.Random(seed)
        wall = kept = 0.0
        for _ in range(failures):
            while (lived := chance.expovariate(1 / self.mtbf)) < self.restart:
                wall += lived
            wall += lived
            kept += self._kept(lived - self.restart)
        return kept / wall

    def _kept(self, seconds: float) -> float:
        """Training of a life of so many seconds that is not lost at its end, save by save."""
        now = trained = kept = 0.0
        while now < seconds:
            now += self.interval  # trains,
            trained += self.interval
            now += self.stall  # stands still for the snapshot,
            if now + self.write <= seconds:  # and has it complete if it lives so long
                kept = trained
        return kept


# A 7B model in float32 with AdamW: 12 bytes a parameter. Shared storage that takes 2 GB/s. The loop stands still for as much of a save
# as the bar of this benchmark allows. A failure is noticed and the group is together again within the bars of benchmarks/operator.py
# for a killed node (35 s at full size); then it reads the checkpoint as fast as it was written.
STATE_BYTES, STORAGE_RATE = 12 * 7e9, 2e9
MTBF_SECONDS, FAILURES = 4 * 3600.0, 200_000


def sixty_four() -> Failing:
    """64 workers, of which one fails every four hours."""
    bars = yaml.safe_load(BARS.read_text())
    write = STATE_BYTES / STORAGE_RATE
    restart = bars["operator"]["node_killed_full_size"]["value"] + write
    return Failing(MTBF_SECONDS, bars["checkpointing"]["stall"]["value"] / 100 * write, write, restart)


def stall(wanted: argparse.Namespace) -> tuple[float, str]:
    """Standing still for a save in percent of the save itself, and how that was made up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").symlink_to(wanted.model.resolve())
        steps = WARM_UP + (wanted.saves + 1) * APART
        stage = training_stage(
            "a" * 32, make_dataset(folder, length=LENGTH, labels=1.0), steps=steps, sequence_length=LENGTH, rows_per_step=ROWS,
            precision=Precision.FLOAT32, learning_rate="1e-5",
        ).model_copy(update={"execution": Execution(micro_batch_tokens=4 * LENGTH, checkpoint_steps=10**6)})  # fmt: skip
        training = Training(PodContext(stage=stage, storage=folder, pod="benchmark"), Team(), lambda: False, lambda progress: None)
        saves, beside, alone = [], [], []
        for step in range(1, steps + 1):
            saving = training.checkpoints.running
            begin = time.monotonic()
            assert training._train_step()
            if step > WARM_UP:
                (beside if saving else alone).append(time.monotonic() - begin)
            last = training.checkpoints.last
            if last is not None and last.seconds and last not in saves:
                saves.append(last)
            if step % APART == 0 and step > WARM_UP and len(saves) < wanted.saves:
                training._save(wait=False)
        if training.checkpoints.running:
            training._note_save()
        itself = []
        for step in range(wanted.saves):
            training.checkpoints.begin(steps + 1 + step, training.model, training.optimizer)
            itself.append(training.checkpoints.finish().seconds)
    stood, whole = statistics.median(save.stall for save in saves), statistics.median(itself)
    slower = 100 * (statistics.median(beside) / statistics.median(alone) - 1)
    print(
        f"stood still {[round(save.stall, 3) for save in saves]} s, beside steps a save took {[round(save.seconds, 1) for save in saves]} s"
    )
    print(f"the save itself {[round(seconds, 1) for seconds in itself]} s; steps beside a save took {slower:.0f} % longer", flush=True)
    return 100 * stood / whole, f"{stood:.3f} s of {whole:.1f} s; steps beside a save {slower:+.0f} %"


def kill_run(minutes: float) -> tuple[float, str]:
    """Goodput in percent of two real workers, of which one or the other is killed every 60 s and replaced, and what happened."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the pods end too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage = training_stage("a" * 32, make_storage(folder), steps=10**7, checkpoint_steps=50)
        with cluster(folder, stage, max_nodes=2) as group:
            pods = [group.start(0), group.start(1)]
            wait_for(steps_at(group, 2), what="two workers train")
            begin, before, kills = time.monotonic(), group.ledger.productive_seconds, 0
            while time.monotonic() - begin < 60 * minutes:
                time.sleep(max(0.0, begin + (kills + 1) * KILL_SECONDS - time.monotonic()))
                victim = kills % 2
                pods[victim].kill()
                pods[victim] = group.start(victim)
                kills += 1
            time.sleep(KILL_SECONDS / 2)
            for pod in pods:
                pod.ask()
            wall = time.monotonic() - begin
            assert {pod.wait() for pod in pods} == {75}
            summary = verify_ledger(group.work / "ledger.jsonl", ORDER, ROWS_PER_STEP)
    note = f"{kills} kills in {wall / 60:.1f} minutes, {summary.steps} steps, {summary.lost_steps} done twice"
    return 100 * (summary.productive_seconds - before) / wall, note


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("~/.cache/transfer-operator/inputs/models/smollm2-135m").expanduser())
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--kill-run", type=float, metavar="MINUTES", help="only the run with kills")
    wanted = parser.parse_args()
    if wanted.kill_run:
        goodput, note = kill_run(wanted.kill_run)
        return report("checkpointing", {"goodput_with_a_kill_a_minute": goodput}, {"goodput_with_a_kill_a_minute": note})
    failing = sixty_four()
    simulated, expected = 100 * failing.simulated(FAILURES), 100 * failing.expected()
    share, made_of = stall(wanted)
    assumed = f"τ {failing.interval:.0f} s, δ {failing.stall:.1f} s, w {failing.write:.0f} s, R {failing.restart:.0f} s"
    figures = {"stall": share, "goodput_of_64_workers": simulated, "simulation_against_formula": abs(simulated - expected)}
    notes = {"stall": made_of, "goodput_of_64_workers": f"MTBF 4 h, {assumed}", "simulation_against_formula": f"formula {expected:.3f} %"}
    return report("checkpointing", figures, notes)


if __name__ == "__main__":
    sys.exit(main())
