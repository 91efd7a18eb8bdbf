"""A tracking server that speaks MLflow's REST interface over real HTTP, as far as a client needs it, and fails on purpose.

What it answers was held against MLflow's own server, 3.17.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class MlflowServer(ThreadingHTTPServer):
    """Listens on the loopback interface while it is used as a context manager.

    Args:
        authorization: what a request must bring.
        slow_seconds: before each answer.
    """

    daemon_threads = True

    def __init__(self, authorization: str | None = None, slow_seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.authorization, self.slow_seconds = authorization, slow_seconds
        self.down = False
        """Answers 503."""
        self.elsewhere: str | None = None
        """Where all requests are sent on to."""
        self.experiments: dict[str, str] = {}
        self.runs: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def curve(self, name: str, run: int = 0) -> list[tuple[int, float]]:
        """Every value of a metric that was logged, in the order in which it was."""
        return [(one["step"], one["value"]) for one in self.runs[run]["metrics"] if one["key"] == name]

    def __enter__(self) -> MlflowServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.shutdown()
        self.server_close()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    server: MlflowServer

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, *unused: object) -> None:
        pass

    def _answer(self, body: dict[str, Any]) -> None:
        time.sleep(self.server.slow_seconds)
        what = self.path.removeprefix("/api/2.0/mlflow/")
        status, found = 200, dict[str, Any]()
        try:
            with self.server.lock:
                self.server.requests.append(what.partition("?")[0])
                if self.server.down:
                    raise _RefusedError(503, "TEMPORARILY_UNAVAILABLE")
                if self.server.authorization not in (None, self.headers["Authorization"]):
                    raise _RefusedError(401, "UNAUTHENTICATED")
                found = self._do(what, body)
        except _RefusedError as error:
            status, found = error.status, {"error_code": error.code, "message": "so it is"}
        data = json.dumps(found).encode()
        self.send_response(302 if self.server.elsewhere else status)
        if self.server.elsewhere:
            self.send_header("Location", self.server.elsewhere + self.path)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _do(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        server = self.server
        name, _, query = what.partition("?")
        if name == "experiments/get-by-name":
            (wanted,) = urllib.parse.parse_qs(query)["experiment_name"]
            if wanted not in server.experiments:
                raise _RefusedError(404, "RESOURCE_DOES_NOT_EXIST")
            return {"experiment": {"experiment_id": server.experiments[wanted], "name": wanted}}
        if name == "experiments/create":
            server.experiments[body["name"]] = str(len(server.experiments) + 1)
            return {"experiment_id": server.experiments[body["name"]]}
        if name == "runs/search":
            match = re.fullmatch(r"tags\.`([^`]+)` = '([^']+)'", body["filter"])
            assert match is not None
            runs = [run for run in server.runs if run["tags"].get(match[1]) == match[2] and run["experiment"] in body["experiment_ids"]]
            return {"runs": [_shown(run) for run in runs]} if runs else {}
        if name == "runs/create":
            tags = {tag["key"]: tag["value"] for tag in body["tags"]}
            run = {
                "id": f"run{len(server.runs)}", "experiment": body["experiment_id"], "name": body["run_name"], "tags": tags,
                "metrics": [], "params": {}, "statuses": ["RUNNING"],
            }  # fmt: skip
            server.runs.append(run)
            return {"run": _shown(run)}
        (run,) = (run for run in server.runs if run["id"] == body["run_id"])
        if name == "runs/update":
            run["statuses"].append(body["status"])
        elif name == "runs/log-batch":
            if len(body.get("metrics", [])) + len(body.get("params", [])) > 1000:
                raise _RefusedError(400, "INVALID_PARAMETER_VALUE")
            run["metrics"] += body.get("metrics", [])
            run["params"] |= {one["key"]: one["value"] for one in body.get("params", [])}
        else:
            raise _RefusedError(404, "ENDPOINT_NOT_FOUND")
        return {}


def _shown(run: dict[str, Any]) -> dict[str, Any]:
    """A run with the last value of each metric."""
    last: dict[str, dict[str, Any]] = {}
    for metric in run["metrics"]:
        last[metric["key"]] = max(metric, last.get(metric["key"], metric), key=lambda one: one["step"])
    return {"info": {"run_id": run["id"], "status": run["statuses"][-1]}, "data": {"metrics": list(last.values())}}
