"""Suites under names and with settings of our own (`suites.yaml`): how many examples, in which language, in which files of the harness.

Every task of the harness can be a suite by its own name. What stands here is what papers report, with their settings, so that a score
can be compared; and because it says where the files are, nobody waits for the index of all the others.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from transfer_api.errors import SpecError

HERE = Path(__file__).parent
OUR_TASKS = HERE / "task_files"
"""Task files in the harness's format for what it does not have."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One suite in one language."""

    name: str
    task: str
    """Task or group of the harness."""
    folder: Path
    """Where it and all that it names are."""
    shots: int
    language: str


def find(name: str) -> Suite | None:
    """The suite of this name; None where the catalogue has none.

    Raises:
        SpecError: it exists, but not in that language, or is named without one.
    """
    plain, _, language = name.partition("_")
    if (entry := _entries().get(name)) is not None and "languages" not in entry:
        return _suite(name, entry, "", entry["language"])
    codes = _entries().get(plain, {}).get("languages")
    # Others are names of the harness: mmlu_anatomy, belebele_ind_Latn.
    if codes is None or re.fullmatch("|[a-z]{2,3}", language) is None:
        return None
    if language not in codes:
        raise SpecError(
            "has no questions in that language" if language else "exists in several languages", field="spec.evaluation.suites", value=name,
            allowed=f"{plain}_ with one of {', '.join(codes)}", next_step="Correct the language, or remove the suite",
        )  # fmt: skip
    return _suite(name, _entries()[plain], codes[language], language)


def names() -> list[str]:
    """Every name, without languages."""
    return list(_entries())


def _suite(name: str, entry: dict[str, Any], code: str, language: str) -> Suite:
    folder = entry.get("folder")
    place = OUR_TASKS / name if folder is None else harness_tasks() / folder.format(code)
    return Suite(name=name, task=entry["task"].format(code), folder=place, shots=entry["shots"], language=language)


@functools.cache
def _entries() -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "suites.yaml").read_text(encoding="utf-8"))
    return entries


@functools.cache
def harness_tasks() -> Path:
    """Folder of the harness's task files, found without importing it.

    Raises:
        SpecError: the harness is not installed.
    """
    spec = importlib.util.find_spec("lm_eval")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise SpecError("needs lm-evaluation-harness", field="spec.evaluation.suites", next_step="Install transfer-operator[evaluator]")
    return Path(places[0]) / "tasks"
