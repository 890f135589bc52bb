"""Files of anybody: whatever was done to them, only errors of ours come out, in bounded time and memory.

A slice of the campaign runs here always, the whole where slow tests do (WSIMIL_FUZZ_INPUTS for each reader, 2000 unless
told). What it found once and what was mended is below, as small as it could be made.
"""

import contextlib
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import peers
import planted
import pyramids
import pytest
import reading
import seeds
import tifffile
from campaign import campaign, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS

from wsi_mil import checkpoint, store, tables
from wsi_mil.bags import read_bag
from wsi_mil.errors import ArtifactCorrupt, ArtifactError, SlideUnreadable, TableError, WeightsError, WsiMilError
from wsi_mil.interop import read_peer
from wsi_mil.slides import find_slides, open_slide
from wsi_mil.tables import read_table
from wsi_mil.weights import load_tensors, save_tensors

HELD = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _require_none(found: dict) -> None:
    print(table(found))
    assert not any(one.findings for one in found.values()), table(found)


def test_a_slice_of_the_campaign_finds_nothing() -> None:
    inputs = {name: 2 if reader.is_slow else 5 for name, reader in READERS.items()}
    found = campaign(list(READERS), inputs, "slice")
    _require_none(found)
    assert {name: one.inputs for name, one in found.items()} == inputs


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_the_campaign_finds_nothing(name: str) -> None:
    inputs = int(os.environ.get("WSIMIL_FUZZ_INPUTS", "2000"))
    found = campaign([name], {name: inputs}, os.environ.get("WSIMIL_FUZZ_SEED", "0"))
    _require_none(found)
    assert found[name].refused > inputs / 100  # the damage is felt


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@HELD
@given(text=st.text(alphabet=st.sampled_from("slide_id,label\n;\t\"' abxy\0\ufeff1.5é"), max_size=60))
def test_any_text_is_a_table_or_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"slide_id,label\n{text}", encoding="utf-8")
    _refused_or_fine(reading.labels, path)
    path.write_text(text, encoding="utf-8")
    _refused_or_fine(reading.labels, path)


@HELD
@given(key=st.sampled_from(["type", "features", "geometry", "coordinates", "properties", "positive"]), value=JSON)
def test_any_json_is_a_drawing_or_refused(key: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9]]]}}
    for content in ({**feature, key: value}, {**feature, "geometry": {**feature["geometry"], key: value}}, value):
        path.write_text(json.dumps(content))
        _refused_or_fine(reading.drawing, path)


@HELD
@given(
    key=st.sampled_from([*"abc", "dim", "classes", "parts", "recipe", "aggregator", "training", "domain"]), value=JSON
)
def test_any_header_is_that_of_a_checkpoint_or_refused(key: str, value: object, tmp_path: Path) -> None:
    if not (tmp_path / "one").exists():
        seeds.checkpoints(tmp_path)
    tensors, metadata = load_tensors(tmp_path / "one" / "checkpoint.safetensors")
    header = json.dumps({**json.loads(metadata["wsi_mil"]), key: value})
    save_tensors(tmp_path / "lie.safetensors", tensors, {"wsi_mil": header})
    _refused_or_fine(reading.model, tmp_path / "lie.safetensors")


def _refused_or_fine(read, path: Path) -> None:
    with contextlib.suppress(WsiMilError):
        read(path)


# --- what was found, and mended ----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.05, 0.3, 0.6, 0.95])
def test_a_bit_that_flipped_in_an_artifact_is_noticed_and_its_file_named(offset: float, tmp_path: Path) -> None:
    planted.plant(tmp_path, "a", True, 0, tiles=400)
    path = tmp_path / "a.h5"
    whole = store.read(path)
    data = bytearray(path.read_bytes())
    values = data.index(whole.arrays["features"].tobytes())
    data[values + int(offset * whole.arrays["features"].nbytes)] ^= 1
    (tmp_path / "b.h5").write_bytes(data)
    with pytest.raises(ArtifactCorrupt, match=r"b\.h5 does not match its checksum"):
        read_bag(tmp_path / "b.h5")


@pytest.mark.parametrize("bit", range(0, 8, 3))
def test_no_flipped_bit_of_an_artifact_gives_another_bag(bit: int, tmp_path: Path) -> None:
    planted.plant(tmp_path, "a", True, 0, tiles=5)
    data, before = (tmp_path / "a.h5").read_bytes(), read_bag(tmp_path / "a.h5")
    for place in range(bit, len(data), 61):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        path = tmp_path / "b.h5"
        path.write_bytes(flipped)
        store._verified.clear()
        try:
            found = read_bag(path)
        except ArtifactError as error:
            assert "b.h5" in str(error)  # noqa: PT017 - or the same bag comes out
            continue
        assert found.features.equal(before.features)
        assert found.coords_um.equal(before.coords_um)
        assert found.attrs == before.attrs


