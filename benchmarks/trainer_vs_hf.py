"""Training speed against transformers.Trainer and TRL's SFTTrainer: same model, rows, order, precision, optimizer and batch, turn by turn.

    .venv/bin/python -m benchmarks.trainer_vs_hf [--model FOLDER] [--steps 6] [--length 256] [--batch 4] [--precision Float32]

Rows are random tokens in packed documents, as every side's own packing lays them: ours and transformers' as rows with restarting
positions and no attention mask, TRL's as what its packing makes, one long row of the same documents. A step is one optimizer step of
batch × length tokens; the first two of each turn are warm-up and do not count. All keep float32 weights and use fused AdamW without
gradient checkpointing (TRL's default turns it on, which would make it slower). The losses of all three are compared step by step:
a faster side that computes something else has won nothing.

The share of the machine's own peak: the matrix products of a step, each timed alone in its shape, over the time of the step. Those of
attention are left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from tests.support.pods import make_dataset, training_stage
from transfer_api.spec import Precision
from transfer_api.stage import Execution
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.loop import Training
from transfer_trainer.model import load_model
from transfer_trainer.optimizer import BETAS
from transfer_trainer.parallel import Team
from transfer_trainer.rows import row_order
from transfer_trainer.store import RowStore

MODEL = Path("~/.cache/transfer-operator/inputs/models/smollm2-135m").expanduser()
WARM_UP = 2
RUNS = 3
RATE = "1e-5"
LARGEST_DIFFERENCE = 1e-3
"""Of a step's loss, relative: the sides add in another order, and transformers logs rounded figures."""


@dataclass(frozen=True)
class Side:
    """What one trainer did in one turn."""

    tokens_per_second: float
    losses: list[float]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=[str(kind) for kind in Precision], default=str(Precision.FLOAT32))
    return parser


def prepare(training: Training) -> list[float]:
    """Has a training note the loss of each step; returns the list that they go to."""
    losses: list[float] = []
    tell: Callable[..., None] = training._tell

    def note(**changes: Any) -> None:
        tell(**changes)
        if "gradient_norm" in changes:
            losses.append(changes["loss"])

    training._tell = note  # type: ignore[method-assign]
    return losses


def ours(folder: Path, dataset: str, wanted: argparse.Namespace, run: int) -> Side:
    """Our loop, whole steps with reading, ledger and progress."""
    stage = training_stage(
        f"{run:032x}", dataset, steps=wanted.steps + WARM_UP, checkpoint_steps=10**6, sequence_length=wanted.length,
        rows_per_step=wanted.batch, precision=Precision(wanted.precision), learning_rate=RATE, embedding_learning_rate=RATE, warmup="0",
    ).model_copy(update={"execution": Execution(micro_batch_tokens=wanted.batch * wanted.length, checkpoint_steps=10**6)})  # fmt: skip
    training = Training(PodContext(stage=stage, storage=folder, pod="benchmark"), Team(), lambda: False, lambda progress: None)
    losses = prepare(training)
    times = [time.monotonic()]
    for _ in range(wanted.steps + WARM_UP):
        assert training._train_step()
        times.append(time.monotonic())
    return Side(wanted.steps * wanted.batch * wanted.length / (times[-1] - times[WARM_UP]), losses)


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when a step ended and what its loss was."""

    def __init__(self) -> None:
        self.times = [time.monotonic()]
        self.losses: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.monotonic())

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def rows(folder: Path, dataset: str, wanted: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of our run in its order, with what the other sides call their labels, positions and documents."""
    stage = training_stage("0" * 32, dataset, steps=1)
    store = RowStore.open(ArtifactStore(folder).root / "artifacts" / "dataset" / dataset / "rows")
    order = row_order(int(stage.parameters["seed"]), store.sources)
    ids = order.ids(np.arange((wanted.steps + WARM_UP) * wanted.batch))
    found = []
    for source, number in zip(ids.sources, ids.rows, strict=True):
        row = store.row(int(source), np.array([number]))
        tokens, positions = row.tokens_BT[0].astype(np.int64), row.positions_BT[0].astype(np.int64)
        starts = np.flatnonzero(positions == 0)
        found.append(
            {
                "input_ids": tokens,
                "position_ids": positions,
                "labels": np.where(row.targets_BT[0] != 0, tokens, -100),
                "seq_lengths": np.diff([*starts, len(tokens)]),
            }
        )
    return found


