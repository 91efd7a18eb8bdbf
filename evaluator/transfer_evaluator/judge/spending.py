"""No more than a judge may cost.

Before a request the most that it can cost is set aside: a token is at least a byte, so a prompt has no more tokens than bytes, and
a reply no more than its limit. Where that does not fit any more, the request waits for those under way, which mostly cost a third of
what was set aside, and is given up when none is left. So the limit is not passed by what servers count as tokens.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal

from transfer_api.spec import JudgeSpending

MILLION = Decimal(1_000_000)
PROMPT_OVERHEAD = 64
"""Tokens of a chat template around the messages."""


class SpendingReachedError(Exception):
    """What may be spent does not cover another request."""


class Spending:
    """What one judge has cost.

    Args:
        limit: most that may be spent; None for no limit.
        input_tokens: spent before, by earlier tries of the same stage.
        output_tokens: likewise.
    """

    def __init__(self, limit: JudgeSpending | None, input_tokens: int = 0, output_tokens: int = 0) -> None:
        self.limit = limit
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.reached = False
        self._reserved_input = self._reserved_output = self._open = 0
        self._change = asyncio.Event()

    @property
    def money(self) -> Decimal | None:
        """Spent, in the currency of the prices; None where no prices are given."""
        return self._cost(self.input_tokens, self.output_tokens)

    async def reserve(self, input_tokens: int, output_tokens: int) -> None:
        """Sets the most that a request can cost aside, or waits until it fits.

        Raises:
            SpendingReachedError: it does not fit, and nothing is under way that could cost less than was set aside for it.
        """
        while not self._fits(input_tokens, output_tokens):
            if not self._open or self.reached:
                self.reached = True
                self._change.set()
                raise SpendingReachedError
            self._change.clear()
            await self._change.wait()
        self._reserved_input += input_tokens
        self._reserved_output += output_tokens
        self._open += 1

    def settle(self, reserved: tuple[int, int], used: tuple[int, int]) -> None:
        """Puts what a request has cost in the place of what was set aside for it."""
        self._reserved_input -= reserved[0]
        self._reserved_output -= reserved[1]
        self._open -= 1
        self.input_tokens += used[0]
        self.output_tokens += used[1]
        self._change.set()

    def _fits(self, input_tokens: int, output_tokens: int) -> bool:
        if self.limit is None:
            return True
        inputs = self.input_tokens + self._reserved_input + input_tokens
        outputs = self.output_tokens + self._reserved_output + output_tokens
        cost = self._cost(inputs, outputs)
        in_tokens = self.limit.tokens is None or inputs + outputs <= self.limit.tokens
        in_money = self.limit.money is None or (cost is not None and cost <= Decimal(self.limit.money))
        return in_tokens and in_money

    def _cost(self, inputs: int, outputs: int) -> Decimal | None:
        if self.limit is None or self.limit.input_price is None or self.limit.output_price is None:
            return None
        return (inputs * Decimal(self.limit.input_price) + outputs * Decimal(self.limit.output_price)) / MILLION


def most_input_tokens(text_bytes: int) -> int:
    """Most tokens that a prompt of so many bytes can have."""
    return text_bytes + PROMPT_OVERHEAD
