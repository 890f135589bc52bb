"""Regions and annotations, from the files to the tiles and the features."""

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image
from test_cli import call

from wsi_mil import store
from wsi_mil.arguments_together import with_regions
from wsi_mil.errors import ArtifactStale, OptionError, PolygonError
from wsi_mil.geometry import outline, to_geojson
from wsi_mil.regions import Drawings, RegionParams, label_tiles, read_labels
from wsi_mil.runs import Report
from wsi_mil.slides import write_pyramid
from wsi_mil.stage import Item, RunOptions, run
from wsi_mil.tiling import TileParams, TileStage

# Of the slide of 2048 x 1536 px that `make_slide` writes: a disc of 500 px around the middle, 1 um/px.
LEFT, RIGHT = shapely.box(0, 0, 1024, 1536), shapely.box(1024, 0, 2048, 1536)
MIDDLE = shapely.box(896, 640, 1152, 896)


def draw(file: Path, **classes: shapely.Polygon) -> Path:
    """Write polygons of QuPath, by class."""
    file.parent.mkdir(parents=True, exist_ok=True)
    features = [json.loads(to_geojson([polygon], name))["features"][0] for name, polygon in classes.items()]
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return file


def copy_slide(make_slide, to: str) -> None:
    """Another slide, of the same content: painting takes longest."""
    source = Path("painted.tif")
    shutil.copy(source if source.exists() else make_slide(source.name), to)


