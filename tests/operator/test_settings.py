"""Settings from the environment, each with its way out when it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from transfer_api.errors import SpecError
from transfer_operator.settings import PREFIX, OperatorSettings


def test_nothing_set_is_the_default() -> None:
    assert OperatorSettings.read({}).model_dump(exclude={"identity"}) == OperatorSettings().model_dump(exclude={"identity"})


def test_an_empty_variable_is_not_set_and_others_are_not_ours() -> None:
    settings = OperatorSettings.read({PREFIX + "LEASE_SECONDS": "", "HOME": "somewhere", PREFIX + "RENEW_SECONDS": "1.5"})
    assert settings.lease_seconds == OperatorSettings().lease_seconds
    assert settings.renew_seconds == 1.5


@pytest.mark.parametrize("text", ['["a", "b"]', "a,b", " a , b ,"])
def test_lists_are_read_as_json_or_with_commas(text: str) -> None:
    assert OperatorSettings.read({PREFIX + "WATCH_NAMESPACES": text}).watch_namespaces == ("a", "b")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LEASE_SECONDS", "0"), ("LEASE_SECONDS", "soon"), ("HTTP_PORT", "70000"), ("LOG_LEVEL", "LOUD"), ("CONCURRENCY", "0"),
        ("IMAGE_PULL_POLICY", "Sometimes"), ("POD_USER", "0"), ("WATCH_NAMESPACE", "a"), ("LEADER_ELECTION", "perhaps"),
        ("WATCH_NAMESPACES", '["a"'),
    ],
)  # fmt: skip
def test_what_a_variable_does_not_take_is_refused_by_its_name(name: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        OperatorSettings.read({PREFIX + name: text})
    assert PREFIX + name in str(caught.value)
    assert "docs/operator.md" in str(caught.value)


@pytest.mark.parametrize(("lease", "renew", "most"), [("10", "3.6", "3.5"), ("10", "20", "3.5"), ("5", "2", "1.75")])
def test_a_lease_that_ends_before_it_is_renewed_twice_is_refused(lease: str, renew: str, most: str) -> None:
    given = {PREFIX + "LEASE_SECONDS": lease, PREFIX + "RENEW_SECONDS": renew}
    with pytest.raises(SpecError) as caught:
        OperatorSettings.read(given)
    told = str(caught.value)
    assert PREFIX + "RENEW_SECONDS" in told
    assert f"{PREFIX}LEASE_SECONDS={lease}" in told
    assert f"got {float(renew)}" in told
    assert f"at most {most}" in told
    assert OperatorSettings.read(given | {PREFIX + "LEADER_ELECTION": "false"}).renew_seconds == float(renew), "not asked for"


def test_a_renewal_may_take_just_the_time_there_is() -> None:
    assert OperatorSettings.read({PREFIX + "LEASE_SECONDS": "6", PREFIX + "RENEW_SECONDS": "2.1"}).renew_seconds == 2.1


def test_every_setting_is_documented_with_its_meaning_and_nothing_else_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operator.md").read_text()
    rows = dict(re.findall(rf"^\| `{PREFIX}(\w+)` \|.*\| ([^|]*) \|$", text, re.MULTILINE))
    assert rows == {name.upper(): field.description for name, field in OperatorSettings.model_fields.items()}
