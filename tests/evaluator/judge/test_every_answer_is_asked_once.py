"""The client, the panel and the store against a real endpoint that fails on purpose."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.experiment import wait_for
from tests.support.judge_server import JudgeServer, scores_of
from transfer_api.errors import SpecError
from transfer_api.spec import Judge, JudgePace, JudgeSpending
from transfer_evaluator.judge import client
from transfer_evaluator.judge.client import Timing, retry_after
from transfer_evaluator.judge.panel import DOWN_AFTER, LIMIT_REACHED, REFUSED_AFTER, Seat, ask_panel, greet, missing_reasons
from transfer_evaluator.judge.prompt import Case
from transfer_evaluator.judge.store import ReplyStore

CASES = [Case(f"What is {number}?", f"It is {number}.", "en") for number in range(24)]
TOKEN = "sk-secret-of-this-test"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)


def seat(server: JudgeServer, storage: Path, *, token: str | None = None, stage: str = "stage", pod: str = "pod", **changes) -> Seat:
    pace = changes.pop("pace", JudgePace())
    judge = Judge(url=server.url, model=changes.pop("model", "judge-a"), **changes)
    return Seat(place="spec.evaluation.judge", judge=judge, pace=pace, token=token, store=ReplyStore(storage, judge, stage, pod))


def asked(server: JudgeServer) -> int:
    return len(server.requests)


def test_scores_are_those_that_the_judge_gave_and_a_second_run_asks_nothing(tmp_path):
    with JudgeServer() as server:
        (found,) = ask_panel([seat(server, tmp_path)], CASES)
        assert [repeats[0].scores.model_dump() for repeats in found] == [scores_of(case.answer) for case in CASES]
        assert asked(server) == len(CASES)
        again = seat(server, tmp_path, stage="another-stage", pod="another-pod")
        assert ask_panel([again], CASES) == [found]
        assert asked(server) == len(CASES)
        assert (again.kept, again.requests) == (len(CASES), 0)


def test_equal_answers_to_equal_questions_are_asked_once(tmp_path):
    with JudgeServer() as server:
        (found,) = ask_panel([seat(server, tmp_path)], [CASES[0]] * 5 + [CASES[1]])
        assert asked(server) == 2
        assert found[:5] == [found[0]] * 5


def test_judges_repeats_and_settings_are_told_apart(tmp_path):
    with JudgeServer() as server:
        ask_panel([seat(server, tmp_path, repeats=2), seat(server, tmp_path, model="judge-b")], CASES[:3])
        assert asked(server) == 9
        ask_panel([seat(server, tmp_path, repeats=3)], CASES[:3])
        assert asked(server) == 12
        ask_panel([seat(server, tmp_path, temperature="0.5")], CASES[:3])
        assert asked(server) == 15


@pytest.mark.parametrize("fault", ["429", "500", "503", "cut", "broken"])
def test_a_fault_that_passes_is_waited_out(tmp_path, fault):
    with JudgeServer(faults=[fault, fault]) as server:
        one = seat(server, tmp_path, pace=JudgePace(concurrency=1))
        (found,) = ask_panel([one], CASES[:2])
        assert [repeats[0].scores.model_dump() for repeats in found] == [scores_of(case.answer) for case in CASES[:2]]
        assert (one.requests, one.failures) == (4, 2)
        assert set(server.answered.values()) == {1}


def test_a_reply_that_comes_too_late_is_given_up_and_asked_for_again(tmp_path):
    with JudgeServer(faults=["slow"], slow_seconds=12) as server:
        one = seat(server, tmp_path, pace=JudgePace(timeout_seconds=4, concurrency=1))
        (found,) = ask_panel([one], CASES[:1])
        assert found[0][0].scores.model_dump() == scores_of(CASES[0].answer)
        assert one.failures == one.requests - 1 >= 1


def test_a_429_holds_all_requests_back_for_as_long_as_it_says(tmp_path):
    with JudgeServer(faults=["429"]) as server:
        ask_panel([seat(server, tmp_path, pace=JudgePace(concurrency=1))], CASES[:2])
        assert server.times[1] - server.times[0] >= 0.2


@pytest.mark.parametrize("fault", ["nonsense", "quoted"])
def test_a_reply_that_cannot_be_read_is_asked_again(tmp_path, fault):
    with JudgeServer(faults=[fault]) as server:
        one = seat(server, tmp_path, pace=JudgePace(concurrency=1))
        (found,) = ask_panel([one], CASES[:1])
        assert found[0][0].scores.model_dump() == scores_of(CASES[0].answer)
        assert (asked(server), one.unreadable) == (2, 1)


def test_a_judge_of_another_format_is_asked_so_many_times_and_then_counts_as_missing_not_as_0(tmp_path):
    with JudgeServer(share=1.0, faults=["nonsense"]) as server:
        (found,) = ask_panel([seat(server, tmp_path, attempts=2)], CASES)
        assert all(repeats[0].scores is None for repeats in found)
        assert asked(server) == 2 * len(CASES)
        (reason,) = missing_reasons(found)
        assert "no readable reply in 2 requests" in reason
        ask_panel([seat(server, tmp_path, attempts=2)], CASES)
        assert asked(server) == 2 * len(CASES), "replies that cannot be read are kept too"


def test_a_judge_that_is_down_is_left_alone_and_what_it_answered_is_kept(tmp_path):
    with JudgeServer() as server:
        ask_panel([seat(server, tmp_path)], CASES[:10])
        server.share, server.faults = 1.0, ["503"]
        down = seat(server, tmp_path, pace=JudgePace(retries=1, concurrency=1))
        before = asked(server)
        (found,) = ask_panel([down], CASES)
        assert "503" in down.down
        assert asked(server) - before == 2 * DOWN_AFTER
        assert [repeats[0].scores is not None for repeats in found] == [True] * 10 + [False] * 14
        assert all(repeats[0].unanswered for repeats in found[10:])
        server.share = 0.0
        before = asked(server)
        ask_panel([seat(server, tmp_path)], CASES)
        assert asked(server) - before == len(CASES) - 10


def test_of_two_judges_one_may_be_down(tmp_path):
    with JudgeServer() as server, JudgeServer(share=1.0, faults=["503"]) as broken:
        seats = [seat(server, tmp_path), seat(broken, tmp_path, model="judge-b", pace=JudgePace(retries=0))]
        judged, missing = ask_panel(seats, CASES)
    assert all(repeats[0].scores for repeats in judged)
    assert all(repeats[0].unanswered for repeats in missing)
    assert (bool(seats[0].down), bool(seats[1].down)) == (False, True)


def test_nobody_listening_is_a_judge_that_is_down(tmp_path):
    with JudgeServer() as server:
        gone = seat(server, tmp_path, pace=JudgePace(retries=1))
    ((first, second),) = ask_panel([gone], CASES[:2])
    assert first[0].unanswered
    assert second[0].unanswered
    assert "APIConnectionError" in gone.down


def test_one_request_that_never_has_an_answer_is_missing_and_the_others_are_not(tmp_path):
    with JudgeServer(faults=["503", "503"]) as server:
        (found,) = ask_panel([seat(server, tmp_path, pace=JudgePace(retries=1, concurrency=1))], CASES[:3])
        assert [repeats[0].scores is None for repeats in found] == [True, False, False]
        assert "does not answer: answer 503" in found[0][0].missing


@pytest.mark.parametrize(
    ("fault", "says"),
    [("402", "account is empty"), ("quota", "account is empty"), ("403", "wants a token"), ("404", "no such model")],
)
def test_a_judge_that_wants_no_more_of_us_costs_its_own_scores_and_says_what_to_do(tmp_path, fault, says):
    with JudgeServer(faults=["", "", fault]) as server:
        one = seat(server, tmp_path, pace=JudgePace(concurrency=1))
        (found,) = ask_panel([one], CASES)
        assert says in one.down
        assert one.down.split(". ")[1], "what to do"
        assert asked(server) == 3, "it is not tried again"
        assert [repeats[0].scores is not None for repeats in found] == [True] * 2 + [False] * 22
        assert all(repeats[0].unanswered and says in repeats[0].missing for repeats in found[2:])
        (found,) = ask_panel([seat(server, tmp_path)], CASES)
        assert asked(server) == 3 + len(CASES) - 2
        assert all(repeats[0].scores for repeats in found)


def test_a_judge_that_takes_no_request_at_all_is_left_alone(tmp_path):
    with JudgeServer(share=1.0, faults=["400"]) as server:
        one = seat(server, tmp_path, pace=JudgePace(concurrency=1))
        (found,) = ask_panel([one], CASES)
        assert asked(server) == REFUSED_AFTER
    assert "replyFormat: Text" in one.down
    assert all(repeats[0].unanswered for repeats in found)


def test_one_request_that_is_refused_among_others_is_missing_for_good(tmp_path):
    with JudgeServer(faults=["", "400"]) as server:
        one = seat(server, tmp_path, pace=JudgePace(concurrency=1))
        (found,) = ask_panel([one], CASES[:4])
        assert [repeats[0].unanswered for repeats in found] == [False] * 4
        assert [repeats[0].scores is not None for repeats in found] == [True, False, True, True]


@pytest.mark.parametrize(
    ("fault", "field"),
    [("403", "spec.evaluation.judge.tokenSecret"), ("404", "spec.evaluation.judge"), ("400", "spec.evaluation.judge")],
)
def test_a_judge_that_cannot_work_as_written_is_found_by_its_greeting(tmp_path, fault, field):
    with JudgeServer(faults=[fault]) as server:
        with pytest.raises(SpecError) as refused:
            greet([seat(server, tmp_path)])
        assert refused.value.field == field
        assert refused.value.next_step
        assert asked(server) == 1
        for pod in ("first", "second"):
            greet([seat(server, tmp_path, pod=pod)])
        assert asked(server) == 2, "one that answered is not greeted again"


@pytest.mark.parametrize("fault", ["402", "503", "429", "nonsense"])
def test_a_judge_that_is_down_or_out_of_money_may_still_be_needed(tmp_path, fault):
    with JudgeServer(faults=[fault]) as server:
        one = seat(server, tmp_path)
        greet([one])
        assert (asked(server), one.requests, one.down) == (1, 1, "")


@pytest.mark.parametrize(
    ("fault", "told"),
    [("402", "cannot be greeted: the judge's account is empty (answer 402)"), ("nonsense", "scores no sum: ")],
)
def test_what_is_wrong_with_a_greeting_is_told_and_the_place_once(tmp_path, caplog, fault, told):
    with JudgeServer(faults=[fault]) as server:
        greet([seat(server, tmp_path)])
    assert told in caplog.text
    assert caplog.text.count("spec.evaluation.judge") == 1


def test_the_token_is_sent_and_never_told(tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    with JudgeServer(token=TOKEN, faults=["500", "400", "404"]) as server:
        with pytest.raises(SpecError) as refused:
            greet([wrong := seat(server, tmp_path, token=f"{TOKEN}-old")])
        ask_panel([wrong], CASES[:1])
        assert "the judge refuses the token (answer 401)" in wrong.down
        one = seat(server, tmp_path, token=TOKEN, pace=JudgePace(concurrency=1))
        ask_panel([one], CASES[:4])
        assert "no such model" in one.down
        ask_panel([again := seat(server, tmp_path, token=TOKEN)], CASES[:4])
    told = [str(refused.value), wrong.down, one.down, repr(one), repr(wrong), repr(again), caplog.text, *capsys.readouterr()]
    told += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in told if TOKEN in text]


def test_no_more_requests_run_at_once_than_allowed(tmp_path):
    with JudgeServer(share=1.0, faults=["slow"], slow_seconds=0.05) as server:
        ask_panel([seat(server, tmp_path, pace=JudgePace(concurrency=3))], CASES)
        assert server.most_busy == 3


@pytest.mark.parametrize("usage", [True, False], ids=["counted by the server", "not counted by the server"])
def test_spending_stops_before_its_limit_and_what_is_missing_is_shown(tmp_path, usage):
    with JudgeServer(usage=usage) as server:
        one = seat(server, tmp_path, spending=JudgeSpending(tokens=8_000))
        (found,) = ask_panel([one], CASES)
        scored = [repeats[0].scores for repeats in found if repeats[0].scores]
        assert 0 < len(scored) < len(CASES)
        assert missing_reasons(found) == {LIMIT_REACHED: len(CASES) - len(scored)}
        assert one.spending.input_tokens + one.spending.output_tokens <= 8_000
        before = asked(server)
        ask_panel([seat(server, tmp_path, spending=JudgeSpending(tokens=8_000))], CASES)
        assert asked(server) == before, "a second try of the stage goes on from what was spent"
        (found,) = ask_panel([seat(server, tmp_path)], CASES)
        assert asked(server) == len(CASES)


def test_money_is_counted_with_the_prices_of_the_file(tmp_path):
    with JudgeServer() as server:
        limit = JudgeSpending(money="0.02", input_price="1", output_price="10")
        one = seat(server, tmp_path, spending=limit)
        ask_panel([one], CASES)
        assert one.spending.reached
        assert one.spending.money is not None
        assert float(one.spending.money) == pytest.approx(one.spending.input_tokens * 1e-6 + one.spending.output_tokens * 10e-6)
        assert 0.01 < one.spending.money <= 0.02


CHILD = """
import signal
import sys
from pathlib import Path
from tests.evaluator.judge.test_every_answer_is_asked_once import CASES
from transfer_api.errors import SaveRequested
from transfer_api.spec import Judge, JudgePace
from transfer_evaluator.judge.panel import Seat, ask_panel
from transfer_evaluator.judge.store import ReplyStore

