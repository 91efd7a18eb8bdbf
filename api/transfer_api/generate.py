"""`python -m transfer_api.generate [--check]`: writes crds/, docs/reference.md and docs/results.schema.json from the models."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from transfer_api.crd import PLURAL, crd_yaml
from transfer_api.reference import reference
from transfer_api.results import results_schema

ROOT = Path(__file__).resolve().parents[2]


def generated() -> dict[str, str]:
    """Every generated file: path in the repository to content."""
    return {f"crds/{PLURAL}.yaml": crd_yaml(), "docs/reference.md": reference(), "docs/results.schema.json": results_schema()}


def main(arguments: list[str] | None = None) -> int:
    """Writes the files, or with --check prints how they differ and returns 1 when they do."""
    parser = argparse.ArgumentParser(prog="python -m transfer_api.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff when a file is not up to date")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository (default: %(default)s)")
    options = parser.parse_args(arguments)
    stale = 0
    for name, content in generated().items():
        path = options.root / name
        if options.check:
            old = path.read_text(encoding="utf-8") if path.is_file() else ""
            stale += old != content
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), content.splitlines(True), name, f"{name} (generated)"))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
