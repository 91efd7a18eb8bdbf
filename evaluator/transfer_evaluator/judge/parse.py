"""What a judge may reply: one JSON object with five whole numbers from 0 to 3, and nothing else.

Scores are never searched for in a longer text. A judge that explains itself may quote the answer that it judges, and an answer may hold
scores that somebody wants to have: whatever is not the whole reply is not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from transfer_api.problems import faults

HIGHEST = 3
LONGEST_REPLY = 4000
"""Characters; scores need a hundred."""
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.S)

Level = Annotated[int, Field(ge=0, le=HIGHEST)]


class Scores(BaseModel):
    """The five scores of LLM-Eval (arXiv 2401.01055, section 3.3), each from 0 to 3."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    accuracy: Level
    fluency: Level
    informativeness: Level
    logical_coherence: Level
    harmlessness: Level


NAMES: tuple[str, ...] = tuple(Scores.model_fields)


def parse_reply(text: str) -> Scores:
    """Reads a reply. White space and one Markdown fence around the whole of it are allowed.

    Raises:
        ValueError: it is anything else; says what.
    """
    if len(text) > LONGEST_REPLY:
        raise ValueError(f"it has {len(text)} characters")
    whole = text.strip()
    fenced = _FENCE.fullmatch(whole)
    try:
        content = json.loads(fenced[1] if fenced else whole, object_pairs_hook=_each_once)
    except json.JSONDecodeError:
        raise ValueError("it is no JSON") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    try:
        return Scores.model_validate(content)
    except ValidationError as error:
        raise ValueError(faults(error)) from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("it has a name twice")
    return dict(pairs)


def reply_schema(names: Sequence[str] = NAMES) -> dict[str, Any]:
    """JSON schema of a reply with the scores in this order, in the subset that servers enforce."""
    properties = {name: {"type": "integer", "enum": list(range(HIGHEST + 1))} for name in names}
    return {"type": "object", "properties": properties, "required": list(names), "additionalProperties": False}
