"""Reading experiment files: every problem at once, each with field, value, what is allowed and the way out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.documents import DROP, EVALUATION, TUNING, VOCABULARY, changed, document
from transfer_api.errors import SpecError
from transfer_api.load import SpecErrors, experiment_from, load_experiment, load_experiments


def write(folder: Path, content: Any) -> Path:
    path = folder / "experiment.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SpecErrors) as caught:
        load_experiment(path)
    return str(caught.value)


def test_a_valid_file_becomes_an_experiment(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, document()))
    assert experiment.metadata.name == "demo"
    assert experiment.spec.pretraining is not None
    assert experiment.spec.pretraining.tokens == 41_000
    assert experiment.spec.pretraining.global_batch_tokens == 1024


FIELD_CASES = [
    pytest.param(
        "spec.pretraining.globalBatchToken",
        1,
        ["spec.pretraining.globalBatchToken", "Did you mean globalBatchTokens?"],
        id="misspelt field",
    ),
    pytest.param("spec.pretraining.learning_rate", "1", ["Did you mean learningRate?"], id="snake case"),
    pytest.param("spec.tokens", "5M", ["spec.tokens: is not a known field", "belongs under spec.pretraining"], id="field at another level"),
    pytest.param("spec.pretraining.frobnicate", 1, ["not a known field", "sequenceLength", "Remove it"], id="field from nowhere"),
    pytest.param("spec.specs", {}, ["spec.specs: is not a known field"], id="field named as nothing near"),
    pytest.param("apiversion", "x", ["apiversion", "Did you mean apiVersion?"], id="field of the top"),
    pytest.param(
        "spec.pretraining.tokens", "5OOM", ["spec.pretraining.tokens", "'5OOM'", "41K, 0.5B or 512Ki"], id="tokens that are no number"
    ),
    pytest.param("spec.pretraining.tokens", 5e8, ["spec.pretraining.tokens", "500000000.0", "whole number"], id="tokens as a float"),
    pytest.param("spec.pretraining.warmup", "five", ["spec.pretraining.warmup", "'five'", '"2e-5"'], id="decimal that is none"),
    pytest.param("spec.pretraining.learningRate", 0.5, ["must be a string, not a number", '"0.5"'], id="decimal as a float"),
    pytest.param("spec.language", "xx", ["spec.language", "'xx'", "BCP 47"], id="language that does not exist"),
    pytest.param("spec.language", "eng", ["spec.language", "'eng'", "write en"], id="English in three letters"),
    pytest.param("spec.language", "Ger-AT", ["spec.language", "'Ger-AT'", "write de-AT"], id="German as libraries write it"),
    pytest.param("spec.pretraining.mixture.1.language", "ind", ["mixture[1].language", "write id"], id="a text in three letters"),
    pytest.param("spec.language", "indonesian", ["spec.language", "'indonesian'", "BCP 47"], id="language by name"),
    pytest.param("spec.language", False, ["YAML reads no", "in quotes"], id="Norwegian as YAML reads it"),
    pytest.param("spec.language", True, ["YAML reads yes", "in quotes"], id="a word that YAML takes for true"),
    pytest.param("spec.model.path", 7, ["spec.model.path", "a string", 'in quotes: "7"'], id="number for a string"),
    pytest.param("spec.pretraining.sequenceLength", "128", ["a whole number", "without quotes: 128"], id="string for a number"),
    pytest.param("spec.pretraining.sequenceLength", "many", ["a whole number", "'many'", "in digits"], id="word for a number"),
    pytest.param("spec.pretraining.sequenceLength", 2.5, ["a whole number", "2.5"], id="float for an integer"),
    pytest.param("spec.pretraining.sequenceLength", 4, ["is too small", "at least 8"], id="too small"),
    pytest.param("spec.workers", {"replicas": 2000}, ["spec.workers.replicas", "is too large", "at most 1024"], id="too large"),
    pytest.param("spec.suspend", "true", ["true or false", "without quotes"], id="string for a boolean"),
    pytest.param("spec.suspend", 1, ["spec.suspend", "true or false"], id="number for a boolean"),
    pytest.param("spec.pretraining.mixture", {"path": "a.jsonl"}, ["a list", "with a dash"], id="one entry without a dash"),
    pytest.param("spec.pretraining.mixture", 3, ["spec.pretraining.mixture", "a list"], id="number for a list"),
    pytest.param("spec.pretraining.mixture", [], ["has too few entries", "Add an entry, such as - path"], id="empty list"),
    pytest.param("spec.pretraining.mixture", [{"path": "a.jsonl"}] * 33, ["has too many entries", "at most 32"], id="long list"),
    pytest.param("spec.pretraining.mixture.1.weight", -1, ["spec.pretraining.mixture[1].weight", "at least 0"], id="place in a list"),
    pytest.param("spec.pretraining.mixture.1", "b.txt", ["spec.pretraining.mixture[1]", "a mapping of fields"], id="text for a mapping"),
    pytest.param("spec.pretraining.method", "full", ["Full, LoRA", "Did you mean Full?"], id="choice in small letters"),
    pytest.param(
        "spec.instructionTuning",
        {"data": [{"path": "a.jsonl"}], "template": "chatml"},
        ["Model, ChatML, Alpaca", "Did you mean ChatML?"],
        id="choice of a template",
    ),
    pytest.param("spec.storage", {"url": "bucket"}, ["s3://bucket/prefix"], id="url without a scheme"),
    pytest.param("spec.storage", {"claim": "x" * 64}, ["is too long", "at most 63 characters"], id="string too long"),
    pytest.param("spec.model.path", "", ["is too short", "at least 1"], id="empty string"),
    pytest.param("spec.workers", {"resources": {"limits": [1]}}, ["spec.workers.resources.limits", "a mapping"], id="list for a map"),
    pytest.param(
        "spec.workers", {"resources": {"limits": {"nvidia.com/gpu": "all"}}}, ["limits[nvidia.com/gpu]", "64Gi"], id="odd quantity"
    ),
    pytest.param("spec.workers", {"resources": {"limits": {"nvidia.com/gpu": True}}}, ["not a quantity"], id="boolean quantity"),
    pytest.param("spec.model", DROP, ["spec.model: is required", "The base model", "Add model under spec"], id="missing field"),
    pytest.param("spec", DROP, ["spec: is required", "Add spec"], id="missing spec"),
    pytest.param("metadata.name", DROP, ["metadata.name: is required"], id="missing name"),
    pytest.param("metadata.name", "a" * 60, ["metadata.name", "at most 52 characters"], id="name too long"),
    pytest.param("metadata.name", "My_Run", ["metadata.name", "'My_Run'", "lower-case letters"], id="name with capitals"),
    pytest.param("metadata.namespace", "My Team", ["metadata.namespace", "'My Team'", "lower-case letters"], id="namespace with a space"),
    pytest.param("apiVersion", "transfer-operator.dev/v1", ["apiVersion", "transfer-operator.dev/v1alpha1"], id="unknown version"),
    pytest.param("kind", "TransferExperimnt", ["kind: is not known here", "Did you mean TransferExperiment?"], id="misspelt kind"),
    pytest.param("kind", DROP, ["kind: is required", "Add kind: TransferExperiment"], id="missing kind"),
    pytest.param("spec.language", None, ["spec.language: is required and has no value", "such as language: id"], id="required and empty"),
    pytest.param(
        "spec.pretraining.mixture", None, ["mixture: is required and has no value", "Texts and their shares"], id="required below and empty"
    ),
    pytest.param("spec.language", DROP, ["spec.language: is required", "such as language: id"], id="required and absent"),
    pytest.param("spec.vocabulary", None, ["spec.vocabulary: has no value", "remove the line"], id="field without a value"),
    pytest.param("spec.7", 1, ["is not a field name"], id="number as a field name"),
]


@pytest.mark.parametrize(("path", "value", "says"), FIELD_CASES)
def test_a_wrong_field_is_named_with_value_and_way_out(tmp_path: Path, path: str, value: Any, says: list[str]) -> None:
    if path == "spec.7":
        wrong = document()
        wrong["spec"][7] = value
    else:
        wrong = changed(document(), path, value)
    told = refusal(write(tmp_path, wrong))
    for words in says:
        assert words in told


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        pytest.param(
            document(workers={"min": 3, "replicas": 2}), ["spec.workers.min", "(got 3)", "at most replicas (2)"], id="min over replicas"
        ),
        pytest.param(
            changed(document(), "spec.pretraining.steps", 9), ["spec.pretraining", "exactly one of tokens, steps, epochs"], id="two budgets"
        ),
        pytest.param(
            changed(document(), "spec.pretraining.mixture", [{"path": "a.jsonl", "weight": 0}, {"path": "b.jsonl", "weight": 0}]),
            ["spec.pretraining.mixture", "[0, 0]", "at least one weight above 0"],
            id="weights all zero",
        ),
        pytest.param(
            document(evaluation={"suites": ["perplexity"]}), ["spec.evaluation.texts", "Add texts"], id="perplexity without texts"
        ),
    ],
)
def test_a_broken_rule_is_named_with_value_and_way_out(tmp_path: Path, wrong: Any, says: list[str]) -> None:
    told = refusal(write(tmp_path, wrong))
    for words in says:
        assert words in told


def wrong_types(node: Any, place: str = "spec") -> Iterator[tuple[str, Any]]:
    """Every place of a document with something that cannot stand there, and every mapping with a field that nobody knows."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    if isinstance(node, dict) and not place.endswith(".limits"):  # which takes any name
        yield f"{place}.unheardOf", 1
    for name, value in items:
        yield f"{place}.{name}", 1.5 if isinstance(value, (dict, list, str)) else {}
        yield from wrong_types(value, f"{place}.{name}")


