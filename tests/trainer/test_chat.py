"""Chat templates: the tokens are those of inference, and exactly the answers count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from tests.support.tiny import CHAT_TEMPLATE, tiny_tokenizer
from transfer_api.errors import DataError, ModelError
from transfer_pod.documents import Message
from transfer_trainer.chat import ALPACA, CHATML, ChatTemplate

TRIMMING = (
    "{{ '<|endoftext|>' }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }} <|endoftext|>{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
)
# Like models that think: earlier answers lose what they thought, and only the last one gets an empty thought.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
ENDLESS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TWO_TURNS = [
    Message("system", "Jawab."), Message("user", "Siapa?"), Message("assistant", "Semua orang."),
    Message("user", "assistant"), Message("assistant", "assistant\n\n sama "),
]  # fmt: skip


def tokenizer_with(template: str | None) -> Any:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def answers(tokenizer: Any, tokens: Any, targets: Any) -> list[str]:
    """The text of each run of tokens that count."""
    runs: list[list[int]] = []
    for place, (token, target) in enumerate(zip(tokens, targets, strict=True)):
        if target and (place == 0 or not targets[place - 1]):
            runs.append([])
        if target:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param(CHAT_TEMPLATE, ["Semua orang.<|im_end|>", "assistant\n\n sama <|im_end|>"], id="ChatML"),
        pytest.param(DEFAULT_SYSTEM, ["Semua orang.<|im_end|>", "assistant\n\n sama <|im_end|>"], id="a system prompt of its own"),
        pytest.param(THINKING, ["Semua orang.<|im_end|>", "assistant\n\n sama <|im_end|>"], id="the last answer is rendered differently"),
        # The space before an answer is one token with its first letters.
        pytest.param(TRIMMING, ["Semua orang. <|endoftext|>", "assistant\n\n sama <|endoftext|>"], id="answers are trimmed"),
    ],
)  # fmt: skip
def test_exactly_the_answers_and_their_ends_count(template: str, expected: list[str]) -> None:
    tokenizer = tokenizer_with(template)
    example = ChatTemplate(tokenizer).encode(TWO_TURNS)
    found = answers(tokenizer, example.tokens, example.targets)
    assert [text.lstrip(" ") for text in found] == expected


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, DEFAULT_SYSTEM, THINKING, TRIMMING], ids=["ChatML", "system", "thinking", "trimming"])
def test_the_tokens_are_those_of_the_tokenizers_own_rendering(template: str) -> None:
    tokenizer = tokenizer_with(template)
    plain = [{"role": message.role, "content": message.content} for message in TWO_TURNS]
    assert ChatTemplate(tokenizer).encode(TWO_TURNS).tokens == tokenizer.apply_chat_template(plain, return_dict=False)


def test_what_stands_before_the_first_answer_is_the_prompt_of_inference() -> None:
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    example = ChatTemplate(tokenizer).encode(TWO_TURNS[:3])
    plain = [{"role": message.role, "content": message.content} for message in TWO_TURNS[:2]]
    prompt = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    assert example.tokens[: list(example.targets).index(1)] == prompt


@pytest.mark.parametrize("answer", ["\n\nSemua", "  Semua", "人人生而自由", "A", "B", "<|im_end|>", "é\u0301🙂"])
def test_answers_that_begin_with_spaces_or_are_cut_into_bytes_count_whole(answer: str) -> None:
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    example = ChatTemplate(tokenizer).encode([Message("user", "A"), Message("assistant", answer)])
    found = answers(tokenizer, example.tokens, example.targets)
    # A newline of the answer may share a token with the newline before it.
    assert [text.removeprefix("\n" if answer.startswith("\n") else "") for text in found] in (
        [f"{answer}<|im_end|>"],
        [f"{answer[1:]}<|im_end|>"],
    )


def test_spaces_count_where_the_tokenizer_trims_them_off_its_offsets() -> None:
    """As the tokenizers of GPT-2 and Llama 3 do."""
    from tokenizers import processors

    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    example = ChatTemplate(tokenizer).encode([Message("user", "A"), Message("assistant", " Semua\n\norang  ")])
    assert answers(tokenizer, example.tokens, example.targets) == [" Semua\n\norang  <|im_end|>"]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"  # a space is the end of a turn
    example = ChatTemplate(tokenizer).encode([Message("user", "A"), Message("assistant", "Semua")])
    assert answers(tokenizer, example.tokens, example.targets) == ["Semua <|endoftext|>"]


@pytest.mark.parametrize(
    ("own", "name", "used"),
    [
        pytest.param(TRIMMING, "Model", TRIMMING, id="the model's own"),
        pytest.param(None, "Model", CHATML, id="ChatML where the model has none"),
        pytest.param({"default": TRIMMING, "tool": ENDLESS}, "Model", TRIMMING, id="the default of several"),
        pytest.param(TRIMMING, "ChatML", CHATML, id="ChatML by name"),
        pytest.param(TRIMMING, "Alpaca", ALPACA, id="Alpaca by name"),
    ],
)
def test_the_template_is_chosen_by_name(own: Any, name: str, used: str) -> None:
    assert ChatTemplate(tokenizer_with(own), name).jinja == used


def test_alpaca_counts_the_answers_and_the_end_of_text() -> None:
    tokenizer = tokenizer_with(None)
    example = ChatTemplate(tokenizer, "Alpaca").encode(TWO_TURNS)
    assert answers(tokenizer, example.tokens, example.targets) == ["Semua orang.<|endoftext|>", "assistant\n\n sama <|endoftext|>"]
    text = tokenizer.decode(example.tokens)
    assert text.startswith("Jawab.\n\n### Instruction:\nSiapa?\n\n### Response:\nSemua orang.")


@pytest.mark.parametrize("begins", [False, True], ids=["plain", "with a begin-of-text token"])
def test_llama_2_has_the_system_prompt_in_its_first_question_and_each_turn_as_a_text(begins: bool) -> None:
    tokenizer = tokenizer_with(None)
    begin = ""
    if begins:
        begin = tokenizer.bos_token
        processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = processor
    example = ChatTemplate(tokenizer, "Llama2").encode(TWO_TURNS)
    assert tokenizer.decode(example.tokens) == (
        f"{begin}[INST] <<SYS>>\nJawab.\n<</SYS>>\n\nSiapa? [/INST] Semua orang. <|endoftext|>"
        f"{begin}[INST] assistant [/INST] assistant\n\n sama <|endoftext|>"
    )
    told = answers(tokenizer, example.tokens, example.targets)
    assert [answer.strip() for answer in told] == ["Semua orang. <|endoftext|>", "assistant\n\n sama <|endoftext|>"]
    for refused in (TWO_TURNS[2:], [*TWO_TURNS[:3], TWO_TURNS[0]]):
        with pytest.raises(DataError, match="one system prompt"):
            ChatTemplate(tokenizer, "Llama2").encode(refused)


def test_llama_3_ends_turns_with_its_own_token_where_the_tokenizer_has_it() -> None:
    tokenizer = tokenizer_with(None)
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": headers})
    template = ChatTemplate(tokenizer, "Llama3")
    example = template.encode(TWO_TURNS[:3])
    assert tokenizer.decode(example.tokens) == (
        "<|start_header_id|>system<|end_header_id|>\n\nJawab.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nSiapa?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nSemua orang.<|eot_id|>"
    )
    assert answers(tokenizer, example.tokens, example.targets) == ["Semua orang.<|eot_id|>"]
    assert template.stop == tokenizer.convert_tokens_to_ids("<|eot_id|>")


def test_a_turn_without_an_end_is_given_one_so_that_the_model_learns_to_stop() -> None:
    tokenizer = tokenizer_with(ENDLESS)
    example = ChatTemplate(tokenizer).encode([Message("user", "Siapa?"), Message("assistant", "Semua")])
    assert (example.tokens[-1], example.targets[-1]) == (tokenizer.eos_token_id, 1)


def test_a_turn_with_an_end_is_given_no_second_one() -> None:
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    assert tokenizer.eos_token not in tokenizer.decode(ChatTemplate(tokenizer).encode(TWO_TURNS).tokens)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param("{{ raise_exception('roles must alternate') }}", "roles must alternate", id="it refuses"),
        pytest.param("{% for m in messages %}{{ m['role'] }}<|im_end|>{% endfor %}", "where an answer stands", id="it leaves answers out"),
        pytest.param("{% for m in messages %}{{ m['content'] | length }}{% endfor %}", "where an answer stands", id="it changes answers"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_a_way_out(template: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        ChatTemplate(tokenizer_with(template)).encode(TWO_TURNS)
    assert caught.value.field == "spec.instructionTuning.template"
    assert "ChatML" in str(caught.value)


def test_a_tokenizer_that_does_not_know_the_end_of_chatml_ends_turns_with_its_end_of_text() -> None:
    """Letters that spell the end stop no generation."""
    tokenizer = tokenizer_with(None)
    vocabulary = {token: number for token, number in tokenizer.get_vocab().items() if token != "<|im_end|>"}
    tokenizer.get_vocab = lambda: vocabulary
    template = ChatTemplate(tokenizer)
    example = template.encode(TWO_TURNS)
    assert answers(tokenizer, example.tokens, example.targets) == ["Semua orang.<|endoftext|>", "assistant\n\n sama <|endoftext|>"]
    assert template.stop == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        pytest.param(CHAT_TEMPLATE, "Model", "<|im_end|>", id="end of turn"),
        pytest.param(TRIMMING, "Model", "<|endoftext|>", id="end of text"),
        pytest.param(ENDLESS, "Model", "<|endoftext|>", id="none of its own"),
        pytest.param(None, "Alpaca", "<|endoftext|>", id="Alpaca"),
        pytest.param(None, "Llama2", "<|endoftext|>", id="Llama 2"),
        pytest.param(None, "Llama3", "<|endoftext|>", id="Llama 3, whose end the tokenizer does not know"),
    ],
)
def test_generation_stops_where_answers_end(template: str | None, name: str, expected: str) -> None:
    tokenizer = tokenizer_with(template)
    assert ChatTemplate(tokenizer, name).stop == tokenizer.convert_tokens_to_ids(expected)


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    tokenizer = tokenizer_with(None)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end-of-text"):
        ChatTemplate(tokenizer)


@pytest.mark.parametrize("begins", [False, True], ids=["plain", "with a begin-of-text token"])
@pytest.mark.parametrize("name", ["Model", "ChatML", "Alpaca", "Llama2", "Llama3"])
@pytest.mark.parametrize("own", [None, TRIMMING], ids=["no template", "a template of its own"])
def test_the_saved_template_renders_in_plain_transformers_what_training_rendered(
    tmp_path: Path, own: str | None, name: str, begins: bool
) -> None:
    tokenizer = tokenizer_with(own)
    if begins:
        tokenizer.bos_token = "<|endoftext|>"
        number = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", number)]
        )
    template = ChatTemplate(tokenizer, name)
    trained = template.encode(TWO_TURNS)
    tokenizer.chat_template = template.saved
    tokenizer.save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": message.role, "content": message.content} for message in TWO_TURNS]
    assert plain.apply_chat_template(messages, return_dict=False) == trained.tokens
    assert (trained.tokens[0] == plain.bos_token_id) is (begins or (own is not None and name == "Model"))
