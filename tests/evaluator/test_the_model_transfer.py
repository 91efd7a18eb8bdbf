"""`transfer` by name beside `hf` by name: the harness is told nothing else, and gives the same of both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import simple_evaluate

import transfer_evaluator.harness
from tests.evaluator.tasks import ANIMALS, write_tasks
from tests.support.tiny import SENTENCES, save_tiny_model
from transfer_api.errors import ModelError, SpecError, TransferError
from transfer_evaluator.tasks import TaskLibrary

STOPS = ["\n", "a", "human", "<|im_end|>"]
SHORT = 64
"""Positions that are asked for; the tiny model has 256."""


def answers(name: str, until: list[str], limit: int) -> str:
    return f"""\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: letters.jsonl}}}}
test_split: test
fewshot_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}} {" ".join(SENTENCES)}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: {json.dumps(until)}, max_gen_toks: {limit}, do_sample: false}}
metric_list: [{{metric: exact_match}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> TaskLibrary:
    folder = write_tasks(tmp_path_factory.mktemp("tasks"))
    (folder / "stopped.yaml").write_text(answers("stopped", STOPS, 30))
    (folder / "endless.yaml").write_text(answers("endless", [], 20))
    return TaskLibrary([folder])


def evaluate(library: TaskLibrary, task: str, model: str, arguments: str, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = simple_evaluate(
        model=model, model_args=arguments, tasks=library._load(task), task_manager=library._manager, device="cpu", batch_size=3,
        bootstrap_iters=0, log_samples=True, **settings,
    )  # fmt: skip
    return found


def numbers(results: dict[str, Any], task: str) -> dict[str, float]:
    return {name: value for name, value in results["results"][task].items() if isinstance(value, float)}


@pytest.mark.parametrize(
    ("task", "settings", "arguments"),
    [
        pytest.param("letters", {}, "", id="options of one token"),
        pytest.param("letters", {"num_fewshot": 3}, "", id="three examples before each question"),
        pytest.param("letters", {"num_fewshot": 3}, f",max_length={SHORT}", id="examples that do not fit"),
        pytest.param("letters", {"num_fewshot": 1, "apply_chat_template": True, "fewshot_as_multiturn": True}, "", id="asked in a chat"),
        pytest.param("cloze", {}, "", id="options of several tokens"),
        pytest.param("rolling", {}, "", id="texts longer than the context"),
        pytest.param("rolling", {}, f",max_length={SHORT}", id="texts of many windows"),
        pytest.param("stopped", {"num_fewshot": 1}, "", id="answers with four stop strings"),
        pytest.param("endless", {}, "", id="answers up to their limit"),
        pytest.param("endless", {"num_fewshot": 3}, "", id="questions that leave no room for the answer"),
    ],
)
def test_every_response_and_metric_is_that_of_hf(library, tiny_folder, task, settings, arguments):
    arguments = f"pretrained={tiny_folder},dtype=float32{arguments}"
    found, wanted = (evaluate(library, task, model, arguments, **settings) for model in ("transfer", "hf"))
    pairs = list(zip(found["samples"][task], wanted["samples"][task], strict=True))
    assert len(pairs) == (2 if task == "rolling" else len(ANIMALS))
    for own, other in pairs:
        assert own["arguments"] == other["arguments"]
        for (ours,), (theirs,) in zip(own["resps"], other["resps"], strict=True):
            if isinstance(theirs, str):
                assert ours == theirs
            elif isinstance(theirs, float):
                assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-6)  # hundreds of tokens in float32
            else:
                assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
                assert ours[1] == theirs[1]
    assert numbers(found, task) == pytest.approx(numbers(wanted, task), rel=1e-6)


def test_the_answers_compared_are_not_all_alike(library, tiny_folder):
    found = evaluate(library, "stopped", "transfer", f"pretrained={tiny_folder}", num_fewshot=1)
    texts = [sample["resps"][0][0] for sample in found["samples"]["stopped"]]
    assert len(set(texts)) > 1
    assert not any(stop in text for text in texts for stop in STOPS)


def test_it_works_from_the_command_line_of_the_harness(library, tiny_folder, tmp_path):
    folder = Path(library._folders[0])
    command = [sys.executable, "-m", "transfer_evaluator.harness", "--model", "transfer", "--model_args", f"pretrained={tiny_folder}"]
    command += ["--include_path", str(folder), "--tasks", "letters", "--num_fewshot", "2", "--log_samples", "--output_path", str(tmp_path)]
    # Relative data files are the harness's: it looks them up where it is started.
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = tmp_path.rglob("samples_letters_*.jsonl")
    samples = [json.loads(line) for line in written.read_text().splitlines()]
    wanted = evaluate(library, "letters", "hf", f"pretrained={tiny_folder},dtype=float32", num_fewshot=2)["samples"]["letters"]
    for own, other in zip(samples, wanted, strict=True):
        assert [float(value) for ((value, _),) in own["resps"]] == pytest.approx([value for ((value, _),) in other["resps"]], abs=1e-4)


def test_what_was_answered_before_comes_from_the_harness_cache(library, tiny_folder, tmp_path, monkeypatch):
    arguments = {"arguments": f"pretrained={tiny_folder}", "use_cache": str(tmp_path / "cache")}
    first = evaluate(library, "letters", "transfer", **arguments)
    monkeypatch.setattr("transfer_evaluator.scorer.TokenScorer.score", lambda *a, **k: pytest.fail("computed it again"))
    again = evaluate(library, "letters", "transfer", **arguments)
    assert [s["acc"] for s in again["samples"]["letters"]] == [s["acc"] for s in first["samples"]["letters"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param("pretained=x", r"no argument pretained.*Did you mean pretrained\?", id="a misspelt argument"),
        pytest.param("pretrained=/nowhere", "pretrained=/nowhere|/nowhere", id="no such folder"),
        pytest.param("", "pretrained=", id="no model"),
        pytest.param("pretrained={tiny},dtype=int8", "dtype=int8.*float32 or bfloat16", id="another number format"),
        pytest.param("pretrained={tiny},max_length=1000", "max_length=1000.*2 to 256", id="longer than the model"),
        pytest.param("pretrained={tiny},device=abacus", "is no device", id="no such device"),
    ],
)
def test_arguments_that_cannot_work_are_named(library, tiny_folder, arguments, message):
    with pytest.raises(TransferError, match=message):
        simple_evaluate(model="transfer", model_args=arguments.format(tiny=tiny_folder), tasks=library._load("letters"))


def test_a_chat_without_a_template_is_refused(library, tmp_path):
    folder = save_tiny_model(tmp_path / "plain")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ModelError, match="no chat template") as refused:
        evaluate(library, "letters", "transfer", f"pretrained={folder}", apply_chat_template=True)
    assert refused.value.next_step


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"do_sample": True, "temperature": 0.7}, "not greedy", id="sampling"),
        pytest.param({"temperature": 0.7}, "not greedy", id="a temperature"),
        pytest.param({"num_beams": 4, "do_sample": False}, "not greedy", id="beams"),
        pytest.param({"max_gen_toks": 256, "do_sample": False}, "no room for a question.*1 to 255", id="no room"),
    ],
)
def test_answers_that_would_be_other_than_asked_for_are_refused(tiny, settings, message):
    from lm_eval.api.instance import Instance

    with pytest.raises(SpecError, match=message):
        transfer_evaluator.harness.HarnessModel(tiny).generate_until([Instance("generate_until", {}, ("Semua", settings), 0)])
