"""An evaluation in shards: the figures of one pod to the last bit, and a pod that is killed costs the block it was at."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.experiment import wait_for
from tests.support.tiny import SENTENCES, save_tiny_model
from transfer_api.errors import ArtifactError, ExitCode
from transfer_api.progress import Progress, ResultMessage
from transfer_api.spec import ModelSource, NamedText, Precision
from transfer_api.stage import EvaluationParameters, Execution, StageKind, StagePlan, stage_key
from transfer_evaluator import blocks, generation, scorer, stage
from transfer_evaluator.blocks import Blocks
from transfer_evaluator.scorer import Request
from transfer_pod.artifact import ArtifactStore
from transfer_pod.contents import Digests
from transfer_pod.context import PodContext
from transfer_pod.lock import FileLock

PARAMETERS = EvaluationParameters(
    model=ModelSource(path="base"), suites=["perplexity", "code-switching_id"], task_folders=[], shots=None, limit=6,
    texts=[NamedText(name=one, path=f"{one}.txt", language=one) for one in ("id", "en")], precision=Precision.FLOAT32, seed=0,
).model_dump(mode="json", by_alias=True)  # fmt: skip
PLAN = StagePlan(
    name="evaluation", kind=StageKind.EVALUATION, key=stage_key(StageKind.EVALUATION, PARAMETERS, {}, {}), parameters=PARAMETERS,
    execution=Execution(shards=3),
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> list[Blocks]:
    """Blocks of a text or an answer each; gives the sharers that are made."""
    made: list[Blocks] = []
    monkeypatch.setattr(scorer, "BLOCK_TOKENS", 64)
    monkeypatch.setattr(generation, "BLOCK_ANSWERS", 1)
    monkeypatch.setattr(blocks, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(stage, "REPORT_SECONDS", 0.0)
    begin, load, one_at_a_time = Blocks.__init__, stage.load_model, threading.Lock()

    def load_alone(*arguments: Any) -> Any:
        with one_at_a_time:  # transformers loads into one place for all threads of a process
            return load(*arguments)

    monkeypatch.setattr(stage, "load_model", load_alone)

    def noted(self: Blocks, context: PodContext) -> None:
        begin(self, context)
        made.append(self)

    monkeypatch.setattr(Blocks, "__init__", noted)
    return made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_model(folder / "base")
    for name, sentences in (("id", SENTENCES[2:]), ("en", SENTENCES[:2])):
        (folder / f"{name}.txt").write_text("\n\n".join(f"{n} {sentence}" for n in range(3) for sentence in sentences))
    return folder


def pod(
    storage: Path, inputs: Path, index: int = 0, of: int = 1, report: Callable[[Progress], None] = lambda progress: None
) -> ResultMessage:
    return stage.run(PodContext(stage=PLAN, storage=storage, search=(inputs,), pod=f"e-w{index}-g1", index=index, max_nodes=of), report)


def figures(storage: Path) -> dict[str, Any]:
    """Everything of the artifact that does not tell of time."""
    store = ArtifactStore(storage)
    folder = store.open(StageKind.EVALUATION, PLAN.key)
    items = {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.jsonl"))}
    numbers = {name: value for name, value in store.manifest(PLAN.kind, PLAN.key)["numbers"].items() if name != "seconds"}
    return {"scores": json.loads((folder / "results.json").read_text())["scores"], "numbers": numbers, **items}


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one pod finds, with the number of its blocks."""
    storage = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "BLOCK_TOKENS", 64)
        patch.setattr(generation, "BLOCK_ANSWERS", 1)
        counted: list[int] = []
        compute = Blocks._compute

        def counting(self: Blocks, *arguments: Any) -> bool:
            done = compute(self, *arguments)
            counted.append(done)
            return done

        patch.setattr(Blocks, "_compute", counting)
        pod(storage, inputs)
    return {"figures": figures(storage), "blocks": sum(counted)}


