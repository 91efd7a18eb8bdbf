"""What is advised after a stage ran out of memory fits by the very estimate that `transfer plan` prints."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.documents import document
from transfer_api.cost import ModelSize, stage_cost
from transfer_api.fit import HEADROOM, advice, layers_again
from transfer_api.load import experiment_from
from transfer_api.stage import StagePlan, plan_stages

GIB = 2**30
LLAMA_7B = ModelSize.like_llama(6_740_000_000, "declared")


def stage(**changes: Any) -> StagePlan:
    training = {"tokens": "500M", "sequenceLength": 2048, "globalBatchTokens": "512Ki", "mixture": [{"path": "id.txt"}], **changes}
    return next(one for one in plan_stages(experiment_from(document(pretraining=training)).spec) if one.name == "pretraining")


def advised(
    available: float, micro: int = 16384, processes: int = 8, size: ModelSize | None = LLAMA_7B, gpu: bool = True, **changes: Any
) -> str:
    return advice(stage(**changes), size, processes=processes, available=round(available), micro_batch_tokens=micro, gpu=gpu)


CASES = [
    pytest.param(
        {"available": 80 * GIB, "micro": 65536}, [r"Set pretraining\.microBatchTokens: \d+"], ["instead of"], id="a pass too large"
    ),
    pytest.param(
        {"available": 80 * GIB, "processes": 1}, [r"at least 2 GPUs instead of 1", r"LoRA \(needs \d"], ["microBatch"], id="7B on one"
    ),
    pytest.param({"available": 80 * GIB, "micro": 2048, "processes": 64}, ["more GPUs instead of 64"], ["microBatch"], id="it should fit"),
    pytest.param({"available": 80 * GIB, "micro": 4096, "processes": 64}, ["microBatchTokens: 2048"], [], id="half of what should fit"),
    pytest.param({"available": GIB}, ["sequenceLength"], ["microBatch", "LoRA"], id="nothing that is known would do"),
    pytest.param({"available": 64 * GIB, "gpu": False}, ["microBatchTokens: 8192", r"limits\.memory to \d+Gi"], ["GPU"], id="without GPUs"),
    pytest.param({"available": 80 * GIB, "size": None}, ["microBatchTokens: 8192", "LoRA"], ["GiB"], id="size unknown"),
    pytest.param({"available": 80 * GIB, "processes": 1, "method": "LoRA"}, ["microBatchTokens"], ["method: LoRA"], id="adapters already"),
    pytest.param(
        {"available": 80 * GIB, "sharding": "None"},
        [r"\(whole in each process\)", r"pretraining\.sharding: Full,"],
        ["GPUs"],
        id="replicas",
    ),
    pytest.param(
        {"available": 80 * GIB, "sharding": "None", "processes": 1}, ["sharding: Full and use at least 2 GPUs"], [], id="one replica"
    ),
    pytest.param(
        {"available": 24 * GIB, "sharding": "None", "processes": 2},
        [r"sharding: Full and use at least \d GPUs instead of 2"],
        [],
        id="replicas that two shards are too much for",
    ),
    pytest.param({"available": 80 * GIB, "size": None, "sharding": "None"}, ["sharding: Full"], ["GPUs"], id="replicas, size unknown"),
    pytest.param({"available": 80 * GIB, "processes": 1, "micro": 2048}, [r"optimizer: AdamW8bit \(needs \d"], [], id="smaller moments"),
    pytest.param(
        {"available": 24 * GIB, "processes": 1, "micro": 2048}, [r"method: QLoRA \(needs \d"], ["AdamW8bit", "method: LoRA"], id="4 bits"
    ),
    pytest.param(
        {"available": 12 * GIB, "processes": 2, "micro": 2048}, [r"at least \d+ GPUs"], ["method:"], id="4 bits are for one process"
    ),
    pytest.param(
        {"available": 4 * GIB, "processes": 1, "method": "QLoRA"}, ["sequenceLength"], ["instead of", "method:"], id="nothing is smaller"
    ),
]


@pytest.mark.parametrize(("settings", "says", "never"), CASES)
def test_the_advice_names_what_to_set(settings: dict[str, Any], says: list[str], never: list[str]) -> None:
    text = advised(**settings)
    assert all(re.search(pattern, text) for pattern in says), text
    assert not any(word in text.split(". ", 1)[-1] for word in never), text
    assert len(text) < 500, "the status cuts there"


@given(
    available=st.floats(GIB, 200 * GIB), micro=st.sampled_from([2048, 4096, 16384, 65536]), processes=st.sampled_from([1, 2, 8, 64]),
    checkpointing=st.sampled_from(["Never", "Always"]), sharding=st.sampled_from(["Full", "None"]),
)  # fmt: skip
def test_what_is_advised_fits(available: float, micro: int, processes: int, checkpointing: str, sharding: str) -> None:
    text = advised(available, micro, processes, activationCheckpointing=checkpointing, sharding=sharding)
    usable = (1 - HEADROOM) * round(available)

    def needs(micro: int, processes: int, checkpointing: str = checkpointing, sharding: str = sharding) -> int:
        wanted = stage(activationCheckpointing=checkpointing, sharding=sharding)
        wanted = wanted.model_copy(update={"execution": wanted.execution.model_copy(update={"micro_batch_tokens": micro})})
        return stage_cost(wanted, LLAMA_7B, None).memory_bytes(processes)

    if found := re.search(r"microBatchTokens: (\d+)", text):
        assert int(found[1]) < micro
        assert needs(int(found[1]), processes) <= usable
        assert needs(micro, processes) <= usable or needs(int(found[1]) + 2048, processes) > usable, "the largest that does"
    if found := re.search(r"at least (\d+) GPUs", text):
        assert needs(2048, int(found[1]), sharding="Full") <= usable
        assert needs(2048, int(found[1]) - 1, sharding="Full") > usable, "the fewest that do"
    elif "sharding: Full," in text:
        assert sharding == "None"
        assert needs(2048, processes, sharding="Full") <= usable
    assert ("activationCheckpointing: Always" in text) is (checkpointing == "Never" and needs(micro, processes, "Always") <= usable)


ALL = LLAMA_7B.layers


def again(available: float, size: ModelSize | None = LLAMA_7B, micro: int = 16384, **changes: Any) -> int:
    return layers_again(stage(**changes), size, layers=ALL, processes=8, available=round(available), micro_batch_tokens=micro)


@pytest.mark.parametrize(
    ("changes", "available", "decided"),
    [
        pytest.param({}, 20 * GIB, ALL, id="nothing is enough"),
        pytest.param({}, 200 * GIB, 0, id="it fits"),
        pytest.param({}, 0, 0, id="memory unknown"),
        pytest.param({"activationCheckpointing": "Never"}, 80 * GIB, 0, id="never"),
        pytest.param({"activationCheckpointing": "Always"}, 0, ALL, id="always"),
    ],
)
def test_activations_are_kept_where_they_fit_and_else_computed_again(changes: dict[str, Any], available: int, decided: int) -> None:
    assert again(available, **changes) == decided
    assert again(available, None, **changes) == (ALL if "Always" in changes.values() else 0)
    assert stage(**changes).key == stage().key, "it has no say in the result"


@given(available=st.floats(GIB, 200 * GIB), micro=st.sampled_from([2048, 16384, 65536]))
def test_auto_computes_the_fewest_layers_again_with_which_a_pass_fits(available: float, micro: int) -> None:
    def fits(layers: int) -> bool:
        wanted = stage(microBatchTokens=micro)
        return stage_cost(wanted, LLAMA_7B, None, layers_again=layers).memory_bytes(8) <= (1 - HEADROOM) * round(available)

    chosen = again(available, micro=micro)
    assert fits(chosen) or not any(map(fits, range(ALL)))
    assert not any(map(fits, range(chosen)))


def test_with_auto_the_advice_reckons_with_what_was_done() -> None:
    always = advised(40 * GIB, micro=65536, activationCheckpointing="Always")
    assert "activationCheckpointing" not in always
    assert always == advised(40 * GIB, micro=65536), "all layers were computed again and did not fit"
    assert 0 < again(80 * GIB) < ALL
    assert "Set pretraining.microBatchTokens" in advised(80 * GIB)
    assert "set pretraining.activationCheckpointing: Always" in advised(80 * GIB), "a part was not enough, whatever the estimate says"
    assert "Set pretraining.activationCheckpointing: Always" in advised(80 * GIB, micro=2048, activationCheckpointing="Never", processes=64)
