import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from wsi_mil.bags import Bag
from wsi_mil.explain import png
from wsi_mil.report import Chart, Curve, Picture, Section, number, page, pictures
from wsi_mil.slides import open_slide


class _Checker(HTMLParser):
    """Collects what a page refers to, and whether its tags close."""

    VOID = frozenset({"meta", "img", "line", "polyline"})

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


def test_features_that_do_not_tell_whose_resolution_it_is_have_their_picture_too(make_slide) -> None:
    path = make_slide()
    with open_slide(path) as slide:
        mpp = slide.mpp_x
    attrs = {"tile_um": 256.0, "slide_path": str(path), "mpp_x": mpp}
    drawn = pictures._attention_png(Bag("a", torch.zeros(3, 2), 300.0 * torch.rand(3, 2), attrs), np.ones(3))
    assert Image.open(io.BytesIO(drawn)).format == "PNG"
