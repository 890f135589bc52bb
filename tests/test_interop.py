"""Features of other programs: read, converted, refused where they cannot be, and ours read as they read them."""

import csv
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import peers
import pytest
import torch
from planted import plant
from test_cli import call

from wsi_mil import interop, store
from wsi_mil.bags import read_bag
from wsi_mil.checkpoint import Recipe, load
from wsi_mil.errors import ArtifactError, ArtifactStale, IncompatibleError, OptionError, TableError
from wsi_mil.interop import PeerOptions, import_bags, own_bags
from wsi_mil.predictions import read_predictions
from wsi_mil.runs import RunOptions
from wsi_mil.stage import Item

NOTHING = PeerOptions()


def convert(source: Path, **options: object) -> store.Artifact:
    """The artifact that one slide of a folder, or a file, becomes."""
    made = own_bags(source, PeerOptions(**options))  # ty: ignore[invalid-argument-type]
    assert made.items is not None
    return store.read(made.items[0].source)


def reason(source: Path, **options: object) -> str:
    """Why it cannot be converted."""
    with pytest.raises(ArtifactError) as caught:
        convert(source, **options)
    return str(caught.value)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="wsi_mil")

    def told() -> list[str]:
        messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        caplog.clear()
        return messages

    return told


def test_trident_is_converted_with_the_slides_mpp(tmp_path: Path) -> None:
    features, coords = peers.bag()
    peers.trident(tmp_path / "features_uni_v2" / "a.b.h5", features, coords)
    made = convert(tmp_path, mpp=0.23)
    np.testing.assert_array_equal(made.arrays["features"], features.astype(np.float16))
    np.testing.assert_array_equal(made.arrays["coords"], coords)
    assert made.attrs["slide_id"] == "a.b"
    assert (made.attrs["mpp_x"], made.attrs["mpp_source"]) == (0.23, "option")
    assert (made.attrs["tile_um"], made.attrs["tile_px"]) == (pytest.approx(512 * 0.23), 256)
    assert (made.attrs["encoder"], made.attrs["encoder_weights_sha256"]) == ("uni_v2", "unknown")
    assert made.attrs["level0_width"] == 24576
    path = tmp_path / "features_uni_v2-wsimil" / "a.b.h5"
    np.testing.assert_allclose(read_bag(path).coords_um.numpy(), (coords + 256) * 0.23, rtol=1e-6)


def test_without_mpp_trident_is_approximate_and_one_warning_says_so(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    for name in ("a", "b"):
        peers.trident(tmp_path / "t" / f"{name}.h5", *peers.bag())
    made = convert(tmp_path / "t")
    assert (made.attrs["mpp_x"], made.attrs["mpp_source"]) == (0.25, "approximate-magnification")
    (warning,) = warnings()
    assert "2 slides, such as a: about 0.25 um/px" in warning
    convert(tmp_path / "t")
    assert len(warnings()) == 1  # from the cache, and still said
    convert(tmp_path / "t", mpp=0.25)
    assert warnings() == []


def test_trident_of_any_age_is_read(tmp_path: Path) -> None:
    features, coords = peers.bag()
    old = peers.trident(tmp_path / "features_x" / "a.h5", features, coords, None, overlap=None, level0_width=None,
                        level0_height="None", patch_size_level0=None)  # fmt: skip
    made = convert(old)
    assert (made.attrs["l0_tile_width"], made.attrs["encoder"]) == (512, "x")
    assert "level0_width" not in made.attrs
    for shape in ((0, peers.DIM), (0,)):
        empty = peers.trident(tmp_path / "e" / "a.h5", np.zeros(shape, np.float32), coords[:0])
        made = convert(empty)
        assert (made.attrs["status"], made.attrs["reason"]) == ("empty", "TRIDENT found no tiles")


def test_the_slide_itself_tells_its_resolution(
    tmp_path: Path, make_slide: Callable[..., Path], warnings: Callable[[], list[str]]
) -> None:
    slide = make_slide("slides/deep/a.tif", (300, 300), 0.3)
    peers.trident(tmp_path / "t" / "a.h5", *peers.bag(step=64), level0_width=300, level0_height=300)
    made = convert(tmp_path / "t", slides=tmp_path / "slides")
    assert made.attrs["mpp_x"] == pytest.approx(0.3, rel=1e-3)
    assert made.attrs["mpp_source"] == "openslide"
    assert made.attrs["slide_path"] == str(slide)
    make_slide("slides/b/a.tif", (300, 300), 0.3)
    assert "a may be any of b/a, deep/a: give a table" in reason(tmp_path / "t", slides=tmp_path / "slides")


def test_bags_of_another_program_are_kept_beside_them_and_the_log_says_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="wsi_mil")
    peers.trident(tmp_path / "t" / "a.h5", *peers.bag())
    folder = own_bags(tmp_path / "t", PeerOptions(mpp=0.3)).folder
    assert folder == tmp_path / "t-wsimil"
    told = f"{tmp_path / 't'} holds features of another program, which are kept as our own in {folder}"
    assert caplog.messages.count(told) == 1


