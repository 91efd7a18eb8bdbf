"""The evaluator against lm-evaluation-harness's own `hf` model: same tasks, same weights, float32, turn by turn in one process.

    .venv/bin/python benchmarks/evaluator_vs_harness.py [--model FOLDER] [--questions 285] [--answers 200] [--tokens 100000]

    questions     MMLU's English development questions with five examples each; log-likelihoods are compared item by item
    whole texts   rolling log-likelihood of Indonesian prose
    answers       greedy, up to 32 tokens, to the demo's instructions

The harness runs with the batch size that is quickest for it among those given by --batch-sizes, found on a tenth of the questions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from transfer_api.spec import Precision
from transfer_evaluator.harness import HarnessModel
from transfer_evaluator.model import load_model
from transfer_evaluator.scorer import TokenScorer
from transfer_evaluator.tasks import TaskLibrary, quiet

INPUTS = Path("~/.cache/transfer-operator/inputs").expanduser()
SHOTS = 5
QUESTIONS = "mmlu_dev_en"
TASKS = {
    "texts": """\
task: texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {texts}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
""",
    "answers": """\
task: answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {instructions}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{instruction}}}}\\n{{{{input}}}}\\n"
doc_to_target: "{{{{output}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 32, do_sample: false}}
metric_list: [{{metric: exact_match}}]
""",
}


class Peak(threading.Thread):
    """Most resident memory of this process while it is measured, in bytes above what there was at the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self._start = self.most = self._process.memory_info().rss
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.05):
            self.most = max(self.most, self._process.memory_info().rss)

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.most - self._start


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=INPUTS / "models" / "smollm2-135m")
    parser.add_argument("--questions", type=int, default=285)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8])
    return parser.parse_args()


def main() -> int:
    wanted = arguments()
    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"texts": INPUTS / "texts" / "id-train.jsonl", "instructions": INPUTS / "instructions" / "id.jsonl"}
        for task, content in TASKS.items():
            (folder / f"{task}.yaml").write_text(content.format(**places))
        library = TaskLibrary([folder, INPUTS / "tasks"])
        loaded = load_model(wanted.model, Precision.FLOAT32)
        ours = HarnessModel(loaded, TokenScorer(loaded.model))

        def theirs(batch: int) -> HFLM:
            return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch, max_length=loaded.positions)

        def run(model: Any, task: str, limit: int) -> tuple[float, int, dict[str, Any]]:
            peak, begin = Peak(), time.monotonic()
            peak.start()
            with torch.inference_mode():
                found = simple_evaluate(
                    model=model, tasks=library._load(task), task_manager=library._manager, limit=limit, bootstrap_iters=0, log_samples=True,
                    num_fewshot=SHOTS if task == QUESTIONS else None,
                )  # fmt: skip
            return time.monotonic() - begin, peak.stop(), found

        texts = _texts_of(loaded.tokenizer, places["texts"], wanted.tokens)
        few = max(4, wanted.questions // 10)
        batch = min(wanted.batch_sizes, key=lambda size: run(theirs(size), QUESTIONS, few)[0])
        print(f"the harness's quickest batch size for questions is {batch}", flush=True)
        figures: dict[str, float] = {}
        notes: dict[str, str] = {}
        for label, task, limit in (
            ("questions", QUESTIONS, wanted.questions),
            ("texts", "texts", texts),
            ("answers", "answers", wanted.answers),
        ):
            own, own_peak, found = run(ours, task, limit)
            other, other_peak, reference = run(theirs(batch if task == QUESTIONS else max(wanted.batch_sizes)), task, limit)
            print(f"{label}: ours {own:.1f} s, harness {other:.1f} s, {other / own:.2f} x; memory {own_peak / 2**20:.0f} and "
                  f"{other_peak / 2**20:.0f} MiB", flush=True)  # fmt: skip
            figures[f"{label}_speed"] = other / own
            notes[f"{label}_speed"] = f"{own:.1f} against {other:.1f} s, {limit} items"
            if task == QUESTIONS:
                figures["memory_against_harness"] = own_peak / max(1, other_peak)
                figures["largest_difference"] = _largest(found, reference, lambda response: response[0][0])
            elif task == "answers":
                pairs = [
                    (a["resps"][0][0], b["resps"][0][0])
                    for a, b in zip(found["samples"][task], reference["samples"][task], strict=True)
                ]  # fmt: skip
                figures["equal_answers"] = sum(a == b for a, b in pairs) / len(pairs)
    return report("evaluator", figures, notes)


def _largest(found: dict[str, Any], reference: dict[str, Any], value: Callable[[Any], float]) -> float:
    samples = zip(found["samples"][QUESTIONS], reference["samples"][QUESTIONS], strict=True)
    return max(abs(value(x) - value(y)) for own, other in samples for x, y in zip(own["resps"], other["resps"], strict=True))


def _texts_of(tokenizer: Any, path: Path, tokens: int) -> int:
    """How many of the first texts have so many tokens."""
    import json

    total = 0
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        total += len(tokenizer.encode(json.loads(line)["text"]))
        if total >= tokens:
            return number
    return number


if __name__ == "__main__":
    sys.exit(main())
