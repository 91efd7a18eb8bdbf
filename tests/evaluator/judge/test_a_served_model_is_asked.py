"""A judge of real weights behind `transformers serve`: too small to give scores, which is what must show."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.experiment import wait_for
from tests.support.tiny import save_tiny_model
from transfer_api.spec import Judge, JudgePace, ReplyFormat
from transfer_cli.local import free_port
from transfer_evaluator.judge.panel import Seat, ask_panel, missing_reasons
from transfer_evaluator.judge.prompt import Case
from transfer_evaluator.judge.store import ReplyStore

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[Judge]:
    folder, port = save_tiny_model(tmp_path / "judge"), free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--device", "cpu", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: answers(port) or process.poll() is not None, 600, "the server listens")
        yield Judge(
            url=f"http://127.0.0.1:{port}/v1", model=str(folder), max_tokens=16, attempts=2, reply_format=ReplyFormat.TEXT
        )  # fmt: skip
    finally:
        process.terminate()
        process.communicate(timeout=60)


def answers(port: int) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_replies_of_a_model_that_cannot_judge_are_missing_and_never_0(judge, tmp_path):
    pace = JudgePace(concurrency=2, timeout_seconds=120)
    seat = Seat(place="spec.evaluation.judge", judge=judge, pace=pace, token=None, store=ReplyStore(tmp_path, judge, "stage", "pod"))
    cases = [Case("Apa ibu kota Indonesia?", "Jakarta.", "id"), Case("What is water?", "A liquid.", "en", "H2O")]
    (found,) = ask_panel([seat], cases)
    assert [repeats[0].scores for repeats in found] == [None, None]
    assert all("no readable reply in 2 requests" in reason for reason in missing_reasons(found))
    assert (seat.requests, seat.failures, seat.unreadable) == (4, 0, 4)
    assert len(seat.store) == 4
    assert seat.spending.input_tokens > 1000
    assert 0 < seat.spending.output_tokens <= 4 * judge.max_tokens
