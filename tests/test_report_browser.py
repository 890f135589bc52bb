"""The pages as a browser shows them, at the width of a desk and of a telephone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from wsi_mil.explain import png
from wsi_mil.report import Chart, Curve, Picture, Section, page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: install it to see pages as users do")
    with sync_playwright() as driver:
        # Its sandbox needs rights that containers lack; the pages are our own.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    pictures = [Picture(f"Slide {n}", png(rng.integers(0, 255, (700, 900, 3), np.uint8))) for n in range(3)]
    wide = ("a column of a certain width",) * 12
    sections = [
        Section("Figures", "A sentence or two. " * 12, wide, [("0.123 [0.100, 0.200]",) * 12] * 3),
        Section("Slides by the dozen", "", ("slide", "label"), [(f"slide-{n}", "near") for n in range(90)]),
        Section("Curves", charts=(Chart("ROC", (Curve("a", (0.0, 1.0)), Curve("b", (0.5, 0.7)))),) * 3),
        Section("Pictures", pictures=pictures),
        Section("To bear in mind", points=["unbreakable-" * 40]),
    ]
    path = tmp_path / "report.html"
    path.write_bytes(page("A report", "Of nothing in particular.", sections))
    return path


@pytest.fixture(params=WIDTHS)
def shown(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    said: list[str] = []
    opened = browser.new_page(viewport={"width": request.param, "height": 800})
    opened.on("console", lambda message: said.append(message.text))
    opened.on("request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None)
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert said == []


def test_nothing_is_wider_than_the_screen(shown: Page) -> None:
    assert shown.evaluate("document.documentElement.scrollWidth") <= shown.viewport_size["width"]
    assert shown.locator("h1").inner_text() == "A report"


def test_the_contents_lead_to_every_section(shown: Page) -> None:
    links = shown.locator("nav a")
    assert links.all_inner_texts() == ["Figures", "Slides by the dozen", "Curves", "Pictures", "To bear in mind"]
    for link in links.all():
        link.click()
        heading = shown.locator(f"{link.get_attribute('href')} > h2")
        assert heading.inner_text() == link.inner_text()
        assert heading.is_visible()
        assert shown.locator("section:target").count() == 1


def test_long_tables_unfold_by_mouse_and_by_keyboard(shown: Page) -> None:
    last = shown.get_by_text("slide-89", exact=True)
    assert not last.is_visible()
    shown.get_by_text("All 90 rows").click()
    assert last.is_visible()
    shown.get_by_text("All 90 rows").press("Enter")
    assert not last.is_visible()


def test_pictures_are_enlarged_and_put_back(shown: Page) -> None:
    picture = shown.get_by_role("img", name="Slide 1")
    small = picture.bounding_box()["width"]
    shown.get_by_role("link", name="Enlarge: Slide 1").press("Enter")
    assert picture.bounding_box()["width"] > small
    shown.get_by_role("link", name="Back to the page").click()
    assert picture.bounding_box()["width"] == small


def test_the_keyboard_reaches_everything(shown: Page) -> None:
    reached = set()
    for _ in range(40):
        shown.keyboard.press("Tab")
        reached.add(shown.evaluate("document.activeElement.textContent.trim() || document.activeElement.ariaLabel"))
    assert {"Skip to the content", "Figures", "To bear in mind", "All 90 rows", "Enlarge: Slide 2"} <= reached
    assert shown.locator(".scroll").first.get_attribute("tabindex") == "0"  # a table that is wider can be scrolled


def test_all_of_it_is_printed(shown: Page) -> None:
    shown.emulate_media(media="print")
    assert not shown.locator("nav").is_visible()
    assert shown.get_by_text("slide-89", exact=True).is_visible()
    if shown.viewport_size["width"] == WIDTHS[0]:
        assert shown.pdf().startswith(b"%PDF")