def test_a_field_that_cannot_be_read_breaks_no_rule_besides() -> None:
    wanted = document(vocabulary=VOCABULARY, instructionTuning=TUNING, evaluation=EVALUATION, workers={"resources": {"limits": {"cpu": 2}}})
    told = {(place, str(value)): problems(changed(wanted, place, value)) for place, value in wrong_types(wanted["spec"])}
    assert len(told) > 40
    assert {key: errors for key, errors in told.items() if len(errors) != 1} == {}


def problems(wanted: dict[str, Any]) -> list[str]:
    try:
        experiment_from(wanted)
    except SpecErrors as caught:
        return [str(error) for error in caught.errors]
    return []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("spec.language", "xx"), ("spec.model", DROP), ("spec.pretraining.learningRate", 2e-5), ("spec.pretraining.mixture.0.weight", "1"),
        ("spec.evaluation.texts", [1]), ("spec.evaluation.texts.0.name", DROP), ("spec.seeds", 1), ("metadata.name", "My_Name"),
        ("spec.workers.replicas", "2"),
    ],
)  # fmt: skip
def test_rules_are_told_beside_fields_that_cannot_be_read(place: str, value: Any) -> None:
    good = document(evaluation=EVALUATION, workers={"replicas": 1})
    wrong = changed(changed(good, "spec.pretraining.lora", {}), "spec.scheduling", {"tolerations": [{}]})
    with pytest.raises(SpecErrors) as caught:
        experiment_from(changed(wrong, place, value))
    fields = [error.field for error in caught.value.errors]
    if place == "spec.seeds":  # may mean any field of the spec
        assert fields == ["spec.seeds"]
    else:
        assert fields[-2:] == ["spec.pretraining.lora", "spec.scheduling.tolerations[0].key"]
        assert len(fields) == 3


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    wrong = changed(changed(document(), "spec.pretraining.tokens", "many"), "spec.language", "xx")
    with pytest.raises(SpecErrors) as caught:
        load_experiment(write(tmp_path, wrong))
    assert {error.field for error in caught.value.errors} == {"spec.pretraining.tokens", "spec.language"}
    assert "2 problems" in str(caught.value)
    assert isinstance(caught.value, SpecError)


