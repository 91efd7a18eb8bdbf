"""What would end a run later is said before it begins, all at once, with field, value and way out."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.documents import EVALUATION, PRETRAINING, TUNING, VOCABULARY, changed, document
from tests.support.folders import PARAMETERS, write_document, write_experiment, write_model
from transfer_api.errors import ExitCode
from transfer_api.load import SpecErrors, load_experiment
from transfer_api.stage import StageKind, StagePlan, plan_stages
from transfer_cli import preflight
from transfer_cli.main import main
from transfer_cli.paths import default_output, default_storage
from transfer_pod import contents
from transfer_pod.artifact import ArtifactStore
from transfer_trainer.store import POSITIONS, TARGETS, TOKENS, PackedRow, RowWriter

ALL = document(instructionTuning=TUNING, evaluation=EVALUATION)


def check(folder: Path, **options: Any) -> tuple[StagePlan, ...]:
    return preflight.check(
        load_experiment(folder / "experiment.yaml"),
        **{"storage": folder / "storage", "output": folder / "runs", "search": (folder,), **options},
    )


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(SpecErrors) as caught:
        check(folder, **options)
    return str(caught.value)


def digests(folder: Path) -> dict[str, str]:
    return preflight.fingerprints(load_experiment(folder / "experiment.yaml"), storage=folder / "storage", search=(folder,))


def test_what_can_run_passes(tmp_path: Path) -> None:
    write_experiment(tmp_path, ALL)
    check(tmp_path)
    assert (tmp_path / "storage").is_dir()
    assert not list((tmp_path / "runs").iterdir())
    assert not (tmp_path / "storage" / "work").exists(), "looking makes no folder"


def test_a_file_beside_those_of_every_run_is_not_replaced_either(tmp_path: Path) -> None:
    write_experiment(tmp_path, ALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "experiment.yaml").touch()
    check(tmp_path)
    assert "would replace: experiment.yaml" in refusal(tmp_path, kept=["experiment.yaml"])


@pytest.mark.parametrize(
    ("storage", "output", "message"),
    [
        ("a", "a", "output: is the storage"),
        ("a", "a/b/c", "output: lies in the storage"),
        ("link", "a/b", "output: lies in the storage"),
        ("a/model", "a", "storage: lies in model of the output folder"),
        ("a/logs/b", "a", "storage: lies in logs of the output folder"),
        ("runs/.storage", "runs", ""),
        ("a", "a-b", ""),
    ],
)
def test_storage_and_output_are_apart(tmp_path: Path, storage: str, output: str, message: str) -> None:
    write_experiment(tmp_path, ALL)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a").mkdir()
    folders = {"storage": tmp_path / storage, "output": tmp_path / output}
    if not message:
        check(tmp_path, **folders)
        return
    told = refusal(tmp_path, **folders)
    assert message in told
    assert "with --" in told


def _lacks_field(folder: Path) -> None:
    (folder / "id.txt").rename(folder / "id.jsonl")
    (folder / "id.jsonl").write_text('{"content": "Semua orang."}\n')
    file = folder / "experiment.yaml"
    file.write_text(file.read_text().replace("id.txt", "id.jsonl"))


def _pickle(folder: Path) -> None:
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")


def _cut_short(folder: Path) -> None:
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _shard_missing(folder: Path) -> None:
    (folder / "model" / "model.safetensors").rename(folder / "model" / "model-00001-of-00002.safetensors")
    named = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))


CASES = [
    pytest.param(
        lambda f: shutil.rmtree(f / "model"), ["spec.model.path", "'model'", "no such file or folder", "Looked in"], id="model missing"
    ),
    pytest.param(
        lambda f: (f / "model/tokenizer.json").unlink(), ["spec.model.path", "has no tokenizer", "save_pretrained"], id="no tokenizer"
    ),
    pytest.param(
        lambda f: (f / "model/tokenizer.json").write_text('{"model": {"vo'),
        ["spec.model.path", "broken tokenizer.json", "model/tokenizer.json", "save it again"],
        id="tokenizer cut short",
    ),
    pytest.param(
        lambda f: (f / "model/tokenizer.json").write_text("{}"),
        ["spec.model.path", "broken tokenizer.json", "no model in it"],
        id="tokenizer of nothing",
    ),
    pytest.param(lambda f: (f / "model/config.json").unlink(), ["spec.model.path", "config.json"], id="no config"),
    pytest.param(_pickle, ["spec.model.path", "pickle (pytorch_model.bin)", "*.safetensors"], id="pickle"),
    pytest.param(_cut_short, ["model.safetensors is not a complete safetensors file", "Fetch it again"], id="weights cut short"),
    pytest.param(
        _shard_missing, ["spec.model.path", "lacks model-00002-of-00002.safetensors", "Fetch"], id="a shard of the weights missing"
    ),
    pytest.param(lambda f: (f / "id.txt").unlink(), ["spec.pretraining.mixture[0].path", "'id.txt'", "no such file"], id="data missing"),
    pytest.param(lambda f: (f / "id.txt").write_text(""), ["spec.pretraining.mixture[0].path", "is empty", "id.txt"], id="data empty"),
    pytest.param(lambda f: (f / "en.txt").write_text(" \n\n"), ["spec.pretraining.mixture[1].path", "blank lines"], id="data blank"),
    pytest.param(lambda f: (f / "id.txt").write_bytes(b"caf\xe9\n"), ["is not UTF-8", "line 1", "0xe9", "iconv"], id="data not UTF-8"),
    pytest.param(_lacks_field, ["spec.pretraining.mixture[0].field", "'text'", "content"], id="data lacks the field"),
    pytest.param(
        lambda f: (f / "pairs.jsonl").write_text('{"q": "a"}\n'),
        ["spec.instructionTuning.data[0]", "instruction"],
        id="pairs of another form",
    ),
    pytest.param(lambda f: (f / "test.txt").write_text(""), ["spec.evaluation.texts[0].path", "is empty"], id="held-out text empty"),
]


@pytest.mark.parametrize(("spoil", "says"), CASES)
def test_what_is_missing_or_broken_is_named(tmp_path: Path, spoil: Callable[[Path], Any], says: list[str]) -> None:
    write_experiment(tmp_path, ALL)
    spoil(tmp_path)
    told = refusal(tmp_path)
    for words in says:
        assert words in told


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    write_experiment(tmp_path, ALL)
    (tmp_path / "id.txt").unlink()
    (tmp_path / "model" / "tokenizer.json").unlink()
    told = refusal(tmp_path)
    assert "2 problems" in told
    assert "has no tokenizer" in told
    assert "spec.pretraining.mixture[0].path" in told


def test_rows_longer_than_the_positions_of_the_model(tmp_path: Path) -> None:
    write_experiment(tmp_path, changed(ALL, "spec.pretraining.sequenceLength", 512))
    told = refusal(tmp_path)
    assert "spec.pretraining.sequenceLength" in told
    assert "(got 512)" in told
    assert "at most 256 (max_position_embeddings" in told


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"targets": ["query"]}, r"spec.instructionTuning.lora.targets.*'query'.*down_proj, gate_proj, k_proj, o_proj, q_proj"),
        ({"rank": 33}, r"spec.instructionTuning.lora.rank: is larger than a matrix.*at most 32"),
    ],
    ids=["a target that is no module", "a rank larger than a matrix"],
)
def test_adapters_that_the_model_has_no_place_for(tmp_path: Path, lora: dict[str, Any], message: str) -> None:
    write_experiment(tmp_path, changed(ALL, "spec.instructionTuning.lora", lora))
    with pytest.raises(SpecErrors, match=message):
        check(tmp_path)


def test_a_model_without_a_number_of_positions_has_no_limit(tmp_path: Path) -> None:
    write_experiment(tmp_path, changed(ALL, "spec.pretraining.sequenceLength", 512))
    shutil.rmtree(tmp_path / "model")
    write_model(tmp_path / "model", max_position_embeddings=None)
    check(tmp_path)


def test_task_folders_hold_tasks(tmp_path: Path) -> None:
    write_experiment(tmp_path, document(evaluation={"suites": ["mine"], "taskFolders": ["tasks"]}))
    assert "spec.evaluation.taskFolders[0]" in refusal(tmp_path)
    (tmp_path / "tasks").mkdir()
    assert "has no task files" in refusal(tmp_path)
    (tmp_path / "tasks" / "mine.yaml").write_text("task: mine\n")
    check(tmp_path)


@pytest.mark.usefixtures("harness_index")
def test_a_misspelt_suite_is_refused_before_anything_runs(tmp_path: Path) -> None:
    wanted = document(evaluation={"suites": ["belebele_ind_latn"], "baseline": False})
    write_experiment(tmp_path, wanted)
    told = refusal(tmp_path)
    assert "spec.evaluation.suites: no such suite (got 'belebele_ind_latn')" in told
    assert "belebele_ind_Latn" in told


def test_suites_that_a_file_plainly_names_need_no_index_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transfer_evaluator.tasks", None)  # importing it fails
    write_experiment(tmp_path, document(evaluation={"suites": ["mine", "mmlu", "belebele_ind_Latn"], "taskFolders": ["tasks"]}))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "any.yaml").write_text("dataset_path: json\ntask: 'mine'  # of our own\n")
    check(tmp_path)


def test_questions_and_the_token_of_the_judge_are_looked_for_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    judge = {"url": "https://judge.example/v1", "model": "a", "tokenSecret": {"name": "judge"}}
    wanted = {"suites": ["llm-eval"], "questions": [{"name": "open", "path": "questions.jsonl"}], "judge": judge}
    write_experiment(tmp_path, document(evaluation=wanted))
    with pytest.raises(SpecErrors, match="JUDGE_TOKEN") as raised:
        check(tmp_path)
    assert "spec.evaluation.questions[0].path" in str(raised.value)
    (tmp_path / "questions.jsonl").write_text('{"question": "Apa?"}\n')
    monkeypatch.setenv("JUDGE_TOKEN", "t")
    check(tmp_path)


def test_the_client_and_the_key_of_wandb_are_looked_for_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    write_experiment(tmp_path, document(tracking={"wandb": {"project": "transfer", "tokenSecret": {"name": "wandb"}}}))
    assert "spec.tracking.wandb.tokenSecret: Secrets are a cluster's" in refusal(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'transfer-operator[tracking]'" in refusal(tmp_path)


def test_a_file_where_a_folder_is_wanted(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    (tmp_path / "file").write_text("")
    assert "output: is not a folder" in refusal(tmp_path, output=tmp_path / "file")
    assert "--storage" in refusal(tmp_path, storage=tmp_path / "file" / "below")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    read_only = Path("/proc/1") if os.geteuid() == 0 else tmp_path / "read-only"
    if not read_only.exists():
        read_only.mkdir(mode=0o500)
    told = refusal(tmp_path, output=read_only)
    assert str(read_only) in told
    assert "cannot be" in told


def test_a_disk_too_small_for_the_checkpoints(tmp_path: Path) -> None:
    wanted = document(model={"path": "model-70000B", "parameters": "70T"})
    write_experiment(tmp_path, wanted)
    (tmp_path / "model").rename(tmp_path / "model-70000B")
    (tmp_path / "model-70000B" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # a size that only the spec knows
    told = refusal(tmp_path)
    assert "GB free and the experiment with the copy of its model needs about" in told
    assert "--storage" in told


def disks(monkeypatch: pytest.MonkeyPatch, output: Path, free: dict[str, int], apart: bool) -> None:
    """As if storage and output had so much free, on one disk or on two."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free["output" if Path(folder) == output else "storage"]))
    monkeypatch.setattr(preflight, "_one_disk", lambda storage, output: not apart)


