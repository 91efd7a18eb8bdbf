"""Event files: the course of a training as TensorBoard shows it, beside the ledger, which proves it.

    <storage>/tensorboard/<experiment>/<stage>-<first digits of its key>/           over steps
    <storage>/tensorboard/<experiment>/<stage>-<first digits of its key>/tokens/    the same over tokens, a run of its own:
        what is taken back (below) is told by its place on the axis, for all curves of a run at once

Each round begins a file. Its first message is a start (`SessionLog.START`, what other writers call purge_step) at the step after the
checkpoint: TensorBoard then drops what older files have from there on, so steps that are done again are shown once, and no
curve goes back. Files are read in the order of their names, which therefore grows with the rounds, whatever the clocks of the nodes say.

Only rank 0 writes, in the loop: 0.11 ms a step (a record for each axis, one write each). The writers of tensorboardX and torch
hand everything to a thread; where the disk refuses, that of tensorboardX dies and the loop waits for it for ever. Here the first refusal
ends the files of the round, not the training. A write is no fsync: a kill loses nothing, a power cut the last seconds.
"""

from __future__ import annotations

import contextlib
import logging
import re
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"
"""Of the storage."""
TOKENS, BY_TOKENS = "tokens", "by_tokens/"
KEY_DIGITS = 8
_NAME = re.compile(r"events\.out\.tfevents\.([0-9]+)\.")


def events_folder(storage: Path, experiment: str, stage: str, key: str) -> Path:
    """Where the event files of a stage are. The key parts runs of one name whose parameters differ."""
    return storage / FOLDER / experiment / f"{stage}-{key[:KEY_DIGITS]}"


class EventFiles:
    """The event files of one round; a disk that refuses them is told of once.

    Args:
        folder: of the stage.
        step: the last one that counts; what older files have after it is taken back.
        tokens: of the steps so far.
    """

    def __init__(self, folder: Path, step: int, tokens: int) -> None:
        self.folder = folder
        self._files: list[_EventFile] = []
        with self._refusals():
            for path, prefix, place in ((folder, "", step), (folder / TOKENS, BY_TOKENS, tokens)):
                self._files.append(_EventFile(path, prefix, place + 1 if place else 0))  # what is measured at 0 is measured again

    def add(self, step: int, tokens: int, figures: Mapping[str, float | None]) -> None:
        """Appends figures by name after a step; those that are not known are left out."""
        known = {name: value for name, value in figures.items() if value is not None}
        if self._files:
            with self._refusals():
                for file, place in zip(self._files, (step, tokens), strict=True):
                    file.add(place, known)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
        self._files = []

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()  # half a record may be there, after which nothing is read
            logger.warning("no more event files until the next round, %s: %s; training goes on", self.folder, error.strerror or error)


class _EventFile:
    """One file: messages with their length and checksums (TFRecord)."""

    def __init__(self, folder: Path, prefix: str, start: int) -> None:
        self._prefix = prefix
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(found[1]) for path in folder.iterdir() if (found := _NAME.match(path.name))]
        number = max([int(time.time()), *(number + 1 for number in numbers)])
        self._file = (folder / f"events.out.tfevents.{number:010d}.transfer").open("xb", buffering=0)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(Event(wall_time=time.time(), step=start, session_log=SessionLog(status=SessionLog.START)))

    def add(self, place: int, figures: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=self._prefix + name, simple_value=value) for name, value in figures.items()]
        self._write(Event(wall_time=time.time(), step=place, summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        data = event.SerializeToString()
        size = struct.pack("<Q", len(data))
        record = size + struct.pack("<I", masked_crc32c(size)) + data + struct.pack("<I", masked_crc32c(data))
        if self._file.write(record) != len(record):  # a disk that is nearly full takes a part
            raise OSError("only a part of a message was written")
