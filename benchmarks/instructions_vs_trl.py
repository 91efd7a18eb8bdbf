"""Instruction tuning against TRL's SFTTrainer without packing: the same examples, with lengths like those of Alpaca.

    .venv/bin/python -m benchmarks.instructions_vs_trl [--model FOLDER] [--examples 48]

Alpaca's examples are short on the whole and a few are ten times as long: here prompts have a median of 40 tokens and answers one of 45,
log-normal, at most 512 in all; the tokens are random. TRL fills each batch of 8 (its default) up to its longest example, as it does
unless packing is asked for; ours packs whole examples into rows of 512. An optimizer step has all examples on both sides, so that its
loss, which is on the answers only, must be the same. The first step is warm-up and does not count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from benchmarks.trainer_vs_hf import MODEL, RATE, Clock, Side, check_losses, prepare, settings
from tests.support.pods import SEED, training_stage
from transfer_api.spec import ModelSource, Precision
from transfer_api.stage import DatasetParameters, Execution, StageKind, StagePlan
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.loop import Training
from transfer_trainer.model import load_model
from transfer_trainer.packing import Example, pack_whole
from transfer_trainer.parallel import Team
from transfer_trainer.store import RowWriter

LENGTH = 512
BATCH = 8
STEPS = 2


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--examples", type=int, default=48)
    return parser


def make_examples(count: int) -> list[Example]:
    """Random tokens in prompts and answers of Alpaca-like lengths; the answers are targets."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        prompt = int(np.clip(random.lognormal(np.log(40), 0.5), 10, LENGTH // 2))
        answer = int(np.clip(random.lognormal(np.log(45), 1.0), 2, LENGTH - prompt))
        found.append(Example(random.integers(3, 300, prompt + answer).tolist(), [0] * prompt + [1] * answer))
    return found


def commit_rows(folder: Path, examples: list[Example], padding: int) -> tuple[str, int]:
    """Commits the packed examples as a dataset; returns its key and its number of rows."""
    key = "e" * 32
    parameters = DatasetParameters(model=ModelSource(path="model"), sequence_length=LENGTH, seed=SEED)
    stage = StagePlan(name="dataset", kind=StageKind.DATASET, key=key, parameters=parameters.model_dump(mode="json", by_alias=True))
    store = ArtifactStore(folder)
    artifact = store.work(stage.kind, key) / "artifact"
    writer = RowWriter(artifact / "rows", sequence_length=LENGTH, seed=SEED, tokenizer="benchmark")
    with writer.source("instructions", 1) as target:
        for row in pack_whole(examples, LENGTH, padding):
            target.append(row)
    count = writer.finish()[0].rows
    store.commit(stage, artifact)
    return key, count


def ours(folder: Path, model: Path, examples: list[Example]) -> Side:
    """Our loop on the packed examples."""
    (folder / "model").symlink_to(model.resolve())
    dataset, rows = commit_rows(folder, examples, 0)
    stage = training_stage(
        "1" * 32, dataset, steps=STEPS, sequence_length=LENGTH, rows_per_step=rows, precision=Precision.FLOAT32, learning_rate=RATE,
        embedding_learning_rate=RATE, warmup="0",
    ).model_copy(update={"execution": Execution(micro_batch_tokens=2 * LENGTH, checkpoint_steps=10**6)})  # fmt: skip
    training = Training(PodContext(stage=stage, storage=folder, pod="benchmark"), Team(), lambda: False, lambda progress: None)
    losses = prepare(training)
    times = []
    for _ in range(STEPS):
        assert training._train_step()
        times.append(time.monotonic())
    return Side(sum(len(example.tokens) for example in examples) / (times[-1] - times[-2]), losses)


def trl(folder: Path, model: Path, examples: list[Example]) -> Side:
    """TRL's SFTTrainer on batches of padded examples."""
    wanted = argparse.Namespace(batch=BATCH, steps=0, precision=Precision.FLOAT32)
    data = Dataset.from_list(
        [
            {
                "input_ids": example.tokens,
                "labels": [token if target else -100 for token, target in zip(example.tokens, example.targets, strict=True)],
            }
            for example in examples
        ]
    )
    config = SFTConfig(
        **settings(folder, wanted) | {"gradient_accumulation_steps": len(examples) // BATCH}, packing=False, max_length=LENGTH,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    clock = Clock()
    SFTTrainer(
        model=load_model(model), args=config, train_dataset=data, callbacks=[clock], processing_class=AutoTokenizer.from_pretrained(model)
    ).train()
    return Side(sum(len(example.tokens) for example in examples) / (clock.times[-1] - clock.times[-2]), clock.losses)


def measure(wanted: argparse.Namespace) -> tuple[dict[str, float], dict[str, str]]:
    """Figures and notes for the table."""
    examples = make_examples(wanted.examples // BATCH * BATCH)
    with tempfile.TemporaryDirectory() as name:
        mine, theirs = (side(Path(name), wanted.model, examples) for side in (ours, trl))
    difference = check_losses(mine, theirs, "SFTTrainer")
    lengths = [len(example.tokens) for example in examples]
    print(f"{len(examples)} examples of {min(lengths)} to {max(lengths)} tokens; losses differ by {difference:.1e} at most", flush=True)
    note = f"{mine.tokens_per_second:.0f} against {theirs.tokens_per_second:.0f} tokens/s, padding not counted; batches of {BATCH}, float32"
    return {"instructions_against_trl": mine.tokens_per_second / theirs.tokens_per_second}, {"instructions_against_trl": note}


if __name__ == "__main__":
    sys.exit(report("trainer", *measure(arguments().parse_args())))
