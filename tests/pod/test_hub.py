"""A hub that answers as it is told to: what must be corrected ends the pod with 10, what passes by itself with a crash."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfer_api.progress import ResultMessage
from transfer_api.stage import StageKind, StagePlan
from transfer_cli.local import free_port
from transfer_pod.context import PodContext

POD = """
import sys, time
time.sleep = lambda seconds: None  # the hub's client tries five times, with waits in between that are its own affair
from transfer_pod.context import PodContext
from transfer_pod.documents import iter_documents
from transfer_pod.model import model_folder
from transfer_pod.shard import run_shard
from transfer_api.spec import TextSource
def model(context, report): return model_folder(context)
def texts(context, report): return list(iter_documents(TextSource(hub="a/b", revision="0" * 40), context, "spec.pretraining.mixture[0]"))
sys.exit(run_shard(PodContext.read(), {"model": model, "texts": texts}[sys.argv[1]]))
"""


class Hub(http.server.ThreadingHTTPServer):
    """Answers every request with one status."""

    status, code = 200, ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        if self.server.code:
            self.send_header("X-Error-Code", self.server.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(what: str, folder: Path, endpoint: str, **variables: str) -> tuple[int, ResultMessage]:
    """Runs a pod that only fetches; returns exit code and last words."""
    stage = StagePlan(name="fetch", kind=StageKind.VOCABULARY, key="a" * 32, parameters={"model": {"name": "a/b", "revision": "0" * 40}})
    context = PodContext(stage=stage, storage=folder, pod="pod", port=free_port(), termination_log=folder / "end")
    hidden = ("HF_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment = {**plain, **context.environment(), "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), **variables}
    code = subprocess.run([sys.executable, "-c", POD, what], env=environment, capture_output=True, timeout=200).returncode
    message = ResultMessage.decode(context.termination_log.read_text())
    assert message is not None
    return code, message


@pytest.mark.parametrize(
    ("what", "status", "word", "code", "says"),
    [
        pytest.param("model", 401, "", 10, "spec.model.name", id="no token"),
        pytest.param("model", 403, "GatedRepo", 10, "spec.model.name", id="gated"),
        pytest.param("model", 404, "RevisionNotFound", 10, "spec.model.revision", id="no such revision"),
        pytest.param("model", 500, "", 1, "spec.model.name", id="the hub is broken"),
        pytest.param("texts", 404, "RepoNotFound", 10, "spec.pretraining.mixture[0].hub", id="no such data set"),
        pytest.param("texts", 500, "", 1, "spec.pretraining.mixture[0].hub", id="the hub of the data set is broken"),
    ],
)
def test_the_hubs_answer_decides(hub: Hub, tmp_path: Path, what: str, status: int, word: str, code: int, says: str) -> None:
    hub.status, hub.code = status, word
    found, message = fetch(what, tmp_path, f"http://127.0.0.1:{hub.server_address[1]}")
    assert found == code, message
    assert says in message.message
    assert message.reason == ("Crash" if code == 1 else "ModelError" if what == "model" else "DataError")


def test_nobody_answering_is_a_crash_and_offline_is_not(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert fetch("model", tmp_path, nowhere)[0] == 1
    code, message = fetch("texts", tmp_path, nowhere, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    assert code == 10
    assert "network" in message.message


def test_the_table_of_answers() -> None:
    from transfer_api.errors import DataError
    from transfer_pod.hub import HubUnreachableError, hub_error

    class AnswerError(Exception):
        status_code = 0

    def judged(status: int) -> Exception:
        error = AnswerError(json.dumps({"error": "x"}))
        error.status_code = status
        return hub_error(error, DataError, "spec.model.name", "a/b", "Check it")

    assert all(isinstance(judged(status), HubUnreachableError) for status in (408, 429, 500, 502, 503, 504))
    assert all(isinstance(judged(status), DataError) for status in (400, 401, 403, 404, 410, 451))
