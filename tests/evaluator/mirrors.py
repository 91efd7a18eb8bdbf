"""Mirrors with a few rows of our own in the columns that the tasks read, laid out as the hub has them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"
ENTRIES = ["gajah", "kucing", "kuda", "ikan"]


def write_data_set(mirror: Path, name: str, configs: Mapping[str, Mapping[str, Iterable[Mapping[str, Any]]]]) -> Path:
    """Writes rows by configuration and split, the card that names the files, and the mirror's record; returns the folder."""
    folder = mirror / name
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for config, splits in configs.items():
        for split, rows in splits.items():
            file = folder / config / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        listed.append({"config_name": config, "data_files": [{"split": one, "path": f"{config}/{one}.jsonl"} for one in splits]})
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': listed})}\n---\n")
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (mirror / f"{name}.json").write_text(json.dumps({"revision": REVISION, "files": files}))
    return folder


def letters(count: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows as MMLU has them."""
    return [
        {"question": f"What is number {n}?", "subject": "numbers", "choices": ENTRIES, "answer": n % 4, **columns} for n in range(count)
    ]


def exam_rows(count: int, answer: str = "answer") -> list[dict[str, Any]]:
    """Rows as C-Eval and CMMLU have them."""
    return [{"question": f"第 {n} 题", **dict(zip("ABCD", ENTRIES, strict=True)), answer: "ABCD"[n % 4]} for n in range(count)]
