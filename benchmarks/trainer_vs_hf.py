"""Training speed against transformers.Trainer: same model, rows, precision, optimizer and batch, turn by turn in one process.

    .venv/bin/python benchmarks/trainer_vs_hf.py [--model FOLDER] [--steps 8] [--length 256] [--batch 4] [--precision BFloat16]

Rows are random tokens in packed documents with a label on every token, so neither side gains by leaving labels out. A step
is one optimizer step of batch × length tokens; the first two of each turn are warm-up and do not count. Both sides get restarting position
ids and no attention mask, and both keep float32 weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from tests.support.pods import make_dataset, training_stage
from transfer_api.spec import Precision
from transfer_api.stage import Execution
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.loop import Training
from transfer_trainer.model import load_model
from transfer_trainer.parallel import Team
from transfer_trainer.rows import row_order
from transfer_trainer.store import RowStore

WARM_UP = 2
RUNS = 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("~/.cache/transfer-operator/inputs/models/smollm2-135m").expanduser())
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=[str(kind) for kind in Precision], default=str(Precision.BFLOAT16))
    return parser.parse_args()


def ours(folder: Path, dataset: str, wanted: argparse.Namespace, run: int) -> float:
    """Tokens/s of our loop, whole steps with reading, ledger and progress."""
    stage = training_stage(
        f"{run:032x}", dataset, steps=wanted.steps + WARM_UP, checkpoint_steps=10**6, sequence_length=wanted.length,
        rows_per_step=wanted.batch, precision=Precision(wanted.precision), learning_rate="1e-5",
    ).model_copy(update={"execution": Execution(micro_batch_tokens=wanted.batch * wanted.length, checkpoint_steps=10**6)})  # fmt: skip
    training = Training(PodContext(stage=stage, storage=folder, pod="benchmark"), Team(), lambda: False, lambda progress: None)
    times = [time.monotonic()]
    for _ in range(wanted.steps + WARM_UP):
        assert training._train_step()
        times.append(time.monotonic())
    return wanted.steps * wanted.batch * wanted.length / (times[-1] - times[WARM_UP])


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when a step ended."""

    def __init__(self) -> None:
        self.times = [time.monotonic()]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.monotonic())


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The same rows in the same order."""

    def __init__(self, folder: Path, dataset: str, wanted: argparse.Namespace) -> None:
        stage = training_stage("0" * 32, dataset, steps=1)
        store = RowStore.open(ArtifactStore(folder).root / "artifacts" / "dataset" / dataset / "rows")
        order = row_order(int(stage.parameters["seed"]), store.sources)
        ids = order.ids(np.arange((wanted.steps + WARM_UP) * wanted.batch))
        self.rows = [store.row(int(source), np.array([row])) for source, row in zip(ids.sources, ids.rows, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        tokens = torch.from_numpy(row.tokens_BT[0].astype(np.int64))
        labels = torch.where(torch.from_numpy(row.targets_BT[0] != 0), tokens, -100)
        return {"input_ids": tokens, "position_ids": torch.from_numpy(row.positions_BT[0].astype(np.int64)), "labels": labels}


def hugging_face(folder: Path, dataset: str, wanted: argparse.Namespace) -> float:
    """Tokens/s of transformers.Trainer."""
    settings = TrainingArguments(
        output_dir=str(folder / "hf"), per_device_train_batch_size=wanted.batch, max_steps=wanted.steps + WARM_UP, learning_rate=1e-5,
        bf16=wanted.precision == Precision.BFLOAT16, optim="adamw_torch_fused", lr_scheduler_type="cosine", report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), max_grad_norm=1.0,
    )  # fmt: skip
    clock = Clock()
    model = load_model(wanted.model)
    model.config.use_cache = False
    Trainer(model=model, args=settings, train_dataset=Rows(folder, dataset, wanted), callbacks=[clock]).train()
    return wanted.steps * wanted.batch * wanted.length / (clock.times[-1] - clock.times[WARM_UP])


def main() -> int:
    wanted = arguments()
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").symlink_to(wanted.model.resolve())
        dataset = make_dataset(folder, length=wanted.length, labels=1.0)
        for run in range(1, RUNS + 1):
            pair = ours(folder, dataset, wanted, run), hugging_face(folder, dataset, wanted)
            print(
                f"turn {run}: ours {pair[0]:.0f} tokens/s, transformers.Trainer {pair[1]:.0f} tokens/s, {pair[0] / pair[1]:.3f} x",
                flush=True,
            )
            pairs.append(pair)
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(first / second for first, second in pairs)
    note = f"{mine:.0f} against {theirs:.0f} tokens/s; {wanted.batch} × {wanted.length} tokens, {wanted.precision}"
    return report("trainer", {"speed_against_hf": ratio}, {"speed_against_hf": note})


if __name__ == "__main__":
    sys.exit(main())
