"""Tiles and encoders that do not see the same um/px: silent, warned of, refused, allowed."""

import shutil
from pathlib import Path

import pytest
from test_cli import call

from wsi_mil import store
from wsi_mil.encoders import (
    EncoderSpec,
    TileSize,
    find_encoder,
    list_encoders,
    require_resolution,
    table,
    tile_geometry,
)
from wsi_mil.errors import IncompatibleError, OptionError
from wsi_mil.predictions import read_predictions
from wsi_mil.stage import artifact_items

CROPPED = EncoderSpec("cropped", 64, 160, 128.0, "", arch="test_vit", resize_px=256)
FINE = EncoderSpec("fine", 64, 64, 64.0, "", arch="test_vit", arch_kwargs={"img_size": 64})
HALF = EncoderSpec("half", 64, 160, 128.0, "", arch="test_vit")


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (1.0, ""), (0.81, ""), (1.19, ""), (1.2, ""), (0.8, ""), (0.79, "warned"), (1.21, "warned"),
        (2.0, "warned"), (2.05, "warned"), (0.5, "warned"), (0.487, "refused"), (2.06, "refused"), (4, "refused"),
    ],
)  # fmt: skip
def test_tiles_far_from_the_recipe_are_warned_of_and_farther_ones_refused(ratio, said, caplog):
    um = {Path("a.h5"): TileSize(128.0, 256), Path("b.h5"): TileSize(128.0 * ratio, 256)}
    if said == "refused":
        with pytest.raises(IncompatibleError) as refused:
            require_resolution(CROPPED, um, "mend it")
        text = str(refused.value)
        assert "make tiles that fit by `mend it`, or add --allow-mpp-mismatch" in text
        require_resolution(CROPPED, um, "mend it", allow=True)
    else:
        require_resolution(CROPPED, um, "mend it")
        text = caplog.text
    assert len(caplog.records) == bool(said)
    if said:
        assert f"cropped would see the tiles of b.h5 at {0.5 * ratio:.3g} um/px, and its authors used 0.5" in text


def test_the_worst_tiles_are_named_and_the_others_counted(caplog):
    um = {Path(f"{index}.h5"): TileSize(side, 256) for index, side in enumerate((128.0, 160.0, 190.0, 90.0))}
    require_resolution(CROPPED, um, "mend it")
    assert len(caplog.records) == 1
    assert "the tiles of 2.h5 (and those of 2 more) at 0.742 um/px" in caplog.text


def test_tiles_that_an_encoder_enlarges_are_warned_of(caplog):
    tiles = {Path(f"{px}.h5"): TileSize(128.0, px) for px in (256, 214, 128, 16)}
    require_resolution(CROPPED, tiles, "mend it", warn=False)
    require_resolution(CROPPED, {path: tiles[path] for path in list(tiles)[:2]}, "mend it")
    assert not caplog.records
    require_resolution(CROPPED, tiles, "mend it")
    assert len(caplog.records) == 1
    assert "cropped enlarges the tiles of 16.h5 (and those of 1 more) from 16 to 256 px, so it sees" in caplog.text
    assert "`mend it` makes tiles that fit" in caplog.text


def test_encoders_without_a_resolution_take_any_tiles(caplog):
    require_resolution(find_encoder("resnet50"), {Path("a"): TileSize(1e6, 1)}, "mend it")
    require_resolution(find_encoder("timm:test_vit"), {Path("a"): TileSize(1e6, 1)}, "mend it")
    require_resolution(CROPPED, {}, "mend it")
    assert not caplog.records
    with pytest.raises(OptionError, match="--for resnet50: its recipe has no resolution"):
        tile_geometry(find_encoder("resnet50"))


@pytest.mark.parametrize("spec", [spec for spec in list_encoders() if spec.mpp], ids=lambda spec: spec.name)
def test_tiles_made_for_an_encoder_fit_it(spec, caplog):
    tile_px, tile_um = tile_geometry(spec)
    assert tile_um / (spec.tile_px if spec.read_px else tile_px) == pytest.approx(spec.mpp)
    require_resolution(spec, {Path("a"): TileSize(tile_um, tile_px)}, "mend it")
    assert not caplog.records


def test_conch_reads_256_px_and_enlarges_them_itself(caplog):
    assert tile_geometry(find_encoder("conch")) == (256, 128.0)
    require_resolution(find_encoder("conch"), {Path("a"): TileSize(128.0, 200)}, "mend it")
    (warning,) = caplog.messages
    assert "enlarges the tiles of a from 200 to 256 px" in warning


# ------------------------------------------------------------------------------------------------ as a user types it


@pytest.fixture
def folder(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "slides").symlink_to(cohort / "slides")
    shutil.copy(cohort / "labels.csv", tmp_path)
    shutil.copytree(cohort / "tiles", tmp_path / "tiles")
    for spec in (CROPPED, FINE, HALF):
        monkeypatch.setitem(table.ENCODERS, spec.name, spec)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_default_tiles_fit_morphology_without_a_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("extract", "--model", "morphology") == 0
    assert "um/px" not in capsys.readouterr().err


