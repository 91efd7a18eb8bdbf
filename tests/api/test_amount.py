"""Amounts and decimals as people write them."""

from __future__ import annotations

import celpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.structural import program
from transfer_api.amount import LARGEST_AMOUNT, amount_cel, format_amount, parse_amount


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        (1, 1),
        ("41K", 41_000),
        ("0.5B", 500_000_000),
        ("512Ki", 524_288),
        ("1Mi", 1_048_576),
        ("500M", 500_000_000),
        ("1.001K", 1001),
        ("7", 7),
        ("1T", 10**12),
    ],
)
def test_amounts_are_read(written: int | str, amount: int) -> None:
    assert parse_amount(written) == amount


@pytest.mark.parametrize(
    "written",
    ["", "K", "5 M", "5G", "5m", "-1", "1e6", "1.5", "0.5Ki", "1.0001K", "٥", None, True, 1.0, [], "1\n", 0, "0K", "1001T", 10**15 + 1],
)
def test_what_is_no_amount_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"amount|at least 1|larger"):
        parse_amount(written)


@pytest.mark.parametrize(
    ("amount", "text"), [(500, "500"), (41_000, "41K"), (40_960, "40.96K"), (5 * 10**8, "500M"), (6_740_000_000, "6.74B"), (10**12, "1T")]
)
def test_amounts_are_written_the_short_way(amount: int, text: str) -> None:
    assert format_amount(amount) == text


@settings(deadline=None)
@given(
    st.one_of(
        st.integers(1, LARGEST_AMOUNT),
        st.from_regex(r"[1-9][0-9]{0,8}(\.[0-9]{1,3})?[KM]", fullmatch=True),
        st.from_regex(r"[1-9][0-9]{0,7}[KM]i", fullmatch=True),
    )
)
def test_cel_reads_an_amount_to_the_last_digit(written: int | str) -> None:
    read = program(amount_cel("self")).evaluate({"self": celpy.json_to_cel(written)})
    assert int(read) == parse_amount(written)
