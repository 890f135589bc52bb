"""What is taken over from other programs is of the right slide, as exact as it says, and never an older version."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import peers
import pytest
from test_cli import call
from test_interop import NOTHING, convert, reason, warnings  # noqa: F401 (a fixture)

from wsi_mil import inspection, store
from wsi_mil.errors import OptionError
from wsi_mil.interop import PeerOptions, import_bags, own_bags, read_peer
from wsi_mil.runs import RunOptions
from wsi_mil.slides import slide_fingerprint


def edit(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Change a file in place, keeping its time."""
    times = path.stat()
    with h5py.File(path, "r+") as file:
        change(file)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def edit_unseen(path: Path, change: Callable[[int], None], tiles: int = 60_000) -> int:
    """Change a row that samples of the content do not see, by trial; return which."""
    before, whole = slide_fingerprint(path), path.read_bytes()
    for row in range(tiles // 3, tiles, tiles // 60):
        change(row)
        if slide_fingerprint(path) == before:
            return row
        path.write_bytes(whole)
    raise AssertionError("samples see every row: make the file larger")


@pytest.mark.parametrize("name", ["features", "coords"])
def test_an_edit_in_place_is_never_missed(name: str, tmp_path: Path) -> None:
    features, coords = peers.bag(tiles=60_000)
    path = peers.trident(tmp_path / "t" / "a.h5", features, coords, level0_width=None, level0_height=None)
    convert(tmp_path / "t")

    def change(row: int) -> None:
        edit(path, lambda file: file[name].__setitem__(row, 7))

    row = edit_unseen(path, change)
    found = convert(tmp_path / "t").arrays[name]
    assert (found == 7).all(axis=1).nonzero()[0].tolist() == [row]
    edit(path, lambda file: file["coords"].attrs.modify("patch_size_level0", 520.0))
    assert convert(tmp_path / "t").attrs["l0_tile_width"] == 520


def test_an_edit_of_clams_tensor_or_patches_is_never_missed(tmp_path: Path) -> None:
    narrow, coords = peers.bag(tiles=6000, step=256)  # each is a chunk of the patches, and takes long
    features = np.tile(narrow, 10)
    path = peers.clam_pt(tmp_path / "pt_files" / "a.pt", features)
    patches = peers.clam_patches(tmp_path / "patches" / "a.h5", coords, level=1)  # level 1: of a slide of unknown size
    convert(tmp_path, mpp=0.5)

    start = path.read_bytes().index(features.tobytes())

    def change(row: int) -> None:
        with path.open("r+b") as file:
            file.seek(start + row * features[0].nbytes)
            file.write(np.full_like(features[row], 7).tobytes())

    row = edit_unseen(path, change, tiles=6000)
    assert (convert(tmp_path, mpp=0.5).arrays["features"][row] == 7).all()
    edit(patches, lambda file: file["coords"].attrs.modify("patch_size", 128))
    assert convert(tmp_path, mpp=0.5).attrs["tile_px"] == 128


def test_features_of_another_encoder_make_nothing_stale(tmp_path: Path) -> None:
    features, coords = peers.bag()
    path = peers.atlaspatch(tmp_path / "t" / "a.h5", {"uni": features}, coords)
    import_bags(tmp_path / "t", tmp_path / "feats", PeerOptions(encoder="uni"), RunOptions())
    edit(path, lambda file: file.create_dataset("features/conch", data=features + 1))
    report = import_bags(tmp_path / "t", tmp_path / "feats", PeerOptions(encoder="uni"), RunOptions())
    assert report.skipped == ["a"]


def test_what_was_made_before_does_not_stand_in_for_what_fails_now(tmp_path: Path) -> None:
    for name in ("a", "b"):
        peers.trident(tmp_path / "t" / f"{name}.h5", *peers.bag())
    own_bags(tmp_path / "t", NOTHING)
    (tmp_path / "t" / "b.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    made = own_bags(tmp_path / "t", NOTHING)
    assert list(made.failed) == ["b"]
    assert [path.name for path in made.folder.glob("*.h5")] == ["a.h5"]  # `train` reads the folder


def test_both_folders_of_clam_count(tmp_path: Path) -> None:
    of_a, of_b = peers.bag(0, step=256), peers.bag(1, step=256)
    peers.clam_pt(tmp_path / "pt_files" / "a.pt", of_a[0] + 1)
    peers.clam_pt(tmp_path / "pt_files" / "b.pt", of_b[0])
    for name in ("a", "b"):
        peers.clam_patches(tmp_path / "patches" / f"{name}.h5", of_a[1])
    (tmp_path / "h5_files").mkdir()
    made = own_bags(tmp_path, PeerOptions(mpp=0.5))
    assert [item.slide_id for item in made.items or []] == ["a", "b"]
    peers.clam(tmp_path / "h5_files" / "a.h5", *of_a)
    made = own_bags(tmp_path, PeerOptions(mpp=0.5))
    assert [item.slide_id for item in made.items or []] == ["a", "b"]
    found = [store.read(item.source).arrays["features"] for item in made.items or []]
    np.testing.assert_array_equal(found, np.stack([of_a[0], of_b[0]]).astype(np.float16))  # of a, the .h5


def test_a_clam_slide_without_tiles_is_empty(tmp_path: Path) -> None:
    features, coords = peers.bag()
    for path in (peers.clam(tmp_path / "h5_files" / "a.h5", features[:0], coords[:0]),
                 peers.clam_pt(tmp_path / "x" / "pt_files" / "a.pt", features[:0])):  # fmt: skip
        made = convert(path, mpp=0.5)
        assert (made.attrs["status"], made.attrs["reason"]) == ("empty", "CLAM found no tiles")
        assert made.arrays["coords"].shape == (0, 2)


@pytest.mark.parametrize("mpp", [0.301, 0.599])
def test_um_per_px_may_lie_anywhere_in_the_range_of_a_magnification(mpp: float, tmp_path: Path) -> None:
    features, coords = peers.bag()
    said = {"level0_magnification": 20, "patch_size_level0": 256}
    peers.atlaspatch(tmp_path / "t" / "a.h5", {"uni": features}, coords, mpp=mpp, **said)
    assert convert(tmp_path / "t").attrs["mpp_x"] == mpp
    peers.atlaspatch(tmp_path / "t" / "a.h5", {"uni": features}, coords, mpp=0.25, **said)
    assert "says 0.25 um/px and a magnification of 20, which do not go together" in reason(tmp_path / "t")


def test_an_encoder_that_the_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    features, coords = peers.bag()
    peers.atlaspatch(tmp_path / "t" / "a.h5", {"uni_v2": features}, coords)
    assert "holds the features of uni_v2, not of uni_v3: name one" in reason(tmp_path / "t", encoder="uni_v3")


def test_stamp_without_um_per_px_tells_nothing_of_level_0(tmp_path: Path) -> None:
    path = peers.stamp(tmp_path / "t" / "a.h5", *peers.bag(step=256.0))
    invented = {"level0_magnification", "patch_size_level0"}
    assert not invented & convert(path).array_attrs["coords"].keys()
    assert invented <= convert(path, mpp=0.25).array_attrs["coords"].keys()


def exported(tmp_path: Path, **options: object) -> Path:
    """TRIDENT's features without um/px, or with that of the options, imported and exported for STAMP."""
    peers.trident(tmp_path / "t" / "a.h5", *peers.bag())
    peers.trident(tmp_path / "t" / "b.h5", *peers.bag())
    import_bags(tmp_path / "t", tmp_path / "feats", PeerOptions(**options), RunOptions())  # ty: ignore[invalid-argument-type]
    assert call("export", "--format", "stamp", "--bags", tmp_path / "feats", "--out", tmp_path / "stamp") == 0
    return tmp_path / "stamp"


def test_approximate_stays_approximate_by_way_of_stamp(
    tmp_path: Path,
    warnings: Callable[[], list[str]],  # noqa: F811
) -> None:
    out = exported(tmp_path)
    warnings()
    back = convert(out)
    assert (back.attrs["mpp_x"], back.attrs["mpp_y"]) == (0.25, 0.25)
    assert back.attrs["mpp_source"] == inspection.inspect(out / "a.h5")["mpp_source"] == "approximate-magnification"
    (warning,) = warnings()
    assert "2 slides, such as a: about 0.25 um/px" in warning
    np.testing.assert_array_equal(back.arrays["coords"], peers.bag()[1])
    assert call("distances", "--bags", out, "--out", tmp_path / "distances") == 0
    assert store.read_attrs(tmp_path / "distances" / "a.h5")["mpp_source"] == "approximate-magnification"
    assert convert(out, mpp=0.23).attrs["mpp_source"] == "option"


def test_what_was_guessed_and_told_is_kept_by_way_of_stamp(tmp_path: Path) -> None:
    assert convert(exported(tmp_path, mpp=0.23)).attrs["mpp_source"] == "option"
    peers.clam(tmp_path / "c" / "a.h5", *peers.bag())
    import_bags(tmp_path / "c", tmp_path / "f", PeerOptions(mpp=0.5), RunOptions())
    assert call("export", "--format", "stamp", "--bags", tmp_path / "f", "--out", tmp_path / "s") == 0
    assert read_peer(tmp_path / "s" / "a.h5").guessed == "the size of tiles, by the usual step between neighbours"


# --- the slide beside the bag


def test_a_slide_that_tells_nothing_leaves_it_to_the_bag(tmp_path: Path, shared: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / "a.tiff").symlink_to(shared / "data" / "wsi" / "boxes.tiff")  # 300 x 250 px, of no known size
    features, coords = peers.bag(tiles=4, step=64)
    path = peers.stamp(tmp_path / "s" / "a.h5", features, coords)
    assert convert(path, slides=slides).attrs["mpp_source"] == "tiles"
    size = {"level0_width": 300, "level0_height": 250}
    path = peers.atlaspatch(tmp_path / "p" / "a.h5", {"uni": features}, coords, mpp=0.26, **size)
    made = convert(path, slides=slides)
    assert (made.attrs["mpp_x"], made.attrs["mpp_source"]) == (0.26, "atlaspatch")
    assert made.attrs["slide_path"] == str(slides / "a.tiff")
    path = peers.trident(tmp_path / "t" / "a.h5", features, coords, level0_magnification="None", **size)
    assert "a.tiff does not tell it" in reason(path, slides=slides)
    assert "does not tell it" not in reason(path)


def test_the_namesake_of_a_slide_is_refused(tmp_path: Path, make_slide: Callable[..., Path]) -> None:
    make_slide("slides/a.tif", (300, 200), 0.5)
    features, coords = peers.bag(tiles=4, step=64)
    for size, options in (((300, 201), {}), ((301, 200), {"mpp": 0.5})):
        path = peers.trident(tmp_path / "t" / "a.h5", features, coords, level0_width=size[0], level0_height=size[1])
        why = reason(path, slides=tmp_path / "slides", **options)
        assert f"is of a slide of {size[0]} x {size[1]} px, but" in why
        assert "a.tif has 300 x 200: name the folder of its own slides by --slides" in why
    path = peers.trident(path, features, coords, level0_width=300, level0_height=200)
    convert(path, slides=tmp_path / "slides", mpp=0.5)
    make_slide("slides/a.tif", (400, 200), 0.5)  # told though the bag is converted already
    assert "but" in reason(path, slides=tmp_path / "slides", mpp=0.5)
    peers.clam(tmp_path / "h5_files" / "a.h5", features, coords)
    peers.clam_patches(tmp_path / "patches" / "a.h5", coords)
    assert "of a slide of 24576 x 20480 px" in reason(tmp_path / "h5_files", slides=tmp_path / "slides")


def test_tiles_off_the_slide_are_refused(tmp_path: Path) -> None:
    features, coords = peers.bag()  # corners up to (1536, 1024), tiles of 512
    path = tmp_path / "t" / "a.h5"
    convert(peers.trident(path, features, coords, level0_width=1537, level0_height=1025))
    peers.trident(path, features, coords, level0_width=1536, level0_height=1025)
    assert "a.h5: the tile at (1536, 0) lies outside its slide of 1536 x 1025 px" in reason(path)
    peers.trident(path, features, coords - [0, 512])
    assert "the tile at (0, -512) lies outside" in reason(path)


@pytest.mark.parametrize("options", [{}, {"mpp": 0.5}])
def test_slides_that_move_are_found_again_and_nothing_is_stale(
    options: dict[str, float], tmp_path: Path, make_slide: Callable[..., Path]
) -> None:
    make_slide("slides/a.tif", (300, 300), 0.5)
    path = peers.trident(tmp_path / "t" / "a.h5", *peers.bag(step=64), level0_width=300, level0_height=300)
    before = convert(path, slides=tmp_path / "slides", **options)
    (tmp_path / "slides").rename(tmp_path / "moved")
    after = convert(path, slides=tmp_path / "moved", **options)
    assert after.attrs["slide_path"] == str(tmp_path / "moved" / "a.tif")
    assert after.attrs["fingerprint"] == before.attrs["fingerprint"]
    np.testing.assert_array_equal(after.arrays["features"], before.arrays["features"])


def test_a_broken_slide_costs_nothing_where_the_user_tells_um_per_px(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.svs").write_bytes(b"")
    path = peers.trident(tmp_path / "t" / "a.h5", *peers.bag())
    assert convert(path, slides=tmp_path / "slides", mpp=0.5).attrs["mpp_x"] == 0.5
    assert "is an empty file" in reason(path, slides=tmp_path / "slides")
    with pytest.raises(OptionError, match="--encoder is empty"):
        PeerOptions(encoder="")
