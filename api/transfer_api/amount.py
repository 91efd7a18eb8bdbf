"""Amounts as people write them (`41K`, `0.5B`, `4Ki`) and numbers that must not become floats (`"2e-5"`).

The Kubernetes API conventions advise against floats: they do not round-trip between clients. So a learning rate is a
string with a pattern, and an amount is an integer or such a string.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

AMOUNT_PATTERN = r"^[0-9]+(\.[0-9]+)?(K|M|B|T|Ki|Mi)?$"
DECIMAL_PATTERN = r"^[0-9]+(\.[0-9]+)?(e-?[0-9]+)?$"

_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20}
_LARGEST = 10**15  # a thousand trillion tokens; also keeps int64 arithmetic of CEL far from overflow


def parse_amount(value: Any) -> int:
    """Turns `500M`, `"41K"` or `41000` into a whole number.

    Raises:
        ValueError: not an amount, not whole (`0.0005K`), or above 10^15.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("is not an amount; write a whole number or one with K, M, B, T, Ki or Mi, such as 41K or 0.5B")
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(K|M|B|T|Ki|Mi)?", str(value))
    if match is None:
        raise ValueError("is not an amount; write a whole number or one with K, M, B, T, Ki or Mi, such as 41K or 0.5B")
    amount = Decimal(match[1]) * _FACTORS[match[2] or ""]
    if amount != int(amount):
        raise ValueError("is not a whole number of tokens or examples")
    if amount > _LARGEST:
        raise ValueError(f"is larger than {format_amount(_LARGEST)}")
    return int(amount)


def format_amount(amount: int) -> str:
    """Writes an amount the short way: 41000 as `41K`, 40960 as `40.96K`, 500 as `500`."""
    for suffix in ("T", "B", "M", "K"):
        factor = _FACTORS[suffix]
        if amount >= factor:
            return f"{round(amount / factor, 3):g}{suffix}"
    return str(amount)


def _check_decimal(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f'must be a string, not a number; write it in quotes, such as "{value}"')
    if not isinstance(value, str) or re.fullmatch(DECIMAL_PATTERN, value) is None or len(value) > 24:
        raise ValueError('is not a decimal number; write it as a string such as "2e-5" or "0.1"')
    return value


Amount = Annotated[
    int,
    BeforeValidator(parse_amount),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": AMOUNT_PATTERN, "maxLength": 24}),
]
"""A whole number of tokens, examples or rows; read with `parse_amount`."""

DecimalString = Annotated[
    str,
    BeforeValidator(_check_decimal),
    WithJsonSchema({"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": 24}),
]
"""A non-negative decimal number kept as the string that was written."""
