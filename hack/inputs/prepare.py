"""Fetches and prepares the inputs of the examples: `python -m hack.inputs.prepare [--only PART] [--storage DIR]`.

    ${TRANSFER_CACHE:-~/.cache/transfer-operator}/inputs/
        models/smollm2-135m/    config, safetensors, tokenizer
        texts/*.jsonl           training texts: id, en, zh; held-out texts: 15 languages
        instructions/*.jsonl    questions and answers
        tasks/                  multiple-choice tasks with their questions
        NOTICE, inputs.json     what is from where, under which licence, and how much

Each part is made beside its place and moved there whole, so whatever is interrupted leaves the part as it was. What is there
is not made again. With --storage, links to the four folders are put into that folder, where `transfer run` looks.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hack.inputs import corpus, instructions, model, tasks, texts
from hack.inputs.notice import notice
from transfer_api.errors import ExitCode, StorageError, TransferError

RECIPES = {"model": "2", "documents": "2"}
"""To be raised when what a part holds changes, so that the old one is replaced."""
PARTS = {"model": ("models",), "documents": ("texts", "instructions", "tasks")}
"""The folders of each part."""


def main(arguments: list[str] | None = None) -> int:
    """Prepares what is missing; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m hack.inputs.prepare", description="Fetch and prepare the inputs of the examples.")
    parser.add_argument("--storage", type=Path, metavar="DIR", help="folder that gets links to the inputs")
    parser.add_argument("--only", choices=PARTS, metavar="PART", help=f"prepare one part: {' or '.join(PARTS)} (default: all)")
    options = parser.parse_args(arguments)
    try:
        folder = cache() / "inputs"
        with space(folder):
            for part in [options.only] if options.only else PARTS:
                prepare(folder, part)
                if options.storage is not None:
                    link(folder, options.storage, PARTS[part])
    except TransferError as error:
        print(f"inputs: {error}", file=sys.stderr)
        return error.exit_code
    return ExitCode.COMPLETE


def cache() -> Path:
    """Where things are kept between runs."""
    return Path(os.environ.get("TRANSFER_CACHE") or Path.home() / ".cache" / "transfer-operator")


def prepare(folder: Path, part: str) -> None:
    """Makes a part if it is missing or of an older recipe. Of several that are started at once, one does the work."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / f".{part}"
        if stamp.is_file() and stamp.read_text() == RECIPES[part] and all((folder / place).is_dir() for place in PARTS[part]):
            print(f"inputs: {part} is there", flush=True)
        else:
            _make(folder, part, stamp)


def _make(folder: Path, name: str, stamp: Path) -> None:
    began = time.monotonic()
    print(f"inputs: fetching and preparing the {name}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as temporary:
        made = Path(temporary) / "made"
        work = Path(temporary) / "work"
        for place in (work, *(made / place for place in PARTS[name])):
            place.mkdir(parents=True)
        _MAKERS[name](work, made)
        stamp.unlink(missing_ok=True)
        for extra in sorted(made.iterdir()):
            replace(extra, folder / extra.name, Path(temporary))
        stamp.write_text(RECIPES[name])
    print(f"inputs: {name} is ready after {time.monotonic() - began:.0f} s")


def replace(new: Path, place: Path, temporary: Path) -> None:
    """Moves a folder or file to its place, and what was there out of the way."""
    if place.is_dir():
        place.rename(temporary / f"old-{place.name}")
    new.rename(place)


def _make_model(work: Path, made: Path) -> None:
    model.write_model(work, made / "models" / "smollm2-135m")


def _make_documents(work: Path, made: Path) -> None:
    found = corpus.fetch(work)
    facts: dict[str, Any] = {
        "packages": found.versions,
        "texts": texts.write_texts(found, made / "texts"),
        "instructions": instructions.write_instructions(found, made / "instructions"),
        "tasks": tasks.write_tasks(found, made / "tasks"),
    }
    (made / "inputs.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (made / "NOTICE").write_text(notice(found), encoding="utf-8")


_MAKERS = {"model": _make_model, "documents": _make_documents}


def link(folder: Path, storage: Path, names: Iterable[str]) -> None:
    """Links prepared folders into a storage.

    Raises:
        StorageError: something else has one of the names there.
    """
    storage.mkdir(parents=True, exist_ok=True)
    for name in names:
        place = storage / name
        if place.is_symlink():
            place.unlink()
        elif place.exists():
            raise StorageError(
                f"{name} is there already and is not a link", field="--storage", value=str(storage),
                next_step="Choose another storage folder, or move it away",
            )  # fmt: skip
        place.symlink_to((folder / name).absolute(), target_is_directory=True)


@contextmanager
def space(folder: Path) -> Iterator[None]:
    """Turns a full or read-only disk into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
        raise StorageError(
            f"{error.strerror} ({error.filename or folder})", field="TRANSFER_CACHE", value=str(folder.parent),
            next_step=f"1.5 GB are needed there and {free / 1e9:.1f} GB are free; free some, or set TRANSFER_CACHE to another folder",
        ) from error  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