CONTENT_CASES = [
    pytest.param("", ["is empty", "apiVersion"], id="empty"),
    pytest.param("# nothing but a comment\n---\n", ["is empty"], id="comments only"),
    pytest.param("kind: [1, 2\nspec: {", ["is not YAML", "line"], id="not YAML"),
    pytest.param("a: b: c", ["is not YAML", "line 1"], id="YAML with a line"),
    pytest.param("a: \x07", ["is not YAML"], id="a control character"),
    pytest.param("[" * 600, ["nested too deeply"], id="brackets without end"),
    pytest.param("spec: 1\nspec: 2\n", ["spec stands there twice", "line 2"], id="a key twice"),
    pytest.param("just words", ["is not an experiment", "'just words'"], id="a string"),
    pytest.param("- 1", ["is not an experiment"], id="a list"),
    pytest.param('a: "\\UFFFFFFFF"', ["is not YAML"], id="an escape of no character"),
    pytest.param(b"name: caf\xe9\n", ["is not UTF-8", "0xe9", "line 1"], id="Latin-1"),
    pytest.param(b"a" * (2 << 20), ["at most"], id="too large a file"),
    pytest.param("apiVersion: v1\nkind: ConfigMap\n", ["apiVersion", "transfer-operator.dev/v1alpha1"], id="another resource only"),
    pytest.param("a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n", ["apiVersion: is required"], id="aliases"),
]


