"""The evaluator against lm-evaluation-harness's own `hf` model: same tasks, same weights, float32, turn by turn in one process.

    .venv/bin/python -m benchmarks.evaluator_vs_harness [--model FOLDER] [--questions 285] [--answers 200] [--tokens 100000]

    questions     MMLU's English development questions in MMLU's own prompt: a task for each of 57 subjects, the same five examples
                  before each question of it; every log-likelihood is compared
    texts         rolling log-likelihood of Indonesian prose
    answers       greedy, up to 32 tokens, to the demo's instructions, with three examples before each

The harness runs with the batch size that is quickest for it on a part of the same items, found for each of the three anew. Times are of
`simple_evaluate` on tasks that are loaded; memory is what the process grew by at its most, beyond what it had with the model loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

from benchmarks.bars import report
from transfer_api.spec import Precision
from transfer_evaluator.harness import HarnessModel
from transfer_evaluator.model import LoadedModel, load_model
from transfer_evaluator.score import json_lines
from transfer_evaluator.tasks import TaskLibrary, quiet

INPUTS = Path("~/.cache/transfer-operator/inputs").expanduser()
SHOTS = 5
TEXTS: dict[str, Any] = {
    "task": "texts", "dataset_path": "json", "test_split": "test", "output_type": "loglikelihood_rolling",
    "doc_to_text": "", "doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}],
}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "task": "answers", "dataset_path": "json", "test_split": "test", "fewshot_split": "dev", "output_type": "generate_until",
    "num_fewshot": 3, "fewshot_config": {"sampler": "first_n"},
    "doc_to_text": "{{instruction}}\n{{input}}\n", "doc_to_target": "{{output}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 32, "do_sample": False}, "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip
QUESTIONS: dict[str, Any] = {
    "dataset_path": "json", "test_split": "test", "fewshot_split": "dev", "output_type": "multiple_choice",
    "fewshot_config": {"sampler": "first_n"},
    "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
    "doc_to_choice": ["A", "B", "C", "D"], "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
}  # fmt: skip


class Peak(threading.Thread):
    """Most resident memory of this process while it is measured, in bytes above what there was at the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self._start = self.most = self._process.memory_info().rss
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, self._process.memory_info().rss)

    def stop(self) -> int:
        self._done.set()
        self.join()
        return int(self.most - self._start)


@dataclass(frozen=True)
class Measured:
    """One run of one model over tasks."""

    seconds: float
    memory: int
    responses: list[Any]


class Bench:
    """Runs ours and theirs on the same tasks."""

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        self._library = TaskLibrary([folder])
        self._loaded = loaded

    def ours(self, tasks: Sequence[str]) -> Measured:
        return self._run(HarnessModel(self._loaded), tasks)

    def theirs(self, tasks: Sequence[str], batch: int) -> Measured:
        model = HFLM(pretrained=self._loaded.model, tokenizer=self._loaded.tokenizer, batch_size=batch, max_length=self._loaded.positions)
        return self._run(model, tasks)

    def quickest(self, tasks: Sequence[str], sizes: Sequence[int]) -> int:
        """The harness's best batch size; larger ones are not tried once one was slower than the one before."""
        best, seconds = sizes[0], float("inf")
        for size in sizes:
            taken = self.theirs(tasks, size).seconds
            if taken > seconds:
                break
            best, seconds = size, taken
        return best

    def _run(self, model: Any, tasks: Sequence[str]) -> Measured:
        loaded = [task for name in tasks for task in self._library._load(name)]
        gc.collect()
        peak, begin = Peak(), time.monotonic()
        peak.start()
        with torch.inference_mode():
            found = simple_evaluate(
                model=model, tasks=loaded, task_manager=self._library._manager, bootstrap_iters=0, log_samples=True
            )  # fmt: skip
        seconds, memory = time.monotonic() - begin, peak.stop()
        responses = [response[0] for name in tasks for sample in found["samples"][name] for response in sample["resps"]]
        return Measured(seconds, memory, responses)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=INPUTS / "models" / "smollm2-135m")
    parser.add_argument("--questions", type=int, default=285)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--only", choices=["questions", "texts", "answers"], help="one of the three")
    return parser.parse_args()


