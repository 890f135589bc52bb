import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import shapely
from painting import EOSIN, disc, flat, write_tiff
from PIL import Image

from wsi_mil import store
from wsi_mil.errors import ArtifactStale, OptionError, ResolutionError
from wsi_mil.progress import Progress
from wsi_mil.regions import Drawings
from wsi_mil.slides import find_slides
from wsi_mil.stage import Item, Stage, run
from wsi_mil.tiling import TileParams, TileStage


def tile(path: Path, params: TileParams | None = None, mpp: dict[str, float] | None = None):
    return TileStage(params or TileParams(), mpp=mpp).tile(Item(path.stem, path))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"tile_px": 0}, "--tile-px 0"),
        ({"tile_um": 0.0}, "--tile-um 0"),
        ({"tile_um": float("nan")}, "--tile-um nan"),
        ({"min_coverage": 0.0}, "--min-coverage 0"),
        ({"min_coverage": 1.5}, "--min-coverage 1.5"),
        ({"overlap_px": 224}, "--overlap 224"),
        ({"overlap_px": -1}, "--overlap -1"),
        ({"holes_mm2": -0.1}, "--holes -0.1"),
        ({"holes_mm2": float("inf")}, "--holes inf"),
        ({"max_tiles": -1}, "--max-tiles -1"),
        ({"seed": -1}, "--seed -1"),
        ({"min_sharpness": -1.0}, "--min-sharpness -1"),
        ({"max_pen": 1.5}, "--max-pen 1.5"),
        ({"min_saturation": float("nan")}, "--min-saturation nan"),
    ],
)
def test_options_are_refused_by_name(options, flag):
    with pytest.raises(OptionError, match=flag):
        TileParams(**options)


def test_the_stage_fits_the_loop():
    assert isinstance(TileStage(TileParams()), Stage)


def test_an_artifact_says_all_about_its_tiles(make_slide, tmp_path):
    path = make_slide("a.tif", size=(1800, 1500), mpp=0.8)
    report = run(TileStage(TileParams(), 2), [Item("sub/a.b", path)], tmp_path / "tiles")
    assert str(report) == "1 done"
    artifact = store.read(tmp_path / "tiles/sub/a.b.h5")
    coords, covered = artifact.arrays["coords"], artifact.arrays["coverage"]
    assert len(coords) == len(covered) == artifact.attrs["tiles"] > 5
    centres = (coords + 160) * 0.8
    assert np.hypot(*(centres - [720, 600]).T).max() < 500 + 128
    assert artifact.attrs["tissue_mm2"] == pytest.approx(np.pi * 0.25, rel=0.05)
    expected = {
        "mpp_x": pytest.approx(0.8), "mpp_y": pytest.approx(0.8), "mpp_source": "openslide",
        "tile_um": 256.0, "tile_px": 224,
        "l0_tile_width": 320, "l0_tile_height": 320, "level0_width": 1800, "level0_height": 1500, "status": "done",
        "slide_path": str(path), "reader": "direct", "resample": "pillow-bilinear-antialiased",
        "slide_id": "sub/a.b",
        "enlargement": 1.0,
    }  # fmt: skip
    assert {key: artifact.attrs[key] for key in expected} == expected
    assert artifact.array_attrs["coords"] == {
        "patch_size": 224, "patch_size_level0": 320, "level0_magnification": 10, "target_magnification": 10,
        "overlap": 0, "name": "a.b", "savetodir": str(tmp_path), "level0_width": 1800, "level0_height": 1500,
    }  # fmt: skip


def test_a_refusal_names_what_was_told_of_the_slide_otherwise(make_slide, tmp_path):
    item, out = Item("a", make_slide("a.tif")), tmp_path / "tiles"
    run(TileStage(TileParams(max_tiles=4), mpp={"a": 0.5}), [item], out)
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "a.geojson").write_text("{}")

    def refused(**changed):
        with pytest.raises(ArtifactStale) as told:
            run(TileStage(TileParams(max_tiles=4), **changed), [item], out)
        return str(told.value).partition("otherwise: ")[2].partition(". Add --overwrite")[0]

    assert refused() == "mpp was 0.5, now not given"
    drawn = Drawings(tmp_path / "drawn").among(["a"])
    told = refused(mpp={"a": 0.25}, settings={"a": {"min_coverage": 0.9}}, drawings=drawn)
    assert re.fullmatch(
        "mpp was 0.5, now 0.25; min_coverage was not given, now 0.9;"
        " regions was not given, now a file of fingerprint [0-9a-f]{8}",
        told,
    )


def test_the_outline_and_the_preview_show_the_tissue(make_slide):
    result = tile(make_slide(size=(1800, 1500), mpp=0.8))
    assert tuple(result.files) == TileStage.beside  # or they would stay when the tiles are withdrawn
    features = json.loads(result.files[".geojson"])["features"]
    outline = shapely.geometry.shape(features[0]["geometry"])
    assert len(features) == 1
    assert outline.centroid.distance(shapely.Point(900, 750)) < 20
    assert outline.area * 0.64e-6 == pytest.approx(result.artifact.attrs["tissue_mm2"], rel=0.02)
    preview = Image.open(BytesIO(result.files[".jpg"]))
    assert preview.size == (1500, 1250)
    assert preview.format == "JPEG"


