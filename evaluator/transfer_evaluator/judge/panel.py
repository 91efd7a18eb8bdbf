"""Puts every answer before every judge, and says of each what came of it.

A reply that cannot be read is asked for again, at most `attempts` requests in all; then the scores count as missing, as they do where
the judge takes a request under no circumstances or its spending limit is reached. Missing is never 0.

A judge that answers none of several requests in a row is down, and is asked for nothing more: what is left is missing too, and told apart
from the rest, for another run asks for it again. What was answered before is on the disk. The same holds for one that wants no more of us:
out of money, the token withdrawn, the model gone. By then the model's answers have been paid for, and a person can mend it without them.

Before there are any, a judge that was never heard of is greeted: what is wrong with token, address, model or reply format is an error then,
since most of it is mended in the experiment file, which makes another stage of it that has to answer everything again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from transfer_api.errors import SpecError
from transfer_api.spec import Judge, JudgePace
from transfer_evaluator.judge.client import JudgeClient, JudgeUnavailableError, OutOfMoneyError, RequestRefusedError, Timing, prompt_bytes
from transfer_evaluator.judge.parse import Scores, parse_reply
from transfer_evaluator.judge.prompt import Case, Messages, build, order
from transfer_evaluator.judge.spending import Spending, SpendingReachedError, most_input_tokens
from transfer_evaluator.judge.store import Reply, ReplyStore, request_key

logger = logging.getLogger(__name__)
Done = Callable[[int, int], None]
Begin = Callable[[int], Done]
"""As in `transfer_evaluator.scorer`, which needs torch: told how many requests come, gives what is told after each and its tokens."""
Found = list[list[list["Verdict"]]]
"""Verdicts by judge, case and repeat."""
DOWN_AFTER = 8
"""Requests in a row without an answer, each after all its tries."""
REFUSED_AFTER = 3
"""Requests that a judge refuses before it has taken one: it is then asked wrongly."""
LIMIT_REACHED = "the spending limit is reached"
GREETING = Case("1 + 1 = ?", "2", "en", "2")
"""An answer that every judge can score. Its scores are kept like any others, so nobody is greeted twice from one storage."""
GREETING_SECONDS = 30
"""Longest wait for them: a judge that is down now may be up when it is needed."""


def _silent(requests: int) -> Done:
    return lambda finished, tokens: None


@dataclass(frozen=True)
class Verdict:
    """What one request to one judge came to."""

    scores: Scores | None
    missing: str = ""
    """Why there are no scores."""
    unanswered: bool = False
    """Nobody answered: another run may have more luck."""


@dataclass(kw_only=True)
class Seat:
    """One judge at work, and what it has done so far."""

    place: str
    """Of the experiment file: spec.evaluation.judge."""
    judge: Judge
    pace: JudgePace
    token: str | None = field(repr=False)
    store: ReplyStore
    kept: int = 0
    """Replies that were on the disk already."""
    unreadable: int = 0
    """Replies that could not be read."""
    requests: int = 0
    failures: int = 0
    down: str = ""
    """Why it is asked for nothing more."""
    spending: Spending = field(init=False)

    def __post_init__(self) -> None:
        self.spending = Spending(self.judge.spending, self.store.input_tokens, self.store.output_tokens)


def greet(seats: Sequence[Seat]) -> None:
    """Asks each judge that has not done so to score one sum, to see that it is asked as it wants to be.

    One that is down or out of money is passed over: it costs its own scores alone.

    Raises:
        SpecError: its token, address, model or reply format is wrong.
        StorageError: its reply cannot be kept.
    """
    strangers = [seat for seat in seats if seat.store.get(request_key(seat.judge, build(GREETING), 0)) is None]
    if strangers:
        with ThreadPoolExecutor(1, "judges") as pool:  # as in ask_panel
            pool.submit(asyncio.run, _greet(strangers)).result()


async def _greet(seats: Sequence[Seat]) -> None:
    for seat in seats:
        pace = seat.pace.model_copy(update={"retries": 0, "timeout_seconds": min(GREETING_SECONDS, seat.pace.timeout_seconds)})
        async with JudgeClient(seat.judge, pace, seat.token, seat.place) as client:
            try:
                reply = await _Examiner(seat, client, [GREETING], _silent(1)).reply(build(GREETING), 0)
                parse_reply(reply.text)
            except RequestRefusedError as error:
                raise _asked_wrongly(seat, str(error)) from error
            except (JudgeUnavailableError, OutOfMoneyError, SpendingReachedError) as error:
                problem = error.problem if isinstance(error, OutOfMoneyError) else error  # without the place, which stands before it
                logger.warning("%s: %s at %s cannot be greeted: %s", seat.place, seat.judge.model, seat.judge.url, problem)
            except ValueError as error:
                # Not refused: whoever errs once is asked again, and may be right of all others.
                logger.warning("%s: %s at %s scores no sum: %s", seat.place, seat.judge.model, seat.judge.url, error)
            finally:
                seat.requests += client.requests
                seat.failures += client.failures


def ask_panel(seats: Sequence[Seat], cases: Sequence[Case], begin: Begin = _silent, timing: Timing | None = None) -> Found:
    """The verdicts by judge, case and repeat. Equal cases are asked once.

    Raises:
        StorageError: replies cannot be kept.
    """
    panel = _Panel(seats, list(dict.fromkeys(cases)), begin, timing)
    # In a thread of its own: SIGTERM raises SaveRequested in the main one, and here it would strike inside the client, which takes every
    # exception for a lost connection.
    with ThreadPoolExecutor(1, "judges") as pool:
        future = pool.submit(asyncio.run, panel.run())
        try:
            found = future.result()
        except BaseException:
            panel.stop()
            raise
    return [[found[place][case] for case in cases] for place in range(len(seats))]


class _Panel:
    def __init__(self, seats: Sequence[Seat], cases: Sequence[Case], begin: Begin, timing: Timing | None) -> None:
        self._seats = seats
        self._cases = cases
        self._timing = timing
        self._done = begin(len(cases) * sum(seat.judge.repeats for seat in seats))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[object] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Ends the run from another thread; what is under way is given up."""
        self._stopped = True
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)

    async def run(self) -> list[dict[Case, list[Verdict]]]:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._stopped:
            raise asyncio.CancelledError
        async with contextlib.AsyncExitStack() as stack:
            examiners = []
            for seat in self._seats:
                client = JudgeClient(seat.judge, seat.pace, seat.token, seat.place, self._timing)
                examiners.append(_Examiner(seat, await stack.enter_async_context(client), self._cases, self._done))
            try:
                async with asyncio.TaskGroup() as group:
                    for examiner in examiners:
                        for _ in range(examiner.seat.pace.concurrency):
                            group.create_task(examiner.work())
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                for examiner in examiners:
                    examiner.seat.requests += examiner.client.requests
                    examiner.seat.failures += examiner.client.failures
        return [examiner.found for examiner in examiners]


