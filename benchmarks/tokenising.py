"""Tokenising speed against datasets.map: same tokenizer, same JSON Lines, same cores, turn by turn, each from file to file.

    .venv/bin/python -m benchmarks.tokenising [--tokenizer FOLDER] [--text FILE ...] [--megabytes 40] [--cores 2]

Ours ends with packed rows; datasets.map ends with token lists in Arrow files, not yet packed. Its best known form is used: batched, one
process a core, text column removed, each process with one thread. The text is what is given, its words drawn anew until it is
long enough, one in twenty with two letters exchanged: a longer text has more different words, and repeating these alone would
flatter whoever looks words up. A second line of the table is Chinese, which has no spaces and so no words to look up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bars import report
from transfer_api.spec import ModelSource, WeightedSource
from transfer_api.stage import DatasetParameters, StageKind, StagePlan
from transfer_pod.context import PodContext

INPUTS = Path("~/.cache/transfer-operator/inputs").expanduser()
RUNS = 3

THEIRS = """
import os, sys, time
from pathlib import Path
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import datasets
from transformers import AutoTokenizer
datasets.disable_progress_bars()
file, model, cores, cache = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
data = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
began = time.monotonic()
def encode(batch):
    return {"input_ids": tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]}
made = data.map(encode, batched=True, num_proc=int(cores), remove_columns=data.column_names)
print(time.monotonic() - began, len(made))
"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=INPUTS / "models" / "smollm2-135m")
    parser.add_argument("--text", type=Path, nargs="*", default=[INPUTS / "texts" / "id-train.jsonl", INPUTS / "texts" / "en-train.jsonl"])
    parser.add_argument("--dense", type=Path, default=INPUTS / "texts" / "zh-train.jsonl", help="text of a script without spaces")
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    return parser


def longer(sources: list[Path], target: Path, megabytes: int) -> int:
    """Documents of the same lengths, their paragraphs drawn at random, until there is enough; returns how many."""
    texts = [json.loads(line)["text"] for source in sources for line in source.open()]
    paragraphs = [paragraph for text in texts for paragraph in text.split("\n") if paragraph.strip()]
    chooser, written, count = random.Random(0), 0, 0
    with target.open("w") as file:
        while written < megabytes * 1_000_000:
            drawn = "\n".join(chooser.choices(paragraphs, k=10))
            words = [_changed(word, chooser) if chooser.random() < 0.05 else word for word in drawn.split(" ")]
            chooser.shuffle(words)
            count += 1
            written += file.write(json.dumps({"text": " ".join(words)}, ensure_ascii=False) + "\n")
    return count


def _changed(word: str, chooser: random.Random) -> str:
    place = chooser.randrange(max(1, len(word) - 1))
    return word[:place] + word[place : place + 2][::-1] + word[place + 2 :]


def ours(file: Path, tokenizer: Path, cores: int, storage: Path) -> float:
    """Seconds from reading to the sealed artifact, processes and all."""
    os.environ["OMP_NUM_THREADS"] = str(cores)
    os.environ["RAYON_NUM_THREADS"] = "1"
    from transfer_trainer import dataset

    parameters = DatasetParameters(
        model=ModelSource(path=str(tokenizer)), sequence_length=2048, mixture=[WeightedSource(path=str(file))], seed=0
    )
    stage = StagePlan(name="d", kind=StageKind.DATASET, key="0" * 32, parameters=parameters.model_dump(mode="json", by_alias=True))
    began = time.monotonic()
    dataset.run(PodContext(stage=stage, storage=storage, pod="benchmark"), lambda progress: None)
    return time.monotonic() - began


def theirs(file: Path, tokenizer: Path, cores: int, cache: Path) -> float:
    """Seconds of the map alone, in a process of its own: reading the JSON into Arrow is not counted."""
    command = [sys.executable, "-c", THEIRS, str(file), str(tokenizer), str(cores), str(cache)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "RAYON_NUM_THREADS": "1"})
    return float(ran.stdout.split()[0])


def compare(name: str, sources: list[Path], wanted: argparse.Namespace) -> tuple[float, str]:
    pairs = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = longer(sources, folder / "text.jsonl", wanted.megabytes)
        for run in range(RUNS):
            mine = ours(folder / "text.jsonl", wanted.tokenizer, wanted.cores, folder / f"storage-{run}")
            other = theirs(folder / "text.jsonl", wanted.tokenizer, wanted.cores, folder / f"cache-{run}")
            print(
                f"{name}, turn {run + 1}: ours {rows / mine:.0f} rows/s, datasets.map {rows / other:.0f} rows/s, {other / mine:.2f} x",
                flush=True,
            )
            pairs.append((mine, other))
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(other / mine for mine, other in pairs)
    return ratio, f"{rows / first:.0f} against {rows / second:.0f} rows/s; {wanted.megabytes} MB, {wanted.cores} cores"


def measure(wanted: argparse.Namespace) -> tuple[dict[str, float], dict[str, str]]:
    """Figures and notes for the table."""
    words, words_note = compare("words", wanted.text, wanted)
    dense, dense_note = compare("without spaces", [wanted.dense], wanted)
    figures = {"tokenising_against_map": words, "tokenising_without_spaces": dense}
    return figures, {"tokenising_against_map": words_note, "tokenising_without_spaces": dense_note}


if __name__ == "__main__":
    sys.exit(report("trainer", *measure(arguments().parse_args())))