@pytest.mark.parametrize("shape", [(1 << 31, 2), (1 << 21, 1 << 10), (1 << 40, 6)])
def test_values_that_no_file_of_this_size_holds_take_no_memory(shape: tuple[int, int], tmp_path: Path) -> None:
    path = peers.trident(tmp_path / "a.h5", *peers.bag())
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset("features", shape, np.float32, chunks=True, compression="gzip")
    with pytest.raises(ArtifactCorrupt, match=r"a\.h5: /features says that it takes .* bytes, more than a file of"):
        read_peer(path)


def test_parts_that_would_be_unpacked_whole_take_no_memory(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", (3, 4), np.float32, maxshape=(None, 4), chunks=(1 << 26, 4))
    with pytest.raises(ArtifactCorrupt, match="more than a file of"):
        store.read_arrays(tmp_path / "a.h5", ["features"])


def test_what_packs_well_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((1 << 20, 4), np.float32), compression="gzip", compression_opts=9)
    assert not store.read_arrays(tmp_path / "a.h5", ["features"])["features"].any()


def test_a_sector_of_zeros_in_the_texts_of_an_artifact_does_not_hang(tmp_path: Path) -> None:
    """HDF5 stays at an object of size 0 for ever."""
    planted.plant(tmp_path, "a", True, 0, tiles=400, note="x" * 900)
    path = tmp_path / "a.h5"
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    data[heap + 400 : heap + 912] = bytes(512)
    path.write_bytes(data)
    for read in (store.read, store.read_attrs, store.survey):
        with pytest.raises(ArtifactCorrupt, match=r"a\.h5 is damaged \(its text at byte .* does not add up\)"):
            read(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mpp_x": "wide"}, "mpp_x is 'wide', not a length above 0"),
        ({"mpp_x": float("nan")}, "mpp_x is nan"),
        ({"l0_tile_width": -1}, "l0_tile_width is -1"),
        ({"status": 3}, "status is 3, not a word"),
        ({"params": "[]"}, "params is '\\[\\]', not JSON with values by name"),
        ({"tile_params": "{"}, "tile_params is"),
        ({"mpp_x": 1e6, "mpp_y": 1e6}, "a tile lies .* um from the corner"),
    ],
)
def test_an_artifact_that_says_what_cannot_be_meant_is_refused(change: dict, told: str, tmp_path: Path) -> None:
    planted.plant(tmp_path, "a", True, 0, **change)
    with pytest.raises(ArtifactCorrupt, match=rf"a\.h5 cannot be meant \({told}"):
        read_bag(tmp_path / "a.h5")


@pytest.mark.parametrize("attr", [{"patch_size": 0.2}, {"patch_size_level0": 0.2}, {"patch_size_level0": 1e12}])
def test_tiles_without_a_size_are_refused(attr: dict, tmp_path: Path) -> None:
    path = peers.trident(tmp_path / "a.h5", *peers.bag(), mpp=0.25, **attr)
    with pytest.raises(ArtifactError, match=r"tiles of .* cannot be meant"):
        reading.peer(path)


def test_attributes_of_other_kinds_than_a_program_writes_are_refused(tmp_path: Path) -> None:
    values, coords = peers.bag()
    path = peers.clam(tmp_path / "h5_files" / "a.h5", values, coords)
    with h5py.File(path, "r+") as file:
        file["coords"].attrs.update({"patch_level": 0, "patch_size": 256, "downsample": np.zeros(3)})
    with pytest.raises(ArtifactCorrupt, match=r"a\.h5 is none that CLAM writes"):
        read_peer(path)


@pytest.mark.parametrize(
    "change",
    [{"dim": 1 << 40}, {"dim": -1}, {"dim": "6"}, {"parts": [[{"hidden": 1 << 30}]]}, {"parts": []}, {"training": []}],
)
def test_sizes_of_a_model_that_its_weights_do_not_have_take_no_memory(change: dict, tmp_path: Path) -> None:
    seeds.checkpoints(tmp_path)
    tensors, metadata = load_tensors(tmp_path / "one" / "checkpoint.safetensors")
    save_tensors(
        tmp_path / "lie.safetensors", tensors, {"wsi_mil": json.dumps({**json.loads(metadata["wsi_mil"]), **change})}
    )
    with pytest.raises(WeightsError):
        checkpoint.load(tmp_path / "lie.safetensors").model()