def main() -> int:
    wanted = arguments()
    quiet()
    loaded = load_model(wanted.model, Precision.FLOAT32)
    figures: dict[str, float] = {}
    notes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        all_of, part_of = {}, {}
        all_of["questions"], part_of["questions"] = _write_questions(folder, wanted.questions)
        all_of["texts"], part_of["texts"] = _write_texts(folder, loaded.tokenizer, wanted.tokens)
        all_of["answers"], part_of["answers"] = _write_answers(folder, wanted.answers)
        bench = Bench(folder, loaded)
        for label in [wanted.only] if wanted.only else list(all_of):
            bench.ours(part_of[label])  # the first pass of a process pays for what both use
            batch = bench.quickest(part_of[label], wanted.batch_sizes)
            own, other = bench.ours(all_of[label]), bench.theirs(all_of[label], batch)
            figures |= _compare(label, own, other)
            notes[f"{label}_speed"] = (
                f"{own.seconds:.1f} against {other.seconds:.1f} s, {len(own.responses)} responses, the harness's batch size {batch}; "
                f"memory {own.memory / 2**20:.0f} against {other.memory / 2**20:.0f} MiB"
            )
            print(f"{label}: {figures[f'{label}_speed']:.2f} x, {notes[f'{label}_speed']}", flush=True)
    return report("evaluator", figures, notes)


def _compare(label: str, own: Measured, other: Measured) -> dict[str, float]:
    found = {f"{label}_speed": other.seconds / own.seconds}
    pairs = list(zip(own.responses, other.responses, strict=True))
    if label == "questions":
        found["memory_against_harness"] = own.memory / max(1, other.memory)
        found["largest_difference"] = max(abs(x[0] - y[0]) for x, y in pairs)
        found["equal_choices"] = sum(x[1] == y[1] for x, y in pairs) / len(pairs)
    elif label == "texts":
        found["largest_text_difference"] = max(abs(x - y) / abs(y) for x, y in pairs)
    else:
        found["equal_answers"] = sum(x == y for x, y in pairs) / len(pairs)
    return found


def _write_questions(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """A task for each subject; its examples are its questions, as a data set of its own, so that the harness shows all of them."""
    by_subject: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in json_lines(INPUTS / "tasks" / "mmlu_dev_en.jsonl"):
        by_subject[item["subject"]].append(item)
    left, names = count, []
    for subject, items in by_subject.items():
        name, title = f"questions_{subject}", subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {title}.\n\n"
        files = {"dev": _lines(folder / f"{name}.dev.jsonl", items), "test": _lines(folder / f"{name}.jsonl", items[:left])}
        more = {"task": name, "description": head, "num_fewshot": min(SHOTS, len(items)), "dataset_kwargs": {"data_files": files}}
        _task(folder, {**QUESTIONS, **more})
        names.append(name)
        left -= len(items[:left])
        if not left:
            break
    return names, names[:4]


def _write_texts(folder: Path, tokenizer: Any, tokens: int) -> tuple[list[str], list[str]]:
    """The first texts that have so many tokens together, and a tenth of them."""
    texts, total = [], 0
    for item in json_lines(INPUTS / "texts" / "id-train.jsonl"):
        texts.append({"text": item["text"]})
        total += len(tokenizer.encode(item["text"]))
        if total >= tokens:
            break
    for name, part in (("texts", texts), ("some_texts", texts[: max(4, len(texts) // 10)])):
        _task(folder, {**TEXTS, "task": name, "dataset_kwargs": {"data_files": {"test": _lines(folder / f"{name}.jsonl", part)}}})
    return ["texts"], ["some_texts"]


def _write_answers(folder: Path, count: int) -> tuple[list[str], list[str]]:
    items = list(json_lines(INPUTS / "instructions" / "id.jsonl"))[: count + 3]
    for name, part in (("answers", items[3:]), ("some_answers", items[3 : 3 + max(8, count // 5)])):
        files = {"dev": _lines(folder / "answers.dev.jsonl", items[:3]), "test": _lines(folder / f"{name}.jsonl", part)}
        _task(folder, {**ANSWERS, "task": name, "dataset_kwargs": {"data_files": files}})
    return ["answers"], ["some_answers"]


def _lines(path: Path, items: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return str(path)


def _task(folder: Path, content: dict[str, Any]) -> None:
    (folder / f"{content['task']}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
