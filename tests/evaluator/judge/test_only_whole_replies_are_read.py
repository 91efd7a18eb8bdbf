import json

import pytest

from transfer_evaluator.judge.parse import NAMES, parse_reply, reply_schema

GOOD = {"accuracy": 0, "fluency": 1, "informativeness": 2, "logical_coherence": 3, "harmlessness": 3}
TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(TEXT, id="as asked"),
        pytest.param(f"\n  {json.dumps(GOOD, indent=2)}\n", id="with white space"),
        pytest.param(f"```json\n{TEXT}\n```", id="in a fence that says json"),
        pytest.param(f"```\n{TEXT}\n```\n", id="in a fence"),
        pytest.param(json.dumps(dict(reversed(GOOD.items()))), id="in another order"),
    ],
)
def test_five_scores_alone_are_read(reply):
    assert parse_reply(reply).model_dump() == GOOD


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        pytest.param("", "it is no JSON", id="nothing"),
        pytest.param("3", "not a JSON object", id="a number"),
        pytest.param(f"[{TEXT}]", "not a JSON object", id="a list"),
        pytest.param(f"Here are the scores: {TEXT}", "it is no JSON", id="words before"),
        pytest.param(f"{TEXT} I hope this helps.", "it is no JSON", id="words behind"),
        pytest.param(f"{TEXT}\n{TEXT}", "it is no JSON", id="two objects"),
        pytest.param(f"<think>3?</think>{TEXT}", "it is no JSON", id="thoughts before"),
        pytest.param(f"```json\n{TEXT}\n```\n```json\n{TEXT}\n```", "it is no JSON", id="two fences"),
        pytest.param(json.dumps({**GOOD, "accuracy": 4}), "accuracy", id="above the scale"),
        pytest.param(json.dumps({**GOOD, "accuracy": -1}), "accuracy", id="below the scale"),
        pytest.param(json.dumps({**GOOD, "accuracy": 2.0}), "accuracy", id="a decimal"),
        pytest.param(json.dumps({**GOOD, "accuracy": 2.5}), "accuracy", id="between two levels"),
        pytest.param(json.dumps({**GOOD, "accuracy": "2"}), "accuracy", id="a string"),
        pytest.param(json.dumps({**GOOD, "accuracy": True}), "accuracy", id="a boolean"),
        pytest.param(json.dumps({**GOOD, "accuracy": None}), "accuracy", id="null"),
        pytest.param(TEXT.replace("3", "NaN", 1), "logical_coherence", id="not a number"),
        pytest.param(json.dumps(dict.fromkeys(NAMES[:4], 1)), "harmlessness", id="one is missing"),
        pytest.param(json.dumps({**GOOD, "overall": 3}), "overall", id="one too many"),
        pytest.param('{"accuracy": 0, ' + TEXT[1:], "name twice", id="one twice"),
        pytest.param("[" * 3000, "nested", id="nested without end"),
        pytest.param(TEXT + " " * 5000, "characters", id="without end"),
    ],
)
def test_anything_else_is_no_score_and_says_why(reply, why):
    with pytest.raises(ValueError, match=why):
        parse_reply(reply)


def test_the_schema_that_servers_enforce_has_the_same_names_and_levels():
    schema = reply_schema()
    assert schema["required"] == list(NAMES)
    assert all(levels["enum"] == [0, 1, 2, 3] for levels in schema["properties"].values())
    assert schema["additionalProperties"] is False
