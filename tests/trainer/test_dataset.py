"""The dataset stage: from files to rows that the training loop reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import SENTENCES, save_tiny_model
from transfer_api.errors import DataError, SpecError
from transfer_api.progress import Progress, ResultMessage
from transfer_api.spec import InstructionSource, ModelSource, WeightedSource
from transfer_api.stage import DatasetParameters, StageKind, StagePlan
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_pod.documents import Message
from transfer_trainer import dataset
from transfer_trainer.store import RowStore


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("storage")
    save_tiny_model(root / "model")
    (root / "id.txt").write_text("\n\n".join(SENTENCES[2:]))
    (root / "en.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES[:2] * 3))
    examples = [{"instruction": f"Berapa {n}?", "input": "", "output": f"Sama dengan {n}."} for n in range(40)]
    doubled = [*examples, examples[3], {"instruction": "Kosong?", "output": " "}]
    (root / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in doubled[:30]))
    (root / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in doubled[30:]))
    return root


def context(storage: Path, key: str, **parameters: Any) -> PodContext:
    filled = DatasetParameters(model=ModelSource(path="model"), **{"sequence_length": 32, "seed": 0, **parameters})
    stage = StagePlan(name="d", kind=StageKind.DATASET, key=key, parameters=filled.model_dump(mode="json", by_alias=True))
    return PodContext(stage=stage, storage=storage, pod="p")


def made(pod: PodContext) -> tuple[ResultMessage, RowStore]:
    reports: list[Progress] = []
    result = dataset.run(pod, reports.append)
    assert reports
    folder = ArtifactStore(pod.storage).open(StageKind.DATASET, pod.stage.key)
    return result, RowStore.open(folder / "rows")


MIXTURE = [WeightedSource(path="id.txt", weight=3), WeightedSource(path="en.jsonl"), WeightedSource(path="en.jsonl", weight=0)]
INSTRUCTIONS = [InstructionSource(path="one.jsonl"), InstructionSource(path="two.jsonl")]


def test_a_mixture_becomes_rows_of_each_source(storage: Path) -> None:
    result, store = made(context(storage, "mixture", mixture=MIXTURE))
    assert [(source.name, source.weight, source.documents) for source in store.sources] == [
        ("id.txt", 3, 2), ("en.jsonl", 1, 6), ("en.jsonl", 0, 0),
    ]  # fmt: skip
    tokenizer = dataset.load_tokenizer(storage / "model")
    expected = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in SENTENCES[2:]]
    rows = store.row(0, np.arange(store.sources[0].rows))
    assert rows.tokens_BT.ravel()[: store.sources[0].tokens].tolist() == [token for ids in expected for token in ids]
    assert store.sources[0].bytes == sum(len(text.encode()) for text in SENTENCES[2:])
    assert result.numbers["documents"] == 8
    assert result.numbers["tokens"] == sum(source.tokens for source in store.sources)
    assert store.tokenizer == dataset.tokenizer_digest(storage / "model")


def test_instructions_of_all_files_become_one_source_with_what_was_dropped(storage: Path) -> None:
    result, store = made(context(storage, "instructions", instructions=INSTRUCTIONS, sequence_length=64))
    assert [(source.name, source.documents) for source in store.sources] == [("instructions", 40)]
    assert {name: result.numbers[name] for name in result.numbers if name.startswith(("dropped", "cut"))} == {
        "dropped_empty": 1, "dropped_duplicates": 1, "dropped_too_long": 0, "cut_answers": 0,
    }  # fmt: skip
    tokenizer = dataset.load_tokenizer(storage / "model")
    rows = store.row(0, np.arange(store.sources[0].rows))
    learned = tokenizer.decode(rows.tokens_BT[rows.targets_BT == 1].tolist())
    assert sorted(learned.split("<|im_end|>")) == sorted(["", *(f"Sama dengan {n}." for n in range(40))])


def test_examples_that_do_not_fit_are_counted(storage: Path) -> None:
    result, store = made(context(storage, "short", instructions=INSTRUCTIONS, sequence_length=33))
    numbers = result.numbers
    assert numbers["dropped_too_long"] + numbers["cut_answers"] > 0
    assert store.sources[0].documents == 40 - numbers["dropped_too_long"]


def test_rows_that_fit_no_example_are_refused(storage: Path) -> None:
    with pytest.raises(DataError, match="no example fits a row") as caught:
        made(context(storage, "tiny", instructions=INSTRUCTIONS, sequence_length=8))
    assert caught.value.field == "spec.instructionTuning.sequenceLength"


def test_a_half_written_folder_is_made_anew(storage: Path) -> None:
    pod = context(storage, "again", mixture=MIXTURE)
    half = ArtifactStore(storage).work(StageKind.DATASET, "again") / "artifact" / "rows"
    half.mkdir(parents=True)
    (half / "0.tokens").write_bytes(b"half")
    (half / "9.tokens").write_bytes(b"of another try")
    _, store = made(pod)
    assert store.sources[0].rows > 0
    assert not (ArtifactStore(storage).path(StageKind.DATASET, "again") / "rows" / "9.tokens").exists()


def test_the_same_parameters_give_the_same_bytes(storage: Path) -> None:
    files = []
    for key in ("first", "second"):
        made(context(storage, key, instructions=INSTRUCTIONS, examples=20))
        folder = ArtifactStore(storage).path(StageKind.DATASET, key) / "rows"
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("field", "source"),
    [("spec.pretraining.sequenceLength", {"mixture": MIXTURE}), ("spec.instructionTuning.sequenceLength", {"instructions": INSTRUCTIONS})],
    ids=["pretraining", "instructions"],
)
def test_rows_longer_than_the_models_positions_are_refused(storage: Path, field: str, source: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="at most 256") as caught:
        made(context(storage, "long", sequence_length=257, **source))
    assert (caught.value.field, caught.value.value) == (field, 257)


def chosen(examples: int | None, seed: int = 0, of: int = 100) -> list[str]:
    conversations = ([Message("user", str(number))] for number in range(of))
    return [messages[0].content for messages in dataset.subset(conversations, examples, seed)]


def test_a_larger_subset_contains_every_smaller_one() -> None:
    for small, large in [(1, 10), (10, 50), (50, 100)]:
        assert chosen(large)[:small] == chosen(small)
    assert sorted(chosen(100)) == sorted(chosen(None))


def test_a_subset_is_chosen_by_seed_and_holds_no_example_twice() -> None:
    assert chosen(30, seed=0) == chosen(30, seed=0)
    assert set(chosen(30, seed=0)) != set(chosen(30, seed=1))
    assert len(set(chosen(30))) == 30


def test_more_examples_than_there_are_is_refused_with_how_many_there_are() -> None:
    with pytest.raises(DataError, match="at most 100") as caught:
        chosen(101)
    assert (caught.value.field, caught.value.value) == ("spec.instructionTuning.examples", 101)
