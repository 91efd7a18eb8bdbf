"""`/metrics`, `/progress` and `/healthz` of a pod.

The launcher serves them from a thread and so survives its worker processes. What it shows, rank 0 wrote to a file
(`ProgressFile`): no socket between the two that could hang a training step.
"""

from __future__ import annotations

import contextlib
import http.server
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from transfer_api.errors import SpecError
from transfer_api.progress import Progress
from transfer_pod.artifact import write_atomically


class ProgressFile:
    """The progress of a stage in a file: written whole by one process, read by another."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, progress: Progress) -> None:
        """Replaces the file; nobody sees half of it."""
        write_atomically(self.path, progress.model_dump_json(by_alias=True))

    def read(self) -> Progress | None:
        """The last progress written, or None before the first."""
        try:
            return Progress.model_validate_json(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return None


_GAUGES: tuple[tuple[str, str, str], ...] = (
    ("step", "step", "Steps finished: optimizer steps in training, documents or items elsewhere."),
    ("total_steps", "total_steps", "Steps of the whole stage."),
    ("tokens_total", "tokens", "Tokens done by the whole stage."),
    ("tokens_per_second", "tokens_per_second", "Tokens of the last steps over their time, all workers."),
    ("loss", "loss", "Loss of the last step, nats per token."),
    ("learning_rate", "learning_rate", "Learning rate of the last step."),
    ("gradient_norm", "gradient_norm", "Norm of the gradient of the last step, before clipping."),
    ("world_size", "world_size", "Processes in the current round of the rendezvous."),
    ("rendezvous_round", "round", "Round of the rendezvous; grows with every change of membership."),
    ("remaining_seconds", "remaining_seconds", "Expected time to the end of the stage."),
    ("checkpoint_step", "checkpoint_step", "Step of the last complete checkpoint."),
    ("checkpoint_timestamp_seconds", "checkpoint_time", "Unix time of the last complete checkpoint."),
    ("lost_steps_total", "lost_steps", "Steps done again after a restart."),
    ("productive_seconds_total", "productive_seconds", "Time in which steps were done for the first time."),
)


class ProgressCollector(Collector):
    """Shows a `Progress` as Prometheus series, `transfer_stage_*`, labelled with the stage."""

    def __init__(self, read: Callable[[], Progress | None]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """One family for each figure that is known now."""
        progress = self._read()
        if progress is None:
            return
        for name, attribute, text in _GAUGES:
            value = getattr(progress, attribute)
            if value is not None:
                gauge = GaugeMetricFamily(f"transfer_stage_{name}", text, labels=["stage"])
                gauge.add_metric([progress.stage], float(value))
                yield gauge
        metrics = GaugeMetricFamily("transfer_stage_metric", "Latest value of a named measurement.", labels=["stage", "name"])
        for name, value in sorted(progress.metrics.items()):
            metrics.add_metric([progress.stage, name], value)
        yield metrics


class PodServer:
    """HTTP server of one pod; `start` returns once the port is bound.

    Raises:
        SpecError: the port is in use.
    """

    def __init__(self, port: int, read: Callable[[], Progress | None], host: str = "0.0.0.0") -> None:  # noqa: S104
        registry = CollectorRegistry()
        registry.register(ProgressCollector(read))
        handler = type("Handler", (_Handler,), {"read": staticmethod(read), "registry": registry})
        try:
            self._server = http.server.ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise SpecError(
                "port is in use", field="port", value=port, next_step="Choose another, or stop the program that listens there"
            ) from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def start(self) -> PodServer:
        """Serves from a daemon thread."""
        threading.Thread(target=self._server.serve_forever, name="pod-server", daemon=True).start()
        return self

    def stop(self) -> None:
        """Ends the thread and frees the port."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    read: Callable[[], Progress | None]
    registry: CollectorRegistry

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._answer(generate_latest(self.registry), CONTENT_TYPE_LATEST)
        elif self.path == "/progress":
            progress = self.read() or Progress()
            # JSON has no NaN: a diverged loss is shown as absent, and the policy on it is the trainer's.
            if progress.loss is not None and not math.isfinite(progress.loss):
                progress = progress.model_copy(update={"loss": None})
            self._answer(progress.model_dump_json(by_alias=True).encode(), "application/json")
        elif self.path == "/healthz":
            self._answer(b"ok\n", "text/plain")
        else:
            self.send_error(404)

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the asker had no patience
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a log line."""