def test_a_table_tells_resolutions_before_the_option_does(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    for name in ("a", "b", "c"):
        peers.trident(tmp_path / "t" / f"{name}.h5", *peers.bag())
    table = tmp_path / "slides.csv"
    table.write_text("slide,mpp\nx/gone.svs,0.1\na.svs,0.2\nb,\n")
    made = own_bags(tmp_path / "t", PeerOptions(table=table, mpp=0.3))
    assert [store.read_attrs(item.source)["mpp_x"] for item in made.items or []] == [0.2, 0.3, 0.3]
    assert [f"{table}: 1 of 3 rows name no bag and say nothing: x/gone.svs"] == warnings()[:1]
    table.write_text("slide,mpp\nA.svs,0.2\n")
    own_bags(tmp_path / "t", PeerOptions(table=table, mpp=0.3))
    assert f"{table}: 1 of 1 rows name no bag and say nothing: A.svs (did you mean a?)" in warnings()
    table.write_text("slide,mpp\na,fine\n")
    with pytest.raises(TableError, match="is no number"):
        own_bags(tmp_path / "t", PeerOptions(table=table))


def test_tiles_of_another_size_than_their_magnification_promises_are_told(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    peers.trident(tmp_path / "t" / "a.h5", *peers.bag())
    convert(tmp_path / "t", mpp=0.5)
    assert warnings() == ["a: its tiles are 256 um wide, not 128 as their magnification says"]


def test_clam_takes_the_size_of_tiles_from_its_patches(tmp_path: Path) -> None:
    features, coords = peers.bag(step=1024)
    peers.clam(tmp_path / "feats" / "h5_files" / "a.h5", features, coords)
    peers.clam_pt(tmp_path / "feats" / "pt_files" / "a.pt", features)
    peers.clam_patches(tmp_path / "patches" / "a.h5", coords, 256, 1, 4.0)
    for source in (tmp_path / "feats", tmp_path / "feats" / "pt_files", tmp_path / "feats" / "h5_files" / "a.h5"):
        made = convert(source, mpp=0.25, encoder="resnet50")
        assert (made.attrs["l0_tile_width"], made.attrs["tile_um"], made.attrs["tile_px"]) == (1024, 256.0, 256)
        assert made.attrs["encoder"] == "resnet50"
        np.testing.assert_array_equal(made.arrays["features"], features.astype(np.float16))
        assert "guessed" not in made.attrs
    peers.clam_patches(tmp_path / "patches" / "a.h5", coords + 1, 256, 1, 4.0)
    assert "has other tiles than" in reason(tmp_path / "feats", mpp=0.25)


def test_clam_without_patches_is_guessed_by_the_usual_step(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    features, _ = peers.bag(tiles=9)
    one = np.array([[x, y] for x in (0, 256) for y in (0, 256, 768)])
    other = np.array([[1037, 19], [1037, 275], [1293, 19]])  # a contour of its own, on a grid of its own
    peers.clam(tmp_path / "h5_files" / "a.h5", features, np.concatenate([one, other]))
    assert convert(tmp_path, mpp=0.5).attrs["l0_tile_width"] == 256
    assert warnings() == [
        "guessed for 1 slides: the size of tiles, by the usual step between neighbours",
        "1 slides, such as a, do not say their encoder: name it by --encoder",
    ]
    assert "give --mpp for all slides" in reason(tmp_path)
    peers.clam(tmp_path / "h5_files" / "a.h5", features[:1], one[:1])
    assert "does not tell the size of its tiles: put CLAM's patches/ beside" in reason(tmp_path, mpp=0.5)


def test_clams_tensors_find_their_coordinates_or_are_refused(tmp_path: Path) -> None:
    features, coords = peers.bag(step=256)
    peers.clam_pt(tmp_path / "f" / "pt_files" / "a.pt", features)
    assert "has no coordinates: put CLAM's h5_files/ or patches/ beside pt_files/" in reason(tmp_path / "f", mpp=0.5)
    peers.clam_patches(tmp_path / "f" / "patches" / "a.h5", coords)
    made = convert(tmp_path / "f", mpp=0.5)
    np.testing.assert_array_equal(made.arrays["coords"], coords)
    assert made.attrs["level0_height"] == 20480
    peers.clam_pt(tmp_path / "f" / "pt_files" / "a.pt", features[1:])
    assert "features of 11 tiles and coordinates of 12" in reason(tmp_path / "f", mpp=0.5)
    torch.save({"features": torch.zeros(2, 2)}, tmp_path / "f" / "pt_files" / "a.pt")
    assert "holds a dict, not one tensor" in reason(tmp_path / "f", mpp=0.5)
    torch.save(torch.zeros(3), tmp_path / "f" / "pt_files" / "a.pt")
    assert "not a row of features per tile" in reason(tmp_path / "f", mpp=0.5)
    (tmp_path / "f" / "pt_files" / "a.pt").write_bytes(b"<html>")
    assert "is a web page" in reason(tmp_path / "f", mpp=0.5)


def test_stamp_is_in_um_whatever_the_slides_pixels(tmp_path: Path) -> None:
    features, coords_um = peers.bag(step=256.0)
    path = peers.stamp(tmp_path / "uni2-ab12cd34" / "deep" / "a.h5", features, coords_um)
    for options in ({}, {"mpp": 0.25}):
        made = convert(path.parents[1], **options)
        assert (made.attrs["slide_id"], made.attrs["encoder"]) == ("deep/a", "uni2")
        assert (made.attrs["tile_um"], made.attrs["tile_px"]) == (256.0, 224)
        found = read_bag(tmp_path / "uni2-ab12cd34-wsimil" / "deep" / "a.h5").coords_um.numpy()
        np.testing.assert_allclose(found, coords_um + 128, atol=0.2)
    assert made.attrs["l0_tile_width"] == 1024
    assert convert(path).attrs["mpp_source"] == "tiles"


def test_stamp_of_any_age_is_read_or_refused(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    features, coords_um = peers.bag(step=256.0)
    none = dict.fromkeys(("stamp_version", "extractor", "unit", "tile_size_um", "tile_size_px", "feat_type"))
    path = peers.stamp(tmp_path / "a" / "s.h5", features, coords_um, **none | {"unit": "um", "tile_size": 256})
    assert convert(path).attrs["tile_um"] == 256.0
    peers.stamp(path, features, np.column_stack((coords_um / 256 * 224, np.zeros(len(coords_um)))), **none)  # a level
    made = convert(path)
    np.testing.assert_allclose(made.arrays["coords"] * made.attrs["mpp_x"], coords_um, atol=1e-3)
    assert any("the unit of coordinates, by their step of 224" in warning for warning in warnings())
    peers.stamp(path, features, coords_um / 2, **none)
    assert "does not say the size of its tiles in um" in reason(path)
    peers.stamp(path, features, coords_um, feat_type="slide")
    assert "one vector of STAMP for the whole slide" in reason(path)
    with h5py.File(path, "w") as file:
        file["feats"] = features
    assert "has no coordinates" in reason(path)


def test_atlaspatch_is_read_by_the_name_of_its_encoder(tmp_path: Path) -> None:
    features, coords = peers.bag()
    both = {"uni_v2": features, "virchow2": features + 1, "__tmp_x": features[:3]}
    path = peers.atlaspatch(tmp_path / "patches" / "a.h5", both, coords, patch_size_level0=None)
    assert "holds the features of uni_v2, virchow2: name one of them by --encoder" in reason(tmp_path)
    made = convert(tmp_path, encoder="virchow2")
    np.testing.assert_array_equal(made.arrays["features"], (features + 1).astype(np.float16))
    np.testing.assert_array_equal(made.arrays["coords"], coords)
    assert (made.attrs["mpp_source"], made.attrs["l0_tile_width"]) == ("approximate-magnification", 512)
    assert made.attrs["slide_path"] == "/slides/a.svs"
    peers.atlaspatch(path, {"uni_v2": features}, coords, mpp=0.2631)
    assert convert(tmp_path).attrs["mpp_x"] == 0.2631
    peers.atlaspatch(path, {"uni_v2": features}, coords, mpp=0.5)
    assert "says 0.5 um/px and a magnification of 40, which do not go together" in reason(tmp_path)


def test_what_holds_no_features_of_tiles_is_refused_by_name(tmp_path: Path) -> None:
    features, coords = peers.bag()
    path = peers.trident(tmp_path / "x" / "a.h5", features[0], coords)
    assert "one vector of TRIDENT for the whole slide" in reason(path)
    assert "coordinates of CLAM and no features" in reason(peers.clam_patches(path, coords))
    peers.atlaspatch(path, {}, coords)
    assert "coordinates of AtlasPatch and no features" in reason(path)
    with h5py.File(path, "w") as file:
        file["imgs"], file["coords"] = np.zeros((2, 4, 4, 3), np.uint8), coords[:2]
    assert "is an image bag of an old CLAM" in reason(path)
    with h5py.File(path, "w") as file:
        file["data"] = features
    assert "is no file of TRIDENT, CLAM, STAMP or AtlasPatch" in reason(path)
    peers.trident(path, features[:5], coords)
    assert "features of 5 tiles and coordinates of 12: put the files" in reason(path)
    peers.trident(path, features, coords, level0_magnification="None", patch_size_level0=None)
    assert "does not say the size of its tiles" in reason(path)
    peers.trident(path, features, coords, level0_magnification="None")
    assert "give --mpp for all slides" in reason(path)


@pytest.mark.parametrize(("value", "words"), [(np.nan, "no number"), (np.inf, "no number"), (1e5, "beyond float16")])
def test_features_that_float16_cannot_hold_fail_their_slide_alone(value: float, words: str, tmp_path: Path) -> None:
    features, coords = peers.bag()
    peers.trident(tmp_path / "t" / "good.h5", features, coords)
    features[5, 2] = value
    peers.trident(tmp_path / "t" / "bad.h5", features, coords)
    made = own_bags(tmp_path / "t", NOTHING)
    assert [item.slide_id for item in made.items or []] == ["good"]
    assert words in str(made.failed["bad"])
    assert "the tile at (512, 512)" in str(made.failed["bad"])


def test_the_cache_follows_the_files(tmp_path: Path) -> None:
    features, coords = peers.bag()
    for name in ("a", "b"):
        peers.trident(tmp_path / "t" / f"{name}.h5", features, coords)
    own_bags(tmp_path / "t", NOTHING)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "t-wsimil").glob("*.h5")}
    own_bags(tmp_path / "t", NOTHING)
    assert first == {path: path.stat().st_mtime_ns for path in (tmp_path / "t-wsimil").glob("*.h5")}
    (tmp_path / "t" / "b.h5").unlink()
    peers.trident(tmp_path / "t" / "a.h5", features + 1, coords)
    made = own_bags(tmp_path / "t", NOTHING)
    assert made.items == [Item("a", tmp_path / "t-wsimil" / "a.h5")]
    assert sorted(path.name for path in made.folder.glob("*.h5")) == ["a.h5"]
    np.testing.assert_array_equal(
        store.read(made.items[0].source).arrays["features"], (features + 1).astype(np.float16)
    )


def test_folders_of_ours_go_through_untouched(tmp_path: Path) -> None:
    plant(tmp_path / "feats", "a", positive=True, seed=0)
    assert own_bags(tmp_path / "feats", NOTHING) == interop.OwnBags(tmp_path / "feats")
    assert own_bags(tmp_path / "nowhere", NOTHING).items is None
    assert not (tmp_path / "feats-wsimil").exists()
    with pytest.raises(OptionError, match=r"--mpp: .*feats holds features of wsimil, which say it themselves"):
        own_bags(tmp_path / "feats", PeerOptions(mpp=0.5))
    slides = PeerOptions(slides=tmp_path)
    with pytest.raises(OptionError, match="--slides: "):
        own_bags(tmp_path / "feats", slides)
    assert own_bags(tmp_path / "feats", slides, pictures=True) == interop.OwnBags(tmp_path / "feats")
    with pytest.raises(OptionError, match="--encoder: "):
        own_bags(tmp_path / "feats" / "a.h5", PeerOptions(encoder="uni"))
    with pytest.raises(OptionError, match="--mpp 50: give um per level-0 px"):
        PeerOptions(mpp=50.0)


def test_magnifications_are_those_that_a_peer_was_told_or_nominal(tmp_path: Path) -> None:
    features, coords = peers.bag(step=256)
    for path, power, target in (
        (peers.trident(tmp_path / "t" / "a.h5", features, coords, level0_magnification=41.7), 42, 20.0),
        (peers.trident(tmp_path / "u" / "a.h5", features, coords, target_magnification=None), 40, 20),
        (peers.clam(tmp_path / "h5_files" / "a.h5", features, coords), 40, 40),
    ):
        attrs = convert(path, mpp=0.23).array_attrs["coords"]
        assert (attrs["level0_magnification"], attrs["target_magnification"]) == (power, target)


def test_several_encoders_of_trident_are_not_mixed(tmp_path: Path) -> None:
    job = tmp_path / "job" / "20x_256px_0px_overlap"
    peers.trident(job / "features_uni_v2" / "a.h5", *peers.bag())
    peers.clam_patches(job / "patches" / "a_patches.h5", peers.bag()[1])
    assert convert(tmp_path / "job").attrs["encoder"] == "uni_v2"
    peers.trident(job / "features_conch" / "a.h5", *peers.bag())
    with pytest.raises(ArtifactError, match=r"several encoders: name one of them, such as .*features_conch"):
        own_bags(job, NOTHING)


def test_import_writes_artifacts_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers.trident(tmp_path / "t" / "a.h5", *peers.bag())
    (tmp_path / "t" / "torn.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    out = tmp_path / "feats"
    assert call("import", tmp_path / "t", "--out", out, "--slide-mpp", 0.25) == 1
    printed = capsys.readouterr()
    assert "1 done, 1 failed" in printed.out
    assert "failed: torn: " in printed.err
    with (out / "summary.csv").open() as file:
        assert {row["slide_id"]: row["status"] for row in csv.DictReader(file)} == {"a": "done", "torn": "failed"}
    assert Recipe.of(read_bag(out / "a.h5").attrs) == Recipe("uni_v2", "unknown", 128.0, 256)
    with pytest.raises(ArtifactStale, match="was made otherwise"):
        import_bags(tmp_path / "t", out, NOTHING, RunOptions())
    for source, message in ((out, "lies in"), (tmp_path / "nowhere", "does not exist")):
        with pytest.raises((OptionError, ArtifactError), match=message):
            import_bags(source, out, NOTHING, RunOptions())
    with pytest.raises(ArtifactError, match="artifacts of wsimil already"):
        import_bags(out, tmp_path / "again", NOTHING, RunOptions())


def _cohort(folder: Path, labels: Path, **attrs: object) -> None:
    rows = ["slide_id,label"]
    for index in range(12):
        features, coords = peers.bag(index, positive=bool(index % 2))
        peers.trident(folder / f"s{index:02d}.h5", features, coords, **attrs)
        rows.append(f"s{index:02d},{'pos' if index % 2 else 'neg'}")
    labels.write_text("\n".join(rows) + "\n")


def test_a_model_of_peers_bags_predicts_from_peers_bags_and_refuses_raw_slides(
    tmp_path: Path, make_slide: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, features = tmp_path / "features_uni_v2", peers.bag()[0]
    _cohort(folder, Path("labels.csv"))
    peers.trident(folder / "s00.h5", features * np.inf, peers.bag()[1])
    assert call("distances", "--bags", folder, "--mpp", 0.25) == 1
    assert "failed: s00" in capsys.readouterr().err
    plant(Path("tiles"), "s00", positive=False, seed=0, stage="tile")  # tiles of ours say nothing of their features
    assert call("train", "--bags", folder, "--mpp", 0.25, "--aggregator", "mean", "--epochs", 1) == 0
    assert "s00: labelled, but left out" in capsys.readouterr().err
    assert load(Path("model/checkpoint.safetensors")).recipe.is_foreign
    # other bags of the same recipe, by another program and from another scanner; and others that are not
    peers.atlaspatch(Path("new/patches/good.h5"), {"uni_v2": features}, peers.bag()[1], mpp=0.2734)
    peers.atlaspatch(Path("new/patches/other.h5"), {"virchow": features}, peers.bag()[1], mpp=0.25)
    peers.atlaspatch(Path("new/patches/wide.h5"), {"uni_v2": features}, peers.bag()[1], patch_size_level0=1024)
    peers.atlaspatch(Path("new/patches/thin.h5"), {"uni_v2": features[:, :3]}, peers.bag()[1])
    peers.atlaspatch(Path("new/patches/void.h5"), {"uni_v2": features[:0]}, peers.bag()[1][:0])
    (tmp_path / "new" / "patches" / "torn.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert call("predict", "--bags", "new") == 1
    rows = {row.slide_id: row for row in read_predictions(Path("predictions/predictions.csv"))[0]}
    said = {slide_id: (row.status, row.error) for slide_id, row in rows.items()}
    assert said["good"] == ("done", "")
    assert said["void"] == ("empty", "AtlasPatch found no tiles")
    assert "encoder is virchow and not uni_v2" in said["other"][1]
    assert "tile_um is 256.0 and not 128.0" in said["wide"][1]
    assert "has 3 features per tile, the model was trained on 6" in said["thin"][1]
    assert "torn.h5 is damaged" in said["torn"][1]
    capsys.readouterr()
    assert call("predict", make_slide("slide.tif", (300, 300), 1.0)) == 1
    assert "was trained on features of uni_v2 that another program made: nobody knows its" in capsys.readouterr().err
    assert call("predict", "--bags", folder / "s01.h5", "--mpp", 0.25) == 0


def test_bags_of_two_magnifications_are_not_trained_on_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    _cohort(tmp_path / "t", labels)
    peers.trident(tmp_path / "t" / "s03.h5", *peers.bag(), target_magnification=30.0)
    assert call("train", "--bags", tmp_path / "t", "--labels", labels, "--out", tmp_path / "model") == 1
    assert '"target_magnification": 30.0' in capsys.readouterr().err
    ours, near = Recipe("u", "unknown", 128.0, 256), Recipe("u", "unknown", 113.0, 256)
    ours.require(near, "a")
    with pytest.raises(IncompatibleError, match=r"tile_um is 256.0 and not 128.0"):
        ours.require(Recipe("u", "unknown", 256.0, 256), "a")
    with pytest.raises(IncompatibleError, match=r"tile_um is 113.0 and not 128.0"):
        Recipe("u", "0" * 64, 128.0, 256).require(Recipe("u", "0" * 64, 113.0, 256), "a")


# --- ours, as others read it


@pytest.fixture
def feats(tmp_path: Path) -> Path:
    """A folder of our features, with what the tile stage puts on ``coords``."""
    peers.trident(tmp_path / "t" / "a.h5", *peers.bag())
    import_bags(tmp_path / "t", tmp_path / "feats", PeerOptions(mpp=0.25), RunOptions())
    return tmp_path / "feats"


def test_tridents_readers_find_what_they_look_for(feats: Path) -> None:
    features, coords = peers.bag()
    with h5py.File(feats / "a.h5", "r") as file:
        np.testing.assert_array_equal(file["features"][:], features.astype(np.float16))
        np.testing.assert_array_equal(file["coords"][:], coords)
        attrs = dict(file["coords"].attrs)
        assert int(attrs["patch_size_level0"]) == 512
        assert int(attrs["patch_size"]) == 256
        assert attrs["level0_magnification"] // attrs["target_magnification"] == 2
        assert {"overlap", "name", "savetodir", "level0_width", "level0_height"} <= attrs.keys()
        assert file["features"].attrs["encoder"] == "uni_v2"


def test_clams_reader_finds_what_it_looks_for(feats: Path) -> None:
    with h5py.File(feats / "a.h5", "r") as file:
        features, coords = torch.from_numpy(file["features"][:]), file["coords"][:]
    assert features.shape == (12, peers.DIM)
    assert coords.shape == (12, 2)


def test_torchmils_readers_find_what_they_look_for(feats: Path) -> None:
    with h5py.File(feats / "a.h5", "r") as file:  # ProcessedMILDataset, file_ext ".h5"
        read = {key: file[key][:] for key in ("features", "coords")}
    assert read["features"].shape == (12, peers.DIM)
    grid = (read["coords"] / 256 - (read["coords"] / 256).min(axis=0)).astype(int)  # TridentWSIDataset, patch_size 256
    assert len(np.unique(grid, axis=0)) == 12


def _as_stamp_reads(path: Path) -> tuple[torch.Tensor, np.ndarray, float]:
    """Features, coordinates in um and side of a tile in um, as STAMP's loader takes them."""
    with h5py.File(path, "r") as file:
        assert file.attrs.get("feat_type") == "tile"
        assert tuple(map(int, file.attrs["stamp_version"].split("."))) <= (2, 0, 0)
        feats, coords = torch.from_numpy(file["feats"][:]), file["coords"][:]
        if (side := file.attrs.get("tile_size")) and file.attrs.get("unit") == "um":
            return feats, coords, float(side)
        return feats, coords, float(file.attrs["tile_size_um"])


def test_stamp_reads_what_is_exported_for_it_and_so_do_we(feats: Path, tmp_path: Path) -> None:
    out = tmp_path / "stamp"
    assert call("export", "--format", "stamp", "--bags", feats, "--out", out) == 0
    features, coords = peers.bag()
    read, coords_um, side = _as_stamp_reads(out / "a.h5")
    np.testing.assert_array_equal(read.numpy(), features.astype(np.float16))
    assert (read.dtype, coords_um.dtype, side) == (torch.float16, np.float32, 128.0)
    np.testing.assert_allclose(coords_um, coords * 0.25)
    back = convert(out, mpp=0.25)
    np.testing.assert_array_equal(back.arrays["coords"], coords)
    assert back.attrs["encoder"] == "uni_v2"
    assert call("export", "--format", "csv", "--bags", feats) == 2
    assert call("export", "--format", "stamp", "--bags", tmp_path / "nowhere") == 1


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"encoder": "morphology"}, "a of uni_v2 and b of morphology"),
        ({"encoder_weights_sha256": "0123456789abcdef"}, "a of uni_v2 (unknown) and b of uni_v2 (0123456789ab)"),
    ],
)
def test_features_of_several_encoders_are_not_exported_together(
    changed: dict[str, str], named: str, feats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = store.read(feats / "a.h5")
    store.write(feats / "b.h5", dataclasses.replace(artifact, attrs=artifact.attrs | changed))
    assert call("export", "--format", "stamp", "--bags", feats, "--out", tmp_path / "stamp") == 1
    assert f"several encoders, such as {named}: name a folder" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "stamp").exists()


def test_empty_slides_are_exported_too(tmp_path: Path) -> None:
    plant(tmp_path / "feats", "void", positive=False, seed=0, tiles=0)
    assert call("export", "--format", "stamp", "--bags", tmp_path / "feats", "--out", tmp_path / "out") == 0
    assert _as_stamp_reads(tmp_path / "out" / "void.h5")[0].shape == (0, peers.DIM)


# --- samples of the real programs


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("trident_features", "TRIDENT features"),
        ("trident_patches", "TRIDENT coordinates"),
        ("trident_patches_api", "TRIDENT coordinates"),
        ("trident_patches_empty", "TRIDENT coordinates"),
        ("trident_slide_features", "TRIDENT slide features"),
        ("clam_features", "CLAM features"),
        ("clam_patches", "CLAM coordinates"),
        ("stamp_features", "STAMP features"),
    ],
)
def test_samples_of_the_programs_are_told_apart(name: str, kind: str, shared: Path) -> None:
    assert " ".join(interop.kind_of(store.survey(shared / "data" / "peer_h5" / f"{name}.h5"))) == kind


def test_samples_of_the_programs_are_converted(shared: Path, tmp_path: Path) -> None:
    samples = shared / "data" / "peer_h5"
    report = import_bags(samples, tmp_path / "feats", PeerOptions(mpp=0.25), RunOptions())
    assert sorted(report.done) == ["clam_features", "stamp_features", "trident_features"]
    for name in sorted(report.done):
        bag = read_bag(tmp_path / "feats" / f"{name}.h5")
        with h5py.File(samples / f"{name}.h5") as file:
            um_per_unit = 1.0 if name.startswith("stamp") else 0.25
            whole = file["coords"][:] * um_per_unit + bag.attrs["tile_um"] / 2
            np.testing.assert_allclose(bag.coords_um.numpy(), whole, atol=0.2)
            key = "feats" if name.startswith("stamp") else "features"
            np.testing.assert_array_equal(bag.features.numpy(), file[key][:].astype(np.float16).astype(np.float32))
    assert json.loads(bag.attrs["tile_params"])["target_magnification"] == 20.0
