"""report.html in a headless Chromium: nothing fails, everything loads, tables sort."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="no browser: pip install playwright")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
pytestmark = pytest.mark.slow  # a browser
_DESKTOP, _PHONE = (1280, 900), (390, 844)
_PAPER = 718  # width of A4 in pixels with margins of 1 cm


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, _NAMES)), None)
        path = found or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no browser: install chromium, or `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class _Visit:
    """An open page, with the browser's messages and requests."""

    def __init__(self, browser: Any, path: Path, size: tuple[int, int]) -> None:
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")

    def ask(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture
def desktop(browser: Any, generated: Path) -> Iterator[_Visit]:
    visit = _Visit(browser, generated / "report.html", _DESKTOP)
    yield visit
    visit.page.close()


def test_nothing_fails_and_nothing_is_fetched(desktop: _Visit, generated: Path) -> None:
    assert desktop.messages == []
    fetched = [url for url in desktop.requests if not url.startswith("data:")]
    assert fetched == [(generated / "report.html").as_uri()]


def test_every_picture_is_loaded(desktop: _Visit) -> None:
    widths = desktop.ask("[...document.images].map((i) => i.complete ? i.naturalWidth : 0)")
    assert len(widths) == 9 + 3 + 20 * 4 + 3 * 4
    assert all(width > 100 for width in widths)


def test_broken_scripts_and_pictures_are_noticed(
    browser: Any, generated: Path, tmp_path: Path
) -> None:
    text = (generated / "report.html").read_text(encoding="utf-8")
    broken = text.replace('"use strict";', "nonsense();").replace("base64,iVBOR", "base64,AAAAA")
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    visit = _Visit(browser, tmp_path / "broken.html", _DESKTOP)
    assert any("nonsense" in message for message in visit.messages)
    assert 0 in visit.ask("[...document.images].map((i) => i.naturalWidth)")


def test_a_click_on_a_column_sorts_the_table(desktop: _Visit) -> None:
    table = desktop.page.locator("#scores ~ .scroll").first
    heads = table.locator("thead button").all_text_contents()
    column = heads.index("recall")
    cells = table.locator(f"tbody tr td:nth-child({column + 1})")

    def values() -> list[float]:
        return [float(t.split()[0]) for t in cells.all_text_contents()]

    before = values()
    button = table.locator("thead button").nth(column)
    button.click()
    assert values() == sorted(before)
    button.click()
    assert values() == sorted(before, reverse=True)
    assert before != sorted(before)  # the click has moved rows
    head = table.locator("thead th").nth(column)
    assert head.get_attribute("aria-sort") == "descending"


def test_a_table_sorts_by_keyboard_and_keeps_dashes_last(desktop: _Visit) -> None:
    setting = "#postprocessing ~ .scroll tbody tr td:nth-child(3)"
    button = desktop.page.locator("#postprocessing ~ .scroll thead button").nth(2)
    for _ in range(2):
        button.press("Enter")
        texts = desktop.page.locator(setting).all_text_contents()
        known = [text != "-" for text in texts]
        assert known == sorted(known, reverse=True)
    assert texts[0] == "2 seeds"


@pytest.mark.parametrize("size", [_DESKTOP, _PHONE], ids=["desktop", "phone"])
def test_the_page_is_as_wide_as_its_window(
    browser: Any, generated: Path, size: tuple[int, int]
) -> None:
    visit = _Visit(browser, generated / "report.html", size)
    assert visit.ask("document.documentElement.scrollWidth") <= size[0]
    # Wider content scrolls in its own frame.
    assert visit.ask(
        "[...document.querySelectorAll('main > section > *')]"
        ".every((e) => e.getBoundingClientRect().right <= innerWidth)"
    )


def test_the_page_fits_on_paper(desktop: _Visit) -> None:
    desktop.page.emulate_media(media="print")
    desktop.page.set_viewport_size({"width": _PAPER, "height": 1000})
    assert desktop.ask("document.documentElement.scrollWidth") <= _PAPER


def test_printing_opens_folded_listings(desktop: _Visit) -> None:
    assert desktop.ask("[...document.querySelectorAll('details')].some((d) => !d.open)")
    pdf = desktop.page.pdf(format="A4")
    assert len(pdf) > 100_000
    assert desktop.ask("[...document.querySelectorAll('details')].every((d) => d.open)")
