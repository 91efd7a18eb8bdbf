"""The page in headless Chromium: its policy lets its script run and nothing be fetched, tables sort, and every script has its glyphs."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

from tests.evaluator.browser import Page, browse, chromium
from tests.evaluator.reports import report_input
from transfer_evaluator.language import SCRIPTS
from transfer_evaluator.report import write_report

pytestmark = pytest.mark.timeout(900)  # the first time the browser is fetched

COLUMN = "[...document.querySelectorAll('.scores tbody tr')].map(row => row.cells[5].textContent)"
DIRECTIONS = "Object.fromEntries([...document.querySelectorAll('tbody .text')].map(e => [e.lang, getComputedStyle(e).direction]))"
PAPER = "getComputedStyle(document.body).backgroundColor"
STRANGER = """document.body.insertAdjacentHTML("beforeend", '<img src="http://127.0.0.1:9/x.png" onerror="window.ran = 1">')"""
WIDE = "[...document.querySelectorAll('body > *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className)"


@pytest.fixture(scope="module")
def command() -> str:
    return chromium()


def visit(command: str, folder: Path, steps) -> None:
    """Writes the report and does the steps on its page."""
    write_report(folder / "report", report_input())

    async def go() -> None:
        async with browse(command, folder / "profile") as page:
            await page.open(folder / "report" / "report.html")
            await steps(page)

    asyncio.run(go())


def test_a_press_on_a_heading_sorts_up_then_down_then_as_it_was(command, tmp_path):
    async def steps(page: Page) -> None:
        original = await page.evaluate(COLUMN)
        shown = []
        for _ in range(3):
            await page.evaluate("document.querySelectorAll('.scores th button')[5].click()")
            shown.append(await page.evaluate(COLUMN))
        by_value = sorted(original, key=float)
        assert shown == [by_value, by_value[::-1], original]
        await page.evaluate("document.querySelectorAll('.scores th button')[1].click()")
        assert await page.evaluate("document.querySelectorAll('.scores th')[1].ariaSort") == "ascending"
        assert await page.evaluate("document.querySelector('.scores tbody tr').cells[1].textContent") == "cldr_cloze_id"

    visit(command, tmp_path, steps)


def test_nothing_is_asked_of_the_network_and_nothing_complained_of(command, tmp_path):
    async def steps(page: Page) -> None:
        assert page.addresses() == [(tmp_path / "report" / "report.html").as_uri()]
        assert page.complaints() == []
        # The policy holds where markup slipped through: an image and a script of a stranger.
        await page.evaluate(STRANGER)
        await page.evaluate("new Promise(done => setTimeout(done, 200))")
        assert await page.evaluate("window.ran") is None

    visit(command, tmp_path, steps)


def test_right_to_left_languages_run_from_the_right_and_no_script_lacks_glyphs(command, tmp_path):
    async def steps(page: Page) -> None:
        await page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        directions = await page.evaluate(DIRECTIONS)
        assert set(directions) == set(SCRIPTS)
        assert {language for language, direction in directions.items() if direction == "rtl"} == {"ar", "ur"}
        await page.call("DOM.enable")
        await page.call("CSS.enable")
        root = (await page.call("DOM.getDocument"))["root"]["nodeId"]
        for language in SCRIPTS:
            node = (await page.call("DOM.querySelector", nodeId=root, selector=f'td .text[lang="{language}"]'))["nodeId"]
            fonts = []
            async with asyncio.timeout(30):  # what was opened a moment ago is not laid out yet on a busy machine
                while not fonts:
                    fonts = (await page.call("CSS.getPlatformFontsForNode", nodeId=node))["fonts"]
            assert all(font["familyName"] != "Last Resort" for font in fonts), (language, fonts)
        await page.screenshot(tmp_path / "open.png")

    visit(command, tmp_path, steps)


@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 29)")])
@pytest.mark.parametrize("width", [390, 1400])
def test_light_and_dark_narrow_and_wide_fit(command, tmp_path, scheme, paper, width):
    async def steps(page: Page) -> None:
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        assert await page.evaluate(PAPER) == paper
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert await page.evaluate(WIDE) == []
        assert len(await page.screenshot(tmp_path / f"{scheme}-{width}.png")) > 50_000

    visit(command, tmp_path, steps)


def test_a_page_without_answers_has_no_empty_sections(command, tmp_path):
    write_report(tmp_path / "report", dataclasses.replace(report_input(), samples=(), confusion=(), scores=()))

    async def go() -> None:
        async with browse(command, tmp_path / "profile") as page:
            await page.open(tmp_path / "report" / "report.html")
            headings = await page.evaluate("[...document.querySelectorAll('h2')].map(e => e.textContent)")
            assert headings == ["Scores", "Plots", "Stages", "Artifacts"]
            assert page.complaints() == []

    asyncio.run(go())
