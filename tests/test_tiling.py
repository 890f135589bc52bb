import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from painting import EOSIN, disc, flat, write_tiff
from PIL import Image

from wsi_mil import store
from wsi_mil.errors import OptionError, ResolutionError
from wsi_mil.progress import Progress
from wsi_mil.slides import find_slides
from wsi_mil.stage import Item, Stage, run
from wsi_mil.tiling import TileParams, TileStage, coverage, l0_tile_size, tiles_on_tissue


def tile(path: Path, params: TileParams | None = None, mpp: dict[str, float] | None = None):
    return TileStage(params or TileParams(), mpp=mpp).tile(Item(path.stem, path))


def overlap(start: float, end: float, count: int) -> np.ndarray:
    """How much of each unit interval lies between start and end."""
    edges = np.arange(count)
    return np.clip(np.minimum(edges + 1, end) - np.maximum(edges, start), 0, None)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    rows=st.lists(st.floats(0, 1), min_size=2, max_size=5, unique=True),
    columns=st.lists(st.floats(0, 1), min_size=2, max_size=5, unique=True),
)
def test_coverage_equals_brute_force(seed, shape, rows, columns):
    mask = np.random.default_rng(seed).random(shape) > 0.5
    height, width = shape
    y, x = np.array(sorted(rows)), np.array(sorted(columns))
    y, x = y[np.append(True, np.diff(y) > 1e-3)], x[np.append(True, np.diff(x) > 1e-3)]
    for i, found in enumerate(coverage(mask, x, y)):
        for j, value in enumerate(found):
            weights = np.outer(
                overlap(y[i] * height, y[i + 1] * height, height), overlap(x[j] * width, x[j + 1] * width, width)
            )
            assert value == pytest.approx((mask * weights).sum() / weights.sum(), abs=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    l0_size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    l0_tile=st.tuples(st.integers(50, 900), st.integers(50, 900)),
    least=st.floats(0.01, 1),
)
def test_tiles_are_disjoint_inside_and_row_by_row(seed, l0_size, l0_tile, least):
    mask = np.random.default_rng(seed).random((9, 7)) > 0.4
    coords, covered = tiles_on_tissue(mask, l0_size, l0_tile, least)
    assert (coords >= 0).all()
    assert (coords + l0_tile <= l0_size).all()
    assert (coords % l0_tile == 0).all()
    order = coords[:, 1] * 10_000 + coords[:, 0]
    assert (np.diff(order) > 0).all()
    assert (covered >= least - 1e-6).all()
    assert (coords.dtype, covered.dtype) == (np.int64, np.float32)


def test_all_tissue_keeps_every_tile_and_none_keeps_no_tile():
    assert len(tiles_on_tissue(np.ones((3, 4), bool), (1000, 750), (100, 75), 1.0).coords) == 100
    assert tiles_on_tissue(np.zeros((3, 4), bool), (1000, 750), (100, 75), 0.01).coords.shape == (0, 2)


def test_a_tile_is_rounded_once_per_axis():
    assert l0_tile_size(256.0, 0.25, 0.31) == (1024, 826)
    assert l0_tile_size(256.0, 0.499, 0.2281750559) == (513, 1122)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"tile_px": 0}, "--tile-px 0"),
        ({"tile_um": 0.0}, "--tile-um 0"),
        ({"tile_um": float("nan")}, "--tile-um nan"),
        ({"min_coverage": 0.0}, "--min-coverage 0"),
        ({"min_coverage": 1.5}, "--min-coverage 1.5"),
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
        "slide_path": str(path), "reader": "openslide", "resample": "pillow-bilinear-antialiased",
        "slide_id": "sub/a.b",
        "enlargement": 1.0,
    }  # fmt: skip
    assert {key: artifact.attrs[key] for key in expected} == expected
    assert artifact.array_attrs["coords"] == {
        "patch_size": 224, "patch_size_level0": 320, "level0_magnification": 10, "target_magnification": 10,
        "overlap": 0, "name": "a.b", "savetodir": str(tmp_path), "level0_width": 1800, "level0_height": 1500,
    }  # fmt: skip


def test_the_outline_and_the_preview_show_the_tissue(make_slide):
    result = tile(make_slide(size=(1800, 1500), mpp=0.8))
    features = json.loads(result.files[".geojson"])["features"]
    outline = shapely.geometry.shape(features[0]["geometry"])
    assert len(features) == 1
    assert outline.centroid.distance(shapely.Point(900, 750)) < 20
    assert outline.area * 0.64e-6 == pytest.approx(result.artifact.attrs["tissue_mm2"], rel=0.02)
    preview = Image.open(BytesIO(result.files[".jpg"]))
    assert preview.size == (1500, 1250)
    assert preview.format == "JPEG"


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


def test_a_slide_a_little_too_coarse_is_enlarged_and_says_so(make_slide, caplog):
    path = make_slide(mpp=1.0)
    attrs = tile(path, TileParams(tile_px=256, tile_um=128.0)).artifact.attrs
    assert attrs["enlargement"] == pytest.approx(2.0)
    assert "enlarged 2.00 times" in caplog.text
    with pytest.raises(ResolutionError, match=r"slide\.tif has 1 um/px, too coarse for tiles of 0\.4 .* --mpp"):
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
