"""Detectors: which language a text is in, and where an answer leaves it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_api.language import ASKED_LANGUAGES
from transfer_evaluator.language import SCRIPTS, detector, examine, identify, words
from transfer_evaluator.questions import questions


def test_the_languages_are_those_of_the_contract():
    assert tuple(sorted(SCRIPTS)) == ASKED_LANGUAGES


def test_the_detector_is_stated_with_its_version():
    assert detector().startswith("script runs, then py3langid 0.")
    assert detector().endswith("among ar bn en gu hi id ml mr ne sw ta te ur vi zh")


@pytest.mark.parametrize("language", ASKED_LANGUAGES)
def test_twenty_questions_of_each_language_are_told_from_all_others(language):
    asked = questions(language)
    assert len(asked) == 20
    told = identify("\n".join(question.text for question in asked))
    assert told == language


def test_single_questions_are_told_as_well_as_measured_on_paragraphs():
    told = [(q.language, identify(q.text)) for language in ASKED_LANGUAGES for q in questions(language)]
    judged = [pair for pair in told if pair[1] != "none"]
    right = sum(expected == found for expected, found in judged)
    assert len(judged) > 150
    assert right / len(judged) >= 0.97


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Все люди рождаются свободными и равными в достоинстве", "Cyrillic", id="a script of no language of ours"),
        pytest.param("ทุกคน เกิดมา มีอิสระ และ เสมอภาค กัน", "Thai", id="Thai"),
        pytest.param("人人生而自由，在尊严和权利上一律平等。", "zh", id="Chinese without spaces"),
        pytest.param("Ya, tentu.", "none", id="too short to tell"),
        pytest.param("", "none", id="nothing"),
        pytest.param("12345 67 89 - 10 ... 11", "none", id="numbers"),
        pytest.param("https://example.org/a/b x_y = f(z) a@b.org", "none", id="addresses and code"),
    ],
)
def test_what_a_text_is_in(text, expected):
    assert identify(text) == expected


def test_words_are_cut_where_the_script_changes_and_marks_stay_with_their_letters():
    assert [(word.text, word.script) for word in words("我喜欢machine学习")] == [("我喜欢", "Han"), ("machine", "Latin"), ("学习", "Han")]
    assert [(word.text, word.script) for word in words("हिन्दी में")] == [("हिन्दी", "Devanagari"), ("में", "Devanagari")]
    text = "Là người Việt 你好"
    assert all(text[word.start : word.end] == word.text for word in words(text))


HINDI = "किसान साल भर खेत में काम करता है और फसल उगाता है"
CASES = [
    pytest.param("hi", HINDI, [], id="Hindi in Hindi"),
    pytest.param("hi", f"{HINDI} because weather is important", ["because weather is important"], id="Hindi, then English"),
    pytest.param("hi", f"{HINDI} NASA और Google से", [], id="acronyms and names are no switch"),
    pytest.param("hi", f"{HINDI} a b of", [], id="letters and short words are none"),
    pytest.param("hi", f"{HINDI} 人 देखो", ["人"], id="one Chinese character is one"),
    pytest.param("hi", f"{HINDI} https://site.org/path `print(value)` file_name", [], id="addresses and code are none"),
    pytest.param("zh", "农民每天在田里工作because天气很好", ["because"], id="Chinese needs no space before English"),
    pytest.param("zh", "农民每天在田里工作、ありがとう、天气很好", ["ありがとう"], id="kana in Chinese"),
    pytest.param("ar", "المزارع يعمل في الحقل كل يوم with great effort دائما", ["with great effort"], id="English in right-to-left text"),
    pytest.param("ur", "کسان سال بھر کھیت میں کام کرتا ہے मेहनत سے", ["मेहनत"], id="Devanagari in Urdu"),
    pytest.param("ta", "விவசாயி ஆண்டு முழுவதும் வயலில் வேலை செய்கிறார் every season", ["every season"], id="Tamil"),
    pytest.param("te", "రైతు ఏడాది పొడవునా పొలంలో పని చేస్తాడు మరియు harvest పొందుతాడు", ["harvest"], id="Telugu"),
    pytest.param("ml", "കർഷകൻ വർഷം മുഴുവൻ വയലിൽ ജോലി ചെയ്യുന്നു, работа", ["работа"], id="Cyrillic in Malayalam"),
    pytest.param("bn", "কৃষক সারা বছর মাঠে কাজ করে এবং ফসল ফলায়", [], id="Bengali"),
    pytest.param("gu", "ખેડૂત આખું વર્ષ ખેતરમાં કામ કરે છે with machines", ["with machines"], id="Gujarati"),
    pytest.param("id", "Petani menanam padi di sawah setiap tahun dan memanen hasilnya", [], id="Indonesian"),
    pytest.param("sw", "Mkulima hulima shamba lake kila mwaka na kuvuna mazao mengi", [], id="Swahili"),
    pytest.param("vi", "Người nông dân làm việc trên đồng ruộng quanh năm và thu hoạch lúa", [], id="Vietnamese"),
]


@pytest.mark.parametrize(("language", "answer", "foreign"), CASES)
def test_words_of_another_language_are_found_where_they_stand(language, answer, foreign):
    found = examine(answer, "", language)
    assert found.language == language
    assert [answer[span.start : span.end] for span in found.foreign_words] == foreign
    assert not found.foreign_lines


def test_english_among_the_words_of_a_language_that_shares_its_script_is_found():
    answer = (
        "Petani menanam padi di sawah setiap tahun, but the weather is often too dry for the rice, dan memanen hasilnya pada musim panas"
    )
    found = examine(answer, "", "id")
    (span,) = found.foreign_words
    assert span.language == "en"
    assert "the weather is often too dry for the rice" in answer[span.start : span.end]
    assert found.own


def test_a_line_in_another_language_is_one_and_its_place_is_known():
    answer = f"{HINDI}\n\nThe farmer works in the field all year long.\n人民每天在田里工作，收获粮食。"
    found = examine(answer, "", "hi")
    assert found.lines == 3
    assert [(answer[span.start : span.end].split()[0][:3], span.language) for span in found.foreign_lines] == [
        ("The", "en"),
        ("人民每", "zh"),
    ]
    assert found.own


def test_words_of_the_prompt_may_be_said_again():
    answer = f"{HINDI} photosynthesis"
    assert examine(answer, "photosynthesis क्या है?", "hi").foreign_words == ()
    assert len(examine(answer, "क्या है?", "hi").foreign_words) == 1


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200), st.sampled_from(ASKED_LANGUAGES))
def test_any_text_can_be_examined_and_spans_lie_inside_it(text, language):
    found = examine(text, "", language)
    for span in (*found.foreign_lines, *found.foreign_words):
        assert 0 <= span.start < span.end <= len(text)
    assert len(found.foreign_lines) <= found.lines
