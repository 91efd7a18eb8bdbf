"""Rules of models, of texts, instructions and questions, and of the storage."""

from __future__ import annotations

import re

from transfer_api.rules.rule import Violation, exactly_one, rule
from transfer_api.spec import InstructionSource, ModelSource, QuestionSource, Storage, TextSource

MODELS = ("spec.model", "spec.evaluation.baselineModel")
TEXTS = ("spec.vocabulary.corpus[]", "spec.pretraining.mixture[]", "spec.evaluation.texts[]")
INSTRUCTIONS = "spec.instructionTuning.data[]"
QUESTIONS = "spec.evaluation.questions[]"
SOURCES = (*TEXTS, INSTRUCTIONS, QUESTIONS)
# How the name of a data file ends, or of a glob that may mean such files.
OBJECT_FILE = "(?i)([.]jsonl([.]gz|[.]zst)?|[.]parquet|[]*?])$"
TEXT_FILE = "(?i)([.](jsonl|txt)([.]gz|[.]zst)?|[.]parquet|[]*?])$"
# A default, by which a rule sees that nobody has set the field.
SPLIT = TextSource().split


@rule(*MODELS, cel="has(self.name) != has(self.path)", message="needs exactly one of name (on a hub) and path (a folder)")
def _one_model_source(model: ModelSource) -> Violation | None:
    return exactly_one(model, "name", "path")


@rule(*MODELS, cel="!has(self.name) || has(self.revision)", message="revision is required with name, because a branch moves")
def _model_revision(model: ModelSource) -> Violation | None:
    if model.name is None or model.revision is not None:
        return None
    return Violation(field="revision", allowed="40 hexadecimal digits", next_step=f"Copy the commit from the page of {model.name}")


@rule(*MODELS, *SOURCES, cel="!has(self.path) || !has(self.revision)", message="revision is of a hub repository; a path has none")
def _revision_only_of_hub(source: ModelSource | TextSource | InstructionSource | QuestionSource) -> Violation | None:
    hub = source.name if isinstance(source, ModelSource) else source.hub
    if source.path is None or source.revision is None or hub is not None:
        return None
    return Violation(field="revision", value=source.revision, next_step="Remove it")


@rule(*MODELS, cel="!has(self.path) || !has(self.tokenSecret)", message="tokenSecret is of a hub; a path needs none")
def _token_only_of_hub(model: ModelSource) -> Violation | None:
    if model.path is None or model.token_secret is None:
        return None
    return Violation(field="tokenSecret", value=model.token_secret.name, allowed="only with name", next_step="Remove it")


@rule("spec.storage", cel="has(self.claim) != has(self.url)", message="needs exactly one of claim and url")
def _one_storage(storage: Storage) -> Violation | None:
    return exactly_one(storage, "claim", "url")


@rule("spec.storage", cel="!has(self.credentialsSecret) || has(self.url)", message="credentialsSecret goes only with url")
def _credentials_with_url(storage: Storage) -> Violation | None:
    if storage.credentials_secret is None or storage.url is not None:
        return None
    return Violation(field="credentialsSecret", value=storage.credentials_secret, next_step="Remove it; a claim needs no credentials")


@rule(*SOURCES, cel="has(self.hub) != has(self.path)", message="needs exactly one of hub (a data set) and path (files)")
def _one_text_source(source: TextSource | InstructionSource | QuestionSource) -> Violation | None:
    return exactly_one(source, "hub", "path")


@rule(*TEXTS, cel=f"!has(self.path) || self.path.matches('{TEXT_FILE}')", message="is of a format that is not read as texts")
def _text_file(source: TextSource) -> Violation | None:
    return _file_of(source.path, TEXT_FILE, ".jsonl or .txt, also as .gz or .zst, or .parquet")


@rule(
    INSTRUCTIONS,
    QUESTIONS,
    cel=f"!has(self.path) || self.path.matches('{OBJECT_FILE}')",
    message="is of a format that is not read as objects",
)
def _object_file(source: InstructionSource | QuestionSource) -> Violation | None:
    return _file_of(source.path, OBJECT_FILE, ".jsonl, .jsonl.gz, .jsonl.zst or .parquet")


def _file_of(path: str | None, pattern: str, endings: str) -> Violation | None:
    if path is None or re.search(pattern, path):
        return None
    return Violation(
        field="path", value=path, allowed=f"a file or glob that ends in {endings}",
        next_step="Convert it (a JSON list: jq -c '.[]' data.json > data.jsonl), or write which files of a folder: texts/*.jsonl",
    )  # fmt: skip


@rule(QUESTIONS, cel="!has(self.hub) || has(self.revision)", message="revision is required with hub, because a branch moves")
def _questions_revision(source: QuestionSource) -> Violation | None:
    if source.hub is None or source.revision is not None:
        return None
    return Violation(field="revision", allowed="40 hexadecimal digits", next_step=f"Copy the commit from the page of {source.hub}")


@rule(
    *SOURCES,
    cel=f"!has(self.path) || (!has(self.subset) && self.split == '{SPLIT}')",
    message="subset and split are of a hub data set; a path has none",
)
def _subset_only_of_hub(source: TextSource | InstructionSource | QuestionSource) -> Violation | None:
    if source.path is None or (source.subset is None and source.split == SPLIT):
        return None
    field, value = ("subset", source.subset) if source.subset is not None else ("split", source.split)
    return Violation(field=field, value=value, allowed="only with hub", next_step="Remove it; of files, name those that are wanted")
