"""The gate on English: three answers, by where the interval of the loss lies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_api.progress import Score
from transfer_api.retention import judge_retention, loss_interval
from transfer_api.spec import Retention
from transfer_api.status import Reason

GATE = Retention(max_loss="0.05")


def line(interval, *, metric="acc", baseline=0.5, higher=True, **values) -> Score:
    return Score(**{"suite": "s", "task": "t", "language": "en", "metric": metric, "value": 0.5, "baseline": baseline, "difference": 0.0,
                    "interval": interval, "items": 9, "higher_is_better": higher, **values})  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "kept", "reason"),
    [
        pytest.param([line((-0.02, 0.01))], True, Reason.WITHIN_MARGIN, id="at worst 4 % lost"),
        pytest.param([line((-0.2, -0.03))], False, Reason.BEYOND_MARGIN, id="at best 6 % lost"),
        pytest.param([line((-0.2, 0.01))], None, Reason.INTERVAL_TOO_WIDE, id="it may be 40 %"),
        pytest.param([line((0.1, 0.2))], True, Reason.WITHIN_MARGIN, id="gained"),
        pytest.param([line((0.03, 0.2), higher=False)], False, Reason.BEYOND_MARGIN, id="more bits are a loss"),
        pytest.param([line((-0.02, 0.01)), line((-0.2, -0.03))], False, Reason.BEYOND_MARGIN, id="the worst decides"),
        pytest.param([line((-0.02, 0.01)), line((-0.2, 0.0))], None, Reason.INTERVAL_TOO_WIDE, id="one is not known"),
        pytest.param([line((-0.2, -0.03), language="id")], None, Reason.RETENTION_NOT_MEASURED, id="not English"),
        pytest.param([line((-0.2, -0.03), language="en-GB")], False, Reason.BEYOND_MARGIN, id="English of a region"),
        pytest.param([line((-0.2, -0.03), part_of="mmlu")], None, Reason.RETENTION_NOT_MEASURED, id="a part of a mean"),
        pytest.param([line((0.03, 0.2), metric="perplexity", higher=False)], None, Reason.RETENTION_NOT_MEASURED, id="perplexity"),
        pytest.param([line(None)], None, Reason.RETENTION_NOT_MEASURED, id="no interval"),
        pytest.param([line((-0.2, -0.1), baseline=0.0)], None, Reason.RETENTION_NOT_MEASURED, id="no share of nothing"),
        pytest.param([], None, Reason.RETENTION_NOT_MEASURED, id="nothing"),
    ],
)
def test_what_became_of_english(scores, kept, reason):
    judged = judge_retention(GATE, scores)
    assert (judged.kept, judged.reason) == (kept, reason)


def test_named_tasks_alone_decide_and_the_message_has_the_figures():
    scores = [line((-0.2, -0.03)), line((-0.01, 0.0), task="udhr-en")]
    judged = judge_retention(Retention(tasks=["udhr-en"]), scores)
    assert judged.kept is True
    assert judged.message == "at most 5.0% of the baseline may be lost: udhr-en acc lost +0.0% to +2.0%."
    assert "udhr-xx" in judge_retention(Retention(tasks=["udhr-xx"]), scores).message


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.01, 10), st.booleans())
def test_a_loss_has_its_ends_in_order_and_the_sign_of_getting_worse(one, other, baseline, higher):
    low, high = sorted((one, other))
    ends = loss_interval(line((low, high), baseline=baseline, higher=higher))
    assert ends is not None
    assert ends[0] <= ends[1]
    assert (ends[0] > 0) == ((high < 0) if higher else (low > 0)) or ends[0] == 0
