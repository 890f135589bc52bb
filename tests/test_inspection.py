"""What a file is, whoever wrote it."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import peers
import pytest
import torch
from PIL import Image
from planted import plant, plant_cohort
from test_cli import call

from wsi_mil import inspection
from wsi_mil.errors import ArtifactCorrupt, ArtifactMissing, OptionError, SlideError
from wsi_mil.weights import save_tensors


def told(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """What ``--json`` prints; the lines without it must name the kind first."""
    assert call("inspect", path) == 0
    lines = capsys.readouterr().out
    assert call("inspect", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert lines.startswith(f"kind: {found['kind']}\n")
    return found


def test_a_slide_tells_its_levels_and_resolution(
    make_slide: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(make_slide("a.tif", (1024, 768), 0.5), capsys)
    assert found["kind"] == "slide"
    assert (found["width"], found["height"], found["mpp_source"]) == (1024, 768, "openslide")
    assert found["mpp_x"] == pytest.approx(0.5, rel=1e-3)
    levels = found["levels"]
    assert isinstance(levels, list)
    assert levels[0] == {"width": 1024, "height": 768, "downsample": 1.0}


def test_a_slide_without_resolution_is_told_all_the_same(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(shared / "data" / "wsi" / "boxes.tiff", capsys)
    assert (found["width"], found["height"], found["mpp_source"]) == (300, 250, "openslide")
    assert found["mpp_x"] == found["mpp_y"] == pytest.approx(25_400 / 72)
    assert "352.778 um/px" in str(found["problem"])


def test_a_slide_that_says_nothing_of_its_resolution_is_told_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    found = told(tmp_path / "a.png", capsys)
    assert (found["mpp_x"], found["mpp_y"], found["mpp_source"]) == (None, None, "unknown")
    assert "does not say its micrometres per pixel" in str(found["problem"])


def test_artifacts_of_ours_tell_what_made_them(
    tmp_path: Path, make_slide: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_slide("slides/a.tif", (1024, 768), 1.0, 300)
    assert call("tile", tmp_path / "slides", "--out", tmp_path / "tiles") == 0
    capsys.readouterr()
    found = told(tmp_path / "tiles" / "a.h5", capsys)
    assert found["kind"] == "wsimil tiles"
    assert found["params"].items() >= {"min_coverage": 0.5, "tile_px": 224, "tile_um": 256.0}.items()
    assert found["integrity"] == "checksum verified"
    assert isinstance(found["excluded"], dict)
    (tmp_path / "slides.csv").write_text("slide,min_coverage\na,0.4\n")
    assert call("tile", tmp_path / "slides", "--out", tmp_path / "own", "--slides-csv", tmp_path / "slides.csv") == 0
    capsys.readouterr()
    assert told(tmp_path / "own" / "a.h5", capsys)["settings"] == {"min_coverage": 0.4}
    plant(tmp_path / "stained", "a", positive=True, seed=0)
    with h5py.File(tmp_path / "stained" / "a.h5", "r+") as file:
        file.attrs["stain"] = json.dumps({"mean": [1.0, 0.5, 0.25]})
    assert told(tmp_path / "stained" / "a.h5", capsys)["stain"] == {"mean": [1.0, 0.5, 0.25]}
    plant(tmp_path / "feats", "a", positive=True, seed=0)
    found = told(tmp_path / "feats" / "a.h5", capsys)
    assert (found["kind"], found["dim"], found["encoder"]) == ("wsimil features", 6, "toy")
    with h5py.File(tmp_path / "feats" / "a.h5", "r+") as file:
        file["features"][0, 0] += 1
    assert str(told(tmp_path / "feats" / "a.h5", capsys)["integrity"]).startswith("damaged: ")


def test_a_checkpoint_tells_its_model_and_weights_are_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plant_cohort(tmp_path, 8)
    assert call("train", "--aggregator", "mean", "--epochs", 1) == 0
    capsys.readouterr()
    found = told(Path("model/checkpoint.safetensors"), capsys)
    assert (found["kind"], found["aggregator"], found["classes"]) == ("wsimil checkpoint", "mean", ["neg", "pos"])
    assert (found["encoder"], found["tile_um"], found["dim"]) == ("toy", 256.0, 6)
    assert found["fingerprint"]
    save_tensors(Path("w.safetensors"), {"x": torch.zeros(3)}, {})
    assert told(Path("w.safetensors"), capsys)["values"] == 3
    torch.save({"x": torch.zeros(4)}, "w.pt")
    found = told(Path("w.pt"), capsys)
    assert (found["kind"], found["values"]) == ("weights (torch)", 4)


def test_peers_files_tell_their_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, coords = peers.bag()
    path = peers.trident(tmp_path / "a.h5", features, coords)
    found = told(path, capsys)
    assert (found["kind"], found["tiles"], found["dim"], found["encoder"]) == ("TRIDENT features", 12, 6, "uni_v2")
    assert (found["mpp_x"], found["mpp_source"]) == (0.25, "approximate-magnification")
    assert found["tile_um"] == 128.0
    peers.trident(path, features, coords, level0_magnification="None")
    assert told(path, capsys)["tile_um"] is None
    peers.atlaspatch(path, {"uni": features, "conch": features}, coords, mpp=0.26)
    found = told(path, capsys)
    assert (found["kind"], found["encoder"], found["mpp_x"]) == ("AtlasPatch features", ["conch", "uni"], 0.26)
    peers.stamp(path, features, coords / 2)
    found = told(path, capsys)
    assert (found["kind"], found["coordinates"], found["tile_um"]) == ("STAMP features", "um", 256.0)
    peers.clam(path, features, coords)
    found = told(path, capsys)
    assert (found["kind"], found["mpp_source"], found["l0_tile"]) == ("CLAM features", "unknown", [512, 512])
    peers.clam_patches(path, coords)
    assert (told(path, capsys)["kind"], told(path, capsys)["patch_size"]) == ("CLAM coordinates", 256)
    peers.clam(path, features, coords[:, :1])
    assert told(path, capsys)["kind"] == "HDF5 file of another program"
    peers.clam(path, features[:1], coords[:1])
    assert "size of its tiles" in str(told(path, capsys)["problem"])
    tensor = peers.clam_pt(tmp_path / "pt_files" / "a.pt", features)
    assert "has no coordinates" in str(told(tensor, capsys)["problem"])
    peers.clam_patches(tmp_path / "patches" / "a.h5", coords)
    assert told(tensor, capsys)["tiles"] == 12


def test_what_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is a folder: name a file in it"):
        inspection.inspect(tmp_path)
    with pytest.raises(ArtifactMissing, match="does not exist"):
        inspection.inspect(tmp_path / "nowhere")
    (tmp_path / "a.h5").write_bytes(b"nothing")
    with pytest.raises(ArtifactCorrupt, match="copy it again"):
        inspection.inspect(tmp_path / "a.h5")
    (tmp_path / "a.txt").write_text("slide_id,label\n")
    with pytest.raises(SlideError, match=r"a\.txt"):
        inspection.inspect(tmp_path / "a.txt")
    for name, use in (("a.geojson", "--annotations DIR"), ("a.XML", "--regions DIR"), ("a.csv", "--slides-csv")):
        (tmp_path / name).write_text("{}")
        with pytest.raises(SlideError, match=f"is no slide and no file of features: if it .*{use}"):
            inspection.inspect(tmp_path / name)
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(SlideError):
        inspection.inspect(tmp_path / "a.npy")
    torch.save([1, 2], tmp_path / "a.pth")
    assert "a.pth" in inspection.inspect(tmp_path / "a.pth")["problem"]


def test_numbers_that_json_lacks_and_letters_that_move_the_cursor_do_no_harm(tmp_path: Path, capsys) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = [1.0]
        file.attrs["score"] = float("nan")
        file.attrs["name\x1b[31m"] = "a\nfake: line"
    found = told(tmp_path / "a.h5", capsys)
    assert found["attributes"]["score"] is None
    text = "\n".join(inspection.lines(found))
    assert "\x1b" not in text
    assert not any(line.startswith("fake:") for line in text.splitlines())
