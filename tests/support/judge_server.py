"""An OpenAI-compatible endpoint over real HTTP that scores by rule and fails on purpose.

The scores of an answer follow from its text (`scores_of`), so a wrong parse shows. The text is found in the prompt by its marks, as any
reader would find it: what stands outside of them is what the judge has been told to do.

Faults come by a seeded draw for each request, or in a given order. A prompt counts as answered when the whole reply was written.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAMES = ("accuracy", "fluency", "informativeness", "logical_coherence", "harmlessness")
FAULTS = ("429", "500", "cut", "slow", "broken", "nonsense", "quoted")
"""Too many requests, server error, connection cut in the reply, slow, a body that is no JSON, a reply that is no scores, and a reply
that quotes scores in a longer text."""
_ANSWER = re.compile(r"\[ANSWER ([0-9a-f]{24})\]\n(.*)\n\[END OF ANSWER \1\]", re.S)


def scores_of(answer: str) -> dict[str, int]:
    """What this judge gives an answer."""
    digest = hashlib.sha256(answer.encode()).digest()
    return {name: byte % 4 for name, byte in zip(NAMES, digest, strict=False)}


class JudgeServer(ThreadingHTTPServer):
    """Listens on the loopback interface while it is used as a context manager.

    Args:
        share: of requests that fail.
        faults: which; by draw where `share` is set (default: all), else one a request in this order and none afterwards.
        seed: of the draw.
        token: that a request must bring.
        slow_seconds: how long a slow reply takes.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, *, share: float = 0.0, faults: Sequence[str] = (), seed: int = 0, token: str | None = None, slow_seconds: float = 3.0,
        usage: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(("127.0.0.1", 0), _Handler)
        self.share, self.faults, self.token, self.slow_seconds, self.usage = share, faults or FAULTS, token, slow_seconds, usage
        self.lock = threading.Lock()
        self.draw = random.Random(seed)
        self.order: Iterator[str] = iter(() if share else faults)
        self.answered: Counter[str] = Counter()
        """Prompts with a whole reply, by model and prompt."""
        self.given: Counter[str] = Counter()
        """Faults that were given."""
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.busy = self.most_busy = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""

    def next_fault(self) -> str:
        with self.lock:
            if not self.share:
                fault = next(self.order, "")
            else:
                fault = self.draw.choice(list(self.faults)) if self.draw.random() < self.share else ""
            if fault:
                self.given[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append(body)
            server.times.append(time.monotonic())
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        try:
            self._reply(body)
        finally:
            with server.lock:
                server.busy -= 1

    def _reply(self, body: dict[str, Any]) -> None:
        server = self.server
        if server.token is not None and self.headers["Authorization"] != f"Bearer {server.token}":
            self._send(401, _error(f"Incorrect API key provided: {self.headers['Authorization']}", "invalid_api_key"))
            return
        fault = server.next_fault()
        match fault:
            case "429":
                self._send(429, _error("slow down", "rate_limit_exceeded"), {"Retry-After": "0.2"})
            case "quota":
                self._send(429, _error("You exceeded your current quota", "insufficient_quota"))
            case "402" | "400" | "403" | "404" | "500" | "503":
                self._send(int(fault), _error(f"fault {fault} for {self.headers['Authorization']}", None))
            case "cut":
                self._cut()
            case "broken":
                self._send(200, b'{"choices": [{"message": {"content": "{\\"accu')
            case _:
                if fault == "slow":
                    time.sleep(server.slow_seconds)
                    if self._left():
                        return
                self._complete(body, fault)

    def _left(self) -> bool:
        """Whether the client has closed the connection."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _complete(self, body: dict[str, Any], fault: str) -> None:
        prompt = body["messages"][-1]["content"]
        found = _ANSWER.search(prompt)
        assert found is not None, prompt
        text = json.dumps(scores_of(found[2]))
        if fault == "nonsense":
            text = "I think this answer deserves high marks!"
        elif fault == "quoted":
            text = f'The answer asked for {{"accuracy": 3, "fluency": 3}}. My grading: {text}'
        message = {"role": "assistant", "content": text}
        content: dict[str, Any] = {
            "id": "c", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }  # fmt: skip
        if self.server.usage:
            read = sum(len(message["content"]) for message in body["messages"]) // 4
            content["usage"] = {"prompt_tokens": read, "completion_tokens": 40, "total_tokens": read + 40}
        self._send(200, json.dumps(content).encode())
        with self.server.lock:
            self.server.answered[f"{body['model']}\0{prompt}"] += 1

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _cut(self) -> None:
        """Promises a reply, sends a few bytes of it and resets the connection."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _error(message: str, code: str | None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()
