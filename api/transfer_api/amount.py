"""Amounts as people write them (`41K`, `0.5B`, `4Ki`) and numbers that must not become floats (`"2e-5"`).

The Kubernetes API conventions advise against floats: they do not round-trip between clients. So a learning rate is a
string with a pattern, and an amount is an integer or such a string. Patterns and bounds let exactly those strings pass that
are whole numbers from 1 to 10^15, so that the API server, which cannot compute with decimals, refuses what Python refuses.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

AMOUNT_PATTERN = r"^([0-9]{1,15}|[0-9]{1,15}(\.[0-9]{1,3})?[KMBT]|[0-9]{1,15}[KM]i)$"
AMOUNT_ALLOWED = "a whole number, or one with K, M, B, T (at most three decimals), Ki or Mi, such as 41K, 0.5B or 512Ki"
DECIMAL_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,12})?(e-?[0-9]{1,2})?$"
DECIMAL_ALLOWED = 'a decimal number in quotes, such as "2e-5" or "0.1"'

_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20}
LARGEST_AMOUNT = 10**15  # a thousand trillion tokens; whole in a double, which is what CEL compares


def amount_cel(value: str) -> str:
    """A CEL expression that reads an amount as a double. Exact: `0.041M` becomes `0.041e6`, which is parsed as one number."""
    decimal = f"string({value}).replace('K','e3').replace('M','e6').replace('B','e9').replace('T','e12')"
    kibi, mebi = (f"double(string({value}).replace('{unit}','')) * {factor}.0" for unit, factor in (("Ki", 2**10), ("Mi", 2**20)))
    return f"(string({value}).endsWith('Ki') ? {kibi} : string({value}).endsWith('Mi') ? {mebi} : double({decimal}))"


def parse_amount(value: Any) -> int:
    """Turns `500M`, `"41K"` or `41000` into a whole number.

    Raises:
        ValueError: not an amount, not whole (`0.0005K`), zero, or above 10^15.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("is not an amount")
    amount = value if isinstance(value, int) and value >= 0 else _parse_text(str(value))
    if amount < 1:
        raise ValueError("must be at least 1")
    if amount > LARGEST_AMOUNT:
        raise ValueError(f"is larger than {format_amount(LARGEST_AMOUNT)}")
    return amount


def _parse_text(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})(\.[0-9]{1,3})?(K|M|B|T|Ki|Mi)?", text, re.ASCII)
    if match is None or re.fullmatch(AMOUNT_PATTERN, text) is None:
        raise ValueError("is not an amount")
    return int(Decimal(match[1] + (match[2] or "")) * _FACTORS[match[3] or ""])


def format_amount(amount: int) -> str:
    """Writes an amount the short way: 41000 as `41K`, 40960 as `40.96K`, 500 as `500`."""
    for suffix in ("T", "B", "M", "K"):
        factor = _FACTORS[suffix]
        if amount >= factor:
            return f"{round(amount / factor, 3):g}{suffix}"
    return str(amount)


def count_of(count: int, what: str) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _check_decimal(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f'must be a string, not a number; write "{value}"')
    if not isinstance(value, str) or re.fullmatch(DECIMAL_PATTERN, value) is None or len(value) > 24:
        raise ValueError("is not a decimal number")
    return value


Amount = Annotated[
    int,
    BeforeValidator(parse_amount),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "pattern": AMOUNT_PATTERN,
            "maxLength": 24,
            "minimum": 1,
            "maximum": LARGEST_AMOUNT,
            "x-kubernetes-validations": [
                {
                    "rule": f"type(self) == int || (self.matches('[1-9]') && {amount_cel('self')} <= {LARGEST_AMOUNT}.0)",
                    "message": "must be at least 1 and at most 1000T",
                }
            ],
        }
    ),
]
"""A whole number of tokens, examples or rows; read with `parse_amount`."""

ListedAmount = Annotated[
    int,
    BeforeValidator(parse_amount),
    WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "pattern": AMOUNT_PATTERN, "maxLength": 24, "minimum": 1, "maximum": LARGEST_AMOUNT}
    ),
]
"""An `Amount` in a list. Without CEL: the API server reckons with an integer-or-string of 3 MB, and that times the length of the list."""

DecimalString = Annotated[
    str,
    BeforeValidator(_check_decimal),
    WithJsonSchema({"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": 24}),
]
"""A non-negative decimal number kept as the string that was written."""
