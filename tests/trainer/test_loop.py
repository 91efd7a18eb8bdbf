"""What training does to the numbers: no leak between documents, no say of the micro-batch, validation that adds up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from tests.support.pods import LENGTH, ORDER, ROWS_PER_STEP, losses, make_storage, training_stage
from tests.support.tiny import SENTENCES, drop_tensor, save_tiny_model
from transfer_api.errors import DataError, ModelError, SpecError, TransferError
from transfer_api.progress import Progress
from transfer_api.spec import NamedText, Precision, Schedule
from transfer_api.stage import Execution, StageKind, StagePlan
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.ledger import LEDGER, Summary, read_ledger, verify_ledger
from transfer_trainer.loop import Training
from transfer_trainer.model import load_model, summed_loss
from transfer_trainer.optimizer import learning_rate_factor
from transfer_trainer.parallel import Team
from transfer_trainer.validation import MOST_TOKENS, bits_per_byte, tokenise

KEY = "a" * 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def storage(tmp_path: Path) -> tuple[Path, str]:
    return tmp_path, make_storage(tmp_path)


def train(folder: Path, stage: StagePlan, asked: Callable[[], bool] = lambda: False) -> tuple[bool, list[Progress]]:
    reports: list[Progress] = []
    done = Training(PodContext(stage=stage, storage=folder, pod="pod"), Team(), asked, reports.append).run()
    return done, reports


def ledger(folder: Path, stage: StagePlan) -> Summary:
    return read_ledger(ArtifactStore(folder).path(stage.kind, stage.key) / LEDGER)


def test_documents_of_a_packed_row_do_not_see_each_other(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    tokens_BT = torch.randint(3, 300, (3, 24))
    positions_BT = torch.arange(24).repeat(3, 1)
    cuts = (0, 7, 15)
    for row, cut in enumerate(cuts):
        positions_BT[row, cut:] = torch.arange(24 - cut)
    targets_BT = positions_BT > 0
    packed = summed_loss(model, tokens_BT, positions_BT, targets_BT, torch.ones(3)).nats
    alone = torch.tensor(0.0)
    for row, cut in enumerate(cuts):
        for document in (tokens_BT[row, :cut], tokens_BT[row, cut:]):
            if len(document) > 1:
                logits_TV = model(document[None]).logits[0]
                alone = alone + F.cross_entropy(logits_TV[:-1], document[1:], reduction="sum")
    torch.testing.assert_close(packed, alone, rtol=1e-6, atol=0)


def test_rows_of_weight_zero_and_rows_without_labels_count_for_nothing(model: PreTrainedModel) -> None:
    tokens_BT, positions_BT = torch.randint(3, 300, (2, 16)), torch.arange(16).repeat(2, 1)
    labelled = torch.ones(2, 16, dtype=torch.bool)
    one = summed_loss(model, tokens_BT[:1], positions_BT[:1], labelled[:1], torch.ones(1)).nats
    torch.testing.assert_close(summed_loss(model, tokens_BT, positions_BT, labelled, torch.tensor([1.0, 0.0])).nats, one)
    labelled[1] = False
    torch.testing.assert_close(summed_loss(model, tokens_BT, positions_BT, labelled, torch.ones(2)).nats, one)
    nothing = summed_loss(model, tokens_BT, positions_BT, torch.zeros_like(labelled), torch.ones(2))
    assert nothing.nats.item() == 0
    nothing.objective.backward()  # type: ignore[no-untyped-call]


def test_the_z_loss_is_minimised_and_not_shown(model: PreTrainedModel) -> None:
    tokens_BT, positions_BT = torch.randint(3, 300, (2, 16)), torch.arange(16).repeat(2, 1)
    labelled, weight_B = torch.ones(2, 16, dtype=torch.bool), torch.tensor([1.0, 0.5])
    plain = summed_loss(model, tokens_BT, positions_BT, labelled, weight_B)
    both = summed_loss(model, tokens_BT, positions_BT, labelled, weight_B, z_loss=0.1)
    torch.testing.assert_close(plain.objective, plain.nats)
    assert torch.equal(both.nats, plain.nats)
    squares = model(tokens_BT).logits[:, :-1].logsumexp(dim=-1).square().sum(dim=1)
    torch.testing.assert_close(both.objective, plain.nats + 0.1 * (squares * weight_B).sum())


def test_embeddings_alone_are_trained_at_first_then_everything(storage: tuple[Path, str]) -> None:
    folder, dataset = storage

    def moved(key: str, steps: int) -> set[str]:
        stage = training_stage(key, dataset, steps=6, embeddings_first="0.5", checkpoint_steps=100)
        left = iter([False] * steps + [True])
        training = Training(PodContext(stage=stage, storage=folder, pod="pod"), Team(), lambda: next(left), lambda progress: None)
        before = {name: value.clone() for name, value in training.model.state_dict().items()}
        training.run()
        return {name for name, value in training.model.state_dict().items() if not torch.equal(value, before[name])}

    everything = set(load_model(folder / "model").state_dict())
    embeddings = {name for name in everything if "embed_tokens" in name or "lm_head" in name}
    assert moved(KEY, 3) == embeddings
    assert moved("b" * 32, 4) == everything


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_micro_batch_has_no_say_in_the_losses(storage: tuple[Path, str], rows: int) -> None:
    folder, dataset = storage
    found = []
    for key, micro in ((KEY, 2), ("b" * 32, rows)):
        execution = Execution(micro_batch_tokens=micro * LENGTH)
        stage = training_stage(key, dataset, steps=6).model_copy(update={"execution": execution})
        train(folder, stage)
        found.append(losses(ledger(folder, stage)))
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_the_loss_falls_on_rows_that_can_be_learned(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=80, learning_rate="1e-2", embedding_learning_rate="1e-2")
    train(folder, stage)
    curve = losses(ledger(folder, stage))
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


@pytest.mark.parametrize("changes", [{}, {"embeddings_first": "0.3", "z_loss": "1e-3"}], ids=["plainly", "embeddings first"])
def test_a_run_stopped_at_any_step_goes_on_with_the_same_losses(storage: tuple[Path, str], changes: dict[str, str]) -> None:
    folder, dataset = storage
    steady = training_stage(KEY, dataset, steps=9, **changes)
    broken = training_stage("b" * 32, dataset, steps=9, checkpoint_steps=100, **changes)
    train(folder, steady)
    for budget in (0, 1, 3):
        left = iter([False] * budget + [True])
        assert not train(folder, broken, lambda left=left: next(left))[0]  # type: ignore[misc]
    done, reports = train(folder, broken)
    assert done
    assert losses(ledger(folder, broken)) == losses(ledger(folder, steady))
    verify_ledger(ArtifactStore(folder).path(broken.kind, broken.key) / LEDGER, ORDER, ROWS_PER_STEP, 9)
    assert (reports[-1].step, reports[-1].lost_steps, reports[-1].tokens) == (9, 0, 9 * ROWS_PER_STEP * LENGTH)


def test_a_checkpoint_that_is_passed_over_is_told_by_its_step(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=6, checkpoint_steps=2)
    asked = iter([False] * 4 + [True])
    done, reports = train(folder, stage, lambda: next(asked))
    assert (done, reports[-1].passed_over) == (False, [])
    *_, newest = sorted((ArtifactStore(folder).work(stage.kind, stage.key) / "checkpoints").iterdir())
    (newest / ".metadata").unlink()
    done, reports = train(folder, stage)
    assert done
    assert reports[-1].passed_over == [int(newest.name.removeprefix("step-"))]


def test_bfloat16_stays_near_float32(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    exact, rough = training_stage(KEY, dataset, steps=5), training_stage("b" * 32, dataset, steps=5, precision=Precision.BFLOAT16)
    train(folder, exact)
    train(folder, rough)
    assert losses(ledger(folder, rough)) == pytest.approx(losses(ledger(folder, exact)), rel=2e-2)
    assert losses(ledger(folder, rough)) != losses(ledger(folder, exact))


def test_bits_per_byte_are_those_of_plain_transformers(model: PreTrainedModel, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path))
    nats, size = 0.0, 0
    for sentence in SENTENCES:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(sentence)["input_ids"]]])
        with torch.no_grad():
            nats += float(F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
        size += len(sentence.encode())
    text = tokenise("udhr", SENTENCES, tokenizer, 200)
    found = bits_per_byte(model, [text], Team(), Precision.FLOAT32, 256)
    assert found["udhr"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_a_long_text_is_cut_and_its_bytes_with_it(model: PreTrainedModel, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path))
    text = tokenise("long", ["abc " * 5000], tokenizer, 64)
    scored = sum(len(window) - 1 for window in text.windows)
    assert MOST_TOKENS - 64 < scored <= MOST_TOKENS
    assert text.bytes == len(tokenizer.decode([token for window in text.windows for token in window[1:]]).encode())


def test_validation_is_measured_at_the_start_between_and_at_the_end(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    (folder / "held.txt").write_text("\n\n".join(SENTENCES))
    texts = [NamedText(path="held.txt", name="held")]
    stage = training_stage(KEY, dataset, steps=7, validation_steps=3, validation_texts=texts)
    done, reports = train(folder, stage)
    assert done
    curve = json.loads((ArtifactStore(folder).path(stage.kind, stage.key) / "training.json").read_text())
    assert [point["step"] for point in curve["validation"]] == [0, 3, 6, 7]
    assert reports[-1].metrics["bits_per_byte/held"] == curve["validation"][-1]["bitsPerByte"]["held"]
    assert [point["step"] for point in curve["steps"]] == list(range(1, 8))


@pytest.mark.parametrize("killed", [False, True], ids=["after it validated", "while it validated"])
def test_a_run_that_goes_on_from_a_validated_step_measures_it_once(storage: tuple[Path, str], killed: bool) -> None:
    folder, dataset = storage
    (folder / "held.txt").write_text("\n\n".join(SENTENCES))
    texts = [NamedText(path="held.txt", name="held")]
    stage = training_stage(KEY, dataset, steps=6, checkpoint_steps=3, validation_steps=3, validation_texts=texts)
    looks = iter(range(100))
    assert train(folder, stage, lambda: next(looks) == 3)[0] is False
    path = ArtifactStore(folder).work(stage.kind, KEY) / LEDGER
    lines = [line for line in path.read_text().splitlines(keepends=True) if not (killed and '"validation", "step": 3' in line)]
    assert len(lines) == 5 - killed
    path.write_text("".join(lines))
    assert train(folder, stage)[0] is True
    assert [line["step"] for line in ledger(folder, stage).validation] == [0, 3, 6]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_plain_transformers_loads_the_artifact_and_gets_the_trained_weights(tmp_path: Path, lora: bool, tied: bool) -> None:
    dataset = make_storage(tmp_path)
    save_tiny_model(tmp_path / "model", tied=tied)
    stage = training_stage(KEY, dataset, steps=4, lora=lora, learning_rate="1e-2")
    context = PodContext(stage=stage, storage=tmp_path, pod="pod")
    training = Training(context, Team(), lambda: False, lambda progress: None)
    assert training.run()
    folder = ArtifactStore(tmp_path).open(stage.kind, stage.key) / "model"
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert plain.dtype == torch.float32
    assert plain.config.tie_word_embeddings is tied
    ids = torch.randint(3, 300, (2, 20))
    with torch.no_grad():
        trained = cast(Any, training.model)(ids).logits
        torch.testing.assert_close(plain(ids).logits, trained, rtol=1e-4, atol=1e-5)
        before = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        assert (folder.parent / "adapter").is_dir() == lora
        if lora:
            adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), folder.parent / "adapter").eval()
            torch.testing.assert_close(adapted(ids).logits, trained, rtol=1e-4, atol=1e-5)
            assert adapted.peft_config["default"].base_model_name_or_path == "model"
        assert not torch.allclose(before(ids).logits, trained, atol=1e-3)
    changed = {name for name, weight in plain.state_dict().items() if not torch.equal(weight, before.state_dict()[name])}
    assert "model.embed_tokens.weight" in changed
    assert ("model.layers.0.self_attn.v_proj.weight" in changed) is not lora, "only the targets get an adapter"
    assert AutoTokenizer.from_pretrained(folder)("Semua orang")["input_ids"]


def test_a_bfloat16_base_gives_a_bfloat16_artifact(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).save_pretrained(folder / "model")
    stage = training_stage(KEY, dataset, steps=2)
    train(folder, stage)
    weights = AutoModelForCausalLM.from_pretrained(ArtifactStore(folder).path(stage.kind, stage.key) / "model", dtype="auto")
    assert weights.dtype == torch.bfloat16


def test_the_tuned_models_tokenizer_has_the_template_it_was_tuned_with(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    (folder / "model" / "chat_template.jinja").unlink()
    stage = training_stage(KEY, dataset, steps=2).model_copy(update={"kind": StageKind.INSTRUCTION_TUNING})
    assert train(folder, stage)[0]
    tokenizer = AutoTokenizer.from_pretrained(ArtifactStore(folder).path(stage.kind, stage.key) / "model")
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Siapa?"}], tokenize=False, add_generation_prompt=True)
    assert said == "<|im_start|>user\nSiapa?<|im_end|>\n<|im_start|>assistant\n"
    generation = GenerationConfig.from_pretrained(ArtifactStore(folder).path(stage.kind, stage.key) / "model")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in generation.eos_token_id, "it stops where its answers end"


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        pytest.param({"learning_rate": "1e30"}, SpecError, "spec.pretraining.learningRate", id="a loss that is no number"),
        pytest.param({"max_epochs": 1}, DataError, "spec.pretraining.steps", id="more steps than there is data"),
    ],
)
def test_what_cannot_work_is_told_with_field_and_way_out(
    storage: tuple[Path, str], changes: dict[str, Any], error: type[TransferError], says: str
) -> None:
    folder, dataset = storage
    with pytest.raises(error, match=says) as raised:
        train(folder, training_stage(KEY, dataset, steps=30, **changes))
    assert raised.value.next_step


def test_weights_of_which_one_is_missing_are_refused(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    drop_tensor(folder / "model")
    with pytest.raises(ModelError, match=r"lacks 1 weights.*down_proj"):
        train(folder, training_stage(KEY, dataset, steps=3))


def test_rows_longer_than_the_models_positions_are_refused(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": LENGTH - 1}))
    with pytest.raises(SpecError, match="sequenceLength"):
        train(folder, training_stage(KEY, dataset, steps=3))


def test_a_lora_target_that_names_nothing_is_refused_with_what_there_is(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=3, lora=True)
    stage.parameters["lora"]["targets"] = ["q_proj", "query"]
    with pytest.raises(SpecError, match=r"'query'.*down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"):
        train(folder, stage)


def test_a_rank_larger_than_a_matrix_is_refused_with_its_side(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=3, lora=True)
    stage.parameters["lora"]["rank"] = 33
    with pytest.raises(SpecError, match="q_proj has a side of 32") as caught:
        train(folder, stage)
    assert (caught.value.field, caught.value.allowed) == ("spec.pretraining.lora.rank", "at most 32")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        pytest.param(Schedule.CONSTANT, [0.5, 1, 1, 1, 1], id="constant"),
        pytest.param(Schedule.LINEAR, [0.5, 1, 1, 2 / 3, 1 / 3], id="linear"),
        pytest.param(Schedule.COSINE, [0.5, 1, 1, 0.75, 0.25], id="cosine"),
        pytest.param(Schedule.WSD, [0.5, 1, 1, 2 / 3, 1 / 3], id="warm-up, stable, decay"),
    ],
)
def test_the_learning_rate_warms_up_and_falls(schedule: Schedule, expected: list[float]) -> None:
    assert [learning_rate_factor(step, 5, 0.4, schedule, decay=0.4) for step in range(5)] == pytest.approx(expected)


def test_a_training_goes_on_where_no_event_file_can_be_written(storage: tuple[Path, str], caplog: pytest.LogCaptureFixture) -> None:
    folder, dataset = storage
    (folder / "tensorboard").write_text("in the way")
    stage = training_stage(KEY, dataset, steps=3)
    assert train(folder, stage)[0]
    assert len(ledger(folder, stage).lines) == 3
    assert [record for record in caplog.records if "training goes on" in record.getMessage()]