@pytest.mark.parametrize(("content", "says"), CONTENT_CASES)
def test_a_file_that_is_no_experiment_says_why(tmp_path: Path, content: str | bytes, says: list[str]) -> None:
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # as `transfer` has it, whatever libraries of other tests made of it
    try:
        told = refusal(write(tmp_path, content))
    finally:
        sys.setrecursionlimit(usual)
    for words in says:
        assert words in told


HEAD = "apiVersion: transfer-operator.dev/v1alpha1\nkind: TransferExperiment\nmetadata: {name: demo}\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("spec: &a {b: *a}\n", id="an alias of itself"),
        pytest.param("".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9) if i else '1'}]\n" for i in range(9)), id="aliases of aliases"),
    ],
)
def test_aliases_without_end_are_stopped(tmp_path: Path, content: str) -> None:
    assert "too many values" in refusal(write(tmp_path, HEAD + content))


def test_values_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    told = refusal(write(tmp_path, HEAD + "spec: {language: !!binary aGk=}\n"))
    assert "spec.language: is not a plain value" in told


def test_numbers_are_read_as_kubectl_reads_them(tmp_path: Path) -> None:
    text = yaml.safe_dump(document()).replace("tokens: 41K", "tokens: 41K\n    learningRate: 2e-5")
    assert 'write "2e-05"' in refusal(write(tmp_path, text))


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, "0b" + "1" * 20_000, "1" + ":1" * 5000], ids=["10", "16", "2", "60"])
@pytest.mark.parametrize(
    ("written", "field"),
    [
        ("{path: model, parameters: NUMBER}", "spec.model.parameters: is too large a number"),
        ("NUMBER", "spec.model: is too large a number"),
        ("{? NUMBER : 1}", "spec.model: is not a field name"),
    ],
    ids=["for a number", "for a mapping", "for a name"],
)
def test_numbers_that_python_will_not_write_are_refused_by_field(tmp_path: Path, number: str, written: str, field: str) -> None:
    content = yaml.safe_dump(changed(document(), "spec.model", "MODEL")).replace("MODEL", written.replace("NUMBER", number))
    told = refusal(write(tmp_path, content))
    assert field in told
    assert len(told) < 500


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("spec.language", "\ud800", "spec.language: holds half"),
        ("spec.pretraining.mixture.0.path", "a\udfff", "spec.pretraining.mixture[0].path: holds half"),
        ("spec.\ud800", 1, "spec: a name in it holds half"),
    ],
    ids=["first half", "second half", "in a name"],
)
def test_half_a_character_is_refused_by_field(tmp_path: Path, path: str, value: object, field: str) -> None:
    told = refusal(write(tmp_path, json.dumps(changed(document(), path, value))))
    assert field in told
    told.encode()


