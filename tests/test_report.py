import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from wsi_mil.explain import png
from wsi_mil.report import Chart, Curve, Picture, Section, Table, number, page


class _Checker(HTMLParser):
    """Collects what a page refers to, and whether its tags close."""

    VOID = frozenset({"meta", "img", "line", "polyline", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


PICTURE = png(np.full((4, 6, 3), 200, np.uint8))


def test_a_page_is_whole_and_refers_to_nothing_outside() -> None:
    chart = Chart("Loss", (Curve("train", (1.0, 0.5, 0.25)), Curve("val", (1.0, float("nan"), 0.5))))
    sections = [
        Section("Table", "A <text>.", ("a", "b"), [("1", "2")]),
        Section("Charts", charts=(chart,)),
        Section("Pictures", pictures=[Picture("A slide", PICTURE)]),
        Section("Nothing"),
    ]
    text = page("Title", "Lead", sections).decode()
    checker = _Checker(text)
    assert checker.open == []
    assert checker.sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in checker.sources)
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert "Nothing" not in text


def test_names_are_escaped() -> None:
    nasty = "<img src=x onerror=alert(1)>"
    text = page(
        nasty, nasty, [Section(nasty, nasty, (nasty,), [(nasty,)], pictures=[Picture(nasty, PICTURE)])]
    ).decode()
    assert nasty not in text
    assert "&lt;img" in text


def test_a_curve_is_drawn_to_scale() -> None:
    chart = Chart("Loss", (Curve("train", (2.0, 1.0, 0.0)),), width=100, height=50)
    assert chart.top == 2.0
    assert chart.points(chart.curves[0]) == "0.0,0.0 50.0,25.0 100.0,50.0"
    assert Chart("Loss", (Curve("val", (float("nan"),)),)).points(Curve("val", (float("nan"),))) == ""


def test_numbers_and_pictures() -> None:
    assert (number(0.12345), number(float("nan"))) == ("0.123", "–")
    assert Image.open(io.BytesIO(PICTURE)).size == (6, 4)
    jpeg = io.BytesIO()
    Image.new("RGB", (4, 4)).save(jpeg, "JPEG")
    assert Picture("p", jpeg.getvalue()).source.startswith("data:image/jpeg;base64,")


def test_epochs_are_told_in_round_numbers() -> None:
    def ticks(epochs: int) -> list[tuple[float, str]]:
        return [tuple(tick) for tick in Chart("c", (Curve("a", (1.0,) * epochs),)).ticks_written]

    assert ticks(1) == [(0, "1")]
    assert ticks(2) == [(0, "1"), (1, "2")]
    assert [text for _, text in ticks(53)] == ["1", "20", "40"]
    assert ticks(53)[1][0] == pytest.approx(19 / 52)


def test_a_curve_has_signs_of_its_colour_on_it() -> None:
    steep = Curve("a", tuple(np.linspace(0, 1, 50).tolist()))
    chart = Chart("c", (steep, Curve("b", (0.0, float("nan"), 1.0))), 1.0, width=100, height=100)
    first, second = (chart.signs(curve, colour) for curve, colour in chart.coloured)
    assert len(first) == 3
    assert all(place.x == pytest.approx(100 - place.y) for place in first)
    assert [tuple(place) for place in second] == [(0, 100), (100, 0)]
    assert chart.signs(steep, 0)[0] != chart.signs(steep, 1)[0]
    steps = Curve("c", (0.0,) * 20 + (1.0,) * 20)
    assert {place.y for place in chart.signs(steps, 0)} <= {0.0, 100.0}, "a sign stands where there is a point"
    assert [sign for sign, *_ in chart.named] == ["●", "■"]
    assert chart.signs(Curve("none", ()), 0) == []


def test_rows_that_do_not_fit_a_telephone_become_lists() -> None:
    assert not Table("t", ("class", "slides"), [("near", "12")]).is_wide
    assert Table("t", ("class", "slides"), [("near", "x" * 50)]).is_wide
    text = page("t", "l", [Section("S", "", ("a", "b", "c"), [("1", "2" * 50, "3")])]).decode()
    assert 'class="wide several"' in text
    assert '<td role="cell" data-label="c">3</td>' in text


def test_commands_can_be_typed_as_they_stand() -> None:
    text = page("t", "l", [Section("S", commands=["wsimil train --out 'a b'"])]).decode()
    assert "<code>wsimil train --out &#39;a b&#39;</code>" in text


def test_a_path_that_is_not_utf8_is_shown_by_its_bytes() -> None:
    assert b"mod\\udce9l" in page("mod\udce9l", "lead", [])
