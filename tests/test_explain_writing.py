"""The folder of one explanation: complete or absent, skipped when finished, never mixed with another."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import openslide
import pytest
import tifffile
from explained import Plain, bag_of, facts_of, some_look, some_places
from PIL import Image

from wsi_mil import store
from wsi_mil.bags import join_bags
from wsi_mil.errors import ArtifactError, ArtifactMissing, ArtifactStale, SlideError
from wsi_mil.explain import (
    MANIFEST,
    explanation_fingerprint,
    explanation_folder,
    is_explained,
    read_places,
    write_explanation,
)
from wsi_mil.explain.overlay import overlay_mpp
from wsi_mil.geometry import rings
from wsi_mil.slides import open_slide
from wsi_mil.stage import Item, run
from wsi_mil.tiling import TileParams, TileStage

TABLES = {"tiles.csv", "tiles.geojson", "tissue.geojson", "pairs.csv"}
PICTURES = {
    "heatmap.png", "contribution.png", "pairs.png", "top_tiles.png", "bottom_tiles.png", "overlay.ome.tif",
    "overlay_contribution.ome.tif",
}  # fmt: skip


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write(folder: Path, slide: Plain | None = None, model: str = "m", overwrite: bool = False) -> None:
    places = some_places()
    write_explanation(folder, slide, bag_of(places), some_look(places), facts_of(places, model=model), overwrite)


def test_everything_is_written_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "slide"
    write(folder, Plain())
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert names_in(folder) == TABLES | PICTURES | {MANIFEST}
    assert set(manifest["files"]) == TABLES | PICTURES
    assert manifest["notes"] == []
    assert manifest["slide_id"] == "a/slide"
    look = some_look(some_places())
    assert manifest["evidence"] == dict(zip(("far", "near"), look.evidence, strict=True))
    assert sum(manifest["probabilities"].values()) == pytest.approx(1)
    for name in folder.glob("*.png"):
        with Image.open(name) as picture:
            assert 600 < picture.width < 1200
    assert names_in(tmp_path / "a") == {"slide"}


def test_several_classes_have_pictures_of_their_own(tmp_path: Path) -> None:
    places = some_places()
    classes = ("a b", "a/b", "c")
    write_explanation(tmp_path / "s", Plain(), bag_of(places), some_look(places, 3), facts_of(places, classes))
    ends = ("_0-a-b", "_1-a-b", "_2-c")
    kinds = {f"{kind}{end}.png" for kind in ("contribution", "top_tiles", "bottom_tiles") for end in ends}
    kinds |= {f"overlay_contribution{end}.ome.tif" for end in ends}
    assert names_in(tmp_path / "s") == TABLES | kinds | {"heatmap.png", "pairs.png", "overlay.ome.tif", MANIFEST}


def test_a_model_that_tells_less_has_fewer_files(tmp_path: Path) -> None:
    places = some_places()
    look = some_look(places, contribution=False, pairs=False)
    write_explanation(tmp_path / "s", Plain(), bag_of(places), look, facts_of(places))
    assert names_in(tmp_path / "s") == (TABLES | PICTURES | {MANIFEST}) - {
        "pairs.csv", "pairs.png", "contribution.png", "overlay_contribution.ome.tif",
    }  # fmt: skip
    assert json.loads((tmp_path / "s" / MANIFEST).read_text())["base"] is None


def test_without_the_slide_there_are_tables_and_that_is_said(tmp_path: Path) -> None:
    places = some_places()._replace(tissue=None)
    write_explanation(tmp_path / "s", None, bag_of(places), some_look(places), facts_of(places))
    assert names_in(tmp_path / "s") == (TABLES | {MANIFEST}) - {"tissue.geojson"}
    notes = json.loads((tmp_path / "s" / MANIFEST).read_text())["notes"]
    assert [note.split(":")[0] for note in notes] == [
        "the slide was not at hand", "the tiles' artifact was not at hand, or has no outline beside it",
    ]  # fmt: skip


def test_the_same_gives_the_same_bytes_and_is_made_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, Plain())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    before = (tmp_path / "one" / MANIFEST).stat()
    broken = Plain()
    broken.broken = True  # it is not even read
    write(tmp_path / "one", broken)
    assert (tmp_path / "one" / MANIFEST).stat().st_ino == before.st_ino


def test_warnings_are_told_and_brought_up_to_date_while_all_else_stays(tmp_path: Path) -> None:
    places, folder = some_places(), tmp_path / "s"
    facts = facts_of(places)

    def told(**changes: object) -> dict:
        write_explanation(folder, Plain(), bag_of(places), some_look(places), replace(facts, **changes))
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))

    assert told()["warnings"] is None  # nobody asked
    picture = (folder / "heatmap.png").stat().st_ino
    first = told(warnings=("unlike training: 3 tiles",), model_notes=("it cannot tell",))
    assert (first["warnings"], first["model_notes"]) == (["unlike training: 3 tiles"], ["it cannot tell"])
    assert told() == first
    second = told(warnings=("patient p was in training",), model_notes=("it cannot tell",))
    assert second == first | {"warnings": ["patient p was in training"]}
    assert told(warnings=())["warnings"] == []
    assert (folder / "heatmap.png").stat().st_ino == picture
    assert names_in(folder) == TABLES | PICTURES | {MANIFEST}


def test_another_explanation_is_refused_unless_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "s")
    with pytest.raises(ArtifactStale, match=r"s was explained otherwise: model was m, now other\. Add --over"):
        write(tmp_path / "s", model="other")
    write(tmp_path / "s", model="other", overwrite=True)
    assert json.loads((tmp_path / "s" / MANIFEST).read_text())["model"] == "other"
    write(tmp_path / "s", model="other")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"method": {"partners": 4}}, "partners was 3, now 4"),
        ({"model": "n", "together": {"b": "f"}}, "model was m, now n; together was none, now b"),
        ({"places": some_places()._replace(tissue=None)}, r"the outline of its tissue was at hand \(--tiles\)"),
        ({"places": some_places()._replace(columns={})}, "what is known of its tiles .* has changed"),
    ],
)
def test_a_refusal_names_what_was_explained_otherwise(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    write(tmp_path / "s")
    places = some_places()
    facts = replace(facts_of(places, model="m"), **changes)
    with pytest.raises(ArtifactStale, match=f"s was explained otherwise: {why}\\. Add"):
        is_explained(tmp_path / "s", bag_of(places), facts, False)
    told = json.loads((tmp_path / "s" / MANIFEST).read_text())
    (tmp_path / "s" / MANIFEST).write_text(json.dumps(told | {"method": None, "notes": 1, "version": "1"}))
    with pytest.raises(ArtifactStale, match=r"version was 1, now 3; partners was None, now"):
        is_explained(tmp_path / "s", bag_of(places), facts, False)


def test_what_is_no_explanation_is_never_taken_away(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write(tmp_path / "s")  # an empty folder is nobody's
    (tmp_path / "s" / "mine.txt").write_text("dear")
    with pytest.raises(ArtifactError, match=r"holds more than its explanation \(mine.txt\)"):
        write(tmp_path / "s", model="other", overwrite=True)
    (tmp_path / "s" / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match="holds no explanation: move it away"):
        write(tmp_path / "s", overwrite=True)
    assert (tmp_path / "s" / "mine.txt").read_text() == "dear"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    slide = Plain()
    slide.broken = True
    with pytest.raises(OSError, match="the disk is gone"):
        write(tmp_path / "s", slide)
    assert names_in(tmp_path) == set()
    write(tmp_path / "s")
    with pytest.raises(OSError, match="the disk is gone"):
        write(tmp_path / "s", slide, model="other", overwrite=True)
    assert json.loads((tmp_path / "s" / MANIFEST).read_text())["model"] == "m"
    assert names_in(tmp_path) == {"s"}


def test_the_fingerprint_knows_all_that_decides() -> None:
    places = some_places()
    bag, facts = bag_of(places), facts_of(places)
    others = [
        explanation_fingerprint(bag._replace(attrs=bag.attrs | {"fingerprint": "g"}), facts),
        explanation_fingerprint(bag, facts_of(places, model="n")),
        explanation_fingerprint(bag, facts_of(places, classes=("a", "b"))),
        explanation_fingerprint(bag, facts_of(places._replace(tissue=None))),
        explanation_fingerprint(bag, replace(facts, together={"b": "f" * 32})),
        explanation_fingerprint(bag, replace(facts, method={"partners": 4})),
        explanation_fingerprint(bag, facts),
    ]
    assert len(set(others)) == len(others)
    assert explanation_fingerprint(bag, facts) == others[-1]
    assert not is_explained(Path("nowhere"), bag, facts, True)


def test_pictures_are_added_and_never_taken_away(tmp_path: Path) -> None:
    write(tmp_path / "s")
    assert not names_in(tmp_path / "s") & PICTURES
    write(tmp_path / "s", Plain())  # the slide is at hand now: nobody needs to be asked
    assert names_in(tmp_path / "s") >= PICTURES
    before = (tmp_path / "s" / MANIFEST).stat().st_ino
    write(tmp_path / "s")  # and is away again
    assert (tmp_path / "s" / MANIFEST).stat().st_ino == before


def test_a_file_that_was_lost_is_made_again_and_what_is_ours_to_keep_stays(tmp_path: Path) -> None:
    write(tmp_path / "s", Plain())
    (tmp_path / "s" / "heatmap.png").unlink()
    (tmp_path / "s" / "mine.txt").write_text("dear")
    with pytest.raises(ArtifactError, match=r"holds more than its explanation \(mine.txt\)"):
        write(tmp_path / "s", Plain())
    (tmp_path / "s" / "mine.txt").unlink()
    write(tmp_path / "s", Plain())
    assert names_in(tmp_path / "s") == TABLES | PICTURES | {MANIFEST}


def test_no_slides_folder_lies_in_anothers() -> None:
    ids = ["a", "a/b", "a%2Fb", "a%252Fb", "a/b/c", "/etc", "../x"]
    folders = [explanation_folder(Path("out"), slide_id) for slide_id in ids]
    assert len(set(folders)) == len(ids)
    assert {folder.parent for folder in folders} == {Path("out")}
    assert [unquote(folder.name) for folder in folders] == ids


def test_bags_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    places = some_places()
    bag = bag_of(places)
    other = bag_of(some_places(corner=(0, 0)), "b/slide")
    with pytest.raises(SlideError, match="is a bag of 2 slides"):
        write_explanation(tmp_path / "s", None, join_bags([bag, other], "p"), some_look(places), facts_of(places))
    larger = facts_of(places._replace(l0_size=(2001, 1000)))
    with pytest.raises(SlideError, match="has 2000 x 1000 px, but a/slide had 2001 x 1000 when it was tiled"):
        write_explanation(tmp_path / "s", Plain(), bag, some_look(places), larger)
    with pytest.raises(ArtifactError, match="has features of 24 tiles, but coordinates of 12"):
        write_explanation(tmp_path / "s", None, bag, some_look(places), facts_of(some_places(rows=2)))


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("overlay.ome.tif", "attention"),
        ("overlay_contribution.ome.tif", "what each tile gave to the log-odds of near"),
    ],
)
def test_overlays_lie_exactly_on_the_slide(name: str, title: str, tmp_path: Path) -> None:
    slide = Plain((3001, 2001), (0.5, 0.5))
    places = some_places()
    write_explanation(tmp_path / "s", slide, bag_of(places), some_look(places), facts_of(places))
    path = tmp_path / "s" / name
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        levels = [level.shape for level in tiff.series[0].levels]
        assert len(tiff.pages) == 1  # the others are its SubIFDs
        assert len(tiff.pages[0].subifds) == len(levels) - 1
        image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        pixels = image["Pixels"]
        assert image["Name"] == title
        assert (pixels["PhysicalSizeXUnit"], pixels["PhysicalSizeYUnit"]) == ("µm", "µm")
        assert pixels["SizeX"] * pixels["PhysicalSizeX"] == pytest.approx(3001 * 0.5)
        assert pixels["SizeY"] * pixels["PhysicalSizeY"] == pytest.approx(2001 * 0.5)
        whole = tiff.series[0].levels[0].asarray()
    assert levels[0] == (1366, 2048, 3)
    assert max(levels[-1]) <= 256
    scale = np.array(levels[0][1::-1]) / (3001, 2001)
    x, y = (places.coords[-1] * scale).round().astype(int)
    assert (whole[y, x] != whole[y - 1, x - 1]).any()
    assert (whole[y - 8 : y, x - 8 : x] == whole[y - 1, x - 1]).all()
    with openslide.OpenSlide(path) as opened:
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(pixels["PhysicalSizeX"])
        there = np.array(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))
    np.testing.assert_array_equal(there, whole)
    with open_slide(path) as ours:
        assert ours.l0_size == (2048, 1366)


def test_an_overlay_of_contributions_has_the_colour_of_what_tiles_speak_for(tmp_path: Path) -> None:
    places, classes = some_places(), ("a", "b", "c")
    look = some_look(places, 3)
    slide = Plain()
    write_explanation(tmp_path / "s", slide, bag_of(places), look, facts_of(places, classes))
    assert look.contribution is not None
    for index, name in enumerate(classes):
        image = tifffile.imread(tmp_path / "s" / f"overlay_contribution_{name}.ome.tif").astype(int)
        scale = np.array(image.shape[1::-1]) / slide.l0_size
        x, y = ((places.coords + np.array(places.l0_tile) / 2) * scale).astype(int).T
        redder = image[y, x, 0] - image[y, x, 2]
        gave = look.contribution[:, index]
        strong = np.abs(gave) > np.abs(gave).max() / 4
        np.testing.assert_array_equal(np.sign(redder[strong]), np.sign(gave[strong]))


@pytest.mark.parametrize(
    ("size", "mpp", "longest_px"), [((1000, 800), 2.0, 1000), ((40_000, 9000), 0.5, 2500), ((200_000, 9), 0.25, 4096)]
)
def test_an_overlay_is_coarse_but_never_coarser_than_can_be_seen(
    size: tuple[int, int], mpp: float, longest_px: int
) -> None:
    found = overlay_mpp(Plain(size, (mpp, mpp)))
    assert size[0] * mpp / found == pytest.approx(max(longest_px, 2048 if size[0] >= 2048 else 0), rel=0.25)
    assert size[0] * mpp / found <= 4096


def features_for(tmp_path: Path, slide: Path) -> tuple[Path, Path]:
    """Tiles of a slide as the stage makes them, and features that say they are of these."""
    run(TileStage(TileParams(tile_um=128.0)), [Item("s", slide)], tmp_path / "tiles")
    tiles = store.read(tmp_path / "tiles" / "s.h5")
    attrs = tiles.attrs | {"stage": "extract", "upstream": tiles.attrs["fingerprint"], "fingerprint": "f" * 32}
    arrays = {"coords": tiles.arrays["coords"], "features": np.zeros((len(tiles.arrays["coords"]), 3), np.float16)}
    store.write(tmp_path / "feats" / "s.h5", store.Artifact(arrays, attrs))
    return tmp_path / "feats" / "s.h5", tmp_path / "tiles" / "s.h5"


def test_places_are_those_of_the_artifacts(tmp_path: Path, make_slide) -> None:
    features, tiles = features_for(tmp_path, make_slide(mpp=0.5, radius_um=400))
    made = store.read(tiles)
    places = read_places(features, tiles)
    np.testing.assert_array_equal(places.coords, made.arrays["coords"])
    assert (places.l0_tile, places.l0_size) == ((256, 256), (2048, 1536))
    assert places.columns.keys() == {"coverage", "sharpness", "pen", "white", "black", "saturation"}
    np.testing.assert_array_equal(places.columns["sharpness"], made.arrays["sharpness"])
    assert places.tissue is not None
    assert rings(places.tissue)
    alone = read_places(features)
    assert (alone.columns, alone.tissue) == ({}, None)
    with pytest.raises(ArtifactMissing):
        read_places(features, tmp_path / "none.h5")
    store.write(tiles, store.Artifact(made.arrays, made.attrs | {"fingerprint": "other"}))
    with pytest.raises(ArtifactStale, match="was not made of"):
        read_places(features, tiles)


def test_annotations_become_columns(tmp_path: Path) -> None:
    attrs = {"l0_tile_width": 4, "l0_tile_height": 4, "mpp_x": 0.5, "mpp_y": 0.5, "stage": "extract"}
    arrays = {"coords": np.zeros((2, 2), np.int64), "annotations": np.array([[0.25, 1], [0, 0.5]], np.float32)}
    told = {"annotations": {"classes": json.dumps(["Stroma", "Tumor"])}}
    store.write(tmp_path / "s.h5", store.Artifact(arrays, attrs, told))
    columns = read_places(tmp_path / "s.h5").columns
    assert {name: values.tolist() for name, values in columns.items()} == {
        "annotation_Stroma": [0.25, 0.0],
        "annotation_Tumor": [1.0, 0.5],
    }


@pytest.mark.parametrize("pictures", [None, [], "yes", {}])
def test_a_manifest_that_does_not_say_whether_there_are_pictures_says_that_there_are_none(
    pictures: object, tmp_path: Path
) -> None:
    write(tmp_path / "a", Plain())
    told = json.loads((tmp_path / "a" / MANIFEST).read_text())
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(told | {"pictures": pictures}))
    places = some_places()
    bag, facts = bag_of(places, "a"), facts_of(places, model="m")
    assert not is_explained(tmp_path / "a", bag, facts, True)
    assert is_explained(tmp_path / "a", bag, facts, False)
