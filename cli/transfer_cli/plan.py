"""`transfer plan`: what an experiment would do and cost, before anything runs. Nothing is written but the cache of digests.

What is missing is said and the plan is printed all the same: whoever asks for the price need not have the goods.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass, replace
from pathlib import Path

from transfer_api.amount import count_of, format_amount
from transfer_api.cost import (
    BYTES_PER_TOKEN,
    GPU_MEMORY,
    GPU_RESOURCE,
    ModelSize,
    Speed,
    StageCost,
    gpu_speed,
    micro_batch_tokens,
    stage_cost,
)
from transfer_api.errors import DataError, ExitCode, TransferError
from transfer_api.fit import layers_again
from transfer_api.load import load_experiment
from transfer_api.spec import PERPLEXITY, ExperimentSpec, Precision, TransferExperiment
from transfer_api.stage import DatasetParameters, EvaluationParameters, StageKind, StagePlan, TrainingParameters, plan_stages
from transfer_cli.enough import in_an_epoch, too_little_data, too_little_made
from transfer_cli.inputs import count_rows, fingerprints, model_size, text_bytes
from transfer_cli.paths import chosen_storage, folder
from transfer_cli.preflight import input_problems
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_pod.documents import iter_documents
from transfer_pod.memory import memory_limit

# Training speed over that of a float32 matrix product, both measured on 2 cores (SmolLM2-135M, full training). bfloat16 gains
# only where the processor computes in it.
FLOAT32_EFFICIENCY = 0.7
BFLOAT16_EFFICIENCY = 1.7
_MATRIX = 1024
_MEASURE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage of the plan."""

    stage: StagePlan
    cached: bool
    cost: StageCost
    speed: Speed
    processes: int
    """Worker processes that share the stage."""
    again: tuple[int, int] = (0, 0)
    """Of a training stage: layers that are computed again in the backward pass, and how many there are."""
    at_most: bool = False
    """The data cannot be seen, and its size is what the experiment bounds it by."""

    @property
    def seconds(self) -> float | None:
        """Expected time; 0 when it is cached."""
        return 0.0 if self.cached else self.cost.seconds(self.speed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="experiment file; what it lacks is said, and is no error here")
    parser.add_argument(
        "--storage", type=folder, metavar="DIR",
        help="where models, data and artifacts are (default: $TRANSFER_STORAGE or runs/.storage)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Prints the plan. Exit codes: 0, 2 when the file cannot work, 11 when an artifact of it is damaged."""
    experiment = load_experiment(options.file)
    storage = chosen_storage(options.storage)
    search = (options.file.absolute().parent,)
    size = model_size(experiment.spec, storage, search)
    rows = plan_rows(experiment, storage, search, size)
    problems = input_problems(experiment.spec, (storage, *search))
    little = too_little_data(experiment.spec, (storage, *search), problems) or too_little_made([row.stage for row in rows], storage)
    print("\n".join([*describe(experiment, rows, size, storage, guess=not little), *_missing([*problems, *little])]))
    return ExitCode.COMPLETE


def plan_rows(experiment: TransferExperiment, storage: Path, search: tuple[Path, ...], size: ModelSize | None) -> list[StageRow]:
    """The stages with their costs, and whether their artifacts are in the storage."""
    store = ArtifactStore(storage)
    stages = plan_stages(experiment.spec, fingerprints(experiment, storage=storage, search=search))
    by_key = {stage.key: stage for stage in stages}
    gpu = bool(_gpus(experiment.spec))
    peak = None if gpu else machine_flops()
    rows = []
    for stage in stages:
        grown = size
        if size is not None and experiment.spec.vocabulary and stage.kind is not StageKind.VOCABULARY and stage.name != "baseline":
            grown = size.with_added_tokens(experiment.spec.vocabulary.added_tokens)
        read = _input_bytes(stage, by_key, storage, search)
        bound = _bound(stage, by_key) if read is None else None
        processes = _processes(experiment.spec) if stage.kind.elastic else 1
        again = _again(stage, grown, processes, gpu)
        cost = stage_cost(stage, grown, bound if read is None else read, gpu=gpu, layers_again=again)
        if cached := store.find(stage.kind, stage.key) is not None:
            cost, bound = _as_made(stage, cost, store), None
        speed = _speed(stage, experiment.spec, peak)
        counted_by_data = cost.tokens is not None and bound is not None
        layers = (again or 0, grown.layers if grown else 0)
        rows.append(
            StageRow(stage=stage, cached=cached, cost=cost, speed=speed, processes=processes, again=layers, at_most=counted_by_data)
        )
    return rows


def _as_made(stage: StagePlan, cost: StageCost, store: ArtifactStore) -> StageCost:
    """The cost of a dataset or training that is cached, with the tokens and steps that it came to."""
    numbers = store.manifest(stage.kind, stage.key).get("numbers", {})
    if not (stage.kind.elastic or stage.kind is StageKind.DATASET) or "tokens" not in numbers:
        return cost
    tokens = int(numbers["tokens"])
    flops = cost.flops * tokens / cost.tokens if cost.flops and cost.tokens else cost.flops
    return replace(cost, tokens=tokens, steps=int(numbers["steps"]) if "steps" in numbers else None, flops=flops)


def _again(stage: StagePlan, size: ModelSize | None, processes: int, gpu: bool) -> int | None:
    """Layers of a training stage that are computed again, by the memory that is assumed; None for other stages."""
    parameters = stage.typed_parameters()
    if size is None or not isinstance(parameters, TrainingParameters):
        return None
    return layers_again(
        stage, size, layers=size.layers, processes=processes, available=_memory(gpu),
        micro_batch_tokens=micro_batch_tokens(stage.execution, gpu=gpu),
    )  # fmt: skip


def _memory(gpu: bool) -> int:
    return GPU_MEMORY if gpu else memory_limit()


def _input_bytes(stage: StagePlan, by_key: dict[str, StagePlan], storage: Path, search: tuple[Path, ...]) -> int | None:
    """Bytes of text that a stage reads, itself or through its dataset."""
    parameters = stage.typed_parameters()
    match parameters:
        case TrainingParameters():
            dataset, store = by_key[stage.inputs["dataset"]], ArtifactStore(storage)
            if store.find(dataset.kind, dataset.key) is not None:
                rows = store.manifest(dataset.kind, dataset.key).get("numbers", {}).get("rows")
                if rows is not None:
                    return int(rows) * parameters.sequence_length * BYTES_PER_TOKEN
            texts = dataset.typed_parameters()
            if parameters.epochs is not None and isinstance(texts, DatasetParameters) and texts.mixture:
                sizes = [text_bytes([text.path], storage, search) for text in texts.mixture]
                return in_an_epoch(sizes, [text.weight for text in texts.mixture])
            return _input_bytes(dataset, by_key, storage, search)
        case DatasetParameters():
            paths = [source.path for source in parameters.mixture] + [source.path for source in parameters.instructions]
        case EvaluationParameters():
            return _scored_bytes(stage, parameters, storage, search)
        case _:
            paths = [source.path for source in parameters.corpus]
    total = text_bytes(paths, storage, search)
    if total is not None and isinstance(parameters, DatasetParameters) and parameters.examples is not None:
        total = round(total * min(1.0, parameters.examples / max(1, count_rows(paths, storage, search))))
    return total


def _scored_bytes(stage: StagePlan, evaluation: EvaluationParameters, storage: Path, search: tuple[Path, ...]) -> int | None:
    """Bytes of the texts that the suite perplexity scores: all of each, or its first documents where there is a limit."""
    texts = evaluation.texts if PERPLEXITY in evaluation.suites else []
    whole = text_bytes([text.path for text in texts], storage, search)
    if whole is None or evaluation.limit is None:
        return whole
    context = PodContext(stage=stage, storage=storage, search=search, pod="plan")
    total = 0
    for number, text in enumerate(texts):
        try:
            documents = iter_documents(text, context, f"spec.evaluation.texts[{number}]")
            total += sum(len(document.encode()) for document in itertools.islice(documents, evaluation.limit))
        except DataError:
            return None  # `input_problems` says it
    return total


def _bound(stage: StagePlan, by_key: dict[str, StagePlan]) -> int | None:
    """Most bytes that a stage can read where its data cannot be seen: each example fills a row at most."""
    parameters = stage.typed_parameters()
    match parameters:
        case TrainingParameters() if parameters.tokens is None and parameters.steps is None:
            return _bound(by_key[stage.inputs["dataset"]], by_key)
        case DatasetParameters() if parameters.examples is not None:
            return parameters.examples * parameters.sequence_length * BYTES_PER_TOKEN
        case _:
            return None


def _gpus(spec: ExperimentSpec) -> int:
    """GPUs of one worker."""
    wanted = str(spec.workers.resources.limits.get(GPU_RESOURCE, 0))
    return int(wanted) if wanted.isdigit() else 0


def _processes(spec: ExperimentSpec) -> int:
    """Training processes: one a GPU, or one a worker."""
    return spec.workers.replicas * max(1, _gpus(spec))


def _speed(stage: StagePlan, spec: ExperimentSpec, peak: float | None) -> Speed:
    if peak is None:
        return gpu_speed(_gpus(spec) * (spec.workers.replicas if stage.kind.elastic else 1))
    precision = getattr(stage.typed_parameters(), "precision", Precision.FLOAT32)
    factor = BFLOAT16_EFFICIENCY if precision is Precision.BFLOAT16 and computes_bfloat16() else FLOAT32_EFFICIENCY
    return Speed(
        flops=peak * factor, assumption=f"this machine: float32 matrix product at {peak / 1e9:.0f} GFLOP/s, × {factor} ({precision})"
    )


def machine_flops() -> float:
    """Floating-point operations a second of a float32 matrix product on all cores: the best of what fits in 0.2 s."""
    import numpy as np

    left = np.ones((_MATRIX, _MATRIX), dtype=np.float32)
    np.matmul(left, left)  # the first one starts the threads
    best, end = float("inf"), time.perf_counter() + _MEASURE_SECONDS
    while True:
        start = time.perf_counter()
        np.matmul(left, left)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            return 2 * _MATRIX**3 / best


def computes_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 faster than float32; AVX512-BF16 alone does not, on Intel's it halves the speed."""
    try:
        flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    except OSError:
        return False
    return "amx_bf16" in flags.split()


def describe(
    experiment: TransferExperiment, rows: list[StageRow], size: ModelSize | None, storage: Path, *, guess: bool = True
) -> list[str]:
    """The plan as lines of text; `guess` where it is not known that the data are too little, so that their size may tell."""
    spec = experiment.spec
    known = f"{format_amount(size.parameters)} parameters ({size.source})" if size else "of unknown size; set spec.model.parameters"
    stages = f"{len(rows)} stage{'s' if len(rows) != 1 else ''}"
    return [
        f"{experiment.metadata.name}: {stages}, {sum(row.cached for row in rows)} of them cached in {storage}",
        f"model {spec.model.path or spec.model.name}: {known}",
        "",
        *_table(rows),
        "",
        *_totals(rows),
        *_workers(spec, rows),
        *(_epochs(rows) if guess else []),
        "",
        "assumed:",
        *(f"  {speed}" for speed in dict.fromkeys(row.speed.assumption for row in rows if row.cost.flops is not None and not row.cached)),
        "  FLOPs of N parameters and D tokens: full 6·N·D, LoRA and QLoRA 4·N·D + 2·A·D with A adapter parameters, evaluation 2·N·D",
        "  4 bytes of text a token; tokenising and tasks of lm-evaluation-harness are not counted",
    ]


def _table(rows: list[StageRow]) -> list[str]:
    cells = [("stage", "key", "state", "tokens", "steps", "FLOPs", "time", "memory each", "disk")]
    for row in rows:
        cost, most = row.cost, "≤ " if row.at_most else ""
        cells.append(
            (
                row.stage.name,
                row.stage.key[:12],
                "cached" if row.cached else "to do",
                "?" if cost.tokens is None and row.stage.kind is not StageKind.VOCABULARY else most + _amount(cost.tokens),
                "–" if cost.steps is None else f"{most}{cost.steps:,}",
                f"{most}{cost.flops:.2e}" if cost.flops else "–",
                "–" if row.seconds is None else most + format_seconds(row.seconds),
                format_bytes(cost.memory_bytes(row.processes)),
                format_bytes(cost.work_bytes + cost.artifact_bytes),
            )
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _amount(value: int | None) -> str:
    return "–" if value is None else format_amount(value)


def _totals(rows: list[StageRow]) -> list[str]:
    todo = [row for row in rows if not row.cached]
    if not todo:
        return ["total: nothing to do; every stage is cached"]
    known = [row.seconds for row in todo if row.seconds is not None]
    unknown = [row.stage.name for row in todo if row.seconds is None and row.stage.kind is not StageKind.DATASET]
    flops = sum(row.cost.flops or 0 for row in todo)
    disk = sum(row.cost.artifact_bytes for row in todo) + max(row.cost.work_bytes for row in todo)
    without = f", without {', '.join(unknown)}" if unknown else ""
    about = "at most about" if any(row.at_most for row in todo) else "about"
    return [f"total: {flops:.2e} FLOPs, {about} {format_seconds(sum(known))}{without}; disk about {format_bytes(disk)}"]


def _workers(spec: ExperimentSpec, rows: list[StageRow]) -> list[str]:
    training = [row for row in rows if row.stage.kind.elastic and not row.cached]
    if not training:
        return []
    workers, gpus = spec.workers, _gpus(spec)
    processes = _processes(spec)
    each = f"{gpus} GPUs, one process each" if gpus else "one process; on one machine they share its cores"
    hours = sum(row.seconds or 0 for row in training) / 3600 * processes
    most = workers.max or workers.replicas
    lines = [f"workers: {workers.replicas} wanted ({workers.min} to {most}), each {each}; the result does not depend on their number"]
    if gpus:
        lines.append(f"GPU-hours: about {hours:.1f} for training")
    for row in training:
        parameters = row.stage.typed_parameters()
        if isinstance(parameters, TrainingParameters):
            share = -(-parameters.rows_per_step // processes)
            rows_of = f"{parameters.rows_per_step} rows of {parameters.sequence_length} tokens"
            lines.append(f"  {row.stage.name}: {_method(parameters)}, {rows_of} a step, at most {share} a process")
            asked, (again, layers) = row.stage.execution.activation_checkpointing.value, row.again
            if again:
                of = f"{again} of {layers}" if again < layers else f"all {layers}"
                room = f"{format_bytes(_memory(bool(gpus)))} a {'GPU' if gpus else 'process'}"
                lines.append(
                    f"  {row.stage.name}: {of} layers are computed again in the backward pass (activationCheckpointing: {asked}; {room})"
                )
    return lines


def _method(training: TrainingParameters) -> str:
    """`Full`, or `LoRA r=16` with what is trained beside the adapters."""
    if training.lora is None:
        return training.method.value
    return f"{training.method.value} r={training.lora.rank}{' and embeddings' if training.lora.train_embeddings else ''}"


def _epochs(rows: list[StageRow]) -> list[str]:
    """Budgets and batches that are clearly too large for the texts: twice over, since the size of a token is assumed."""
    by_key = {row.stage.key: row for row in rows}
    lines = []
    for row in rows:
        data = by_key.get(row.stage.inputs.get("dataset", ""))
        if data is None or data.cached or data.at_most or row.cached or not data.cost.tokens or not row.cost.tokens:
            continue
        parameters = row.stage.typed_parameters()
        if isinstance(parameters, TrainingParameters) and parameters.epochs is not None:
            step = parameters.rows_per_step * parameters.sequence_length
            if 2 * row.cost.tokens < step:
                lines.append(
                    f"{row.stage.name}: a batch of {_amount(step)} tokens is more than the about {_amount(row.cost.tokens)} that "
                    f"{count_of(parameters.epochs, 'epoch')} have; `transfer run` will refuse that once they are counted"
                )
            continue
        epochs, most = row.cost.tokens / data.cost.tokens, row.stage.execution.max_epochs
        if most is not None and epochs > 2 * most:
            lines.append(
                f"{row.stage.name}: asks for {_amount(row.cost.tokens)} tokens of texts that have about {_amount(data.cost.tokens)}: about "
                f"{epochs:,.0f} epochs where maxEpochs allows {most}; `transfer run` will refuse that once they are counted"
            )
    return lines


def _missing(problems: list[TransferError]) -> list[str]:
    """What `transfer run` would refuse."""
    return ["", "not ready to run:", *(f"  {problem}" for problem in problems)] if problems else []


def format_seconds(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def format_bytes(count: int) -> str:
    """`1.6 GB`; a dash for nothing."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B" if count else "–"
