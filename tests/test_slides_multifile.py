"""Slides of several files, real ones: each is one slide, whatever its files, and is tiled as any other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from multifile import write_dicom, write_mrxs, write_vms
from painting import EOSIN, HAEMATOXYLIN, disc, flat, noisy
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.errors import BytesLengthException
from test_cli import call

from wsi_mil import store
from wsi_mil.errors import SlideUnreadable
from wsi_mil.slides import find_slides, open_slide, slide_fingerprint, write_pyramid
from wsi_mil.slides import frames as frame_tables
from wsi_mil.slides.direct import NotDirect, dicom, open_directly

MPP = 1.0
FORMATS = {
    "a/001": lambda folder, image: write_dicom(folder / "a", image, MPP)[0],
    "b": lambda folder, image: write_vms(folder / "b.vms", image, MPP),
    "c": lambda folder, image: write_mrxs(folder / "c.mrxs", image, MPP),
}
each_format = pytest.mark.parametrize("write", FORMATS.values(), ids=["dicom", "vms", "mrxs"])


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Two pieces of tissue, not in the middle: a tile at the wrong place or of the wrong level would show."""
    picture = flat(1536, 2048)
    disc(picture, 700, 900, 500, EOSIN)
    disc(picture, 1500, 500, 300, HAEMATOXYLIN)
    return noisy(picture, 3)