def test_the_copy_of_the_model_counts_for_the_disk_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_experiment(tmp_path, document(instructionTuning=TUNING))
    output, copy, plenty = tmp_path / "runs", 4 * PARAMETERS, 10**12
    check(tmp_path)
    kept = preflight.disk_needed(load_experiment(tmp_path / "experiment.yaml").spec, check(tmp_path), tmp_path / "storage", (tmp_path,))

    disks(monkeypatch, output, {"storage": kept, "output": copy}, apart=True)
    check(tmp_path)
    disks(monkeypatch, output, {"storage": plenty, "output": copy - 1}, apart=True)
    told = refusal(tmp_path)
    assert "output: has 0.0 GB free and the copy of its model needs" in told
    assert "--output" in told
    disks(monkeypatch, output, {"storage": kept + copy, "output": 0}, apart=False)
    check(tmp_path)
    disks(monkeypatch, output, {"storage": kept + copy - 1, "output": 0}, apart=False)
    told = refusal(tmp_path)
    assert "storage: has 0.0 GB free and the experiment with the copy of its model needs" in told
    (output / "model").mkdir()
    (output / ".written").touch()
    check(tmp_path)  # the copy takes the place of the one that lies there


def test_what_a_stopped_run_has_left_is_not_needed_again(tmp_path: Path) -> None:
    wanted = document(evaluation=EVALUATION)
    fresh = needed(tmp_path / "a", wanted)
    spec = load_experiment(tmp_path / "a" / "experiment.yaml").spec
    training = next(stage for stage in plan_stages(spec) if stage.kind.elastic)
    work = ArtifactStore(tmp_path / "a" / "storage").work(training.kind, training.key) / "checkpoints" / "step-5"
    work.mkdir(parents=True)
    (work / "weights").write_bytes(b"0" * 1000)
    assert preflight.disk_needed(spec, plan_stages(spec), tmp_path / "a" / "storage", (tmp_path / "a",)) == fresh - 1000


