"""The cluster, the operator in it, and a namespace of its own for each test.

There is no skip: without a cluster every test fails with what to type. `make test-cluster` starts one, brings the images into it and
runs these tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.testbed import FOR_TESTS, Testbed
from tests.support.trial import Trial


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: minutes long, and of no use beside its short form; run by name (-m slow)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.iter_markers("timeout")):
            item.add_marker(pytest.mark.timeout(420))  # a worker that joins imports torch on a machine of two cores


@pytest.fixture(scope="session")
def bed() -> Testbed:
    """The cluster with the operator of this tree: the chart as it is, two replicas, all namespaces."""
    bed = Testbed(FOR_TESTS)
    bed.install()
    bed.operators_ready()
    return bed


@pytest.fixture
def trial(bed: Testbed) -> Iterator[Trial]:
    """A namespace with a claim, a tiny model and texts."""
    trial = Trial(bed).open()
    yield trial
    trial.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Beside a failure stands what the cluster says of it."""
    report: Any = yield
    trial = getattr(item, "funcargs", {}).get("trial")
    if report.when == "call" and report.failed and trial is not None:
        report.sections.append(("cluster", trial.describe()))
    return report
