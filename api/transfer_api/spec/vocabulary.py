"""The stage `vocabulary`."""

from __future__ import annotations

import enum

from pydantic import Field

from transfer_api.amount import Amount, DecimalString
from transfer_api.base import Contract
from transfer_api.spec.sources import TextSource


class Initialization(enum.StrEnum):
    """How the rows of added tokens start."""

    SUBTOKEN_MEAN = "SubtokenMean"
    MEAN = "Mean"
    MULTIVARIATE = "Multivariate"
    RANDOM = "Random"
    DISTILLATION = "Distillation"


class Distillation(Contract):
    """Budget of the initialisation Distillation (arXiv 2505.20133)."""

    snippets: int = Field(
        default=100, ge=1, le=10_000,
        description="Snippets of the corpus, 48 tokens each, in which a new token is seen; one counts for every new token in it.",
    )  # fmt: skip
    learning_rate: DecimalString = Field(default="1e-4", description="Learning rate of the new rows at the start; it falls to 0 on a line.")


class Vocabulary(Contract):
    """Adds tokens of the target language to the base model's tokenizer and embeddings."""

    added_tokens: Amount = Field(description="Rows to add to the vocabulary.")
    initialization: Initialization = Field(
        default=Initialization.SUBTOKEN_MEAN,
        description="Start of the new rows: mean of the rows the old tokenizer would use, mean of all rows, that mean with noise of the "
        "old rows' covariance, or normal noise. Distillation starts as the first and trains the new rows alone, towards the hidden "
        "states that the model has with the old tokens.",
    )
    distillation: Distillation | None = Field(default=None, description="Budget; only with initialization: Distillation.")
    pad_to_multiple_of: int | None = Field(
        default=None, ge=1, le=1024,
        description="Rounds the rows of embedding and head up, such as to 128 for fast matrix products. Default: no more rows than tokens.",
    )  # fmt: skip
    corpus: list[TextSource] = Field(min_length=1, max_length=32, description="Texts from which the tokens are learned.")