def settings(folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """What transformers' and TRL's configuration share, such that they do what ours does."""
    return {
        "output_dir": str(folder / "other"), "per_device_train_batch_size": wanted.batch, "max_steps": wanted.steps + WARM_UP,
        "learning_rate": float(RATE), "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "weight_decay": 0.01, "max_grad_norm": 1.0,
        "bf16": wanted.precision == Precision.BFLOAT16, "optim": "adamw_torch_fused", "lr_scheduler_type": "cosine", "warmup_steps": 0,
        "train_sampling_strategy": "sequential", "gradient_checkpointing": False, "report_to": [], "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip


def speed(clock: Clock, wanted: argparse.Namespace) -> Side:
    return Side(wanted.steps * wanted.batch * wanted.length / (clock.times[-1] - clock.times[WARM_UP]), clock.losses)


def hugging_face(folder: Path, dataset: str, wanted: argparse.Namespace) -> Side:
    """transformers.Trainer on the packed rows."""
    clock = Clock()
    model = load_model(wanted.model)
    model.config.use_cache = False
    names = ("input_ids", "position_ids", "labels")
    data = [{name: torch.from_numpy(row[name]) for name in names} for row in rows(folder, dataset, wanted)]
    Trainer(model=model, args=TrainingArguments(**settings(folder, wanted)), train_dataset=data, callbacks=[clock]).train()
    return speed(clock, wanted)


def trl(folder: Path, dataset: str, wanted: argparse.Namespace) -> Side:
    """TRL's SFTTrainer; the rows are already what its packing makes (`seq_lengths`), so that all sides have the same."""
    clock = Clock()
    data = Dataset.from_list(
        [{name: row[name].tolist() for name in ("input_ids", "labels", "seq_lengths")} for row in rows(folder, dataset, wanted)]
    )
    config = SFTConfig(
        **settings(folder, wanted), packing=True, max_length=wanted.length, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    SFTTrainer(
        model=load_model(wanted.model), args=config, train_dataset=data, callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(wanted.model),
    ).train()  # fmt: skip
    return speed(clock, wanted)


def check_losses(first: Side, other: Side, name: str) -> float:
    """Largest relative difference of a step's loss.

    Raises:
        SystemExit: the two did not compute the same.
    """
    difference = max(abs(mine / theirs - 1) for mine, theirs in zip(first.losses, other.losses, strict=True))
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"ours and {name} do not compute the same: losses {first.losses} and {other.losses}")
    return difference


def product_seconds(model: torch.nn.Module, tokens: int) -> float:
    """Time of the matrix products of one step over `tokens` tokens: forward and two backward for every linear module, each alone."""
    shapes = Counter(
        (module.in_features, module.out_features) for module in model.modules() if isinstance(module, torch.nn.Linear)
    )  # fmt: skip
    total = 0.0
    for (inside, outside), count in shapes.items():
        x, w, y = torch.randn(tokens, inside), torch.randn(outside, inside), torch.randn(tokens, outside)
        products = (lambda x=x, w=w: x @ w.T, lambda y=y, w=w: y @ w, lambda y=y, x=x: y.T @ x)
        total += count * sum(best(product) for product in products)
    return total


def best(work: Callable[[], object], seconds: float = 0.5) -> float:
    """Shortest time of a call among those that fit into `seconds`, three at least."""
    times: list[float] = []
    while len(times) < 4 or sum(times) < seconds:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def measure(wanted: argparse.Namespace) -> tuple[dict[str, float], dict[str, str]]:
    """Figures and notes for the table."""
    turns: list[tuple[Side, Side, Side]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").symlink_to(wanted.model.resolve())
        dataset = make_dataset(folder, length=wanted.length, labels=1.0)
        for run in range(1, RUNS + 1):
            sides = ours(folder, dataset, wanted, run), hugging_face(folder, dataset, wanted), trl(folder, dataset, wanted)
            differences = [check_losses(sides[0], side, kind) for side, kind in zip(sides[1:], ("Trainer", "SFTTrainer"), strict=True)]
            print(
                f"turn {run}: ours {sides[0].tokens_per_second:.0f} tokens/s, transformers.Trainer {sides[1].tokens_per_second:.0f}, "
                f"TRL's SFTTrainer {sides[2].tokens_per_second:.0f}; losses differ by {max(differences):.1e} at most",
                flush=True,
            )
            turns.append(sides)
    mine, trainer, sft = (statistics.median(side.tokens_per_second for side in sides) for sides in zip(*turns, strict=True))
    ratio = statistics.median(
        first.tokens_per_second / max(second.tokens_per_second, third.tokens_per_second) for first, second, third in turns
    )
    tokens = wanted.batch * wanted.length
    speeds = f"{mine:.0f} against {trainer:.0f} (Trainer) and {sft:.0f} (SFTTrainer) tokens/s; {wanted.batch} × {wanted.length} tokens"
    figures, notes = {"speed_against_trainers": ratio}, {"speed_against_trainers": f"{speeds}, {wanted.precision}"}
    if wanted.precision == Precision.FLOAT32 and not torch.cuda.is_available():
        seconds = product_seconds(load_model(wanted.model), tokens)
        figures["share_of_peak"] = 100 * seconds * mine / tokens
        notes["share_of_peak"] = f"{seconds:.2f} s of matrix products in a step of {tokens / mine:.2f} s"
    return figures, notes


if __name__ == "__main__":
    sys.exit(report("trainer", *measure(arguments().parse_args())))
