"""The base of every model that is written or read outside one process."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Contract(BaseModel):
    """camelCase outside, snake_case inside; unknown fields are refused; values do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        use_enum_values=False,
    )


class Observed(Contract):
    """What one of our programs wrote and another reads: unknown fields are ignored, so that versions may differ."""

    model_config = ConfigDict(extra="ignore")
