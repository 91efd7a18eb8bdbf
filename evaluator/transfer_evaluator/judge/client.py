"""Asks one judge: the official `openai` client for the protocol, pace and patience of our own.

    408, 409, 425, 429, 5xx, no connection, a cut or unreadable answer   tried again, later and later, not before Retry-After
    401, 403, 404, 405                                                   wrong token, address or model: a person has to correct it
    402, or 429 that names a quota                                       out of money: a person has to pay
    400, 413, 422                                                        this request cannot be answered, others may

What a person has to do is an error here; `panel` says what becomes of the answers. A 429 holds all requests back, not only its own.
The token is in no message: texts of a server are searched for it, and that of a 401 or 403, which may repeat half of it, is not passed on
at all.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from transfer_api.errors import SpecError, TransferError
from transfer_api.spec import Judge, JudgePace, ReplyFormat
from transfer_evaluator.judge.parse import NAMES, reply_schema
from transfer_evaluator.judge.prompt import Messages
from transfer_evaluator.judge.spending import most_input_tokens
from transfer_evaluator.judge.store import Reply

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 600.0
"""A server that wants more is down."""
PASSING = (408, 409, 425, 429)
QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance", "insufficient_funds")


class JudgeUnavailableError(Exception):
    """A request had no answer, after all tries."""


class RequestRefusedError(Exception):
    """The judge does not take this one request."""


class OutOfMoneyError(TransferError):
    """The account behind the token is empty. What was answered is kept, so a later run pays only for the rest."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Clock, sleep and chance of a client; tests bring their own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Completion(BaseModel):
    """What is read of a server's answer."""

    model_config = ConfigDict(extra="ignore")

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class JudgeClient:
    """One judge behind its endpoint. Use it as an asynchronous context manager.

    Args:
        judge: endpoint, model and settings.
        pace: how it is asked.
        token: of the endpoint; None for one that wants none.
        field: of the experiment file, for errors: spec.evaluation.judge.
        timing: clock, sleep and chance.
    """

    def __init__(self, judge: Judge, pace: JudgePace, token: str | None, field: str, timing: Timing | None = None) -> None:
        self.judge = judge
        self.pace = pace
        self.field = field
        self.requests = self.failures = 0
        """Requests sent, and how many of them had no usable answer."""
        self._token = token
        self._timing = timing or Timing()
        self._next = self._not_before = float("-inf")
        self._client = openai.AsyncOpenAI(base_url=judge.url, api_key=token or "none", max_retries=0, timeout=pace.timeout_seconds)

    async def __aenter__(self) -> JudgeClient:
        return self

    async def __aexit__(self, *unused: object) -> None:
        await self._client.close()

    async def ask(self, messages: Messages, names: Sequence[str] = NAMES) -> Reply:
        """The reply to a chat that asks for scores in this order.

        Raises:
            JudgeUnavailableError: no answer after all tries.
            RequestRefusedError: the judge does not take this request.
            OutOfMoneyError: the account is empty.
            SpecError: token, address or model are wrong.
        """
        problem = ""
        for attempt in range(self.pace.retries + 1):
            await self._turn()
            self.requests += 1
            try:
                return await self._send(messages, names)
            except openai.APIStatusError as error:
                self.failures += 1
                problem = self._unless_final(error)
                hint = retry_after(error.response.headers)
            except (openai.APIError, TimeoutError, ValidationError) as error:
                self.failures += 1
                problem, hint = self._clean(f"{type(error).__name__}: {_first_line(error)}"), None
            if hint is not None and hint > LONGEST_RETRY_AFTER_SECONDS:
                break
            if attempt < self.pace.retries:
                await self._back_off(attempt, hint)
        raise JudgeUnavailableError(problem)

    async def _send(self, messages: Messages, names: Sequence[str]) -> Reply:
        judge = self.judge
        request: dict[str, Any] = {
            "model": judge.model, "messages": list(messages), "temperature": float(judge.temperature), "max_tokens": judge.max_tokens,
            **_response_format(judge.reply_format, names),
        }  # fmt: skip
        async with asyncio.timeout(self.pace.timeout_seconds):
            answer = await self._client.chat.completions.with_raw_response.create(**request)
        completion = _Completion.model_validate_json(answer.text)
        text = completion.choices[0].message.content or ""
        if completion.usage is None:
            return Reply(text, most_input_tokens(prompt_bytes(messages)), min(judge.max_tokens, len(text.encode()) + 1))
        return Reply(text, completion.usage.prompt_tokens, completion.usage.completion_tokens)

    async def _turn(self) -> None:
        """Waits until the rate allows a request, and no 429 forbids it."""
        start = self._slot()
        while (wait := start - self._timing.clock()) > 0:
            await self._timing.sleep(wait)
            if self._not_before > start:
                start = self._slot()

    def _slot(self) -> float:
        """The next moment for a request, which nobody else gets."""
        start = max(self._timing.clock(), self._next, self._not_before)
        self._next = start + (60.0 / self.pace.requests_per_minute if self.pace.requests_per_minute else 0.0)
        return start

    async def _back_off(self, attempt: int, hint: float | None) -> None:
        longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt)
        wait = longest * (0.5 + 0.5 * self._timing.chance())
        if hint is not None:
            self._not_before = max(self._not_before, self._timing.clock() + hint)
            wait = hint + wait * self._timing.chance()  # not all of them in the same moment
        await self._timing.sleep(wait)

    def _unless_final(self, error: openai.APIStatusError) -> str:
        """What a status means that may pass; raises what the others mean."""
        status, said = error.status_code, self._clean(_first_line(error))
        if status == 402 or (status == 429 and str(error.code or error.type or "") in QUOTA):
            raise OutOfMoneyError(
                f"the judge's account is empty (answer {status})", field=self.field, value=self.judge.model,
                next_step="Pay for more",
            ) from None  # fmt: skip
        if status in (401, 403):
            raise SpecError(
                f"the judge refuses the token (answer {status})" if self._token else f"the judge wants a token (answer {status})",
                field=f"{self.field}.tokenSecret", value=self.judge.url,
                next_step="Put a valid token into the Secret, or for `transfer run` into the variable JUDGE_TOKEN or SECOND_JUDGE_TOKEN",
            ) from None  # fmt: skip
        if status in (404, 405):
            raise SpecError(
                f"the endpoint knows no such model or address (answer {status}: {said})", field=self.field,
                value=f"{self.judge.model} at {self.judge.url}", next_step="Correct model or url; most addresses end in /v1",
            ) from None  # fmt: skip
        if status in PASSING or status >= 500:
            return f"answer {status}: {said}"
        raise RequestRefusedError(f"answer {status}: {said}") from None

    def _clean(self, text: str) -> str:
        return text.replace(self._token, "***") if self._token else text


def prompt_bytes(messages: Messages) -> int:
    """Bytes of all messages."""
    return sum(len(message["content"].encode()) for message in messages)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _response_format(wanted: ReplyFormat, names: Sequence[str]) -> dict[str, Any]:
    match wanted:
        case ReplyFormat.JSON_SCHEMA:
            schema = {"name": "scores", "strict": True, "schema": reply_schema(names)}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case ReplyFormat.JSON_OBJECT:
            return {"response_format": {"type": "json_object"}}
        case ReplyFormat.TEXT:
            return {}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait that a server asks for: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110, 10.2.3)."""
    milliseconds, after = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(0.0, float(milliseconds) / 1000)
        return None if after is None else max(0.0, float(after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after or "").timestamp() - time.time())
    except (TypeError, ValueError):
        return None
