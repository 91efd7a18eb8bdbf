"""The fast way (trees of shared tokens) against the plain one (a forward pass for each request), in float32."""

import random

import pytest
import torch

from transfer_evaluator.scorer import LEAST_TRUNK, Request, Row, TokenScore, TokenScorer, allows_tree, plan_rows

VOCABULARY = 300


def question_like(seed: int, questions: int = 6) -> list[Request]:
    """Requests that share a long prefix, then a question, then have options of one to five tokens."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(low, high)))

    subject = tokens(20, 30)
    contexts = [subject + tokens(1, 12) for _ in range(questions)] + [tokens(1, 3), tokens(60, 90)]
    return [Request(context, tokens(1, 5)) for context in contexts for _ in range(4)]


@torch.inference_mode()
def one_by_one(model, requests: list[Request]) -> list[TokenScore]:
    scores = []
    for request in requests:
        logits_TV = model(torch.tensor([request.inputs])).logits[0][-len(request.continuation) :].log_softmax(-1)
        target_T = torch.tensor(request.continuation)
        chosen = logits_TV[torch.arange(len(target_T)), target_T].sum().item()
        scores.append(TokenScore(chosen, bool((logits_TV.argmax(-1) == target_T).all())))
    return scores


@pytest.mark.parametrize("tree", [pytest.param(True, id="tree"), pytest.param(False, id="padded batches")])
@pytest.mark.parametrize("row_tokens", [4, 16, 64, 512])
def test_every_score_equals_a_forward_pass_of_its_own(tiny, tree, row_tokens):
    requests = question_like(seed=row_tokens)
    random.Random(1).shuffle(requests)
    found = TokenScorer(tiny.model, tree=tree, row_tokens=row_tokens).score(requests)
    wanted = one_by_one(tiny.model, requests)
    differences = [abs(a.log_probability - b.log_probability) for a, b in zip(found, wanted, strict=True)]
    assert max(differences) < 1e-4, f"largest {max(differences)}, mean {sum(differences) / len(differences)}"
    assert [score.greedy for score in found] == [score.greedy for score in wanted]


def test_a_greedy_continuation_is_seen_as_greedy(tiny):
    with torch.inference_mode():
        first = int(tiny.model(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax())
        second = int(tiny.model(torch.tensor([[5, 6, 7, first]])).logits[0, -1].argmax())
    requests = [Request((5, 6, 7), (first, second)), Request((5, 6, 7), (first, second + 1))]
    assert [score.greedy for score in TokenScorer(tiny.model).score(requests)] == [True, False]


def test_one_token_options_of_a_question_cost_one_pass_over_the_question(tiny):
    context = tuple(range(10, 50))
    computed: list[tuple[int, int]] = []
    TokenScorer(tiny.model).score([Request(context, (option,)) for option in (1, 2, 3, 4)], lambda *done: computed.append(done))
    assert computed == [(4, len(context))]


@pytest.mark.parametrize("row_tokens", [1, 8, 32, 128, 512])
def test_a_shared_prefix_is_computed_once_however_many_rows_there_are(tiny, row_tokens):
    prefix = tuple(range(100, 200))
    requests = [Request((*prefix, question, question), (1, 2)) for question in range(20)]
    computed: list[tuple[int, int]] = []
    scores = TokenScorer(tiny.model, row_tokens=row_tokens).score(requests, lambda *done: computed.append(done))
    assert sum(finished for finished, _ in computed) == 20
    assert sum(tokens for _, tokens in computed) == len(prefix) + 20 * 3
    assert [score.log_probability for score in scores] == pytest.approx(
        [score.log_probability for score in one_by_one(tiny.model, requests)], abs=1e-4
    )


def requests_of(sequences: list[tuple[int, ...]]) -> list[Request]:
    """Requests that read just these tokens."""
    return [Request(sequence, (0,)) for sequence in sequences]


def test_rows_stay_within_their_size_and_lose_no_request():
    draw = random.Random(0)
    begin = tuple(draw.randrange(5) for _ in range(30))
    sequences = [begin[: draw.randint(0, 30)] + tuple(draw.randrange(5) for _ in range(draw.randint(1, 40))) for _ in range(200)]
    rows = list(plan_rows(requests_of(sequences), 64))
    assert sorted(index for row in rows for index in row.requests) == list(range(200))
    assert any(row.trunk for row in rows)
    last: list[int] = []
    for row in rows:
        assert len(row.tokens) <= 70
        assert len(row.trunk) == 0 or len(row.trunk) >= LEAST_TRUNK
        tokens = [last[node] for node in row.trunk] + row.tokens
        depths = [*range(len(row.trunk)), *row.depths]
        for index, path in zip(row.requests, row.paths, strict=True):
            assert tuple(tokens[node] for node in path) == sequences[index]
            assert [depths[node] for node in path] == list(range(len(path)))
            assert path[-1] >= len(row.trunk), "there are no logits in a cache"
        last = tokens


def test_the_mask_lets_a_token_see_its_own_ancestors_only():
    (row,) = plan_rows(requests_of([(1, 2, 3), (1, 2, 4), (5,)]), 64)
    assert row.tokens == [1, 2, 3, 4, 5]
    assert row.mask().astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_a_token_after_a_trunk_sees_as_much_of_it_as_it_shares():
    trunk = tuple(range(10, 10 + LEAST_TRUNK))
    row = Row(trunk=list(range(LEAST_TRUNK)))
    for index, (request, shared) in enumerate(
        zip(requests_of([(*trunk, 2), (*trunk[:-1], 30), (90,)]), (LEAST_TRUNK, LEAST_TRUNK - 1, 0), strict=True)
    ):
        row.add(index, request, shared)
    assert row.mask().astype(int).tolist() == [
        [1] * LEAST_TRUNK + [1, 0, 0],
        [1] * (LEAST_TRUNK - 1) + [0] + [0, 1, 0],
        [0] * LEAST_TRUNK + [0, 0, 1],
    ]


class Config:
    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        pytest.param(Config(model_type="llama"), True, id="llama"),
        pytest.param(Config(model_type="gpt2"), False, id="learned positions are not in the list"),
        pytest.param(Config(model_type="bloom"), False, id="ALiBi"),
        pytest.param(Config(model_type="mistral", sliding_window=4096), False, id="sliding window"),
        pytest.param(Config(model_type="mistral", sliding_window=None), True, id="mistral without a window"),
        pytest.param(Config(model_type="qwen2", sliding_window=4096, use_sliding_window=False), True, id="window switched off"),
        pytest.param(Config(model_type="qwen3", layer_types=["full_attention", "sliding_attention"]), False, id="mixed layers"),
        pytest.param(Config(model_type="llama", rope_parameters={"rope_type": "dynamic"}), False, id="scaling by length"),
    ],
)
def test_trees_are_used_only_where_they_mean_the_same(config, allowed):
    assert allows_tree(config) is allowed