def test_a_budget_that_no_tokenizer_could_fill_is_refused_before_anything_runs(tmp_path: Path) -> None:
    few = {"mixture": [{"path": "id.txt", "weight": 3}, {"path": "en.txt", "weight": 1}], "globalBatchTokens": 8, "sequenceLength": 8}
    write_experiment(tmp_path, document(pretraining={**PRETRAINING, **few, "tokens": "1M"}))
    size = (tmp_path / "id.txt").stat().st_size
    told = refusal(tmp_path)
    assert "spec.pretraining.mixture[0].path" in told
    assert f"has {size:,} bytes, and so no more tokens" in told
    epochs = -(-750_000 // size)
    assert f"asks for 750,000 of it: at least {epochs} epochs, where maxEpochs allows 1 epoch (got" in told
    assert f"maxEpochs: {epochs}" in told
    write_document(tmp_path, document(pretraining={**PRETRAINING, **few, "tokens": "500M"}))
    assert "maxEpochs: " not in refusal(tmp_path)  # more than it may be


def by_epochs(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in PRETRAINING.items() if name != "tokens"} | {"epochs": 1} | changes


def test_a_batch_of_more_than_all_epochs_have_is_refused_before_anything_runs(tmp_path: Path) -> None:
    write_experiment(tmp_path, document(pretraining=by_epochs(globalBatchTokens=524_288)))
    # The source that lasts longest at its weight: en, a quarter of what is read, of 24,000 bytes in rows of 128 tokens.
    rows = 4 * -(-24_000 // 128)
    told = refusal(tmp_path)
    assert f"globalBatchTokens: is more than there is to read: at most {rows} rows of 128 tokens, 1 epoch (got 524288)" in told
    assert f"allowed: at most {rows * 128}" in told
    epochs = -(-524_288 // 128 // rows)
    assert f"Lower globalBatchTokens, or set epochs: {epochs} or more" in told
    write_document(tmp_path, document(pretraining=by_epochs(globalBatchTokens=524_288, epochs=epochs)))
    check(tmp_path)
    write_document(tmp_path, document(pretraining=by_epochs(globalBatchTokens=rows * 128)))
    check(tmp_path)


def test_few_examples_with_the_default_batch_are_told_what_to_set(tmp_path: Path) -> None:
    tuning = {"data": [{"path": "pairs.jsonl"}], "sequenceLength": 128}
    write_experiment(tmp_path, document(pretraining=None, instructionTuning=tuning))
    told = refusal(tmp_path)
    assert "spec.instructionTuning.globalBatchTokens: is more than there is to read: at most 10 rows of 128 tokens, 1 epoch" in told
    assert "(got 65536); allowed: at most 1280. Lower globalBatchTokens, or set epochs: 52 or more, or add data" in told
    for changes in ({"globalBatchTokens": 1280}, {"epochs": 52}, {"steps": 1}):
        write_document(tmp_path, document(pretraining=None, instructionTuning=tuning | changes))
        check(tmp_path)
    write_document(tmp_path, document(pretraining=None, instructionTuning=tuning | {"data": [{"hub": "a/b"}]}))
    check(tmp_path)  # nobody has counted them


def test_more_examples_than_the_data_have_are_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def wanted(examples: int, *data: dict[str, Any]) -> Path:
        tuning = TUNING | {"examples": examples, "steps": 1, "data": [{"path": "pairs.jsonl"}, *data]}
        return write_document(tmp_path, document(instructionTuning=tuning))

    write_experiment(tmp_path)
    file = wanted(11)
    told = "spec.instructionTuning.examples: asks for more examples than there are: 10 (got 11); allowed: at most 10. Set examples: 10"
    assert told in refusal(tmp_path)
    assert main(["plan", str(file), "--storage", str(tmp_path / "storage")]) == 0
    assert told in capsys.readouterr().out.partition("not ready to run:")[2]
    wanted(10)
    check(tmp_path)
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress((tmp_path / "pairs.jsonl").read_bytes()))
    wanted(20, {"path": "more.jsonl.gz"})
    check(tmp_path)
    wanted(21, {"path": "more.jsonl.gz"})
    assert "than there are: 20" in refusal(tmp_path)
    wanted(10_000, {"hub": "a/b"})
    check(tmp_path)  # nobody has counted them
    (tmp_path / "more.jsonl.gz").write_bytes((tmp_path / "more.jsonl.gz").read_bytes()[:-9])
    wanted(21, {"path": "more.jsonl.gz"})
    assert "than there are" not in refused(tmp_path), "what is broken is not too little"


def refused(folder: Path) -> str:
    """What is told of an experiment that may be refused."""
    try:
        check(folder)
    except SpecErrors as errors:
        return str(errors)
    return ""


def test_the_rows_of_a_dataset_that_is_there_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_experiment(tmp_path, document(instructionTuning=TUNING, pretraining=by_epochs()))
    for stage in check(tmp_path):
        if stage.kind is StageKind.DATASET:
            make_rows(tmp_path / "storage", stage, {"id.txt": 3, "en.txt": 1} if stage.parameters["mixture"] else {"instructions": 7})
    told = refusal(tmp_path)
    assert "spec.pretraining.globalBatchTokens: is more than there is to read: 4 rows of 128 tokens, 1 epoch" in told
    assert "spec.instructionTuning.globalBatchTokens: is more than there is to read: 7 rows of 128 tokens, 1 epoch" in told
    assert main(["plan", str(tmp_path / "experiment.yaml"), "--storage", str(tmp_path / "storage")]) == 0
    assert "is more than there is to read: 7 rows" in capsys.readouterr().out.partition("not ready to run:")[2]


def make_rows(storage: Path, stage: StagePlan, rows: dict[str, int]) -> None:
    """The artifact of a dataset stage with so many rows of each source."""
    store = ArtifactStore(storage)
    draft = store.draft(stage, "test")
    writer = RowWriter(draft / "rows", sequence_length=128, seed=0, tokenizer="tiny")
    weights = {source["path"]: source["weight"] for source in stage.parameters["mixture"]}
    for name, count in rows.items():
        with writer.source(name, weights.get(name, 1)) as target:
            for _ in range(count):
                target.append(PackedRow(*(np.zeros(128, dtype) for dtype in (TOKENS, POSITIONS, TARGETS)), used=128))
    writer.finish()
    store.commit(stage, draft)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"Semua \xff orang.\n"], ids=["empty", "blank", "not UTF-8"])