def test_folders_and_slides_may_be_called_what_heaps_of_hdf5_begin_with(make_slide, tmp_path):
    (tmp_path / "GCOL_cohort").mkdir()
    items = [Item("GCOL-0001", make_slide("GCOL_cohort/GCOL-0001.tif", size=(1200, 1200)))]
    assert str(run(TileStage(TileParams()), items, tmp_path / "tiles")) == "1 done"
    artifact = store.read(tmp_path / "tiles/GCOL-0001.h5")
    assert artifact.attrs["slide_path"].endswith("GCOL_cohort/GCOL-0001.tif")
    assert str(run(TileStage(TileParams()), items, tmp_path / "tiles")) == "1 already there"


def test_tissue_that_no_tile_holds_is_told(tmp_path):
    path = tmp_path / "a.tif"
    write_tiff(path, [flat(600, 700, EOSIN)], resolution=(10_000, 10_000), resolutionunit="CENTIMETER")
    attrs = tile(path).artifact.attrs
    assert attrs["tissue_beyond_share"] == pytest.approx(1 - 512 * 512 / (700 * 600), abs=1e-6)
    assert attrs["tissue_tiled_share"] == pytest.approx(512 * 512 / (700 * 600), abs=1e-6)
    few = tile(path, TileParams(max_tiles=1)).artifact.attrs
    assert few["tissue_tiled_share"] == pytest.approx(attrs["tissue_tiled_share"] / 4)
    assert few["tissue_beyond_share"] == attrs["tissue_beyond_share"]


def test_each_axis_has_its_own_tile_side(tmp_path):
    image = flat(1000, 800)
    disc(image, 400, 500, 350, EOSIN)
    path = write_tiff(tmp_path / "a.tif", [image], resolution=(10_000, 20_000), resolutionunit="CENTIMETER")
    attrs = tile(path, TileParams(tile_px=100, tile_um=100.0)).artifact.attrs
    assert (attrs["mpp_x"], attrs["mpp_y"]) == pytest.approx((1.0, 0.5))
    assert (attrs["l0_tile_width"], attrs["l0_tile_height"]) == (100, 200)


@pytest.mark.parametrize(
    ("size", "radius", "reason"),
    [
        ((100, 2000), 500, "smaller than one tile"),
        ((2000, 1500), 0, "nothing coloured"),
        ((2000, 1500), 90, "no tile with 50%"),
    ],
)
def test_a_slide_without_tiles_is_empty_and_says_why(make_slide, tmp_path, size, radius, reason):
    path = make_slide(size=size, radius_um=radius)
    if radius == 0:
        write_tiff(path, [flat(1500, 2000)], resolution=(10_000, 10_000), resolutionunit="CENTIMETER")
    report = run(TileStage(TileParams()), [Item("a", path)], tmp_path / "tiles")
    artifact = store.read(tmp_path / "tiles/a.h5")
    assert (report.empty, artifact.attrs["status"]) == (["a"], "empty")
    assert reason in artifact.attrs["reason"]
    assert (artifact.arrays["coords"].shape, artifact.arrays["coverage"].shape) == ((0, 2), (0,))
    assert (tmp_path / "tiles/a.jpg").exists()


def test_tiles_overlap_on_one_lattice(make_slide):
    path = make_slide(size=(1800, 1500), mpp=0.8)
    half = tile(path, TileParams(overlap_px=112)).artifact
    assert (half.arrays["coords"] % 160 == 0).all()
    assert (half.attrs["l0_step_x"], half.attrs["l0_step_y"], half.array_attrs["coords"]["overlap"]) == (160, 160, 112)
    plain = tile(path).artifact.arrays["coords"]
    assert {tuple(row) for row in plain} <= {tuple(row) for row in half.arrays["coords"]}
    assert len(half.arrays["coords"]) > 3 * len(plain)


def test_at_most_so_many_tiles_are_drawn_by_a_seed_and_counted(make_slide):
    path = make_slide(size=(1800, 1500), mpp=0.8)
    whole = tile(path).artifact.arrays
    few, again, other = (tile(path, TileParams(max_tiles=5, seed=seed)).artifact for seed in (0, 0, 1))
    assert len(few.arrays["coords"]) == len(few.arrays["coverage"]) == len(few.arrays["sharpness"]) == 5
    assert np.array_equal(few.arrays["coords"], again.arrays["coords"])
    assert not np.array_equal(few.arrays["coords"], other.arrays["coords"])
    assert json.loads(few.attrs["excluded"]) == {"max_tiles": len(whole["coords"]) - 5}


