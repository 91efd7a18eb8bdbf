"""Settings of every test."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import is_hypothesis_test, settings

# A shared machine may be slow at any moment: an example is judged by what it finds, not by how long it takes.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

gc.disable()  # nothing that is imported becomes garbage; looking for it took a fourth of the collection

ROOT = Path(__file__).parent
FIRST = ("local", "trainer", "operator")
"""Folders with the longest files: what begins last should be short, or one test process waits for the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    items.sort(key=lambda item: item.path.relative_to(ROOT).parts[0] not in FIRST)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """Branches are counted only in the tests of what they are counted for, and not where examples are drawn.

    Tracing makes tests, and what they are set up with, two to four times as long; and what is taken by chance is no coverage.
    """
    plugin = item.config.pluginmanager.get_plugin("_cov")
    controller = plugin.cov_controller if plugin is not None else None
    if controller is not None:
        counted = item.path.parent.name == "api" or item.path.name.startswith("test_decide")
        counted = counted and not is_hypothesis_test(getattr(item, "obj", None))
        if counted != controller.started:
            controller.resume() if counted else controller.pause()
    return (yield)


def pytest_collection_finish() -> None:
    """From here on garbage is looked for among what tests make, not among the millions of objects of the libraries."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """A library whose objects stay until the end says that they leaked."""
    gc.unfreeze()


@pytest.fixture
def harness_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes Belebele's 122 task files alone: all 14,000 of the harness take 10 s, and a pod that reads them is tested too."""
    from lm_eval.tasks._index import TaskIndex

    from transfer_evaluator.catalogue import harness_tasks

    build = TaskIndex.build

    def of_belebele(paths: Iterable[Path], **settings: Any) -> dict[str, Any]:
        return build([path / "belebele" if path == harness_tasks() else path for path in paths], **settings)

    monkeypatch.setattr(TaskIndex, "build", staticmethod(of_belebele))
