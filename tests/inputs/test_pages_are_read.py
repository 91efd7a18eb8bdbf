from __future__ import annotations

import pytest

from hack.inputs.corpus import read_names
from hack.inputs.language import is_prose, words
from hack.inputs.markup import html_paragraphs, mallard_paragraphs
from hack.inputs.names import is_plain

PAGE = """<html><head><title>no</title></head><body>
<div class="navheader"><table><tr><td><p>navigation</p></td></tr></table></div>
<h1>heading</h1>
<p>First <b>bold</b>
   words &amp; more.</p>
<ul><li>item one<li><p>item two</p></li></ul>
<pre>code</pre>
<div class="para">a paragraph of a handbook</div>
<p>left open<p>next
<ul class="docnav"><li>previous</li></ul>
</body></html>"""


def test_html_gives_its_paragraphs_and_items_but_no_navigation_headings_or_code() -> None:
    assert html_paragraphs(PAGE) == [
        "First bold words & more.", "item one", "item two", "a paragraph of a handbook", "left open", "next",
    ]  # fmt: skip


def test_a_stray_end_tag_closes_nothing() -> None:
    assert html_paragraphs("<p>one</p></div></p><p>two</p>") == ["one", "two"]


def test_mallard_gives_its_paragraphs_without_those_of_the_info() -> None:
    page = b"""<page xmlns="http://projectmallard.org/1.0/"><info><desc>d</desc><credit><p>author</p></credit></info>
    <title>t</title><p>Connect   a <link xref="x">cable</link>.</p><note><p>Mind it.</p></note></page>"""
    assert mallard_paragraphs(page) == ["Connect a cable.", "Mind it."]


def test_names_are_the_short_ones() -> None:
    keywords, name = '<annotation cp="🐘">gajah | hewan</annotation>', '<annotation cp="🐘" type="tts">gajah</annotation>'
    assert read_names(f"<ldml><annotations>{keywords}{name}</annotations></ldml>".encode()) == {"🐘": "gajah"}


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        pytest.param("Anda dapat menggunakan program ini untuk memasang sistem pada komputer.", "id", True, id="Indonesian"),
        pytest.param("You can use this program to install the system on your computer, if you want.", "id", False, id="left in English"),
        pytest.param("You can use this program to install the system on your computer, if you want.", "en", True, id="English"),
        pytest.param("apt-get dpkg linux-image-amd64 grub-efi-amd64 firmware-linux", "id", False, id="a list of packages"),
        pytest.param("Anda dapat ini.", "id", False, id="too short"),
        pytest.param("您可以使用这个程序在您的计算机上安装系统。", "zh", True, id="Chinese"),
        pytest.param("apt-get install linux-image 内核", "zh", False, id="Chinese with little Chinese in it"),
        pytest.param("सभी मनुष्य जन्म से स्वतन्त्र और बराबर हैं।", "hi", True, id="Hindi, whose vowel signs are no letters to Unicode"),
        pytest.param("তথ্য Debian GNU/Linux installer", "bn", False, id="Bengali with little Bengali in it"),
        pytest.param("Mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.", "vi", True, id="Vietnamese"),
        pytest.param("Watu wote wamezaliwa huru, hadhi na haki zao ni sawa kwa kila mtu.", "sw", True, id="Swahili"),
        pytest.param("1234 5678 9012 3456 7890 1234 5678 9012 dan di untuk", "id", False, id="numbers"),
    ],
)
def test_paragraphs_in_another_language_are_left_out(text: str, language: str, expected: bool) -> None:
    assert is_prose(text, language) is expected


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("gajah", True), ("kepala gajah putih", True), ("हाथी", True), ("நீல இதயம்", True), ("ക്‍ഷ", True),
        ("tanda #", False), ("wajah: senang", False), ("satu dua tiga empat", False), ("", False), ("ाआ", False),
    ],
)  # fmt: skip
def test_a_plain_name_is_one_to_three_words_of_letters_in_any_script(name: str, plain: bool) -> None:
    assert is_plain(name) is plain


def test_each_han_character_is_a_word() -> None:
    assert words("Debian 是自由的, v2") == ["debian", "是", "自", "由", "的", "v", "2"]