def test_tiles_beyond_a_limit_are_left_out_and_counted_by_reason(make_slide):
    path = make_slide(size=(1800, 1500), mpp=0.8)
    plain = tile(path).artifact
    assert plain.attrs["excluded"] == "{}"
    limit = float(np.median(plain.arrays["sharpness"]))
    sharp = tile(path, TileParams(min_sharpness=limit)).artifact
    assert json.loads(sharp.attrs["excluded"]) == {"blur": len(plain.arrays["coords"]) - len(sharp.arrays["coords"])}
    assert (sharp.arrays["sharpness"] >= limit).all()
    nothing = tile(path, TileParams(min_sharpness=1e9)).artifact
    assert nothing.attrs["status"] == "empty"
    assert nothing.attrs["reason"].endswith(f"but every tile was left out: {len(plain.arrays['coords'])} for blur")


def test_a_slide_may_have_parameters_of_its_own(make_slide):
    path = make_slide(size=(1800, 1500), mpp=0.8)
    own = {"min_coverage": 0.9, "max_tiles": 4.0}
    stage = TileStage(TileParams(), settings={"a": own, "b": dict[str, float]()})
    own, common = (stage.tile(Item(slide_id, path)).artifact for slide_id in "ab")
    assert len(own.arrays["coords"]) == 4
    assert own.arrays["coverage"].min() >= 0.9
    assert json.loads(own.attrs["settings"]) == {"max_tiles": 4.0, "min_coverage": 0.9}
    assert "settings" not in common.attrs
    assert stage.upstream(Item("a", path)) == f"{stage.upstream(Item('b', path))} max_tiles=4.0 min_coverage=0.9"
    with pytest.raises(OptionError, match=r"no setting of a slide is called covrage: give .*min_coverage"):
        TileParams().changed({"covrage": 0.5})
    with pytest.raises(OptionError, match=r"max_tiles 4.7: give a whole number"):
        TileParams().changed({"max_tiles": 4.7})
    assert TileParams().changed({"pens": 0.0}).pens is False
    with pytest.raises(OptionError, match=r"pens 2: give 1 \(yes\) or 0 \(no\)"):
        TileParams().changed({"pens": 2.0})
    with pytest.raises(OptionError, match="--min-coverage 2"):
        TileParams().changed({"min_coverage": 2.0})


def test_a_slide_a_little_too_coarse_is_enlarged_and_says_so(make_slide, caplog):
    path = make_slide(mpp=1.0)
    attrs = tile(path, TileParams(tile_px=256, tile_um=128.0)).artifact.attrs
    assert attrs["enlargement"] == pytest.approx(2.0)
    assert "enlarged 2.00 times" in caplog.text
    with pytest.raises(
        ResolutionError, match=r"slide\.tif has 1 um/px, too coarse for tiles of 0\.4 .* `wsimil tile --mpp`"
    ):
        tile(path, TileParams(tile_px=256, tile_um=102.4))


def test_the_users_resolution_is_used_and_makes_another_artifact(make_slide):
    path = make_slide(mpp=1.0)
    item = Item("slide", path)
    plain, told = TileStage(TileParams()), TileStage(TileParams(), mpp={"slide": 0.5})
    assert plain.upstream(item) != told.upstream(item)
    assert told.upstream(Item("other", path)) == plain.upstream(item)
    attrs = told.tile(item).artifact.attrs
    assert (attrs["mpp_x"], attrs["mpp_source"], attrs["l0_tile_width"]) == (0.5, "option", 512)


def test_tiling_twice_gives_the_same(make_slide):
    path = make_slide()
    first, second = tile(path), tile(path)
    assert store.checksum(first.artifact) == store.checksum(second.artifact)
    assert first.files == second.files


def test_streaming_yields_every_item(make_slide, tmp_path):
    (tmp_path / "bad.svs").write_bytes(b"nothing")
    items = [Item("good", make_slide()), Item("bad", tmp_path / "bad.svs")]
    outcomes = dict(TileStage(TileParams()).stream(iter(items), Progress()))
    assert isinstance(outcomes[items[1]], Exception)
    assert outcomes[items[0]].tiles > 0


def test_every_real_file_is_done_empty_or_fails_alone(shared, tmp_path):
    items = [
        Item(slide.slide_id, slide.path) for name in ("wsi", "wsi_bad") for slide in find_slides(shared / "data" / name)
    ]
    report = run(TileStage(TileParams(256, 128.0), 2), items, tmp_path)
    assert sorted(report.done) == ["CMU-1-Small-Region_pyramid", "cmu-1-small-region"]
    assert sorted(report.empty) == ["fluorescence-dapi", "small"]
    assert len(report.failed) == 10
    assert "fluorescence" in store.read_attrs(tmp_path / "fluorescence-dapi.h5")["reason"]
    single, pyramid = (store.read(tmp_path / f"{name}.h5") for name in sorted(report.done)[::-1])
    assert 30 <= len(single.arrays["coords"]) <= 40
    assert single.attrs["tissue_mm2"] == pytest.approx(pyramid.attrs["tissue_mm2"], rel=0.02)
