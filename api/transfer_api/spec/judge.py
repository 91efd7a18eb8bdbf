"""Models that score answers."""

from __future__ import annotations

import enum

from pydantic import Field

from transfer_api.amount import Amount, DecimalString
from transfer_api.base import Contract
from transfer_api.spec.values import Label, SecretKey, ServerAddress


class ReplyFormat(enum.StrEnum):
    """What the server is asked to make of a reply; it is read as strictly either way."""

    JSON_SCHEMA = "JSONSchema"
    JSON_OBJECT = "JSONObject"
    TEXT = "Text"


class JudgeSpending(Contract):
    """Most that a judge may be asked for in one evaluation; then asking stops, and what has no scores is shown as missing."""

    tokens: Amount | None = Field(default=None, description="Tokens of prompts and replies together.")
    money: DecimalString | None = Field(default=None, description="Money, in the currency of the prices. Needs inputPrice and outputPrice.")
    input_price: DecimalString | None = Field(default=None, description="Price of a million tokens of prompts.")
    output_price: DecimalString | None = Field(default=None, description="Price of a million tokens of replies.")


class JudgePace(Contract):
    """How a judge is asked; without any say in the scores."""

    concurrency: int = Field(default=8, ge=1, le=256, description="Most requests at once.")
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000, description="Most requests a minute. Default: no limit.")
    timeout_seconds: int = Field(default=120, ge=1, le=3600, description="How long one reply may take.")
    retries: int = Field(
        default=6,
        ge=0,
        le=100,
        description="Further tries of a request that failed for what may pass (408, 429, 5xx, no connection).",
    )


class Judge(Contract):
    """A model behind an OpenAI-compatible endpoint that scores answers."""

    url: ServerAddress = Field(
        description="Base address of the endpoint, such as https://judge.example/v1; credentials go into tokenSecret."
    )
    model: Label = Field(description="Name of the model at the endpoint; a dated version, where there is one, keeps scores comparable.")
    token_secret: SecretKey | None = Field(
        default=None,
        description="Token of the endpoint. `transfer run` takes it from JUDGE_TOKEN, and of the second judge from SECOND_JUDGE_TOKEN.",
    )
    temperature: DecimalString = Field(default="0", description="Temperature of the replies.")
    max_tokens: int = Field(default=512, ge=16, le=32_768, description="Most tokens of a reply, thinking included.")
    reply_format: ReplyFormat = Field(
        default=ReplyFormat.JSON_SCHEMA, description="What the server is asked to make of a reply; Text for servers that know no formats."
    )
    repeats: int = Field(
        default=1,
        ge=1,
        le=16,
        description="How often each answer is scored, every second time with the scores asked for in the other order; "
        "their agreement is shown.",
    )
    attempts: int = Field(
        default=3, ge=1, le=10, description="Most requests for one set of scores; without a readable reply they count as missing, not as 0."
    )
    spending: JudgeSpending | None = Field(default=None, description="Limit of spending. Default: none.")
    pace: JudgePace | None = Field(default=None, description="How the judge is asked.")