def test_a_source_that_cannot_be_read_is_not_too_small_as_well(tmp_path: Path, content: bytes) -> None:
    write_experiment(tmp_path, document(pretraining={**PRETRAINING, "tokens": "1B"}))
    (tmp_path / "id.txt").write_bytes(content)
    told = refusal(tmp_path)
    assert told.count("mixture[0]") == 1
    assert "mixture[1].path: has 24,000 bytes" in told  # a source of its own


def test_vocabulary_counts_for_the_disk(tmp_path: Path) -> None:
    plain = needed(tmp_path / "plain", document(evaluation=EVALUATION))
    grown = needed(tmp_path / "grown", document(vocabulary=VOCABULARY))
    assert grown > plain > 0


def needed(folder: Path, wanted: dict[str, Any]) -> int:
    folder.mkdir()
    spec = load_experiment(write_experiment(folder, wanted)).spec
    return preflight.disk_needed(spec, plan_stages(spec), folder / "storage", (folder,))


def test_the_stages_that_will_run_are_handed_on(tmp_path: Path) -> None:
    file = write_experiment(tmp_path, ALL)
    assert check(tmp_path) == plan_stages(load_experiment(file).spec, digests(tmp_path))


def test_a_refused_run_leaves_no_folder_behind(tmp_path: Path) -> None:
    write_experiment(tmp_path, ALL)
    (tmp_path / "id.txt").unlink()
    there = tmp_path / "there"
    there.mkdir()
    refusal(tmp_path, output=tmp_path / "new" / "output", storage=there / "storage")
    assert not (tmp_path / "new").exists()
    assert not list(there.iterdir())
    assert there.is_dir(), "what was there before stays"