def test_tiles_of_another_step_of_magnification_are_warned_of_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("extract", "--model", "half", "--weights", "random:0") == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "um/px" in line]
    assert len(warned) == 1
    assert "half would see the tiles of tiles/" in warned[0]
    assert "at 1.6 um/px, and its authors used 0.8: a ratio of 2; `wsimil tile SLIDES --for half" in warned[0]


def test_tiles_beyond_that_are_refused_before_any_work_and_the_command_named_mends_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("extract", "--model", "morphology", "--model", "fine", "--weights", "fine=random:0")
    assert call(*words) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert (
        "a ratio of 4; make tiles that fit by `wsimil tile SLIDES --for fine --out tiles-fine` and "
        "`wsimil extract --model fine --tiles tiles-fine`, or add --allow-mpp-mismatch"
    ) in error
    assert not (folder / "feats").exists()
    slide = min((folder / "slides").iterdir())
    assert call("tile", slide, "--for", "fine", "--out", "tiles-fine") == 0
    attrs = store.read_attrs(folder / "tiles-fine" / f"{slide.stem}.h5")
    assert (attrs["tile_um"], attrs["tile_px"]) == (64.0, 64)
    capsys.readouterr()
    assert call("extract", "--model", "fine", "--weights", "random:0", "--tiles", "tiles-fine", "--batch", "64") == 0
    assert "um/px" not in capsys.readouterr().err


def test_mixed_tiles_are_judged_by_the_worst_and_only_those_of_the_shard(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted((folder / "tiles").glob("*.h5"))
    artifact = store.read(paths[1])
    store.write(paths[1], store.Artifact(artifact.arrays, artifact.attrs | {"tile_um": 900.0}, artifact.array_attrs))
    count = len(paths)
    assert call("extract", "--model", "morphology") == 1
    assert f"the tiles of tiles/{paths[1].name} at 4.02 um/px" in capsys.readouterr().err
    assert call("extract", "--model", "morphology", "--shard", f"1/{count}") == 0
    assert len(artifact_items(folder / "feats")) == 1


@pytest.mark.slow
def test_features_of_one_encoder_and_folders_of_several_do_not_mix(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = ("extract", "--model", "morphology", "--model", "timm:test_vit", "--weights", "timm:test_vit=random:0")
    assert call(*several) == 0
    printed = capsys.readouterr().out
    for name in ("morphology", "timm-test_vit"):
        assert f"8 done: see feats/{name}/summary.csv" in printed
    assert call("extract", "--model", "morphology") == 1
    assert "feats holds a folder per encoder, such as feats/morphology: give another --out" in capsys.readouterr().err
    assert call("train", "--epochs", "1", "--aggregator", "mean") == 1
    assert "feats holds features in a folder per encoder: name one of them, such as --bags feats/morphology" in (
        capsys.readouterr().err
    )
    assert call("train", "--bags", "feats/timm-test_vit", "--epochs", "1", "--aggregator", "mean") == 0
    assert call("predict", "--bags", "feats/timm-test_vit") == 0
    assert call("distances", "--bags", "feats/morphology") == 0
    capsys.readouterr()
    shutil.copytree(folder / "feats/morphology", folder / "alone")
    assert call(*several, "--out", "alone") == 1
    assert "alone holds the features of one encoder: give another --out" in capsys.readouterr().err
    for name in ("morphology", "timm-test_vit"):  # what is damaged hides nothing
        max((folder / "feats" / name).glob("*.h5")).write_bytes(b"torn")
    assert call("extract", "--model", "morphology") == 1
    assert "feats holds a folder per encoder, such as feats/morphology: give another --out" in capsys.readouterr().err


def test_damaged_tiles_fail_alone_whatever_the_others_resolution(folder: Path) -> None:
    path = min((folder / "tiles").glob("*.h5"))
    path.write_bytes(path.read_bytes()[:1000])
    assert call("extract", "--model", "morphology") == 1
    assert len(artifact_items(folder / "feats")) == len(artifact_items(folder / "tiles")) - 1


def test_a_run_is_refused_before_the_work_or_allowed_and_then_predicts_without_complaint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "tiles")
    words = ("run", "slides", "--model", "fine", "--weights", "random:0", "--aggregator", "mean")
    assert call(*words) == 1
    error = capsys.readouterr().err
    assert "make tiles that fit by `wsimil run slides --model fine --tile-px 64 --tile-um 64`" in error
    assert not (folder / "tiles").exists()
    assert call(*words, "--allow-mpp-mismatch") == 0
    assert capsys.readouterr().err.count("a ratio of 4") == 1
    slide = min((folder / "slides").iterdir())
    assert call("predict", slide) == 0
    assert "um/px" not in capsys.readouterr().err
    (row,) = read_predictions(folder / "predictions" / "predictions.csv")[0]
    recorded = {one.slide_id: one for one in read_predictions(folder / "model" / "predictions.csv")[0]}
    assert row.probabilities == pytest.approx(recorded[slide.stem].probabilities, abs=1e-5)