class _Examiner:
    """One judge with its queue of cases; several workers take from it."""

    def __init__(self, seat: Seat, client: JudgeClient, cases: Sequence[Case], done: Done) -> None:
        self.seat = seat
        self.client = client
        self.found: dict[Case, list[Verdict]] = {case: [Verdict(None, "not asked")] * seat.judge.repeats for case in cases}
        self._queue: Iterator[tuple[Case, int]] = ((case, repeat) for repeat in range(seat.judge.repeats) for case in cases)
        self._done = done
        self._unanswered = 0
        self._refused = 0
        self._answered = False
        self._patience = min(DOWN_AFTER, max(1, len(cases) * seat.judge.repeats))

    async def work(self) -> None:
        for case, repeat in self._queue:
            verdict, tokens = self._known(case, repeat) if self.seat.down else await self._verdict(case, repeat)
            self.found[case][repeat] = verdict
            self._done(1, tokens)

    def _known(self, case: Case, repeat: int) -> tuple[Verdict, int]:
        """What a judge that is down has said before, if it was something."""
        for attempt in range(1, self.seat.judge.attempts + 1):
            reply = self.seat.store.get(request_key(self.seat.judge, build(case, attempt, repeat), repeat))
            if reply is None:
                return Verdict(None, self.seat.down, unanswered=True), 0
            self.seat.kept += 1
            with contextlib.suppress(ValueError):
                return Verdict(parse_reply(reply.text)), 0
        return Verdict(None, f"no readable reply in {self.seat.judge.attempts} requests"), 0

    async def _verdict(self, case: Case, repeat: int) -> tuple[Verdict, int]:
        problem, tokens = "", 0
        for attempt in range(1, self.seat.judge.attempts + 1):
            try:
                reply = await self.reply(build(case, attempt, repeat), repeat)
            except SpendingReachedError:
                return Verdict(None, LIMIT_REACHED), tokens
            except RequestRefusedError as error:
                # Of one that takes no request at all nothing is known of this one.
                return Verdict(None, f"the judge refuses the request: {error}", unanswered=self._takes_nothing(str(error))), tokens
            except JudgeUnavailableError as error:
                self._count_silence(str(error))
                return Verdict(None, f"the judge does not answer: {error}", unanswered=True), tokens
            except (OutOfMoneyError, SpecError) as error:
                self._leave(f"{error.problem}. {error.next_step}")
                return Verdict(None, self.seat.down, unanswered=True), tokens
            tokens += reply.input_tokens + reply.output_tokens
            try:
                return Verdict(parse_reply(reply.text)), tokens
            except ValueError as error:
                problem = str(error)
                self.seat.unreadable += 1
        return Verdict(None, f"no readable reply in {self.seat.judge.attempts} requests; the last: {problem}"), tokens

    async def reply(self, messages: Messages, repeat: int) -> Reply:
        """What the judge says to a chat: what it said before, else what it is asked for now, within what may be spent.

        Raises:
            SpendingReachedError, JudgeUnavailableError, RequestRefusedError, OutOfMoneyError, SpecError: as `JudgeClient.ask`.
            StorageError: it cannot be kept.
        """
        seat = self.seat
        key = request_key(seat.judge, messages, repeat)
        if (known := seat.store.get(key)) is not None:
            seat.kept += 1
            return known
        most = (most_input_tokens(prompt_bytes(messages)), seat.judge.max_tokens)
        await seat.spending.reserve(*most)
        used = (0, 0)
        try:
            reply = await self.client.ask(messages, order(repeat))
            used = (reply.input_tokens, reply.output_tokens)
            seat.store.put(key, reply)
        finally:
            seat.spending.settle(most, used)
        self._answered, self._unanswered = True, 0
        return reply

    def _count_silence(self, problem: str) -> None:
        self._unanswered += 1
        if self._unanswered >= self._patience:
            self._leave(f"the judge does not answer: {problem}")

    def _takes_nothing(self, problem: str) -> bool:
        """Counts a refused request; whether none was taken so far, as then a person has to say how it wants to be asked."""
        self._refused += 1
        if not self._answered and self._refused >= REFUSED_AFTER:
            error = _asked_wrongly(self.seat, problem)
            self._leave(f"{error.problem}. {error.next_step}")
        return not self._answered

    def _leave(self, problem: str) -> None:
        """Asks the judge for nothing more."""
        if self.seat.down:
            return
        self.seat.down = problem
        logger.warning(
            "%s: %s at %s is asked for nothing more, and what it has answered is kept: %s",
            self.seat.place, self.seat.judge.model, self.seat.judge.url, problem,
        )  # fmt: skip


def _asked_wrongly(seat: Seat, problem: str) -> SpecError:
    return SpecError(
        f"the judge refuses every request ({problem})", field=seat.place, value=seat.judge.model,
        next_step="Ask as it wants to be asked: replyFormat: Text where it knows no formats, or another temperature or maxTokens",
    )  # fmt: skip


def missing_reasons(verdicts: Sequence[Sequence[Verdict]]) -> dict[str, int]:
    """Why scores are missing, and how often."""
    return dict(Counter(verdict.missing for repeats in verdicts for verdict in repeats if verdict.scores is None).most_common())
