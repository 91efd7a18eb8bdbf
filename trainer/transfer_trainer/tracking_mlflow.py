"""MLflow's tracking server, by its REST interface (mlflow.org/docs/latest/rest-api.html).

The client `mlflow-skinny` brings 20 packages of which the trainer needs none else (databricks-sdk, fastapi, uvicorn, sqlparse,
gitpython, google-auth, cryptography …). Five requests do the same: find or make the experiment, find or make the run, log a batch.

A run is found again by a tag with our own name of it, so neither a lost answer nor another pod makes a second one.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from transfer_api.task import MLFLOW_CREDENTIALS
from transfer_trainer.tracking import Ending, Point, Run, credentials

TAG = "transfer-operator.run"
TIMEOUT_SECONDS = 10.0
MOST_METRICS, MOST_CHARACTERS = 900, 500
"""Of a batch (the server takes 1,000 of all kinds), and of a parameter."""


class MlflowError(Exception):
    """The server refused; `code` is its own word for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Else the token would be sent wherever an answer points."""

    def redirect_request(self, *unused: Any) -> None:
        return None


class MlflowTracker:
    """One run on a server.

    Args:
        uri: of the server.
        experiment: name of the server's experiment.
    """

    name = "MLflow"

    def __init__(self, uri: str, experiment: str) -> None:
        self._address, self._experiment = f"{uri.rstrip('/')}/api/2.0/mlflow/", experiment
        self._open = urllib.request.build_opener(_NoRedirects)
        self._run = ""
        self._told: dict[str, int] = {}
        """Last step of each curve that the run has."""

    def begin(self, run: Run) -> None:
        """Finds the run by its tag, or makes it."""
        experiment = self._find_experiment()
        wanted = {"experiment_ids": [experiment], "filter": f"tags.`{TAG}` = '{run.name}'", "max_results": 1}
        found = self._ask("runs/search", wanted).get("runs", [])
        if found:
            self._run = found[0]["info"]["run_id"]
            self._told = {metric["key"]: int(metric["step"]) for metric in found[0]["data"].get("metrics", [])}
            self._ask("runs/update", {"run_id": self._run, "status": "RUNNING"})
            return
        tags = [{"key": TAG, "value": run.name}]
        tags += [{"key": f"transfer-operator.{name}", "value": value} for name, value in run.tags.items() if value]
        started = {"experiment_id": experiment, "run_name": run.title, "start_time": int(1000 * time.time()), "tags": tags}
        self._run = self._ask("runs/create", started)["run"]["info"]["run_id"]
        self._told = {}
        parameters = [{"key": name, "value": value[:MOST_CHARACTERS]} for name, value in run.parameters.items()]
        self._ask("runs/log-batch", {"run_id": self._run, "params": parameters[:100]})

    def send(self, points: Sequence[Point]) -> None:
        """Logs what comes after the last step of each curve."""
        metrics: list[dict[str, Any]] = []
        told = dict(self._told)
        for point in points:
            for name, value in point.figures.items():
                if point.step > told.get(name, -1):
                    metrics.append({"key": name, "value": value, "step": point.step, "timestamp": int(1000 * point.time)})
                    told[name] = point.step
        for start in range(0, len(metrics), MOST_METRICS):
            self._ask("runs/log-batch", {"run_id": self._run, "metrics": metrics[start : start + MOST_METRICS]})
        self._told = told

    def end(self, ending: Ending) -> None:
        """Sets the run's status; one that another round goes on with is SCHEDULED until then."""
        status = {Ending.COMPLETE: "FINISHED", Ending.LATER: "SCHEDULED", Ending.FAILED: "FAILED"}[ending]
        over = {} if ending is Ending.LATER else {"end_time": int(1000 * time.time())}
        self._ask("runs/update", {"run_id": self._run, "status": status, **over})

    def _find_experiment(self) -> str:
        for _ in range(2):  # another may make it at the same moment
            try:
                query = urllib.parse.urlencode({"experiment_name": self._experiment})
                return str(self._ask(f"experiments/get-by-name?{query}")["experiment"]["experiment_id"])
            except MlflowError as error:
                if error.code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            try:
                return str(self._ask("experiments/create", {"name": self._experiment})["experiment_id"])
            except MlflowError as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise MlflowError("RESOURCE_ALREADY_EXISTS", f"{self._experiment} is there and cannot be read")

    def _ask(self, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a request: POST with a body, GET without.

        Raises:
            OSError: the server cannot be reached, or does not answer in time.
            MlflowError: it refuses.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + what, data, {"Content-Type": "application/json", **_authorization()})  # noqa: S310
        try:
            with self._open.open(request, timeout=TIMEOUT_SECONDS) as answer:
                found: dict[str, Any] = json.loads(answer.read() or b"{}")
                return found
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None


def _authorization() -> dict[str, str]:
    token, user, password = credentials(*MLFLOW_CREDENTIALS)
    if token:
        return {"Authorization": f"Bearer {token}"}
    if user:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    return {}


def _refusal(error: urllib.error.HTTPError) -> MlflowError:
    with error:
        try:
            said = json.loads(error.read(65536))
            return MlflowError(str(said["error_code"]), str(said.get("message", "")))
        except (ValueError, KeyError, TypeError, OSError):
            return MlflowError(f"HTTP {error.code}", str(error.reason))
