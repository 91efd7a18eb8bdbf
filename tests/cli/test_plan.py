"""`transfer plan`: stages, keys, what is cached, what it costs; nothing is run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.documents import COMMIT, EVALUATION, PRETRAINING, TUNING, VOCABULARY, document
from tests.support.finished import finished
from tests.support.folders import CONFIG, PARAMETERS, write_document, write_experiment
from transfer_api.load import load_experiment
from transfer_api.stage import StageKind, StagePlan, plan_stages
from transfer_cli import plan
from transfer_cli.inputs import fingerprints
from transfer_cli.main import main
from transfer_pod.artifact import ArtifactStore

ALL = document(vocabulary=VOCABULARY, instructionTuning=TUNING, evaluation=EVALUATION)


def stages(file: Path, storage: Path) -> tuple[StagePlan, ...]:
    experiment = load_experiment(file)
    return plan_stages(experiment.spec, fingerprints(experiment, storage=storage, search=(file.parent,)))


def shown(file: Path, storage: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["plan", str(file), "--storage", str(storage)]) == 0
    return capsys.readouterr().out


def seal(store: ArtifactStore, stage: StagePlan) -> None:
    work = store.work(stage.kind, stage.key)
    (work / "file").write_text("x")
    store.commit(stage, work)


def test_a_budget_that_the_texts_cannot_fill_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(changes: dict[str, Any]) -> str:
        return shown(write_document(tmp_path, document(pretraining=PRETRAINING | changes)), tmp_path / "storage", capsys)

    write_experiment(tmp_path)
    guessed, known = (
        "asks for 41K tokens of texts that have about 17K",
        "not ready to run:\n  spec.pretraining.mixture[0].path: has 44,000 bytes",
    )
    assert guessed in told({})  # by a token of four bytes
    assert known not in told({})
    assert guessed not in told({"tokens": "2K", "maxEpochs": 1000})
    certain = told({"tokens": "500M"})  # by a token of one byte
    assert known in certain
    assert "of texts that have about" not in certain


def test_a_batch_of_more_than_all_epochs_have_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixture = [{"path": "id.txt", "weight": 1}, {"path": "en.txt", "weight": 1}]

    def told(**changes: Any) -> str:
        wanted = {"epochs": 1, "sequenceLength": 128, "mixture": mixture} | changes
        return shown(write_document(tmp_path, document(pretraining=wanted)), tmp_path / "storage", capsys)

    write_experiment(tmp_path)
    known = "not ready to run:\n  spec.pretraining.globalBatchTokens: is more than there is to read: at most "
    guessed = "pretraining: a batch of 51.2K tokens is more than the about 22K that 1 epoch have"
    assert known in told(globalBatchTokens=524_288)
    assert "a batch of" not in told(globalBatchTokens=524_288)
    assert guessed in told(globalBatchTokens="50Ki")
    assert "not ready" not in told(globalBatchTokens="50Ki")
    assert "a batch of" not in told(globalBatchTokens="50Ki", epochs=3)
    mixture[1]["weight"] = 3  # a pass over id reads three times as much of en
    text = told(globalBatchTokens="50Ki")
    assert "a batch of" not in text
    assert next(line for line in text.splitlines() if line.startswith("  pretraining ")).split("to do")[1].split()[0] == "44K"


def test_every_stage_is_shown_with_key_and_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_experiment(tmp_path, ALL)
    text = shown(file, tmp_path / "storage", capsys)
    for stage in stages(file, tmp_path / "storage"):
        assert f"{stage.name} " in text
        assert stage.key[:12] in text
    assert "7 stages, 0 of them cached" in text
    assert "counted in its safetensors" in text
    assert "17.408K parameters" in text
    assert f"{6 * (PARAMETERS + 100 * 32) * 41_000:.2e}" in text  # pretraining starts from the grown model
    assert "this machine: float32 matrix product" in text
    assert "6·N·D" in text
    assert "total:" in text
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({}, "Full"),
        ({"method": "LoRA"}, "LoRA r=16"),
        ({"method": "QLoRA", "lora": {"rank": 4, "trainEmbeddings": True}}, "QLoRA r=4 and embeddings"),
    ],
    ids=["full", "LoRA", "QLoRA"],
)
def test_the_method_of_a_stage_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: dict[str, Any], told: str) -> None:
    file = write_experiment(tmp_path, document(pretraining=PRETRAINING | method))
    assert f"\n  pretraining: {told}, 8 rows of 128 tokens a step" in shown(file, tmp_path / "storage", capsys)


def test_what_is_there_is_shown_as_cached_and_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = write_experiment(tmp_path), ArtifactStore(tmp_path / "storage")
    planned = stages(file, store.root)
    seal(store, planned[0])
    text = shown(file, store.root, capsys)
    assert "1 of them cached" in text
    assert [line for line in text.splitlines() if "baseline" in line and "cached" in line]
    for stage in planned[1:]:
        seal(store, stage)
    text = shown(file, store.root, capsys)
    assert "every stage is cached" in text
    assert "workers:" not in text


def test_a_tuning_that_is_cached_has_the_steps_that_it_took_and_another_those_of_its_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def steps(named: Path) -> str:
        line = next(line for line in shown(named, tmp_path / "storage", capsys).splitlines() if "instruction-tuning " in line)
        return " ".join(re.split(r"\s{2,}", line.strip())[2:5])

    wanted = document(pretraining=None, instructionTuning={**TUNING, "epochs": 3})
    made = {StageKind.DATASET: {"rows": 48, "tokens": 5000}, StageKind.INSTRUCTION_TUNING: {"steps": 17, "tokens": 17408}}
    finished(tmp_path, wanted, numbers=made)
    assert steps(tmp_path / "experiment.yaml") == "cached 17.408K 17"
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(document(pretraining=None, instructionTuning={**TUNING, "epochs": 2})))
    assert steps(other) == f"to do {2 * 48 * 128 / 1000:g}K {2 * 48 // 8}"


@pytest.mark.parametrize("given", ["file", "file/below"])
def test_a_storage_that_is_a_file_is_named_by_where_it_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    file = write_experiment(tmp_path)
    (tmp_path / "file").touch()
    for command in ("plan", "run", "report"):
        assert main([command, str(file), "--storage", str(tmp_path / given)]) == 2
        assert capsys.readouterr().err.startswith(f"transfer {command}: --storage: ")
    monkeypatch.setenv("TRANSFER_STORAGE", str(tmp_path / given))
    assert main(["plan", str(file)]) == 2
    told = capsys.readouterr().err
    assert "TRANSFER_STORAGE: " in told
    assert "not a folder" in told


@pytest.mark.parametrize("arguments", [["plan", "--storage"], ["run", "--storage"], ["run", "--output"], ["evaluate", "--output"]])
def test_an_empty_name_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    command, option = arguments
    with pytest.raises(SystemExit) as ended:
        main([command, str(tmp_path / "experiment.yaml"), option, ""])
    assert ended.value.code == 2
    assert f"argument {option}: is empty; name a folder, or leave the option out" in capsys.readouterr().err


def test_changed_content_is_to_be_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = write_experiment(tmp_path), ArtifactStore(tmp_path / "storage")
    for stage in stages(file, store.root):
        seal(store, stage)
    (tmp_path / "en.txt").write_text("Other words.\n")
    text = shown(file, store.root, capsys)
    assert "1 of them cached" in text  # the baseline reads only model and held-out text


def test_gpus_and_workers_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = document(
        model={"name": "meta-llama/Llama-2-7b-hf", "revision": COMMIT},
        pretraining={**PRETRAINING, "tokens": "500M", "sequenceLength": 2048, "globalBatchTokens": "512Ki"},
        workers={"min": 2, "replicas": 8, "max": 16, "resources": {"limits": {"nvidia.com/gpu": 8}}},
    )
    text = shown(write_experiment(tmp_path, wanted), tmp_path / "storage", capsys)
    assert "read from the model's name" in text
    assert "64 GPUs at 40% of 989 TFLOP/s" in text
    assert "workers: 8 wanted (2 to 16)" in text
    assert "256 rows of 2048 tokens a step, at most 4 a process" in text
    assert "GPU-hours: about 14.7" in text  # 6 · 7e9 · 5e8 / (64 · 989e12 · 0.4) s on 64 GPUs
    assert "953" in text  # steps


def test_an_unknown_size_says_how_to_give_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = document(model={"name": "gpt2", "revision": COMMIT})
    text = shown(write_experiment(tmp_path, wanted), tmp_path / "storage", capsys)
    assert "of unknown size; set spec.model.parameters" in text
    assert "without pretraining" in text


def test_hub_data_is_of_unknown_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = document(instructionTuning={**TUNING, "data": [{"hub": "a/b"}]})
    text = shown(write_experiment(tmp_path, wanted), tmp_path / "storage", capsys)
    assert "without instruction-tuning" in text
    assert [line for line in text.splitlines() if "instruction-dataset" in line and " ? " in line]


def test_asked_examples_bound_hub_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = document(instructionTuning={**TUNING, "data": [{"hub": "a/b"}], "examples": "50K"})
    text = shown(write_experiment(tmp_path, wanted), tmp_path / "storage", capsys)
    assert "without" not in text
    line = next(line for line in text.splitlines() if "instruction-tuning" in line)
    assert f"≤ {50_000 * 128 / 1e6:g}M" in line  # an example fills a row at most
    assert "at most about" in text


def test_local_instructions_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tokens(examples: int | None) -> str:
        line = next(line for line in shown(file, tmp_path / "storage", capsys).splitlines() if "instruction-dataset" in line)
        return line.split("to do")[1].split()[0]

    file = write_experiment(tmp_path, document(instructionTuning=TUNING))
    one = (tmp_path / "pairs.jsonl").read_text().splitlines(keepends=True)[0]
    (tmp_path / "pairs.jsonl").write_text(one * 1000)
    assert tokens(None) == f"{len(one) * 1000 // 4 / 1000:g}K"
    file.write_text(yaml.safe_dump(document(instructionTuning={**TUNING, "examples": 100})))
    assert tokens(100) == f"{len(one) * 100 // 4 / 1000:g}K"


def test_evaluation_in_half_the_bits_takes_half_the_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def memory(precision: str) -> str:
        folder = tmp_path / precision
        folder.mkdir()
        wanted = document(pretraining=None, evaluation={**EVALUATION, "precision": precision})
        file = write_experiment(folder, wanted)
        return next(line for line in shown(file, tmp_path / "storage", capsys).splitlines() if line.startswith("  evaluation"))

    assert f"{4 * PARAMETERS / 1000:.1f} KB" in memory("Float32")
    assert f"{2 * PARAMETERS / 1000:.1f} KB" in memory("BFloat16")


def test_only_what_the_evaluation_scores_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tokens(**evaluation: Any) -> str:
        file.write_text(yaml.safe_dump(document(pretraining=None, evaluation={**EVALUATION, **evaluation})))
        line = next(line for line in shown(file, tmp_path / "storage", capsys).splitlines() if line.startswith("  evaluation"))
        return line.split("to do")[1].split()[0]

    file = write_experiment(tmp_path)
    (tmp_path / "test.txt").write_text("\n\n".join(["twelve bytes"] * 100))
    assert tokens() == f"{(14 * 100 - 2) // 4}"
    assert tokens(limit=10) == f"{12 * 10 // 4}"
    assert tokens(limit=1000) == f"{12 * 100 // 4}"
    assert tokens(suites=["mmlu"]) == "0"
    (tmp_path / "test.txt").write_bytes(b"\xe9")
    assert tokens(limit=10) == "?"


def test_what_is_missing_is_said_below_a_plan_that_is_printed_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = document(model={"path": "models/smollm2-135m"}, evaluation=EVALUATION)
    file = write_experiment(tmp_path, wanted)
    (tmp_path / "id.txt").unlink()
    text = shown(file, tmp_path / "storage", capsys)
    plan, _, missing = text.partition("not ready to run:")
    assert "total:" in plan
    assert "spec.model.path: no such file or folder (got 'models/smollm2-135m')" in missing
    assert "make inputs" in missing
    assert "spec.pretraining.mixture[0].path: no such file or folder (got 'id.txt')" in missing
    (tmp_path / "id.txt").write_text("Satu.\n" * 6000)
    (tmp_path / "model").rename(tmp_path / "moved")
    (tmp_path / "models").mkdir()
    (tmp_path / "moved").rename(tmp_path / "models" / "smollm2-135m")
    assert "not ready" not in shown(file, tmp_path / "storage", capsys)


def test_a_file_that_cannot_work_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_experiment(tmp_path, document(workers={"min": 3}))
    assert main(["plan", str(file)]) == 2
    assert "spec.workers.min" in capsys.readouterr().err


def test_the_storage_is_that_of_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFER_STORAGE", str(tmp_path / "elsewhere"))
    assert main(["plan", str(write_experiment(tmp_path))]) == 0
    assert str(tmp_path / "elsewhere") in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "computes"), [("flags : fpu avx512_bf16 sse", False), ("flags : fpu amx_bf16", True), ("", False)])
def test_bfloat16_counts_only_where_the_processor_has_it(tmp_path: Path, flags: str, computes: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    assert plan.computes_bfloat16(tmp_path / "cpuinfo") is computes
    assert plan.computes_bfloat16(tmp_path / "none") is False


@pytest.mark.parametrize(("value", "text"), [(0, "0 s"), (89, "89 s"), (90, "1.5 min"), (5400, "1.5 h"), (200_000, "2.3 d")])
def test_times_are_written_for_people(value: float, text: str) -> None:
    assert plan.format_seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "–"), (12, "12 B"), (1_600_000_000, "1.6 GB"), (2 * 10**12, "2.0 TB")])
def test_sizes_are_written_for_people(value: int, text: str) -> None:
    assert plan.format_bytes(value) == text


def test_the_speed_of_the_machine_is_measured() -> None:
    speed: Any = plan.machine_flops()
    assert speed > 1e8


def test_the_layers_that_are_computed_again_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(available: int, **changes: Any) -> str:
        monkeypatch.setattr(plan, "memory_limit", lambda: available)
        file.write_text(yaml.safe_dump(document(pretraining={**PRETRAINING, "precision": "Float32", **changes})))
        return shown(file, tmp_path / "storage", capsys)

    file = write_experiment(tmp_path)
    (tmp_path / "model" / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 4}))
    plain = told(2**40)
    assert "computed again" not in plain
    assert "pretraining: all 4 layers are computed again in the backward pass (activationCheckpointing: Always; 1.1 TB a process)" in told(
        2**40, activationCheckpointing="Always"
    )
    tight = 10_800_000
    part = told(tight)
    assert "pretraining: 1 of 4 layers are computed again in the backward pass (activationCheckpointing: Auto; 10.8 MB a process)" in part
    assert "computed again" not in told(2 * tight)

    def memory(text: str) -> str:
        return re.split(r"\s{2,}", next(line for line in text.splitlines() if line.startswith("  pretraining ")))[-2]

    assert memory(part) != memory(plain)
