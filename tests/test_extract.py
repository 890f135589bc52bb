"""Extraction: every tile once, in order, as the encoder sees it by hand, and one bad slide costs only itself."""

import csv
import json
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float32
from torch import Tensor

from wsi_mil import store
from wsi_mil.bags import bag_items, feature_folder, feature_roots
from wsi_mil.checkpoint import Recipe
from wsi_mil.encoders import Encoder, load_encoder
from wsi_mil.errors import ArtifactError, ArtifactMissing, EncoderError, IncompatibleError, OptionError, SlideError
from wsi_mil.extract import CARRIED, ExtractParams, ExtractStage, shared_stream
from wsi_mil.progress import Progress
from wsi_mil.runs import Report
from wsi_mil.slides import find_slides, open_slide, slide_fingerprint, write_pyramid
from wsi_mil.slides.direct.slide import DirectSlide
from wsi_mil.stage import Item, Output, RunOptions, artifact_items, run, run_together
from wsi_mil.stain import fit, stain_recipe

L0_TILE, TILE_PX, MPP = 128, 64, 0.5
FORMAT = Path(__file__).parents[1] / "docs" / "format.md"


class Means:
    """An encoder that can be checked by eye: mean red, green and blue of a tile."""

    dim, tile_px, precision = 3, TILE_PX, "fp32"
    mpp: float | None = None
    preprocessing: Mapping[str, Any] = {"resize_px": TILE_PX}
    network: Mapping[str, Any] = {}
    weights, weights_sha256 = "none", "0" * 64

    def __init__(self, spoil: float = 1.0, name: str = "means") -> None:
        self.spoil, self.name, self.batches = spoil, name, []

    def encode(self, tiles: np.ndarray | Tensor) -> Float32[Tensor, "tiles dim"]:
        self.batches.append(len(tiles))
        return torch.as_tensor(tiles).float().mean((1, 2)) * self.spoil


class Steps(Progress):
    def __init__(self) -> None:
        self.tiles: list[int] = []

    def step(self, tiles: int) -> None:
        self.tiles.append(tiles)