def test_both_halves_of_an_escape_are_a_character(tmp_path: Path) -> None:
    written = json.dumps(changed(document(), "spec.pretraining.mixture.0.path", "\U0001f600.txt"))
    assert "\\ud83d\\ude00" in written
    experiment = load_experiment(write(tmp_path, written))
    assert experiment.spec.pretraining is not None
    assert experiment.spec.pretraining.mixture[0].path == "\U0001f600.txt"


def test_dates_stay_strings_as_kubectl_keeps_them(tmp_path: Path) -> None:
    text = yaml.safe_dump(changed(document(), "spec.pretraining.mixture.0", {"hub": "a/b", "subset": "DAY"})).replace("DAY", "2023-11-01")
    experiment = load_experiment(write(tmp_path, text))
    assert experiment.spec.pretraining is not None
    assert experiment.spec.pretraining.mixture[0].subset == "2023-11-01"


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.yaml")
    assert "is a folder" in refusal(tmp_path)


def test_a_file_without_end_and_a_pipe_that_nobody_fills_are_refused_at_once(tmp_path: Path) -> None:
    assert "is neither a file nor a pipe" in refusal(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")
    assert "is empty" in refusal(tmp_path / "pipe")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 20 | 1))
    assert "is too large; allowed: at most 1,048,576 bytes" in refusal(tmp_path / "large.yaml")


def test_a_pipe_is_read_to_its_end_and_no_further_than_a_file_may_go(tmp_path: Path) -> None:
    for content, told in (
        (yaml.safe_dump(document()), "/dev/stdin: ok\n"),
        ("#" * (1 << 21), "is too large; allowed: at most 1,048,576 bytes"),
    ):
        (tmp_path / "text").write_text(content)
        command = f"(sleep 0.1; cat {tmp_path}/text) | {sys.executable} -m transfer_cli.main validate /dev/stdin"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert told in done.stdout + done.stderr


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(write(tmp_path, document()) / "below-a-file")


def test_what_kubectl_get_writes_can_be_read_again(tmp_path: Path) -> None:
    stored = {**document(), "status": {"phase": "Running", "failure": None}}
    stored["metadata"] = {**stored["metadata"], "uid": "u", "generation": 3, "managedFields": [{"manager": None}]}
    assert load_experiment(write(tmp_path, stored)).metadata.generation == 3


def test_other_resources_beside_the_experiment_are_passed_over(tmp_path: Path) -> None:
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}
    assert load_experiment(write(tmp_path, yaml.safe_dump_all([other, document()]))).metadata.name == "demo"


def test_several_experiments_are_read_but_not_run_as_one(tmp_path: Path) -> None:
    second = changed(document(evaluation=EVALUATION), "metadata.name", "second")
    path = write(tmp_path, yaml.safe_dump_all([document(), second]))
    assert [experiment.metadata.name for experiment in load_experiments(path)] == ["demo", "second"]
    assert "holds several experiments" in refusal(path)


def test_a_list_as_kubectl_writes_it_is_taken_apart(tmp_path: Path) -> None:
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}
    whole = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [other, document()]}
    assert load_experiment(write(tmp_path, whole)).metadata.name == "demo"
    whole["items"] = [changed(document(), "spec.language", "xx")]
    assert "spec.language" in refusal(write(tmp_path, whole))


def test_two_experiments_of_one_name_are_refused(tmp_path: Path) -> None:
    text = yaml.safe_dump(document())
    path = write(tmp_path, text + "---\n" + text)
    with pytest.raises(SpecErrors, match=r"metadata\.name: stands there twice"):
        load_experiments(path)


def test_problems_of_several_documents_are_told_apart(tmp_path: Path) -> None:
    wrong = changed(document(), "spec.language", "xx")
    path = write(tmp_path, yaml.safe_dump_all([document(), wrong]))
    with pytest.raises(SpecErrors, match="document 2: ") as caught:
        load_experiments(path)
    assert caught.value.errors[0].field == "spec.language"


def test_reading_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "transformers", "langcodes")
    code = f"import sys, transfer_api.load, transfer_cli.validate; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
