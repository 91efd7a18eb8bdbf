"""Replies of a judge on disk, by what was asked: nothing is asked twice, whatever stops and goes on in between.

    <storage>/judgements/<judge>/<stage key>.<pod>.jsonl

One line a reply, written whole by one call and on the disk before anything else is done with it. Each pod writes a file of its own
and reads those of all others, so restarts and other experiments share replies without a lock. A line cut short by a crash is passed
over: that one reply is asked for again, as are those that were under way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from transfer_api.spec import Judge
from transfer_evaluator.judge.prompt import Messages
from transfer_pod.artifact import storage_errors

logger = logging.getLogger(__name__)
FOLDER = "judgements"


@dataclass(frozen=True)
class Reply:
    """What a judge said."""

    text: str
    input_tokens: int
    output_tokens: int
    """As the server counts them; an upper bound where it does not say."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    key: str
    stage: str
    reply: str
    input_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)


def request_key(judge: Judge, messages: Messages, repeat: int) -> str:
    """SHA-256 of all that decides a reply: prompt, endpoint, model, settings, and the number of the repeat."""
    settings = {
        "url": judge.url.rstrip("/"), "model": judge.model, "temperature": judge.temperature, "max_tokens": judge.max_tokens,
        "reply_format": judge.reply_format.value, "repeat": repeat,
    }  # fmt: skip
    content = json.dumps({"messages": list(map(dict, messages)), **settings}, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


class ReplyStore:
    """The replies of one judge.

    Args:
        storage: root of the storage.
        judge: whose replies.
        stage: key of the stage that asks now.
        pod: name of the pod that asks.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, storage: Path, judge: Judge, stage: str, pod: str) -> None:
        name = hashlib.sha256(f"{judge.url.rstrip('/')}\0{judge.model}".encode()).hexdigest()[:16]
        self.folder = storage / FOLDER / name
        self._file = self.folder / f"{stage}.{pod}.jsonl"
        self._stage = stage
        self._replies: dict[str, Reply] = {}
        self.input_tokens = self.output_tokens = 0
        """Spent by this stage, its earlier tries included."""
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "judge.json").write_text(json.dumps({"url": judge.url, "model": judge.model}) + "\n", encoding="utf-8")
        for path in sorted(self.folder.glob("*.jsonl")):
            self._read(path)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """The reply to a request, if there was one."""
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keeps a reply; it is on the disk when this returns.

        Raises:
            StorageError: it cannot be written.
        """
        line = _Line(key=key, stage=self._stage, reply=reply.text, input_tokens=reply.input_tokens, output_tokens=reply.output_tokens)
        with storage_errors(self._file):
            append_line(self._file, line.model_dump())
        self._keep(line)

    def _keep(self, line: _Line) -> None:
        self._replies.setdefault(line.key, Reply(line.reply, line.input_tokens, line.output_tokens))
        if line.stage == self._stage:
            self.input_tokens += line.input_tokens
            self.output_tokens += line.output_tokens

    def _read(self, path: Path) -> None:
        damaged = 0
        for line in path.read_bytes().split(b"\n"):
            if not line:
                continue
            try:
                self._keep(_Line.model_validate_json(line))
            except ValidationError:
                damaged += 1
        if damaged:
            logger.warning("%s: passed over %d lines that are cut short", path, damaged)


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Appends one JSON object as a line by a single write, and waits until the disk has it."""
    line = json.dumps(content, ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n"
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":  # an earlier writer was cut off
                line = b"\n" + line
        if file.write(line) != len(line):
            raise OSError(28, "no space left on device")
        os.fsync(file.fileno())
