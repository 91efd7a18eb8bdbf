"""Models, texts, instructions and questions; the storage."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from transfer_api.amount import Amount, DecimalString
from transfer_api.base import Contract
from transfer_api.spec.values import HubName, Label, Language, Name, Path, Revision, SecretKey


class ModelSource(Contract):
    """A base model: on a hub, pinned to a commit, or a folder in the storage."""

    name: HubName | None = Field(
        default=None, description="Repository on the model hub, such as meta-llama/Llama-2-7b-hf. Exactly one of name and path."
    )
    path: Path | None = Field(
        default=None,
        description="Folder with config.json, safetensors and tokenizer; relative to the storage. Exactly one of name and path.",
    )
    revision: Revision | None = Field(
        default=None, description="Commit of the repository, 40 hexadecimal digits. Required with name: a branch moves."
    )
    token_secret: SecretKey | None = Field(default=None, description="Hub token, for a gated repository.")
    parameters: Amount | None = Field(
        default=None, description="Number of parameters, such as 6.74B. Only for `transfer plan` where the model is not at hand."
    )


class Storage(Contract):
    """Where models, data and artifacts are. `transfer run` uses its --storage folder instead."""

    claim: Name | None = Field(default=None, description="ReadWriteMany PersistentVolumeClaim. Exactly one of claim and url.")
    url: Annotated[str, Field(pattern=r"^[a-z0-9]+://.+", max_length=1024)] | None = Field(
        default=None, description="Object storage, such as s3://bucket/prefix. Exactly one of claim and url."
    )
    credentials_secret: Name | None = Field(default=None, description="Secret with the credentials of url.")


class TextSource(Contract):
    """Texts of one language: a hub data set or files in the storage (.jsonl, .txt, .gz and .zst of both, .parquet)."""

    hub: HubName | None = Field(default=None, description="Data set on the hub, such as wikimedia/wikipedia. Exactly one of hub and path.")
    subset: Label | None = Field(default=None, description="Configuration of the hub data set, such as 20231101.id.")
    split: Label = Field(default="train", description="Split of the hub data set.")
    revision: Revision | None = Field(default=None, description="Commit of the hub data set, 40 hexadecimal digits.")
    path: Path | None = Field(
        default=None,
        description="File or glob, relative to the storage, or an address (s3://bucket/texts/*.jsonl, gs://, https://). .jsonl: one object "
        "a line; .parquet: one a row; .txt: documents parted by blank lines. Lines and texts also as .gz or .zst.",
    )
    field: Label = Field(default="text", description="Field that holds the text.")
    language: Language | None = Field(default=None, description="BCP 47 code of the texts. Default: the experiment's language.")


class Deduplication(enum.StrEnum):
    """Which documents count as having been there before."""

    EXACT = "Exact"
    NEAR = "Near"


class TextFilter(Contract):
    """Which documents of a source are kept. What is dropped is counted by reason, in the artifact and in the report."""

    min_characters: int | None = Field(default=None, ge=1, le=1_000_000_000, description="Shorter documents are dropped.")
    max_characters: int | None = Field(default=None, ge=1, le=1_000_000_000, description="Longer documents are dropped.")
    max_repetition: DecimalString | None = Field(
        default=None,
        description="Documents that repeat themselves more are dropped: the share of pieces of 10 characters that stood in the same 1,000 "
        "characters before. Prose has 0.05 to 0.25, one character again and again 0.99.",
    )
    languages: list[Language] = Field(
        default=[], max_length=16,
        description="Documents that py3langid takes for another language are dropped; it chooses among these and 15 large ones. "
        "Default: every language is kept.",
    )  # fmt: skip


class WeightedSource(TextSource):
    """One part of a mixture."""

    weight: int = Field(default=1, ge=0, le=1_000_000, description="Share of rows drawn from this source, relative to the others.")
    filter: TextFilter | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Which documents are kept. Default: all that are not blank."
    )
    deduplicate: Deduplication | None = Field(
        default=None, exclude_if=lambda value: value is None,
        description="Exact: a document that is in the source already is dropped, white space aside. Near: one that is nearly the same too "
        "(MinHash, estimated Jaccard similarity of at least 0.8). Default: none is.",
    )  # fmt: skip


class NamedText(TextSource):
    """A held-out text."""

    name: Name = Field(description="Name under which its scores are shown.")


class InstructionSource(Contract):
    """Instruction data: objects with instruction, input (may be empty) and output, or with messages."""

    hub: HubName | None = Field(default=None, description="Data set on the hub. Exactly one of hub and path.")
    subset: Label | None = Field(default=None, description="Configuration of the hub data set.")
    split: Label = Field(default="train", description="Split of the hub data set.")
    revision: Revision | None = Field(default=None, description="Commit of the hub data set, 40 hexadecimal digits.")
    path: Path | None = Field(
        default=None, description="JSON Lines or Parquet file or glob, relative to the storage, or an address (s3://, gs://, https://)."
    )


class QuestionSource(Contract):
    """Open questions of the suite llm-eval: objects with the question and, where there are, its category, language and reference answer."""

    name: Name = Field(description="Name under which its scores are shown.")
    hub: HubName | None = Field(
        default=None, description="Data set on the hub, such as llmeval-fdu/LLMEval-1. Exactly one of hub and path."
    )
    subset: Label | None = Field(default=None, description="Configuration of the hub data set.")
    split: Label = Field(default="train", description="Split of the hub data set.")
    revision: Revision | None = Field(
        default=None, description="Commit of the hub data set, 40 hexadecimal digits. Required with hub: a branch moves."
    )
    path: Path | None = Field(default=None, description="JSON Lines or Parquet file or glob, relative to the storage.")
    question_field: Label = Field(default="question", description="Field that holds the question.")
    category_field: Label = Field(default="category", description="Field that holds the category; scores are also shown by category.")
    reference_field: Label = Field(default="reference", description="Field that holds a right answer, which the judge is shown.")
    language: Language | None = Field(
        default=None, description="BCP 47 code of questions without a field language. Default: the experiment's language."
    )
