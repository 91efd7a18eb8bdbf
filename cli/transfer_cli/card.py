"""The model card: README.md beside the weights, so that a model says what it was made of wherever it goes.

Everything in it is read from the plan, the manifests and the scores; nothing is typed in. Its front matter is what model hubs read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from transfer_api.amount import format_amount
from transfer_api.progress import Score
from transfer_api.spec import InstructionSource, TextSource, TransferExperiment
from transfer_api.stage import (
    DatasetParameters,
    StageKind,
    StagePlan,
    TrainingParameters,
    VocabularyParameters,
)
from transfer_pod.artifact import ArtifactStore

CARD = "README.md"


def model_card(experiment: TransferExperiment, plan: Sequence[StagePlan], store: ArtifactStore, scores: Sequence[Score]) -> str:
    """The card of an experiment's last model, as Markdown with front matter."""
    sections = [
        _front_matter(experiment),
        f"# {experiment.metadata.name}",
        _summary(experiment),
        "## How it was made\n\n" + _table(("stage", "what", "artifact"), [_stage(stage, store) for stage in plan if _makes(stage)]),
        "## Texts\n\n" + "\n".join(f"- {line}" for line in _data(experiment)),
    ]
    if scores:
        sections.append("## Scores\n\n" + _scores(scores))
    sections.append(
        "Keys and digests are those of the run's artifacts: a key is the SHA-256 of all that went into a stage, a digest that of the "
        "manifest, which holds the SHA-256 of each of its files. The licences of the base model and of the texts hold for this model too."
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(experiment: TransferExperiment) -> str:
    spec = experiment.spec
    facts: dict[str, Any] = {
        "language": list(dict.fromkeys([spec.language, "en"])), "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["language-transfer", "transfer-operator"],
    }  # fmt: skip
    if spec.model.name is not None:
        facts["base_model"] = spec.model.name
    if hub := sorted({source.hub for _, source in _sources(experiment) if source.hub}):
        facts["datasets"] = hub
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---"


def _summary(experiment: TransferExperiment) -> str:
    model = experiment.spec.model
    base = f"`{model.name}` at revision `{model.revision}`" if model.name else f"`{model.path}`"
    return f"{base}, adapted to the language `{experiment.spec.language}`. Seed {experiment.spec.seed}."


def _makes(stage: StagePlan) -> bool:
    return stage.kind is not StageKind.EVALUATION


def _stage(stage: StagePlan, store: ArtifactStore) -> tuple[str, str, str]:
    reference = store.find(stage.kind, stage.key)
    digest = reference.digest if reference else "absent"
    return stage.name, _what(stage, store.manifest(stage.kind, stage.key).get("numbers", {})), f"key `{stage.key}`<br>`{digest}`"


def _what(stage: StagePlan, numbers: dict[str, float]) -> str:
    """One line on what a stage did, with the figures of its manifest."""
    parameters = stage.typed_parameters()
    match parameters:
        case VocabularyParameters():
            return (
                f"{parameters.added_tokens:,} tokens added ({parameters.initialization}), "
                f"effective size {_number(numbers, 'effective_size')}, padded size {_number(numbers, 'rows')}; "
                f"held out {_number(numbers, 'bytes_per_token_before')} → {_number(numbers, 'bytes_per_token_after')} bytes per token"
            )
        case TrainingParameters():
            how = f"{parameters.method.value} of rank {parameters.lora.rank}, merged" if parameters.lora else "all weights"
            if parameters.ema is not None:
                how += f", averaged over the steps with decay {parameters.ema.decay}"
            return (
                f"{how}; {_number(numbers, 'steps')} steps, {_number(numbers, 'tokens')} tokens in rows of {parameters.sequence_length}; "
                f"learning rate {parameters.learning_rate}, {parameters.precision}; last loss {_number(numbers, 'loss')}"
            )
        case DatasetParameters():
            told = ", ".join(f"{name.replace('_', ' ')} {_number(numbers, name)}" for name in sorted(numbers))
            return told or f"rows of {parameters.sequence_length} tokens"
        case _:
            return ""


def _number(numbers: dict[str, float], name: str) -> str:
    value = numbers.get(name)
    if value is None:
        return "?"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"


def _sources(experiment: TransferExperiment) -> Iterator[tuple[str, TextSource | InstructionSource]]:
    spec = experiment.spec
    yield from (("vocabulary", source) for source in (spec.vocabulary.corpus if spec.vocabulary else ()))
    yield from (("pretraining", source) for source in (spec.pretraining.mixture if spec.pretraining else ()))
    yield from (("instruction tuning", source) for source in (spec.instruction_tuning.data if spec.instruction_tuning else ()))


def _data(experiment: TransferExperiment) -> Iterator[str]:
    for purpose, source in _sources(experiment):
        subset = f", {source.subset}" if source.subset else ""
        revision = f" at revision `{source.revision}`" if source.revision else ""
        weight = f", weight {source.weight}" if hasattr(source, "weight") else ""
        yield f"{purpose}: `{source.hub or source.path}`{subset}{revision}{weight}"
    tuning = experiment.spec.instruction_tuning
    if tuning is not None and tuning.examples is not None:
        yield f"of the instructions {format_amount(tuning.examples)} examples, chosen by seed"


def _scores(scores: Sequence[Score]) -> str:
    rows = [
        (
            score.task, score.language, score.metric, f"{score.value:.4g}", "" if score.baseline is None else f"{score.baseline:.4g}",
            "" if score.difference is None else f"{score.difference:+.4g}",
            "" if score.interval is None else f"{score.interval[0]:+.4g} … {score.interval[1]:+.4g}" if score.difference is not None
            else f"{score.interval[0]:.4g} … {score.interval[1]:.4g}",
            str(score.items), score.harness,
        )
        for score in scores
    ]  # fmt: skip
    heads = ("task", "language", "metric", "value", "base model", "difference", "95 % interval", "items", "measured by")
    return _table(heads, rows) + "\n\nThe interval is of the difference where there is a base model's value, else of the value."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
