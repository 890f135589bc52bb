"""The contact sheet: every slide is on it, those to look at first on top, whatever became of them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cli import call

from wsi_mil import store
from wsi_mil.contact_sheet import write_contact_sheet
from wsi_mil.slides import write_pyramid


def cards(folder: Path) -> dict[str, str]:
    """The text of each card, by slide_id, from the top."""
    page = write_contact_sheet(folder).read_text()
    return {
        re.search("<h2>(.*?)</h2>", card)[1]: card for card in re.findall("<article>.*?</article>", page, re.DOTALL)
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """slides/ and tiles/; nobody changes them."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for name, share in (("large", 0.8), ("small", 0.4), ("whole", 1.0), ("sub/a & b", 0.8)):
        image = np.full((3072, 3072, 3), 243, np.uint8)
        side = int(3072 * share)
        image[:side, :side] = rng.normal((222, 140, 186), 20, (side, side, 3)).clip(0, 255)
        (folder / "slides" / name).parent.mkdir(parents=True, exist_ok=True)
        write_pyramid(folder / "slides" / f"{name}.tif", image, 1.0)
    write_pyramid(folder / "slides/empty.tif", np.full((600, 600, 3), 243, np.uint8), 1.0)
    (folder / "slides/broken.svs").write_text("<html>")
    assert call("tile", folder / "slides", "--out", folder / "tiles") == 1
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiles, to be changed; beside them their slides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").symlink_to(made / "slides")
    shutil.copytree(made / "tiles", tmp_path / "tiles")
    return tmp_path / "tiles"


def test_every_slide_is_there_and_those_to_look_at_are_on_top(folder: Path) -> None:
    assert (folder / "index.html").read_text() == write_contact_sheet(folder).read_text()  # tile has written it
    found = cards(folder)
    assert list(found) == ["broken", "empty", "whole", "large", "small", "sub/a &amp; b"]
    assert "broken.svs" in found["broken"]
    assert "nothing coloured on the glass" in found["empty"]
    assert "fewer than 10 tiles" not in found["large"]
    assert "nearly all of it is tissue" in found["whole"]
    assert "<dd>99</dd>" in found["large"]
    assert 'class="doubt"' not in found["large"]


def test_previews_are_linked_by_what_a_browser_finds(folder: Path) -> None:
    assert 'src="sub/a%20%26%20b.jpg"' in cards(folder)["sub/a &amp; b"]
    assert "no picture" in cards(folder)["broken"]


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({"ink_share": 0.1}, "written on: 10.0% is ink"),
        ({"mpp_source": "objective-power"}, "only known from the objective"),
        ({"enlargement": 1.5}, "enlarged 1.50 times"),
        ({"tissue_mm2": 0.5}, "less than 1 mm2"),
        ({"wide_ink_mm2": 2.5}, "2.5 mm2 have the colour of ink"),
        ({"sharpness": 12.0}, "as smooth as bare glass"),
        ({"excluded": json.dumps({"blur": 150, "max_tiles": 3})}, "60% of the tiles were left out"),
        ({"excluded": json.dumps({"max_tiles": 1000})}, ""),
        ({"tissue_beyond_share": 0.196}, "20% of the tissue lies beyond the last whole row and column of tiles"),
        ({"tissue_beyond_share": 0.0999}, ""),
    ],
)
def test_what_is_unusual_is_said(folder: Path, change: dict[str, object], doubt: str) -> None:
    path = folder / "large.h5"
    artifact = store.read(path)
    store.write(path, store.Artifact(artifact.arrays, artifact.attrs | change, artifact.array_attrs))
    card = cards(folder)["large"]
    assert doubt in card
    assert f"of the tissue; {change.get('tissue_beyond_share', 0.0):.1%} of it lies beyond" in card
    assert ('class="doubt"' in card) == bool(doubt)


def test_a_slide_much_less_sharp_than_the_others_is_doubted(folder: Path) -> None:
    path = folder / "large.h5"
    artifact = store.read(path)
    assert artifact.attrs["sharpness"] == pytest.approx(float(np.median(artifact.arrays["sharpness"])))
    blurred = artifact.attrs | {"sharpness": artifact.attrs["sharpness"] / 10}
    store.write(path, store.Artifact(artifact.arrays, blurred, artifact.array_attrs))
    assert "much less sharp than the others" in cards(folder)["large"]


def test_the_colour_of_ink_is_no_doubt_where_all_slides_have_it(folder: Path) -> None:
    for path in folder.rglob("*.h5"):
        artifact = store.read(path)
        store.write(path, store.Artifact(artifact.arrays, artifact.attrs | {"wide_ink_mm2": 2.5}, artifact.array_attrs))
    assert "colour of ink" not in cards(folder)["large"]


def test_a_damaged_artifact_is_on_top_and_costs_the_page_nothing(folder: Path) -> None:
    (folder / "large.h5").write_bytes(b"torn")
    found = cards(folder)
    assert list(found)[:2] == ["broken", "large"]
    assert "its artifact is damaged" in found["large"]


def test_tiles_of_another_version_are_on_top_and_cost_the_page_nothing(folder: Path) -> None:
    artifact = store.read(folder / "large.h5")
    old = {name: value for name, value in artifact.attrs.items() if "share" not in name and name != "excluded"}
    old["stage_version"] -= 1
    store.write(folder / "large.h5", store.Artifact(artifact.arrays, old, artifact.array_attrs))
    found = cards(folder)
    assert list(found)[:2] == ["broken", "large"]
    assert "its tiles are of another version: run `wsimil tile --overwrite`" in found["large"]


def test_tiles_left_out_are_counted_by_reason_in_the_summary(folder: Path) -> None:
    assert call("tile", "slides", "--min-sharpness", "1e9", "--max-tiles", "5", "--out", "none") == 1
    rows = (folder.parent / "none" / "summary.csv").read_text()
    assert re.search(r"^large,empty,0,.*every tile was left out: 99 for blur.*,blur 99,,,,,$", rows, re.MULTILINE)


def test_the_table_of_slides_gives_some_their_own_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("slides.csv").write_text("slide,max_tiles,min_coverage\nlarge,7,\nsmall,,0.9\n")
    capsys.readouterr()
    assert call("tile", "slides", "--slides-csv", "slides.csv", "--out", "own") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "4 slides of slides are not in slides.csv and are left out: broken, empty, sub/a & b, ..." in said
    assert store.read_attrs(Path("own/large.h5"))["tiles"] == 7
    assert not Path("own/whole.h5").exists()
    Path("slides.csv").write_text("slide,min_coverage\nlarge,7\n")
    assert call("tile", "slides", "--slides-csv", "slides.csv", "--out", "own") == 2
    assert "slides.csv, large: --min-coverage 7.0: give a share" in capsys.readouterr().err


def test_tiles_are_the_same_with_any_number_of_workers(made: Path, folder: Path) -> None:
    assert call("tile", made / "slides", "--workers", "1", "--out", "one") == 1
    for path in folder.rglob("*.h5"):
        assert path.read_bytes() == (folder.parent / "one" / path.relative_to(folder)).read_bytes()
