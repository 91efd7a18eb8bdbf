"""Whether the suites of an experiment exist, asked before anything runs.

lm-evaluation-harness takes four seconds to import and six to index its 14,000 task files, which every run would wait for. Reading
those files for a few names takes half a second and no import. So a name that a file plainly gives is taken as there, and only what is
not found in this way (a tag, a group of one's own with its members, a misspelt name) is asked of the library.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from transfer_api.errors import SpecError
from transfer_api.language import ASKED_LANGUAGES
from transfer_api.spec import CODE_SWITCHING, is_harness_suite
from transfer_evaluator.catalogue import find, harness_tasks


def check_suites(suites: Iterable[str], folders: Sequence[Path]) -> None:
    """Sees that every suite exists, in the task folders or in the harness.

    Raises:
        SpecError: one does not, or not in that language, or a group of the task folders names a task that does not; the message has
            the nearest names.
    """
    given = set(suites)
    check_languages(given)
    wanted = set(filter(is_harness_suite, given))
    wanted -= named("task", wanted, folders)
    groups = named("group", wanted, folders)  # its members may be misspelt, which only the library sees
    wanted -= {suite for suite in wanted - groups if find(suite) is not None}
    doubtful = groups | ((wanted - groups) - named("task|group", wanted - groups, [harness_tasks()]))
    if doubtful:
        from transfer_evaluator.tasks import TaskLibrary, quiet

        quiet()
        TaskLibrary(folders).check(sorted(doubtful))


def check_languages(suites: Iterable[str]) -> None:
    """Sees that every `code-switching_<language>` names a language that has questions.

    Raises:
        SpecError: one does not.
    """
    for suite in sorted(suites):
        name, _, language = suite.partition("_")
        if name == CODE_SWITCHING and language and language not in ASKED_LANGUAGES:
            raise SpecError(
                "has no questions in that language", field="spec.evaluation.suites", value=suite,
                allowed=f"{CODE_SWITCHING}_ with one of {', '.join(ASKED_LANGUAGES)}",
                next_step="Correct the language, or remove the suite",
            )  # fmt: skip


def named(kind: str, names: set[str], folders: Sequence[Path]) -> set[str]:
    """Which of the names a task file gives to itself."""
    if not names:
        return set()
    line = re.compile(rf"^(?:{kind}):[ \t]*['\"]?({'|'.join(map(re.escape, names))})['\"]?[ \t]*(?:#.*)?$", re.M)
    found: set[str] = set()
    for file in (file for folder in folders for file in folder.rglob("*.yaml") if file.is_file()):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found.update(line.findall(file.read_text(encoding="utf-8")))
        if found == names:
            break
    return found
