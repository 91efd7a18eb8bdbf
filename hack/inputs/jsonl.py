"""JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transfer_api.errors import DataError


def write_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> int:
    """Writes one object a line and returns how many.

    Raises:
        DataError: there are none; an empty file would only fail later.
    """
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in objects]
    if not lines:
        raise DataError(f"nothing was found for {path.name}", next_step="Run it again; if it stays so, mend hack/inputs")
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)