def _slide(folder: Path, change: str) -> Path:
    path = pyramids.write(folder / "a.tif", [pyramids.textured(600, 600)], pyramids.Kind())
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[0].tags
        match change:
            case "bytes":
                tags["TileByteCounts"].overwrite([*tags["TileByteCounts"].value[:-1], (1 << 32) - 1])
            case "side":
                tags["TileWidth"].overwrite(1 << 16)
                tags["TileLength"].overwrite(1 << 15)
            case "size":
                tags["ImageWidth"].overwrite(1 << 20)
                tags["ImageLength"].overwrite(1 << 20)
    return path


@pytest.mark.parametrize("change", ["bytes", "side", "size"])
@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_tiles_that_cannot_be_are_refused_before_openslide_takes_memory(
    change: str, reader: str, tmp_path: Path
) -> None:
    with pytest.raises(SlideUnreadable, match=r"a\.tif is damaged: it says that (a tile|it) .*: copy or download"):
        open_slide(_slide(tmp_path, change), 0.5, reader)


def test_a_picture_larger_than_its_file_can_hold_is_refused(tmp_path: Path) -> None:
    path = next(found for found in seeds.images(tmp_path) if found.name == "a.png")
    data = bytearray(path.read_bytes())
    struct.pack_into(">2I", data, 16, 22_000, 22_000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(SlideUnreadable, match=r"a\.png.* is damaged: it says that it has 22,000 x 22,000 pixels"):
        open_slide(path, 0.5)


def test_a_slide_of_kilometres_has_no_thumbnail(tmp_path: Path) -> None:
    path = pyramids.write(tmp_path / "a.tif", [pyramids.textured(600, 600)], pyramids.Kind())
    with open_slide(path, 0.5) as slide:
        slide.l0_size = (1 << 22, 1 << 22)
        with pytest.raises(SlideUnreadable, match="larger than any slide"):
            slide.thumbnail(8.0)


def test_a_file_that_names_no_possible_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.vms").write_bytes(b"ImageFile=" + b"x" * 5000 + b"\nMapFile=a\0b\n")
    assert [slide.slide_id for slide in find_slides(tmp_path)] == ["a"]


@pytest.mark.parametrize(
    "raised", [TypeError("expected <class 'float'>"), OSError("File contains no valid workbook part")], ids=repr
)
def test_a_workbook_that_openpyxl_stumbles_over_is_refused(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = seeds.labels_xlsx(tmp_path)

    def stumble(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("openpyxl.load_workbook", stumble)
    with pytest.raises(TableError, match=path.name):
        tables._open_workbook(path, True)


def test_a_workbook_whose_directory_points_before_its_beginning_is_refused(tmp_path: Path) -> None:
    [path] = seeds.labels_xlsx(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:40] + data[4000:])
    with pytest.raises(TableError, match="cannot be read as an Excel workbook"):
        read_table(path, ("slide_id", "label"), ())


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b'{"files": 3}', b"[" * 100_000])
def test_damaged_records_are_named(text: bytes, tmp_path: Path) -> None:
    [explanation] = seeds.explanation(tmp_path)
    record, _ = seeds.records(tmp_path / "study")
    for path, read in ((explanation, reading.explanation), (record, reading.record)):
        path.write_bytes(text)
        with pytest.raises(ArtifactError, match=path.parent.name):
            read(path)


def test_a_damaged_table_of_a_run_is_told_of_and_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [path] = seeds.run_tables(tmp_path)
    path.write_bytes(path.read_bytes() + b"\xff\xfe")
    reading.run_tables(path)
    assert "is damaged and says nothing any more" in caplog.text


def test_a_level_of_more_rows_than_a_file_can_hold_is_refused_before_openslide_takes_memory(tmp_path: Path) -> None:
    [path] = seeds.ndpi(tmp_path)
    plain = path.rename(tmp_path / "a.tif")  # by its name, tifffile takes it for one with places of 64 bits
    with tifffile.TiffFile(plain, mode="r+") as file:
        file.pages[0].tags["ImageLength"].overwrite((1 << 32) - 16)
    plain.rename(path)
    with pytest.raises(SlideUnreadable, match=r"a\.ndpi is damaged: it says that it has .* x 4,294,967,280 pixels"):
        open_slide(path, 0.5)


@pytest.mark.parametrize("damage", [(b"done,y", b"done,z"), (b",0.25,0.75,", b",0.25,,")])
def test_predictions_of_no_class_are_refused_by_slide(damage: tuple[bytes, bytes], tmp_path: Path) -> None:
    [path] = seeds.predictions(tmp_path)
    path.write_bytes(path.read_bytes().replace(*damage))
    with pytest.raises(TableError, match=r"a is predicted .* of the classes x, y"):
        reading.predictions(path)