def choose(folder: Path, found: np.ndarray, include: list[str] | None = None, exclude: list[str] | None = None):
    return Drawings(folder).tissue("a", found, "", (100, 80), RegionParams(include or (), exclude or ()))


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A mask of 50 x 40 px over a slide of 100 x 80 px."""
    mask = np.zeros((40, 50), bool)
    mask[top // 2 : bottom // 2, left // 2 : right // 2] = True
    return mask


FOUND = box(0, 0, 60, 80)


@pytest.mark.parametrize(
    ("classes", "include", "exclude", "expected"),
    [
        ("Tumor", [], [], box(20, 20, 60, 60)),
        ("Tumor Stroma", [], [], box(20, 20, 60, 60) | box(0, 0, 20, 20)),
        ("Tumor Stroma", ["Tumor"], [], box(20, 20, 60, 60)),
        ("Tumor Stroma", ["Tumor", "Stroma"], [], box(20, 20, 60, 60) | box(0, 0, 20, 20)),
        ("Tumor Stroma Necrosis", ["Tumor"], ["Necrosis"], box(20, 20, 60, 60) & ~box(40, 20, 60, 40)),
        ("Tumor Necrosis", [], ["Necrosis"], box(20, 20, 60, 60) & ~box(40, 20, 60, 40)),
        ("Necrosis", [], ["Necrosis"], FOUND & ~box(40, 20, 60, 40)),
        ("Necrosis", [], ["Tumor"], box(40, 20, 60, 40)),
        ("Tissue", [], [], box(50, 0, 100, 80)),
        ("Tissue Stroma", [], [], box(50, 0, 100, 80) | box(0, 0, 20, 20)),
        ("Tissue Necrosis", [], ["Necrosis"], box(50, 0, 100, 80) & ~box(50, 20, 90, 40)),
        ("Tissue Tumor", ["Tumor"], [], box(20, 20, 60, 60)),
        ("Tissue Tumor", [], ["Tissue"], box(20, 20, 50, 60)),
    ],
)
def test_classes_include_and_exclude(tmp_path, classes, include, exclude, expected):
    shapes = {
        "Tumor": shapely.box(20, 20, 70, 60),
        "Stroma": shapely.box(-10, -10, 20, 20),
        "Necrosis": shapely.box(40, 20, 90, 40),
        "Tissue": shapely.box(50, 0, 120, 90),
    }
    draw(tmp_path / "a.geojson", **{name: shapes[name] for name in classes.split()})
    mask, reason = choose(tmp_path, FOUND, include, exclude)
    assert np.array_equal(mask, expected)
    assert reason == ""


def test_holes_are_no_region(tmp_path):
    ring = shapely.box(0, 0, 60, 80) - shapely.box(20, 20, 40, 40)
    draw(tmp_path / "a.geojson", Tumor=ring)
    assert np.array_equal(choose(tmp_path, FOUND)[0], FOUND & ~box(20, 20, 40, 40))
    (tmp_path / "a.geojson").unlink()
    points = "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in [(20, 20), (40, 20), (40, 40), (20, 40)])
    hole = f'<Annotation Type="Polygon" PartOfGroup="Exclusion"><Coordinates>{points}</Coordinates></Annotation>'
    (tmp_path / "a.xml").write_text(f"<ASAP_Annotations><Annotations>{hole}</Annotations></ASAP_Annotations>")
    assert np.array_equal(choose(tmp_path, FOUND)[0], FOUND & ~box(20, 20, 40, 40))


@pytest.mark.parametrize(
    ("classes", "include", "reason"),
    [
        ({}, [], "a.geojson has no polygon"),
        ({"Stroma": shapely.box(0, 0, 9, 9)}, ["Tumor"], "a.geojson has no region of class Tumor; its classes: Stroma"),
        ({"Stroma": shapely.box(80, 0, 100, 80)}, [], "no tissue in the regions of"),
    ],
)
def test_where_nothing_is_left_the_reason_is_told(tmp_path, classes, include, reason):
    draw(tmp_path / "a.geojson", **classes)
    mask, why = choose(tmp_path, FOUND, include)
    assert not mask.any()
    assert reason in why
    nothing = Drawings(tmp_path).tissue("b", ~FOUND & FOUND, "nothing coloured", (100, 80), RegionParams())
    assert nothing[1] == "nothing coloured"


def test_a_mask_is_drawn_again_from_its_own_outline(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((8, 10)) > 0.5, np.ones((5, 5))).astype(bool)
    (tmp_path / "a.geojson").write_bytes(to_geojson(outline(mask, 2.0, 2.0), "Tissue"))
    again, _ = choose(tmp_path, np.zeros_like(mask))
    assert (again != mask).mean() < 0.01


def test_the_classes_of_a_region_cannot_be_both():
    with pytest.raises(OptionError, match="--include Tumor --exclude Tumor: give one or the other"):
        TileParams(include=["Stroma", "Tumor"], exclude=["Tumor"])


def tile(slide: Path, out: Path, drawings: Drawings, overwrite: bool = False, **params: Any) -> Report:
    stage = TileStage(TileParams(**params), 1, drawings=drawings)
    return run(stage, [Item(slide.stem, slide)], out, RunOptions(overwrite))


def test_tiles_lie_in_the_regions_and_the_outline_shows_them(make_slide, tmp_path):
    draw(tmp_path / "drawn/slide.geojson", Left=LEFT, Middle=MIDDLE)
    slide = make_slide()
    assert tile(slide, tmp_path / "all", Drawings()).done == ["slide"]
    assert tile(slide, tmp_path / "left", Drawings(tmp_path / "drawn"), include=["Left"]).done == ["slide"]
    every, left = (store.read(tmp_path / name / "slide.h5") for name in ("all", "left"))
    assert {*map(tuple, left.arrays["coords"])} == {(x, y) for x, y in every.arrays["coords"] if x < 1024}
    assert left.attrs["tissue_mm2"] == pytest.approx(every.attrs["tissue_mm2"] / 2, rel=0.02)
    (shape,) = json.loads((tmp_path / "left/slide.geojson").read_text())["features"]
    assert shapely.geometry.shape(shape["geometry"]).bounds[2] <= 1024 + 8
    assert left.params["include"] == ["Left"]


def test_an_edited_outline_takes_the_place_of_what_was_found(make_slide, tmp_path):
    slide = make_slide(radius_um=300)
    tile(slide, tmp_path / "tiles", Drawings())
    content = json.loads((tmp_path / "tiles/slide.geojson").read_text())
    before = store.read(tmp_path / "tiles/slide.h5")
    assert tile(slide, tmp_path / "same", Drawings(tmp_path / "tiles")).done == ["slide"]
    assert np.array_equal(store.read(tmp_path / "same/slide.h5").arrays["coords"], before.arrays["coords"])
    content["features"][0]["geometry"] = shapely.geometry.mapping(shapely.box(0, 0, 2048, 512))  # bare glass, too
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited/slide.geojson").write_text(json.dumps(content))
    tile(slide, tmp_path / "again", Drawings(tmp_path / "edited"))
    coords = store.read(tmp_path / "again/slide.h5").arrays["coords"]
    assert sorted(map(tuple, coords)) == [(x, y) for x in range(0, 2048, 256) for y in (0, 256)]


def test_what_is_drawn_as_tissue_counts_though_it_looks_like_ink(tmp_path):
    image = np.full((1536, 1536, 3), 243, np.uint8)
    image[500:600, 100:1400] = (30, 60, 190)
    write_pyramid(tmp_path / "slide.tif", image, 1.0)
    (tmp_path / "drawn").mkdir()
    box = {"type": "Feature", "geometry": shapely.geometry.mapping(shapely.box(0, 256, 1536, 768))}
    box["properties"] = {"classification": {"name": "Tissue"}}
    (tmp_path / "drawn/slide.geojson").write_text(json.dumps(box))
    tile(tmp_path / "slide.tif", tmp_path / "found", Drawings())
    assert "looks like pen" in store.read_attrs(tmp_path / "found/slide.h5")["reason"]
    tile(tmp_path / "slide.tif", tmp_path / "told", Drawings(tmp_path / "drawn"))
    assert store.read_attrs(tmp_path / "told/slide.h5")["tiles"] == 12


def test_what_was_drawn_decides_the_artifact(make_slide, tmp_path):
    slide, item = make_slide(), Item("slide", tmp_path / "slide.tif")
    file = draw(tmp_path / "drawn/slide.geojson", Tumor=LEFT)
    plain, drawn = TileStage(TileParams()), TileStage(TileParams(), drawings=Drawings(file.parent))
    labelled = TileStage(TileParams(), drawings=Drawings(annotations=file.parent))
    prints = {stage.upstream(item) for stage in (plain, drawn, labelled)}
    assert len(prints) == 3
    assert {text.partition(" ")[0] for text in prints} == {plain.upstream(item)}
    assert drawn.upstream(Item("other", slide)) == plain.upstream(item)
    out = tmp_path / "tiles"
    assert tile(slide, out, Drawings(file.parent)).done == ["slide"]
    assert tile(slide, out, Drawings(file.parent)).skipped == ["slide"]
    draw(file, Tumor=RIGHT)
    with pytest.raises(ArtifactStale, match="regions was a file of fingerprint"):
        tile(slide, out, Drawings(file.parent))
    assert tile(slide, out, Drawings(file.parent), overwrite=True).done == ["slide"]
    assert store.read(out / "slide.h5").arrays["coords"][:, 0].min() >= 1024 - 128


def test_annotations_are_the_share_of_each_class_and_go_with_the_features(make_slide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    for name in "abc":
        copy_slide(make_slide, f"slides/{name}.tif")
    left = shapely.box(0, 0, 1000, 1536)
    draw(tmp_path / "truth/a.geojson", Tumor=left, Middle=MIDDLE)
    draw(tmp_path / "truth/b.json")
    assert call("tile", "slides", "--annotations", "truth", "--workers", 1) == 0
    assert call("extract", "--model", "morphology") == 0
    for folder in ("tiles", "feats"):
        artifact = store.read(Path(folder, "a.h5"))
        labels = read_labels(artifact)
        assert labels is not None
        assert (labels.classes, labels.shares.dtype) == (["Middle", "Tumor"], np.float32)
        corners = artifact.arrays["coords"]
        boxes = shapely.box(*corners.T, *(corners + 256).T)
        expected = [shapely.area(boxes & shape) / 256**2 for shape in (MIDDLE, left)]
        assert labels.shares == pytest.approx(np.transpose(expected), abs=1e-6)
        nothing = read_labels(store.read(Path(folder, "b.h5")))
        assert nothing is not None  # somebody looked, and found nothing
        assert nothing.shares.shape == (len(corners), 0)
        assert read_labels(store.read(Path(folder, "c.h5"))) is None


def test_annotations_are_drawn_in_the_preview(make_slide, tmp_path):
    slide, shape = make_slide(), shapely.box(896, 640, 1152, 896)
    drawn = Drawings(annotations=draw(tmp_path / "truth/slide.geojson", Tumor=shape).parent)
    plain, marked = (
        np.array(Image.open(BytesIO(stage.tile(Item("slide", slide)).files[".jpg"])).convert("RGB"))
        for stage in (TileStage(TileParams()), TileStage(TileParams(), drawings=drawn))
    )
    assert plain.shape[:2] == (1125, 1500)
    assert marked.shape[0] > 1125
    changed = np.abs(marked[:1125].astype(int) - plain).max(-1) > 60
    rows, columns = np.nonzero(changed)
    scale = 1500 / 2048
    edges = [columns.min(), rows.min(), columns.max(), rows.max()]
    assert edges == pytest.approx(np.array(shape.bounds) * scale, abs=5)
    assert not changed[round(768 * scale) - 50 : round(768 * scale) + 50, round(1024 * scale) - 50 :][:, :100].any()


def test_slides_without_a_file_are_tiled_as_without_and_named_in_one_line(make_slide, tmp_path, caplog):
    (tmp_path / "drawn").mkdir()
    Drawings(tmp_path / "drawn", tmp_path / "drawn").tell_missing([f"s{i}" for i in range(8)])
    assert [record.getMessage().replace(str(tmp_path), "") for record in caplog.records] == [
        f"--{option} /drawn: 8 of 8 slides have no file there and are tiled as without: s0, s1, s2, s3, s4 and 3 more"
        for option in ("regions", "annotations")
    ]
    caplog.clear()
    draw(tmp_path / "drawn/sub/a.b.geojson", Tumor=LEFT)
    Drawings(tmp_path / "drawn").tell_missing(["sub/a.b"])
    assert not caplog.records


def test_a_file_may_leave_out_the_folder_of_its_slide_where_no_other_has_that_name(tmp_path, caplog):
    draw(tmp_path / "tumor_001.geojson", Tumor=LEFT)
    flat = Drawings(annotations=tmp_path)
    assert flat.upstream("tumor/tumor_001") == ""  # nobody said which slides there are
    nested = flat.among(["tumor/tumor_001", "normal/normal_001"])
    assert nested.upstream("tumor/tumor_001") == flat.upstream("tumor_001") != ""
    assert set(nested.annotated("tumor/tumor_001", (2048, 1536)) or {}) == {"Tumor"}
    nested.tell_missing(["tumor/tumor_001", "normal/normal_001"])
    assert caplog.messages == [
        f"--annotations {tmp_path}: 1 of 2 slides have no file there and are tiled as without: normal/normal_001"
    ]
    draw(tmp_path / "tumor/tumor_001.geojson", Other=LEFT)  # the whole name goes before
    assert set(nested.annotated("tumor/tumor_001", (2048, 1536)) or {}) == {"Other"}


@pytest.mark.parametrize(
    ("file", "slide_ids", "told"),
    [
        ("Tumor_001.geojson", ["x", "tumor/tumor_001"], "tumor/tumor_001 (if Tumor_001.geojson is of it, call that"
         " tumor/tumor_001.geojson), x"),
        ("a.svs.geojson", ["a"], "a (if a.svs.geojson is of it, call that a.geojson)"),
        ("a.geojson", ["p/a", "q/a"], "p/a (if a.geojson is of it, call that p/a.geojson), q/a (if"),
        ("p/a.geojson", ["p/a", "q/a"], "without: q/a"),
    ],
)  # fmt: skip
def test_a_file_that_is_nearly_called_like_a_slide_is_named(tmp_path, caplog, file, slide_ids, told):
    draw(tmp_path / file, Tumor=LEFT)
    Drawings(tmp_path).among(slide_ids).tell_missing(slide_ids)
    assert told in caplog.text
    assert (told == "without: q/a") == caplog.text.rstrip().endswith("q/a")


def test_a_class_that_no_slide_has_is_refused_with_those_that_there_are(make_slide, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("slides/deep").mkdir(parents=True)
    for name in ("a", "deep/b", "c"):
        copy_slide(make_slide, f"slides/{name}.tif")
    draw(Path("drawn/a.geojson"), Tumor=LEFT)
    draw(Path("drawn/b.geojson"), Normal=RIGHT)
    for option in ("--include", "--exclude"):
        assert call("tile", "slides", "--regions", "drawn", option, "Tumour") == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"{option} Tumour: no slide has regions of it; give of these: Normal, Tumor" in said
    assert not Path("tiles").exists()
    assert call("tile", "slides", "--regions", "drawn", "--include", "Tumor") == 0
    assert store.read_attrs(Path("tiles/a.h5"))["tiles"] > 0
    assert "no region of class Tumor; its classes: Normal" in store.read_attrs(Path("tiles/deep/b.h5"))["reason"]


def test_a_bad_file_fails_its_own_slide_only(make_slide, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    for name in "abcd":
        copy_slide(make_slide, f"slides/{name}.tif")
    draw(Path("drawn/a.geojson"), Tumor=LEFT)
    Path("drawn/b.json").write_text("{")
    draw(Path("drawn/c.geojson"), Tumor=LEFT)
    Path("drawn/c.xml").write_text("<a/>")
    draw(Path("drawn/d.geojson"), Tumor=shapely.box(5000, 5000, 6000, 6000))
    assert call("tile", "slides", "--regions", "drawn", "--workers", 1) == 1
    said = "".join(capsys.readouterr().err.split())
    for message in (
        "drawn/b.json is damaged or no JSON",
        "drawn/c.geojson and drawn/c.xml are of one slide: remove all but one",
        "drawn/d.geojson: 1 of 1 polygons lie outside the slide of 2048 x 1536 px",
    ):
        assert "".join(message.split()) in said
    assert [path.name for path in Path("tiles").glob("*.h5")] == ["a.h5"]


def test_polygons_outside_the_slide_are_told(tmp_path, caplog):
    draw(tmp_path / "a.geojson", Tumor=shapely.box(0, 0, 50, 80), Far=shapely.box(500, 500, 600, 600))
    mask, _ = choose(tmp_path, FOUND)
    assert np.array_equal(mask, box(0, 0, 50, 80))
    assert "a.geojson: 1 of 2 polygons lie outside the slide of 100 x 80 px and say nothing" in caplog.text


def test_outlines_edited_in_a_folder_within_out_are_not_written_over(make_slide, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_slide("slides/here/a.tif")
    draw(Path("tiles/here/a.geojson"), a=LEFT)
    before = Path("tiles/here/a.geojson").read_bytes()
    for option in ("--regions", "--annotations"):
        assert call("tile", "slides", option, "tiles/here") == 2
        told = f"{option}: tiles/here/a.geojson is where the outline of here/a is written anew: keep those"
        assert told in " ".join(capsys.readouterr().err.split())
    assert Path("tiles/here/a.geojson").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--regions", "nowhere"), "--regions nowhere: no such folder"),
        (("--annotations", "nowhere"), "--annotations nowhere: no such folder"),
        (("--include", "Tumor"), "--include Tumor: say where the regions are, by --regions DIR"),
        (("--exclude", "Pen"), "--exclude Pen: say where the regions are, by --regions DIR"),
        (("--regions", "drawn", "--include", "a", "--exclude", "a"), "--include a --exclude a: give one or the other"),
        (("--regions", "drawn", "--out", "drawn/"), "--regions drawn is --out, where outlines are written anew"),
        (
            ("--annotations", "drawn", "--out", "drawn/"),
            "--annotations drawn is --out, where outlines are written anew",
        ),
    ],
)
def test_options_that_cannot_be_meant_are_refused(make_slide, tmp_path, monkeypatch, capsys, words, what):
    monkeypatch.chdir(tmp_path)
    make_slide("a.tif")
    draw(Path("drawn/a.geojson"), a=LEFT)
    assert call("tile", "a.tif", *words) == 2
    assert what in " ".join(capsys.readouterr().err.split())
    assert not Path("tiles").exists()


def test_classes_are_recorded_in_one_order():
    params = [with_regions(TileParams(), words, ["Pen"], Path("drawn")) for words in (["b", "a"], ["a", "b", "a"])]
    assert params[0] == params[1] == TileParams(include=("a", "b"), exclude=("Pen",))
    assert with_regions(TileParams(), None, None, None) == TileParams()


def test_a_file_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    draw(tmp_path / "a.geojson", a=LEFT)
    assert Drawings(tmp_path).upstream("a").startswith(" regions=")
    monkeypatch.setattr(Drawings, "_file", lambda self, folder, slide_id: folder / "gone.xml")
    with pytest.raises(PolygonError, match=r"gone\.xml cannot be read"):
        Drawings(tmp_path).upstream("a")


def test_the_tumour_of_camelyon16_on_its_tiles(shared, tmp_path):
    folder = shared / "data/annotations"
    l0_size, l0_tile = (97_792, 221_184), (1054, 1054)  # 256 um at 0.243 um/px
    corners = np.stack(np.meshgrid(np.arange(92), np.arange(209)), axis=-1).reshape(-1, 2) * 1054
    for name, mm2 in (("tumor_001", 0.672), ("tumor_003", 0.417)):
        areas = Drawings(annotations=folder).annotated(name, l0_size)
        assert areas is not None
        labels = label_tiles(areas, corners, l0_tile)
        assert labels.classes == ["Tumor"]
        assert labels.shares.sum() * 0.256**2 == pytest.approx(mm2, rel=0.01)
