"""`/metrics`, `/progress` and `/healthz` of a pod.

The launcher serves them from a thread and so survives its worker processes. What it shows, rank 0 wrote to a file
(`ProgressFile`): no socket between the two that could hang a training step.
"""

from __future__ import annotations

import contextlib
import http.server
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from transfer_api.errors import SpecError
from transfer_api.progress import Progress
from transfer_pod.artifact import write_atomically
from transfer_pod.series import ProgressCollector


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


class PodServer:
    """HTTP server of one pod; `start` returns once the port is bound.

    Raises:
        SpecError: the port is in use.
    """

    def __init__(
        self,
        port: int,
        read: Callable[[], Progress | None],
        host: str = "0.0.0.0",  # noqa: S104
        labels: Mapping[str, str] | None = None,
    ) -> None:
        registry = CollectorRegistry()
        registry.register(ProgressCollector(read, labels))
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