@pytest.fixture(scope="module")
def slides(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one slide of each format, and the same in one file."""
    folder = tmp_path_factory.mktemp("slides")
    for write in FORMATS.values():
        write(folder, image)
    write_pyramid(folder / "d.tif", image, MPP)
    return folder


def test_slides_of_several_files_are_tiled_as_one_slide_each(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("tile", slides) == 0
    assert sorted(path.relative_to("tiles").as_posix() for path in Path("tiles").rglob("*.h5")) == [
        f"{slide_id}.h5" for slide_id in (*FORMATS, "d")
    ]
    expected = store.read(Path("tiles/d.h5"))
    assert expected.attrs["tiles"] > 12
    for slide_id in FORMATS:
        made = store.read(Path("tiles", f"{slide_id}.h5"))
        np.testing.assert_array_equal(made.arrays["coords"], expected.arrays["coords"])
        np.testing.assert_allclose(made.arrays["coverage"], expected.arrays["coverage"], atol=0.05)
        assert made.attrs["reader"] == ("direct" if slide_id == "a/001" else "openslide")
        for name in ("mpp_x", "mpp_y", "level0_width", "level0_height", "mpp_source"):
            assert made.attrs[name] == expected.attrs[name], (slide_id, name)


@each_format
def test_every_level_shows_the_same(
    write: Callable[[Path, np.ndarray], Path], image: np.ndarray, tmp_path: Path
) -> None:
    with open_slide(write(tmp_path, image)) as slide:
        assert (slide.l0_size, slide.level_downsamples[:3]) == ((2048, 1536), [1, 2, 4])
        for by in (1, 2, 4):
            pixels = slide.read(512, 256, (1024, 1024), (1024 // by, 1024 // by))
            blocks = image[256:1280, 512:1536].reshape(1024 // by, by, 1024 // by, by, 3).mean((1, 3))
            assert np.abs(pixels - blocks).mean() < 4


@each_format
def test_a_fingerprint_covers_every_file(
    write: Callable[[Path, np.ndarray], Path], image: np.ndarray, tmp_path: Path
) -> None:
    path = write(tmp_path / "slides", image)
    before = slide_fingerprint(path)
    shutil.copytree(tmp_path / "slides", tmp_path / "copy")
    assert slide_fingerprint(tmp_path / "copy" / path.relative_to(tmp_path / "slides")) == before
    files = [file for file in (tmp_path / "slides").rglob("*") if file.is_file() and file != path]
    assert len(files) >= 3
    for file in files:
        with file.open("ab") as more:
            more.write(bytes(2))
        after = slide_fingerprint(path)
        assert after != before, file
        before = after


def test_series_of_one_folder_are_told_apart(image: np.ndarray, tmp_path: Path) -> None:
    write_dicom(tmp_path, image, MPP, "1.2.3", first=1)
    write_dicom(tmp_path, image[:768], 0.5, "1.2.4", first=11)
    assert [slide.slide_id for slide in find_slides(tmp_path)] == ["001", "011"]
    for name, size, mpp in (("001", (2048, 1536), 1.0), ("003", (2048, 1536), 1.0), ("012", (2048, 768), 0.5)):
        with open_slide(tmp_path / f"{name}.dcm") as slide:  # whichever of its files is named
            assert (slide.l0_size, slide.mpp_x, len(slide.levels)) == (size, pytest.approx(mpp), 3)


def test_a_slide_that_lacks_a_file_fails_alone_and_by_name(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_vms(Path("slides/b.vms"), image, MPP)
    write_mrxs(Path("slides/c.mrxs"), image, MPP)
    write_pyramid(Path("slides/d.tif"), image, MPP)
    Path("slides/b-1-0.jpg").unlink()
    Path("slides/c/Index.dat").unlink()
    for name in ("b.vms", "c.mrxs"):
        with pytest.raises(SlideUnreadable, match=name):
            open_slide(Path("slides", name))
    assert call("tile", "slides") == 1
    assert [path.stem for path in Path("tiles").glob("*.h5")] == ["d"]
    assert "2 failed" in capsys.readouterr().out


# --- DICOM read from its frames ----------------------------------------------------------------------------------


def rewrite(path: Path, table: str) -> None:
    """Write a file of the series again, with another table of where its frames are, or none."""
    dataset = dcmread(path)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))
    if table == "extended":
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(
            frames
        )
    else:
        dataset.PixelData = encapsulate(frames, has_bot=table == "basic")
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_each_level_of_a_dicom_series_is_read_from_its_own_file(image: np.ndarray, tmp_path: Path, table: str) -> None:
    files = write_dicom(tmp_path, image, MPP)
    for path in files:
        rewrite(path, table)
    with open_slide(files[1], reader="direct") as ours, open_slide(files[1], reader="openslide") as theirs:
        assert len(ours.levels) == 3
        for level, (width, height, *_) in enumerate(ours.levels):
            part = (level, 0, 0, width, height)
            assert np.array_equal(ours.read_level(*part), theirs.read_level(*part))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"DimensionOrganizationType": "TILED_SPARSE"}, "frames, not 48 row by row"),
        ({"TotalPixelMatrixFocalPlanes": 2}, "frames, not 48 row by row"),
        ({"PlanarConfiguration": 1}, "not 8-bit RGB side by side"),
    ],
)
def test_frames_that_are_not_understood_are_openslides(
    image: np.ndarray, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = write_dicom(tmp_path, image, MPP)[1]
    with open_slide(path, reader="openslide") as slide:
        dataset = dcmread(path)
        for name, value in change.items():
            setattr(dataset, name, value)
        dataset.save_as(path, enforce_file_format=True)
        with pytest.raises(NotDirect, match=reason):
            dicom.read_tables(path, slide.levels)


def test_other_files_of_the_folder_need_not_be_understood(image: np.ndarray, tmp_path: Path) -> None:
    path = write_dicom(tmp_path, image, MPP)[1]
    (tmp_path / "notes.dcm").write_text("not DICOM at all")
    (tmp_path / "empty.dcm").touch()
    with open_slide(path, reader="direct") as slide:
        assert len(slide.levels) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda dataset: setattr(dataset, "Rows", 0),
        lambda dataset: delattr(dataset, "SeriesInstanceUID"),
        lambda dataset: delattr(dataset, "TotalPixelMatrixRows"),
        lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:40]),
    ],
    ids=["no height", "no series", "no matrix", "cut off"],
)
def test_whatever_headers_lack_leaves_the_slide_to_openslide(
    image: np.ndarray, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    path = write_dicom(tmp_path, image, MPP)[1]
    with open_slide(path, reader="openslide") as slide:
        dataset = dcmread(path)
        change(dataset)
        dataset.save_as(path, enforce_file_format=True)
        with pytest.raises(NotDirect):
            dicom.read_tables(path, slide.levels)


@pytest.mark.parametrize("table", ["basic", "extended"])
def test_a_frame_in_several_parts_is_no_tile(image: np.ndarray, tmp_path: Path, table: str) -> None:
    """The table gives whole frames, between whose parts lie headers that are no pixels."""
    path = write_dicom(tmp_path, image, MPP)[1]
    dataset = dcmread(path)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))
    dataset.PixelData = encapsulate(frames, fragments_per_frame=2)
    if table == "extended":
        begins = [len(b"".join(encapsulate([frame], fragments_per_frame=2, has_bot=False) for frame in frames[:n]))
                  - 8 * n for n in range(len(frames) + 1)]  # fmt: skip
        lengths = np.diff(begins) - 8
        dataset.ExtendedOffsetTable = np.asarray(begins[:-1], "<u8").tobytes()
        dataset.ExtendedOffsetTableLengths = np.asarray(lengths, "<u8").tobytes()
        dataset.PixelData = encapsulate(frames, fragments_per_frame=2, has_bot=False)
    dataset.save_as(path, enforce_file_format=True)
    with open_slide(path, reader="openslide") as slide, pytest.raises(NotDirect, match="parts"):
        open_directly(slide)


@pytest.mark.parametrize("table", ["basic", "extended"])
def test_a_table_of_frames_that_goes_down_is_refused_by_the_file_that_has_it(
    image: np.ndarray, tmp_path: Path, table: str
) -> None:
    """OpenSlide ends the process there."""
    files = write_dicom(tmp_path, image, MPP)
    other = write_dicom(tmp_path, image, MPP, "1.2.4", first=11)[1]
    rewrite(files[2], table)
    kind = "<u8" if table == "extended" else "<u4"
    dataset = dcmread(files[2])
    places = dataset.ExtendedOffsetTable if table == "extended" else dataset.PixelData[8:]
    second = np.frombuffer(places[np.dtype(kind).itemsize :], kind, 1).tobytes()
    content = files[2].read_bytes()
    at = content.index(places[: np.dtype(kind).itemsize] + second)
    files[2].write_bytes(content[:at] + second + content[at + len(second) :])
    with pytest.raises(SlideUnreadable, match=r"003\.dcm is damaged: the places it tells of its frames go down"):
        open_slide(files[1])
    with open_slide(other, reader="direct") as slide:
        assert len(slide.levels) == 3


def test_series_that_refer_to_the_same_are_told_apart(image: np.ndarray, tmp_path: Path) -> None:
    for series, first in (("1.2.3", 1), ("1.2.4", 11)):
        for path in write_dicom(tmp_path, image, MPP, series, first):
            dataset, referred = dcmread(path), Dataset()
            referred.SeriesInstanceUID = "9.9"
            dataset.ReferencedSeriesSequence = [referred]
            dataset.save_as(path, enforce_file_format=True)
    content = (tmp_path / "013.dcm").read_bytes()
    found = frame_tables._IN_PARTS.search(content)
    assert found is not None
    second = content[found.end() + 4 : found.end() + 8]
    (tmp_path / "013.dcm").write_bytes(content[: found.end()] + second + content[found.end() + 4 :])
    frame_tables.require_credible_frames(tmp_path / "002.dcm")
    with pytest.raises(SlideUnreadable, match=r"013\.dcm is damaged"):
        frame_tables.require_credible_frames(tmp_path / "012.dcm")


def test_a_table_of_frames_is_found_behind_a_long_header(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_tables, "_PART", 64)
    path = write_dicom(tmp_path, image, MPP)[1]
    frame_tables.require_credible_frames(path)
    content = path.read_bytes()
    found = frame_tables._IN_PARTS.search(content)
    assert found is not None
    at = found.end()
    path.write_bytes(content[:at] + content[at + 4 : at + 8] + content[at + 4 :])
    with pytest.raises(SlideUnreadable, match="go down"):
        frame_tables.require_credible_frames(path)


def test_a_level_larger_than_the_slide_is_refused(image: np.ndarray, tmp_path: Path) -> None:
    path = write_dicom(tmp_path, image, MPP)[2]
    dataset = dcmread(path)
    dataset.TotalPixelMatrixRows = 2_000_000_000
    dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(SlideUnreadable, match="a level of 1,024 x 2,000,000,000 px in a slide of 2,048 x 1,536 px"):
        open_slide(path)


def test_a_header_that_pydicom_stumbles_over_leaves_the_slide_to_openslide(image: np.ndarray, tmp_path: Path) -> None:
    path = write_dicom(tmp_path, image, MPP)[1]
    with open_slide(path, reader="openslide") as slide:
        content = path.read_bytes()
        length = content.index(b"UL\x04\x00", 128) + 2  # of the group's length: four bytes, in a valid file
        path.write_bytes(content[:length] + b"\x06" + content[length + 1 :])
        with pytest.raises(NotDirect, match="not understood") as refused:
            dicom.read_tables(path, slide.levels)
    assert isinstance(refused.value.__cause__, BytesLengthException)


def test_without_pydicom_openslide_reads(image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path, image, MPP)[1]
    monkeypatch.setattr(dicom.importlib.util, "find_spec", lambda name: None)
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert slide.why == "pydicom is not installed: pip install 'wsi-mil[dicom]'"


@pytest.mark.parametrize("name", ["camelyon-jpeg.dcm", "camelyon-jpeg2000.dcm"])
def test_real_dicom_slides_are_read_directly(shared: Path, name: str) -> None:
    path = shared / "data/wsi" / name
    with open_slide(path, MPP) as ours, open_slide(path, MPP, reader="openslide") as theirs:
        assert ours.reader == "direct"
        part = (0, 100, 50, 700, 500)
        assert np.array_equal(ours.read_level(*part), theirs.read_level(*part))
