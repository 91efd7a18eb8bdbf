"""Settings of every test."""

import pytest
from hypothesis import settings

# A shared machine may be slow at any moment: an example is judged by what it finds, not by how long it takes.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

SINGLY = ("tests/trainer/test_elastic.py", "tests/trainer/test_membership.py", "tests/operator/test_crashes.py")
"""Files whose tests are long and share nothing, so that each may run in another process; the tests of other files stay together."""
LONG = ("tests/local/", *SINGLY, "tests/evaluator/", "tests/pod/test_hub.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no process ends minutes after the others."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        if file not in SINGLY:
            item.add_marker(pytest.mark.xdist_group(file))
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
