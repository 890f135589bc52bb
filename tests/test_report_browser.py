"""The pages as a browser shows them, at the width of a desk and of a telephone."""

import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urldefrag

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from test_cli import call

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


@contextmanager
def opened(browser: Browser, path: Path, width: int) -> Generator[Page]:
    """A page that asks the network for nothing, and of which the browser has nothing to say."""
    said: list[str] = []
    shown = browser.new_page(viewport={"width": width, "height": 800})
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else said.append(asked.url))
    shown.goto(path.as_uri())
    yield shown
    shown.close()
    assert said == []


@pytest.fixture(params=WIDTHS)
def shown(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    with opened(browser, report, request.param) as page:
        yield page


@pytest.fixture(scope="module")
def runs(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where a small cohort was trained on, judged, cross-validated and explained, as users type it."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("slides", "tiles"):
        (folder / name).symlink_to(cohort / name)
    shutil.copy(cohort / "labels.csv", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("extract", "--model", "morphology") == 0
        assert call("train", "--epochs", "2", "--option", "heads=2", "--device", "cpu") == 0
        assert call("evaluate", "--spatial", "--split", "test", "--resamples", "100", "--device", "cpu") == 0
        few = ("--epochs", "1", "--option", "heads=2", "--resamples", "100", "--device", "cpu")
        assert call("crossval", "--folds", "2", "--aggregator", "das-mil", "--aggregator", "abmil", *few) == 0
        assert call("explain", min((folder / "slides").iterdir()), "--occlusions", "2", "--device", "cpu") == 0
    return folder


SECTIONS = {
    "model": ("Cohort", "Learning curves", "Figures", "Curves", "Decisions", "What distance did it learn?",
              "Best and worst slides", "Provenance"),
    "evaluation": ("Cohort", "Figures", "Curves", "Does space matter?", "Best and worst slides", "Provenance"),
    "crossval": ("Cohort", "Figures", "Comparison", "What distance did it learn? das-mil", "Best and worst slides",
                 "Provenance"),
    "predictions": ("Answers", "What distance did it learn?", "Provenance"),
}  # fmt: skip
COMMANDS = {"model": "train", "evaluation": "evaluate", "crossval": "crossval", "predictions": "explain"}


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SECTIONS)
def test_real_pages_are_whole_at_either_width(runs: Path, browser: Browser, name: str, width: int) -> None:
    path = runs / name / "report.html"
    assert path.stat().st_size < 10_000_000
    with opened(browser, path, width) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        headings = shown.locator("h2").all_inner_texts()
        assert [heading for heading in headings if heading in SECTIONS[name]] == list(SECTIONS[name])
        addresses = shown.locator("a").evaluate_all("links => links.map(link => link.href)")
        assert {urldefrag(address).url for address in addresses} == {path.as_uri()}
        for address in addresses:
            assert shown.locator(f"[id='{unquote(urldefrag(address).fragment)}']").count() == 1, address
        broken = "images => images.filter(image => !image.complete || !image.naturalWidth).length"
        assert shown.locator("img").evaluate_all(broken) == 0
        assert shown.locator("code").last.inner_text().startswith(f"wsimil {COMMANDS[name]} ")
        assert smallest_writing(shown) >= 10  # px on the screen


def smallest_writing(shown: Page) -> float:
    """Height of the smallest letters of all charts, in px of the screen."""
    scales = "texts => texts.map(text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)"
    return min(shown.locator("svg text").evaluate_all(scales), default=99.0)


@pytest.mark.slow
def test_a_crossval_leaves_what_distance_its_models_learnt(runs: Path) -> None:
    told = (runs / "crossval" / "das-mil" / "learnt_distances.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in told[1:]] == ["1"] * 2 + ["2"] * 2
    assert (runs / "crossval" / "das-mil" / "attention_by_distance.csv").exists()
    assert (runs / "crossval" / "das-mil" / "learnt_distances.svg").read_bytes().startswith(b"<svg")
    assert not (runs / "crossval" / "abmil" / "learnt_distances.csv").exists()


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