def test_more_workers_than_gpus_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    write_experiment(tmp_path, document(workers={"replicas": 3}))
    told = refusal(tmp_path)
    assert "spec.workers.replicas" in told
    assert "at most 2" in told


def test_qlora_on_several_gpus_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = changed(document(), "spec.pretraining.method", "QLoRA")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    write_experiment(tmp_path, wanted)
    told = refusal(tmp_path)
    assert "spec.pretraining.method" in told
    assert "CUDA_VISIBLE_DEVICES=0" in told


def test_missing_inputs_of_the_examples_name_the_command_that_brings_them(tmp_path: Path) -> None:
    write_experiment(tmp_path, changed(ALL, "spec.model.path", "models/smollm2-135m"))
    assert "`make inputs` fetches what the examples read" in refusal(tmp_path)


def test_a_port_in_use(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refusal(tmp_path, metrics_port=port)
    assert "--metrics-port" in told
    assert "is in use" in told
    assert str(port) in told
    assert "is not a port" in refusal(tmp_path, metrics_port=70_000)
    check(tmp_path, metrics_port=0)


def test_every_problem_of_preflight_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_experiment(tmp_path, ALL)
    (tmp_path / "id.txt").unlink()
    assert main(["run", str(file), "--storage", str(tmp_path / "storage"), "--output", str(tmp_path / "out")]) == ExitCode.REFUSED
    assert "spec.pretraining.mixture[0].path" in capsys.readouterr().err


def test_digests_follow_content_and_not_time(tmp_path: Path) -> None:
    write_experiment(tmp_path, ALL)
    (tmp_path / "storage").mkdir()
    before = digests(tmp_path)
    assert set(before) == {"model", "id.txt", "en.txt", "pairs.jsonl", "test.txt"}
    os.utime(tmp_path / "id.txt", (1, 1))
    (tmp_path / "model" / "README.md").write_text("no part of the model")
    assert digests(tmp_path) == before
    (tmp_path / "id.txt").write_text("Lain.\n")
    (tmp_path / "model" / "config.json").write_text("{}")
    after = digests(tmp_path)
    assert {path for path in before if before[path] != after[path]} == {"model", "id.txt"}


def test_a_glob_follows_every_file(tmp_path: Path) -> None:
    write_experiment(tmp_path, changed(ALL, "spec.pretraining.mixture.0.path", "texts/*.txt"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Satu.\n")
    one = digests(tmp_path)["texts/*.txt"]
    (tmp_path / "texts" / "b.txt").write_text("Dua.\n")
    assert digests(tmp_path)["texts/*.txt"] != one


def test_a_task_folder_follows_what_is_below_it(tmp_path: Path) -> None:
    write_experiment(tmp_path, document(evaluation={"suites": ["mine"], "taskFolders": ["tasks"]}))
    (tmp_path / "tasks" / "data").mkdir(parents=True)
    (tmp_path / "tasks" / "mine.yaml").write_text("task: mine\n")
    before = digests(tmp_path)["tasks"]
    (tmp_path / "tasks" / "data" / "items.jsonl").write_text("{}\n")
    assert digests(tmp_path)["tasks"] != before


def test_a_second_look_reads_no_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_experiment(tmp_path, ALL)
    (tmp_path / "storage").mkdir()
    before = digests(tmp_path)
    monkeypatch.setattr(contents, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert digests(tmp_path) == before


@pytest.mark.parametrize("content", ["", "[1]", '{"x": 1}', "not JSON"])
def test_a_spoilt_cache_only_costs_time(tmp_path: Path, content: str) -> None:
    write_experiment(tmp_path, ALL)
    (tmp_path / "storage").mkdir()
    before = digests(tmp_path)
    (tmp_path / "storage" / contents.CACHE).write_text(content)
    assert digests(tmp_path) == before
    assert json.loads((tmp_path / "storage" / contents.CACHE).read_text())


def test_a_missing_input_has_no_digest(tmp_path: Path) -> None:
    write_experiment(tmp_path, ALL)
    (tmp_path / "id.txt").unlink()
    assert "id.txt" not in digests(tmp_path)


def test_defaults_are_below_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSFER_STORAGE", raising=False)
    assert default_storage() == Path("runs/.storage")
    assert default_output("demo") == Path("runs/demo")
