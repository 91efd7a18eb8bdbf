"""The tree names packages, not the places they come from, and holds nothing that others wrote."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r"(pypi\.org|pythonhosted|registry\.npmjs|deb\.debian\.org|--(extra-)?index-url[ =]https?:|repo: https?:)")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_registry() -> None:
    here = Path(__file__).resolve()
    found = [path for path in tracked() if path != here and ADDRESS.search(path.read_text(encoding="utf-8", errors="ignore"))]
    assert not found


def test_no_weights_texts_or_archives_are_committed() -> None:
    foreign = {".safetensors", ".gguf", ".bin", ".jsonl", ".parquet", ".deb", ".whl", ".tgz", ".gz"}
    assert not [path for path in tracked() if path.suffix in foreign]


def test_every_pinned_package_has_a_hash() -> None:
    files = [*(ROOT / "requirements").glob("*.txt"), *(ROOT / "hack" / "inputs").glob("*.txt")]
    assert len(files) >= 5
    for path in files:
        for entry in re.split(r"\n(?=[A-Za-z])", path.read_text().strip()):
            assert re.match(r"[A-Za-z0-9._-]+==\S+", entry), (path.name, entry)
            assert "--hash=sha256:" in entry, (path.name, entry)