def stop(number, frame):
    raise SaveRequested("stopped on request")

signal.signal(signal.SIGTERM, stop)
judge = Judge(url=sys.argv[1], model="judge-a")
pace = JudgePace(concurrency=4)
store = ReplyStore(Path(sys.argv[2]), judge, "stage", "pod")
try:
    ask_panel([Seat(place="judge", judge=judge, pace=pace, token=None, store=store)], CASES)
except SaveRequested:
    sys.exit(75)
"""


@pytest.fixture
def slow_server() -> Iterator[JudgeServer]:
    with JudgeServer(share=1.0, faults=["slow"], slow_seconds=0.15) as server:
        yield server


def test_a_killed_run_asks_at_most_what_was_under_way_again(tmp_path, slow_server):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", CHILD, slow_server.url, str(tmp_path)], env=environment)
    wait_for(lambda: sum(slow_server.answered.values()) >= 9 or process.poll() is not None, 250, "half of the answers")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: slow_server.busy == 0, 10, "the server to notice")
    (file,) = tmp_path.rglob("*.jsonl")
    with file.open("ab") as torn:
        torn.write(file.read_bytes().splitlines()[0][:40])
    (found,) = ask_panel([seat(slow_server, tmp_path)], CASES)
    assert [repeats[0].scores.model_dump() for repeats in found] == [scores_of(case.answer) for case in CASES]
    assert asked(slow_server) <= len(CASES) + 4
    assert sum(count - 1 for count in slow_server.answered.values()) <= 4
    assert len(ReplyStore(tmp_path, Judge(url=slow_server.url, model="judge-a"), "later", "pod")) == len(CASES)


def test_a_run_asked_to_stop_stops_at_once_and_keeps_what_it_has(tmp_path, slow_server):
    process = subprocess.Popen([sys.executable, "-c", CHILD, slow_server.url, str(tmp_path)])
    wait_for(lambda: sum(slow_server.answered.values()) >= 5 or process.poll() is not None, 250, "some answers")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    wait_for(lambda: slow_server.busy == 0, 10, "the server to notice")
    ask_panel([seat(slow_server, tmp_path)], CASES)
    assert asked(slow_server) <= len(CASES) + 4


def test_the_rate_is_kept(tmp_path):
    now = [0.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    with JudgeServer() as server:
        pace = JudgePace(requests_per_minute=30, concurrency=1)
        ask_panel([seat(server, tmp_path, pace=pace)], CASES[:6], timing=Timing(clock=lambda: now[0], sleep=sleep))
    assert now[0] == pytest.approx(5 * 2.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({"retry-after": "7"}, 7, id="seconds"),
        pytest.param({"retry-after": "0.5"}, 0.5, id="parts of a second"),
        pytest.param({"retry-after-ms": "250", "retry-after": "1"}, 0.25, id="milliseconds"),
        pytest.param({"retry-after": "-3"}, 0, id="in the past"),
        pytest.param({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0, id="a date in the past"),
        pytest.param({"retry-after": "soon"}, None, id="neither"),
        pytest.param({}, None, id="nothing"),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    assert retry_after(headers) == seconds