def make_slide(path: Path, seed: int, side: int = 640) -> Path:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (side // 32, side // 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, coarse.repeat(32, axis=0).repeat(32, axis=1), MPP)
    return path


def make_tiles(
    folder: Path,
    slide: Path,
    slide_id: str,
    side: int = 640,
    *,
    empty: bool = False,
    found: Mapping[str, Any] | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """What `wsimil tile` writes, as docs/format.md has it: every other column of a grid.

    Attributes that were `found`, and all `columns` but coverage, are what older tiles lack.
    """
    grid = [(x, y) for y in range(0, side - L0_TILE + 1, L0_TILE) for x in range(0, side - L0_TILE + 1, 2 * L0_TILE)]
    coords = np.array([] if empty else grid, dtype=np.int64).reshape(-1, 2)
    attrs = {
        "mpp_x": MPP, "mpp_y": MPP, "mpp_source": "openslide", "tile_um": L0_TILE * MPP, "tile_px": TILE_PX,
        "l0_tile_width": L0_TILE, "l0_tile_height": L0_TILE, "level0_width": side, "level0_height": side,
        "resample": "pillow-bilinear-antialiased", "slide_path": str(slide), "reader": "direct", "tissue_mm2": 0.5,
        "reader_reason": "equal to OpenSlide at 14 places",
        "status": "empty" if empty else "done", "stage": "tile", "params": "{}", "fingerprint": f"print of {slide_id}",
        "upstream": slide_fingerprint(slide), "tiles": len(coords),
    }  # fmt: skip
    attrs |= found or {}
    if empty:
        attrs["reason"] = "no tissue was found"
    path = folder / f"{slide_id}.h5"
    coords_attrs = {"patch_size": TILE_PX, "patch_size_level0": L0_TILE, "name": slide_id}
    arrays = {"coords": coords, "coverage": np.ones(len(coords), np.float32), **(columns or {})}
    store.write(path, store.Artifact(arrays, attrs, {"coords": coords_attrs}))
    return path


@pytest.fixture
def cohort(tmp_path) -> Path:
    """Two slides with tiles, one of them in a folder, and one without."""
    for seed, slide_id in enumerate(("a", "deep/b", "c")):
        slide = make_slide(tmp_path / "slides" / f"{slide_id}.tif", seed)
        make_tiles(tmp_path / "tiles", slide, slide_id, empty=slide_id == "c")
    return tmp_path


def extract(cohort: Path, encoder, out: str = "feats", stain: str = "none", **options) -> Report:
    stage = ExtractStage(ExtractParams.of(encoder, stain), encoder, **options)
    return run(stage, artifact_items(cohort / "tiles"), cohort / out)


def by_hand(cohort: Path, slide_id: str, encoder) -> torch.Tensor:
    coords = store.read(cohort / "tiles" / f"{slide_id}.h5").arrays["coords"]
    with open_slide(cohort / "slides" / f"{slide_id}.tif") as slide:
        tiles = [slide.read(int(x), int(y), (L0_TILE, L0_TILE), (TILE_PX, TILE_PX)) for x, y in coords]
    return encoder.encode(np.stack(tiles))


@pytest.mark.parametrize(("name", "weights"), [("morphology", None), ("timm:test_vit", "random:0")])
def test_features_are_those_of_the_tiles_read_by_hand(name, weights, cohort):
    encoder = load_encoder(name, weights)
    report = extract(cohort, encoder, threads=2, batch=4)
    assert (report.done, report.empty, report.failed) == (["a", "deep/b"], ["c"], {})
    for slide_id in report.done:
        features = store.read(cohort / "feats" / f"{slide_id}.h5").arrays["features"]
        assert features.dtype == np.float16
        assert np.allclose(features, by_hand(cohort, slide_id, encoder).half(), rtol=2e-3, atol=1e-3)


def test_the_artifact_says_everything_about_its_features(cohort):
    encoder = load_encoder("morphology")
    extract(cohort, encoder)
    tiles, feats = (store.read(cohort / folder / "deep/b.h5") for folder in ("tiles", "feats"))
    assert np.array_equal(feats.arrays["coords"], tiles.arrays["coords"])
    assert feats.array_attrs["coords"] == tiles.array_attrs["coords"]
    assert feats.array_attrs["features"] == {"encoder": "morphology", "name": "deep/b"}
    assert {key: feats.attrs[key] for key in CARRIED if key in feats.attrs} == {
        key: tiles.attrs[key] for key in CARRIED if key in tiles.attrs
    }
    assert "l0_step_x" not in feats.attrs  # as in tiles that were made before there were any
    assert feats.attrs["encoder"] == "morphology"
    assert feats.attrs["encoder_weights"] == "built-in"
    assert feats.attrs["encoder_weights_sha256"] == encoder.weights_sha256
    assert feats.attrs["encoder_mpp"] == pytest.approx(256 / 224)
    assert feats.attrs["tiles"] == len(feats.arrays["features"]) == 15
    assert feats.params == {
        "encoder": "morphology",
        "weights_sha256": encoder.weights_sha256,
        "precision": "fp32",
        "preprocessing": {"resize_px": 224, "crop_px": 224, "interpolation": "bilinear", "antialias": True},
        "network": {},
        "stain": {"method": "none"},
        "fast_decode": False,
        "reader": "auto",
    }
    assert "stain" not in feats.attrs
    extract(cohort, load_encoder("timm:test_vit", "random:0"), "vit")
    assert store.read(cohort / "vit/deep/b.h5").params["preprocessing"] == {
        "resize_px": 160,
        "crop_px": 160,
        "interpolation": "bicubic",
        "antialias": True,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    assert store.read(cohort / "vit/deep/b.h5").params["network"]["arch"] == "test_vit"


def test_features_keep_every_attribute_of_the_tiles_that_the_format_names(cohort):
    found = {
        "l0_step_x": 256, "l0_step_y": 128, "tissue_share": 0.25, "ink_share": 0.125, "sharpness": 12.5,
        "tissue_beyond_share": 0.2, "tissue_tiled_share": 0.5,
        "wide_ink_mm2": 1.5, "excluded": '{"pen": 2}',
        "settings": '{"min_coverage": 0.5}', "enlargement": 1.5,
    }  # fmt: skip
    make_tiles(cohort / "tiles", cohort / "slides/a.tif", "a", found=found)
    extract(cohort, Means())
    tiles, feats = (store.read(cohort / folder / "a.h5") for folder in ("tiles", "feats"))
    section = FORMAT.read_text().partition("## `tiles/<slide_id>.h5`")[2].partition("\n## ")[0]
    rows = section.partition("Attributes of the root:")[2].splitlines()
    named = {name for row in rows if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == tiles.attrs.keys() & named  # the format names none that these tiles lack
    assert {name: feats.attrs.get(name) for name in named - {"enlargement"}} == {
        name: tiles.attrs[name] for name in named - {"enlargement"}
    }
    assert "enlargement" not in feats.attrs


def test_a_slide_without_tiles_gives_no_features_and_keeps_its_reason(cohort):
    extract(cohort, Means())
    feats = store.read(cohort / "feats/c.h5")
    assert feats.arrays["features"].shape == (0, 3)
    assert feats.arrays["coords"].shape == (0, 2)
    assert (feats.attrs["status"], feats.attrs["reason"]) == ("empty", "no tissue was found")


@pytest.mark.parametrize(("name", "weights"), [("morphology", None), ("timm:test_vit", "random:0")])
def test_the_same_bytes_twice_whatever_the_threads(name, weights, cohort):
    encoder = load_encoder(name, weights)
    extract(cohort, encoder, "one", threads=1, batch=4)
    extract(cohort, encoder, "two", threads=3, batch=4)
    for item in artifact_items(cohort / "one"):
        assert item.source.read_bytes() == (cohort / "two" / f"{item.slide_id}.h5").read_bytes()


@pytest.mark.parametrize("name", ["morphology", "timm:test_vit", "timm:test_resnet"])
def test_the_same_bytes_whatever_else_is_in_the_cohort(name, cohort):
    encoder = load_encoder(name, None if name == "morphology" else "random:0")
    items = artifact_items(cohort / "tiles")
    stage = ExtractStage(ExtractParams.of(encoder), encoder, threads=2, batch=4)
    run(stage, items, cohort / "all")
    run(stage, items[::-1], cohort / "backwards")
    for item in items:
        run(stage, [item], cohort / "alone")
    (cohort / "all/a.h5").rename(cohort / "a-before.h5")
    run(stage, items, cohort / "all")  # a resumed run, with other neighbours for the tiles of a
    assert (cohort / "all/a.h5").read_bytes() == (cohort / "a-before.h5").read_bytes()
    for item in items:
        made = {(cohort / way / f"{item.slide_id}.h5").read_bytes() for way in ("all", "backwards", "alone")}
        assert len(made) == 1


def test_tables_and_the_log_say_where_time_went(cohort, caplog):
    caplog.set_level("INFO", "wsi_mil")
    extract(cohort, Means(), batch=4)
    for table in ("summary.csv", *(f"runs/{path.name}" for path in (cohort / "feats/runs").iterdir())):
        with (cohort / "feats" / table).open() as file:
            rows = {row["slide_id"]: row for row in csv.DictReader(file)}
        for slide_id in ("a", "deep/b"):
            row = rows[slide_id]
            seconds = float(row["seconds"])
            assert float(row["tiles_per_s"]) == pytest.approx(15 / seconds, rel=0.1)
            assert float(row["decode_s"]) > 0
            assert 0 <= float(row["waiting_share"]) + float(row["busy_share"]) <= 1.01
        assert [rows["c"][name] for name in ("tiles_per_s", "decode_s", "waiting_share", "busy_share")] == [""] * 4
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("extract: 30 tiles in")]
    assert len(told) == 1
    assert re.search(r"waiting for tiles \d+%, encoder busy \d+%: .* holds? it back|around them", told[0])
    caplog.clear()
    extract(cohort, Means(), batch=4)  # all is there already
    assert not [record for record in caplog.records if "tiles in" in record.getMessage()]


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_the_encoder_sees_tiles_of_normalised_stain_whatever_the_threads_and_batches(method, cohort):
    encoder = Means()
    extract(cohort, encoder, "one", method, threads=1, batch=4)
    extract(cohort, encoder, "two", method, threads=3, batch=7)
    for item in artifact_items(cohort / "one"):
        assert item.source.read_bytes() == (cohort / "two" / f"{item.slide_id}.h5").read_bytes()
    made = store.read(cohort / "one/deep/b.h5")
    assert made.params["stain"] == stain_recipe(method)
    coords = made.arrays["coords"]
    with open_slide(cohort / "slides/deep/b.tif") as slide:
        tiles = [slide.read(int(x), int(y), (L0_TILE, L0_TILE), (TILE_PX, TILE_PX)) for x, y in coords]
    fitted = fit(method, np.stack(tiles).reshape(-1, 3), slide.path)
    assert json.loads(made.attrs["stain"]) == fitted.fitted
    by_eye = encoder.encode(np.stack([fitted(tile) for tile in tiles])).half()
    assert np.array_equal(made.arrays["features"], by_eye)
    assert not np.allclose(by_eye, by_hand(cohort, "deep/b", encoder), atol=5)
    empty = store.read(cohort / "one/c.h5")
    assert (empty.attrs["status"], "stain" in empty.attrs) == ("empty", False)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_stain_is_fitted_on_tiles_without_ink(method, cohort):
    share = np.array([0.0, 0.3, 0.01] * 5, np.float32)
    make_tiles(cohort / "tiles", cohort / "slides/a.tif", "a", columns={"pen": share, "black": share})
    extract(cohort, Means(), stain=method)
    made = store.read(cohort / "feats/a.h5")
    with open_slide(cohort / "slides/a.tif") as slide:
        clean = [
            slide.read(int(x), int(y), (L0_TILE, L0_TILE), (TILE_PX, TILE_PX))
            for (x, y), marked in zip(made.arrays["coords"], share, strict=True)
            if marked < 0.1
        ]
    assert len(clean) == 10
    fitted = fit(method, np.stack(clean).reshape(-1, 3), cohort / "slides/a.tif")
    assert json.loads(made.attrs["stain"]) == fitted.fitted


def test_another_stain_is_noticed_and_a_slide_without_any_fails_alone(cohort):
    extract(cohort, Means())
    with pytest.raises(ArtifactError, match=r"stain was {'method': 'none'}, now {'method': 'macenko', .*--overwrite"):
        extract(cohort, Means(), stain="macenko")
    with pytest.raises(OptionError, match="--stain vahadane"):
        ExtractParams.of(Means(), "vahadane")
    grey = cohort / "slides/grey.tif"
    write_pyramid(grey, np.full((640, 640, 3), 120, np.uint8), MPP)
    make_tiles(cohort / "tiles", grey, "grey")
    report = extract(cohort, Means(), "normalised", "macenko")
    assert (report.done, report.empty, list(report.failed)) == (["a", "deep/b"], ["c"], ["grey"])
    assert "--stain macenko cannot be fitted to" in str(report.failed["grey"])


def test_encoders_of_one_pass_get_the_same_tiles():
    stages = {Path(stain): ExtractStage(ExtractParams.of(Means(), stain), Means()) for stain in ("none", "reinhard")}
    with pytest.raises(OptionError, match="--stain none, --stain reinhard: encoders of one pass share their tiles"):
        shared_stream(stages)


def test_batches_are_full_whatever_slides_they_hold_and_tiles_are_counted(cohort):
    encoder, steps = Means(), Steps()
    stage = ExtractStage(ExtractParams.of(encoder), encoder, threads=2, batch=4)
    outcomes = dict(stage.stream(iter(artifact_items(cohort / "tiles")), steps))
    assert encoder.batches == [4] * 8  # of 15 + 15 tiles
    assert steps.tiles == [4] * 7 + [2]
    assert all(outcome.timing.seconds > 0 for outcome in outcomes.values())


def test_rerunning_skips_and_other_weights_are_noticed(cohort):
    extract(cohort, Means())
    assert extract(cohort, Means()).skipped == ["a", "c", "deep/b"]
    other = Means()
    other.weights_sha256 = "1" * 64
    with pytest.raises(ArtifactError, match="weights_sha256 was"):
        extract(cohort, other)
    otherwise = Means()
    otherwise.preprocessing = {"resize_px": 2 * TILE_PX}
    with pytest.raises(ArtifactError, match="preprocessing was"):
        extract(cohort, otherwise)
    pooled = Means()
    pooled.network = {"pooling": "cls"}
    with pytest.raises(ArtifactError, match=r"network was {}, now {'pooling': 'cls'}"):
        extract(cohort, pooled)
    moved = Means()
    moved.weights = "/another/place/of/the/same/file"
    assert extract(cohort, moved).skipped == ["a", "c", "deep/b"]


def test_a_slide_that_cannot_be_read_fails_alone(cohort):
    path = cohort / "slides/a.tif"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    report = extract(cohort, Means(), threads=2, batch=2)
    assert (report.done, report.empty) == (["deep/b"], ["c"])
    assert list(report.failed) == ["a"]
    assert isinstance(report.failed["a"], SlideError)
    assert "a.tif" in str(report.failed["a"])
    path.write_bytes(whole)
    assert extract(cohort, Means()).done == ["a"]


@pytest.mark.parametrize("spoil", [np.nan, np.inf, 1e9])
def test_features_that_float16_cannot_hold_fail_the_slide_by_tile(spoil, cohort):
    report = extract(cohort, Means(spoil))
    assert (report.done, report.empty) == ([], ["c"])
    for slide_id in ("a", "deep/b"):
        assert isinstance(report.failed[slide_id], EncoderError)
        assert str(report.failed[slide_id]).startswith("the tile at (0, 0) got a feature of")
        assert "from means" in str(report.failed[slide_id])
        assert ("beyond float16" in str(report.failed[slide_id])) == bool(np.isfinite(spoil))
    assert not (cohort / "feats/a.h5").exists()


def test_ctrl_c_leaves_what_is_finished_and_no_thread(cohort, monkeypatch):
    before = set(threading.enumerate())
    for index in range(6):
        make_tiles(cohort / "tiles", cohort / "slides/a.tif", f"more-{index}")
    plain = Report.finish

    def interrupted(self, attrs, timing):
        if self.done:
            raise KeyboardInterrupt
        return plain(self, attrs, timing)

    monkeypatch.setattr(Report, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(cohort, Means(), threads=2, batch=4)
    assert set(threading.enumerate()) <= before
    monkeypatch.setattr(Report, "finish", plain)
    report = extract(cohort, Means(), batch=4)
    assert len(report.skipped) >= 1
    assert len(report.skipped) + len(report.done) + len(report.empty) == 9
    assert not list((cohort / "feats").rglob("*.tmp"))


def test_what_comes_after_a_truncated_slide_is_whole(cohort):
    """Its tiles share a batch with those of sound slides, before and after."""
    extract(cohort, Means(), "sound", batch=4)
    for number in range(3):
        slide = make_slide(cohort / "slides" / f"b{number}.tif", 20 + number)
        whole = slide.read_bytes()
        slide.write_bytes(whole[: len(whole) // 2])
        make_tiles(cohort / "tiles", slide, f"b{number}")
    report = extract(cohort, Means(), threads=2, batch=4)
    assert (sorted(report.failed), report.done) == (["b0", "b1", "b2"], ["a", "deep/b"])
    for slide_id in report.done:
        assert (cohort / f"feats/{slide_id}.h5").read_bytes() == (cohort / f"sound/{slide_id}.h5").read_bytes()


def test_a_slide_that_moved_is_found_by_its_id(cohort):
    extract(cohort, Means(), "before")
    shutil.move(cohort / "slides", cohort / "archive")
    report = extract(cohort, Means(), "without")
    assert set(report.failed) == {"a", "deep/b"}
    assert str(report.failed["a"]) == (
        f"{cohort / 'slides/a.tif'} is not there any more: name the folder that slides lie in by --slides DIR"
    )
    assert extract(cohort, Means(), "after", moved=dict(find_slides(cohort / "archive"))).failed == {}
    for item in artifact_items(cohort / "before"):
        assert item.source.read_bytes() == (cohort / "after" / f"{item.slide_id}.h5").read_bytes()
    (cohort / "archive/a.tif").unlink()
    report = extract(cohort, Means(), "lost", moved=dict(find_slides(cohort / "archive")))
    assert list(report.failed) == ["a"]
    assert "--slides DIR" in str(report.failed["a"])


def test_a_slide_that_moved_is_found_though_another_lies_where_it_was(cohort):
    shutil.copytree(cohort / "slides", cohort / "archive")
    make_slide(cohort / "slides/a.tif", 9)
    assert extract(cohort, Means(), moved=dict(find_slides(cohort / "archive"))).failed == {}


def test_another_slide_of_the_same_name_is_refused(cohort):
    make_slide(cohort / "slides/a.tif", 9)  # of the same size
    report = extract(cohort, Means())
    assert list(report.failed) == ["a"]
    assert "a.tif is not the slide that its tiles were made from: run `wsimil tile --overwrite`" in str(
        report.failed["a"]
    )


def test_what_holds_no_tiles_is_refused(cohort):
    extract(cohort, Means())
    stage = ExtractStage(ExtractParams.of(Means()), Means())
    with pytest.raises(ArtifactError, match=r"a.h5 was made by extract, not by tile: .* `wsimil tile SLIDES`"):
        stage.upstream(Item("a", cohort / "feats/a.h5"))
    assert stage.upstream(Item("a", cohort / "tiles/a.h5")) == "print of a"


# ------------------------------------------------------------------------------------------------ several encoders


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Of which slide each tile was read."""
    read: list[str] = []
    plain = DirectSlide.read_tiles

    def counting(slide, coords, *sizes):
        read.extend([slide.path.stem] * len(coords))
        return plain(slide, coords, *sizes)

    monkeypatch.setattr(DirectSlide, "read_tiles", counting)
    return read


def together(cohort: Path, encoders: Sequence[Encoder], out: str = "feats", **options) -> dict[str, Report]:
    stages = {
        cohort / out / encoder.name: ExtractStage(ExtractParams.of(encoder), encoder, batch=4) for encoder in encoders
    }
    outputs = [Output(stage, folder) for folder, stage in stages.items()]
    items = artifact_items(cohort / "tiles")
    reports = run_together(outputs, items, shared_stream(stages), RunOptions(**options))
    return {folder.name: report for folder, report in reports.items()}


def test_several_encoders_share_the_reading_and_give_what_each_gives_alone(cohort, reads):
    encoders = [Means(), Means(2, "double"), load_encoder("morphology")]
    for report in together(cohort, encoders).values():
        assert (report.done, report.empty, report.failed) == (["a", "deep/b"], ["c"], {})
    assert sorted(reads) == ["a"] * 15 + ["b"] * 15
    for encoder in encoders:
        extract(cohort, encoder, f"alone/{encoder.name}", batch=4)
        for item in artifact_items(cohort / "feats" / encoder.name):
            assert item.source.read_bytes() == (cohort / "alone" / encoder.name / f"{item.slide_id}.h5").read_bytes()


def test_what_one_encoder_has_already_is_read_for_the_others_only(cohort, reads):
    one, two = Means(), Means(2, "double")
    together(cohort, [one])
    (cohort / "feats/means/a.h5").unlink()
    one.batches.clear()
    reads.clear()
    reports = together(cohort, [one, two])
    assert (reports["means"].done, reports["means"].skipped) == (["a"], ["c", "deep/b"])
    assert (reports["double"].done, reports["double"].empty) == (["a", "deep/b"], ["c"])
    assert (one.batches, two.batches) == ([4] * 4, [4] * 8)
    assert sorted(reads) == ["a"] * 15 + ["b"] * 15
    reads.clear()
    assert [report.skipped for report in together(cohort, [one, two]).values()] == [["a", "c", "deep/b"]] * 2
    assert reads == []


def test_an_encoder_that_fails_costs_the_others_nothing(cohort):
    sick, sound = Means(np.nan, "sick"), Means()
    reports = together(cohort, [sick, sound])
    assert (reports["means"].done, reports["means"].failed) == (["a", "deep/b"], {})
    assert (reports["sick"].done, list(reports["sick"].failed)) == ([], ["a", "deep/b"])
    assert "from sick" in str(reports["sick"].failed["a"])
    assert sick.batches == [4, 4]  # not asked again for a slide that it has spoilt: the second batch holds b, too
    assert not (cohort / "feats/sick/a.h5").exists()


def test_a_slide_that_cannot_be_read_fails_for_every_encoder(cohort):
    path = cohort / "slides/a.tif"
    path.write_bytes(path.read_bytes()[:2000])
    for report in together(cohort, [Means(), Means(2, "double")]).values():
        assert (report.done, list(report.failed)) == (["deep/b"], ["a"])


def test_other_options_of_one_encoder_stop_all_before_the_work(cohort, reads):
    one = Means()
    together(cohort, [one])
    one.weights_sha256 = "1" * 64
    reads.clear()
    with pytest.raises(ArtifactError, match=r"means.* was made otherwise: weights_sha256"):
        together(cohort, [Means(2, "double"), one])
    assert reads == []
    assert not artifact_items(cohort / "feats/double")
    assert together(cohort, [Means(2, "double"), one], overwrite=True)["means"].done == ["a", "deep/b"]


def test_shards_of_several_encoders_miss_nothing(cohort):
    done = [together(cohort, [Means(), Means(2, "double")], shard=f"{i}/2") for i in (1, 2)]
    for name in ("means", "double"):
        made = [slide_id for reports in done for slide_id in reports[name].done + reports[name].empty]
        assert sorted(made) == ["a", "c", "deep/b"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [("uni2-h", "uni2-h"), ("timm:vit_tiny.x", "timm-vit_tiny.x"), ("hf-hub:Some/Model", "hf-hub-Some-Model")],
)
def test_folders_of_encoders_have_names_that_file_systems_take(name, folder):
    assert feature_folder(name) == folder


def test_a_folder_of_several_encoders_is_refused_by_who_wants_one(cohort):
    together(cohort, [Means(), Means(2, "double")])
    assert feature_roots(cohort / "feats") == {cohort / "feats/means", cohort / "feats/double"}
    with pytest.raises(ArtifactError, match=r"a folder per encoder: name one of them, such as --bags .*feats/double"):
        bag_items(cohort / "feats")
    items = bag_items(cohort / "feats/means")
    assert [item.slide_id for item in items] == ["a", "c", "deep/b"]
    assert feature_roots(cohort / "feats/means") == {cohort / "feats/means"}
    with pytest.raises(ArtifactMissing, match="wsimil extract"):
        bag_items(cohort / "nowhere")


def test_an_impossible_batch_is_refused():
    with pytest.raises(OptionError, match="--batch 0"):
        ExtractStage(ExtractParams.of(Means()), Means(), batch=0)


def test_who_reads_is_a_parameter_and_recorded(cohort):
    encoder = Means()
    for reader in ("direct", "openslide"):
        stage = ExtractStage(ExtractParams.of(encoder, reader=reader), encoder)
        run(stage, artifact_items(cohort / "tiles"), cohort / reader)
        made = store.read(cohort / reader / "a.h5")
        assert (made.attrs["reader"], made.params["reader"], made.params["fast_decode"]) == (reader, reader, False)
    feats = [store.read(cohort / reader / "a.h5").arrays["features"] for reader in ("direct", "openslide")]
    assert np.array_equal(*feats)
    with pytest.raises(OptionError, match="--reader cucim: give one of auto, direct, openslide"):
        ExtractParams.of(encoder, reader="cucim")


def test_fast_decoding_is_a_parameter_recorded_and_another_recipe(tmp_path):
    path = tmp_path / "a.tif"  # of one level, so that tiles are at half of its resolution
    write_pyramid(
        path,
        np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8).repeat(32, 0).repeat(32, 1),
        MPP,
        levels=1,
    )
    make_tiles(tmp_path / "tiles", path, "a")
    encoder, made = Means(), {}
    for fast in (False, True):
        stage = ExtractStage(ExtractParams.of(encoder, fast_decode=fast), encoder)
        run(stage, artifact_items(tmp_path / "tiles"), tmp_path / str(fast))
        made[fast] = store.read(tmp_path / str(fast) / "a.h5")
    assert made[False].attrs["resample"] == "pillow-bilinear-antialiased"
    assert made[True].attrs["resample"] == "libjpeg-scaled, pillow-bilinear-antialiased"
    np.testing.assert_allclose(made[False].arrays["features"], made[True].arrays["features"], atol=3)
    with pytest.raises(IncompatibleError, match="fast_decode is True and not False"):
        Recipe.of(made[False].attrs).require(Recipe.of(made[True].attrs), "the features")