def test_three_pods_find_what_one_finds_and_compute_each_block_once(
    tmp_path: Path, inputs: Path, alone: dict[str, Any], small_blocks: list[Blocks]
) -> None:
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda index: pod(tmp_path, inputs, index, 3), range(3)))
    assert alone["blocks"] > 9
    assert sum(one.computed for one in small_blocks) == alone["blocks"]
    assert figures(tmp_path) == alone["figures"]
    assert len({result.artifact.digest for result in results if result.artifact}) == 1
    assert not any(result.reused for result in results)
    assert not list((tmp_path / "work" / "evaluation" / PLAN.key).rglob("*"))


def test_a_pod_that_is_killed_costs_the_block_it_was_at(
    tmp_path: Path, inputs: Path, alone: dict[str, Any], small_blocks: list[Blocks]
) -> None:
    kept = tmp_path / "work" / "evaluation" / PLAN.key / "blocks"

    def slowly(progress: Progress) -> None:
        if len(list(kept.glob("*.json"))) >= 4:
            signal.pause()  # in the middle of a block: it is told of before the block is kept

    killed = multiprocessing.get_context("fork").Process(target=pod, args=(tmp_path, inputs, 1, 3, slowly), daemon=True)
    killed.start()
    wait_for(lambda: len(list(kept.glob("*.json"))) >= 4, 30, "four blocks are done")
    os.kill(killed.pid or 0, signal.SIGKILL)
    killed.join()
    done = len(list(kept.glob("*.json")))
    assert done == 4 < alone["blocks"]
    pod(tmp_path, inputs, 0, 3)
    assert small_blocks[-1].computed == alone["blocks"] - done, "what was done is not done again"
    assert figures(tmp_path) == alone["figures"]


def test_a_block_that_another_pod_is_at_is_left_to_it_and_waited_for(tmp_path: Path, inputs: Path, small_blocks: list[Blocks]) -> None:
    context = PodContext(stage=PLAN, storage=tmp_path, pod="e", index=0, max_nodes=2)
    own, cut = Blocks(context), scorer.cut_blocks([Request((1, 2), (3,)), Request((4,) * 80, (5,))])
    assert len(cut) == 2
    lock = FileLock(own._path(cut[0]).with_suffix(".lock"))
    assert lock.take()
    order: list[int] = []

    def compute(indices: Any, tell: Any) -> list[str]:
        order.extend(indices)
        if len(order) == 1:
            lock.release()  # the other pod dies: its block is free again
        return ["x" for _ in indices]

    assert own.share(cut, compute, lambda *_: None) == ["x", "x"]
    assert order == [1, 0]


def test_blocks_hold_all_requests_once_and_do_not_depend_on_their_order() -> None:
    requests = [Request((7,) * 20, (n,)) for n in range(30)] + [Request((n,) * 30, (1, 2)) for n in range(8, 20)]
    cut = scorer.cut_blocks(requests)
    assert sorted(place for block in cut for place in block.indices) == list(range(len(requests)))
    assert {block.digest for block in scorer.cut_blocks(requests[::-1])} == {block.digest for block in cut}
    assert len(scorer.cut_blocks(requests[:30])) == 1, "what shares its beginning stays together"
    assert scorer.cut_blocks([]) == []


def test_what_was_computed_of_a_text_that_changed_is_not_kept(tmp_path: Path, inputs: Path, alone: dict[str, Any]) -> None:
    texts = shutil.copytree(inputs, tmp_path / "inputs")
    storage = tmp_path / "storage"
    storage.mkdir()
    old = (texts / "id.txt").read_text()
    digests = {name: Digests(storage).of_input(texts / name, model=name == "base") for name in ("base", "id.txt", "en.txt")}
    planned = PodContext(stage=PLAN.model_copy(update={"files": digests}), storage=storage, search=(texts,), pod="e-w0-g1")
    kept: list[int] = []

    def change(progress: Progress) -> None:
        if progress.step and not kept:  # once blocks of the old text are there
            kept.append(len(list((storage / "work").rglob("*.json"))))
            (texts / "id.txt").write_text("Lain sekali.\n")

    with pytest.raises(ArtifactError, match=r"id\.txt") as found:
        stage.run(planned, change)
    assert found.value.exit_code is ExitCode.UNREADABLE
    assert len(list((storage / "work").rglob("*.json"))) == kept[0]
    (texts / "id.txt").write_text(old)
    stage.run(planned, lambda progress: None)
    assert figures(storage) == alone["figures"]
