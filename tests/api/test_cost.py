"""What an experiment costs: the formulas, and where the size of a model is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.documents import EVALUATION, PRETRAINING, TUNING, VOCABULARY, document
from transfer_api.cost import ModelSize, StageCost, declared_size, gpu_speed, parameters_from_name, stage_cost
from transfer_api.load import experiment_from
from transfer_api.spec import Lora, ModelSource
from transfer_api.stage import StagePlan, plan_stages

CONFIG = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip
LLAMA = ModelSize.from_config(6_738_415_616, "counted", CONFIG)


def stages(**spec: Any) -> dict[str, StagePlan]:
    return {stage.name: stage for stage in plan_stages(experiment_from(document(**spec)).spec)}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 7_000_000_000), ("HuggingFaceTB/SmolLM2-135M", 135_000_000), ("Qwen/Qwen2.5-0.5B", 500_000_000),
        ("mistralai/Mixtral-8x7B-v0.1", 56_000_000_000), ("bigscience/bloom-1b7", None), ("gpt2", None), ("my/4bit-model", None),
    ],
)  # fmt: skip
def test_a_size_is_read_from_a_name(name: str, parameters: int | None) -> None:
    assert parameters_from_name(name) == parameters


def test_the_declared_size_goes_before_the_name() -> None:
    declared = declared_size(ModelSource(name="a/b-7b", parameters=6_740_000_000))
    assert declared is not None
    assert (declared.parameters, declared.source) == (6_740_000_000, "spec.model.parameters")
    named = declared_size(ModelSource(name="a/b-7b"))
    assert named is not None
    assert "name" in named.source
    assert 4000 < named.hidden < 4500
    assert declared_size(ModelSource(path="model")) is None


def test_lora_of_llama_7b_has_the_parameters_that_peft_counts() -> None:
    # peft 0.21, r=16 on the seven linear modules of Llama-2-7B: 39,976,960.
    assert LLAMA.adapters(Lora()) == 39_976_960
    assert LLAMA.adapters(Lora(train_embeddings=True)) == 39_976_960 + 2 * 32000 * 4096


def test_widths_of_grouped_queries_and_missing_fields() -> None:
    size = ModelSize.from_config(1, "x", {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": True})
    assert (size.key_value, size.vocabulary, size.layers) == (32, 0, 0)
    assert ModelSize.from_config(1, "x", {"head_dim": 128, "num_attention_heads": 4}).key_value == 512


def test_full_training_is_six_flops_a_parameter_and_token() -> None:
    cost = stage_cost(stages()["pretraining"], LLAMA, None)
    assert cost.flops == 6 * LLAMA.parameters * 41_000
    assert cost.steps == 40
    assert cost.state_bytes == 16 * LLAMA.parameters
    assert cost.work_bytes == 3 * 12 * LLAMA.parameters


def test_lora_is_four_flops_and_little_state() -> None:
    cost = stage_cost(stages(instructionTuning=TUNING)["instruction-tuning"], LLAMA, 400_000)
    assert cost.tokens == 100_000
    assert cost.flops == (4 * LLAMA.parameters + 2 * 39_976_960) * 100_000
    assert cost.state_bytes == 4 * LLAMA.parameters + 16 * 39_976_960


@pytest.mark.parametrize(
    ("budget", "tokens", "steps"),
    [({"steps": 10}, 10 * 1024, 10), ({"epochs": 2}, 200_000, 195), ({"tokens": "1K", "globalBatchTokens": 512}, 1000, 1)],
)
def test_budgets_become_tokens_and_steps(budget: dict[str, Any], tokens: int, steps: int) -> None:
    wanted = {**{key: value for key, value in PRETRAINING.items() if key != "tokens"}, **budget}
    cost = stage_cost(stages(pretraining=wanted)["pretraining"], LLAMA, 400_000)
    assert (cost.tokens, cost.steps) == (tokens, steps)


def test_what_cannot_be_known_is_none() -> None:
    wanted = {**{key: value for key, value in PRETRAINING.items() if key != "tokens"}, "epochs": 1}
    unread = stage_cost(stages(pretraining=wanted)["pretraining"], LLAMA, None)
    assert (unread.tokens, unread.steps, unread.flops) == (None, None, None)
    assert unread.seconds(gpu_speed(1)) is None
    unsized = stage_cost(stages()["pretraining"], None, None)
    assert (unsized.tokens, unsized.flops) == (41_000, None)
    assert "spec.model.parameters" in unsized.formula


def test_other_stages() -> None:
    planned = stages(vocabulary=VOCABULARY, evaluation=EVALUATION)
    grown = LLAMA.parameters + 100 * 4096
    assert stage_cost(planned["vocabulary"], LLAMA, 1000).artifact_bytes == 4 * grown
    assert stage_cost(planned["vocabulary"], None, 1000).artifact_bytes == 0
    dataset = stage_cost(planned["pretraining-dataset"], LLAMA, 4000)
    assert (dataset.tokens, dataset.artifact_bytes, dataset.work_bytes) == (1000, 9000, 4000)
    assert stage_cost(planned["baseline"], LLAMA, 4000).flops == 2 * LLAMA.parameters * 1000
    assert stage_cost(planned["baseline"], None, 4000) == StageCost(tokens=1000, formula="2·N·D, texts only")


def test_precision_and_micro_batch_decide_activations_only() -> None:
    wide = stage_cost(stages(pretraining={**PRETRAINING, "precision": "Float32"})["pretraining"], LLAMA, None)
    narrow = stage_cost(stages()["pretraining"], LLAMA, None)
    small = stage_cost(stages(pretraining={**PRETRAINING, "microBatchTokens": 64})["pretraining"], LLAMA, None)
    assert wide.activation_bytes > narrow.activation_bytes > small.activation_bytes
    assert wide.state_bytes == narrow.state_bytes == small.state_bytes
    assert narrow.memory_bytes(4) == narrow.state_bytes // 4 + narrow.activation_bytes


def test_a_replica_has_all_of_the_state_and_is_the_same_stage() -> None:
    replica, shard = stages(pretraining={**PRETRAINING, "sharding": "None"})["pretraining"], stages()["pretraining"]
    assert replica.key == shard.key
    cost, parted = stage_cost(replica, LLAMA, None), stage_cost(shard, LLAMA, None)
    assert cost.memory_bytes(4) == cost.memory_bytes(1) == parted.memory_bytes(1) > parted.memory_bytes(4)
    assert cost.work_bytes == parted.work_bytes


@pytest.mark.parametrize(("gpu", "tokens"), [(False, 1024), (True, 16384)])
def test_without_a_micro_batch_a_pass_has_what_the_trainer_gives_it(gpu: bool, tokens: int) -> None:
    many = {**PRETRAINING, "tokens": "1M", "globalBatchTokens": 65536}
    default = stage_cost(stages(pretraining=many)["pretraining"], LLAMA, None, gpu=gpu)
    said = stage_cost(stages(pretraining={**many, "microBatchTokens": tokens})["pretraining"], LLAMA, None)
    assert default.activation_bytes == said.activation_bytes


def test_gpus_are_counted_and_the_assumption_said() -> None:
    cost = stage_cost(stages()["pretraining"], LLAMA, None)
    speed = gpu_speed(64)
    assert cost.seconds(speed) == pytest.approx(6 * LLAMA.parameters * 41_000 / (64 * 989e12 * 0.4))
    assert "40%" in speed.assumption
    assert "64 GPUs" in speed.assumption
