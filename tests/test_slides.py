import errno
import logging
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import openslide
import pyramids
import pytest
from painting import flat, noisy, smooth_grey, write_aperio, write_tiff
from PIL import Image

from wsi_mil.errors import ResolutionError, SlideDamaged, SlideError, SlideUnreadable, WsiMilError
from wsi_mil.runs import artifacts
from wsi_mil.slides import find_slides, open_slide, openslide_reader, slide_fingerprint, write_pyramid
from wsi_mil.slides.discovery import EXTENSIONS
from wsi_mil.slides.resolution import Hints, resolve


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def halves(image: np.ndarray, *factors: int) -> list[np.ndarray]:
    return [image, *(np.array(Image.fromarray(image).reduce(factor)) for factor in factors)]


# --- writing -----------------------------------------------------------------------------------------------------


def test_openslide_opens_what_was_written(tmp_path):
    image = smooth_grey(1001, 1500)
    write_pyramid(tmp_path / "a.tif", image, 0.37)
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        assert slide.level_dimensions == ((1500, 1001), (750, 501), (375, 251), (188, 126))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.37, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.37, rel=1e-6)
        assert difference(np.array(slide.read_region((0, 0), 0, (1500, 1001)).convert("RGB")), image) < 2
        level = np.array(slide.read_region((0, 0), 2, (375, 251)).convert("RGB"))
        assert difference(level, halves(image, 4)[1]) < 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_levels_and_tile_are_as_asked_and_bytes_are_reproducible(tmp_path):
    for name in ("a.tif", "b.tif"):
        write_pyramid(tmp_path / name, smooth_grey(300, 500), 0.5, tile=64, levels=2)
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        assert slide.level_count == 2
        assert slide.properties["openslide.level[0].tile-width"] == "64"
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


# --- resolution --------------------------------------------------------------------------------------------------


def tiff(tmp_path: Path, **tags: object) -> Path:
    return write_tiff(tmp_path / "a.tif", [flat(300, 300)], **tags)


def test_tiled_tiffs_may_give_their_resolution_per_inch(tmp_path):
    with open_slide(tiff(tmp_path, resolution=(50_800, 50_800), resolutionunit="INCH")) as slide:
        assert slide.mpp_x == pytest.approx(0.5)


def test_resolution_of_each_source(tmp_path, caplog):
    cases = {
        "openslide": write_aperio(tmp_path / "a.svs", [flat(300, 300)], "AppMag = 20|MPP = 0.4990"),
        "objective-power": write_aperio(tmp_path / "b.svs", [flat(300, 300)], "AppMag = 20"),
    }
    for source, path in cases.items():
        with open_slide(path) as slide:
            assert (slide.mpp_source, slide.reader) == (source, "direct")
            assert slide.mpp_x == pytest.approx(0.5, abs=0.002)
        with open_slide(path, mpp=0.25) as slide:
            assert (slide.mpp_x, slide.mpp_y, slide.mpp_source) == (0.25, 0.25, "option")
    assert [record.getMessage() for record in caplog.records if "20 x objective" in record.getMessage()]


def test_each_axis_has_its_own_resolution(tmp_path):
    with open_slide(tiff(tmp_path, resolution=(20_000, 25_000), resolutionunit="CENTIMETER")) as slide:
        assert (slide.mpp_x, slide.mpp_y) == pytest.approx((0.5, 0.4))
        small = slide.thumbnail(4.0)
        assert small.image.shape == (30, 38, 3)
        assert (small.mpp_x, small.mpp_y) == pytest.approx((0.5 * 300 / 38, 4.0))


def test_unknown_resolution_is_refused_with_the_option(tmp_path):
    with pytest.raises(
        ResolutionError, match=r"a\.tif does not say .*--slide-mpp, for all .*`wsimil tile` takes a table"
    ):
        open_slide(tiff(tmp_path))


@pytest.mark.parametrize("mpp", [0.0499, 10.01, 0.0, -1.0, float("nan")])
def test_nonsense_from_the_user_is_refused(tmp_path, mpp):
    with pytest.raises(ResolutionError, match=r"a\.tif.*option.*--slide-mpp"):
        open_slide(tiff(tmp_path), mpp)


@pytest.mark.parametrize("mpp", [0.05, 10.0])
def test_the_range_includes_its_ends(tmp_path, mpp):
    with open_slide(tiff(tmp_path), mpp) as slide:
        assert slide.mpp_x == mpp


@pytest.mark.parametrize("properties", ["MPP = 0", "MPP = 40", "AppMag = 0", "MPP = what"])
def test_nonsense_from_the_file_is_refused(tmp_path, properties):
    with pytest.raises(ResolutionError, match="slide-mpp"):
        open_slide(write_aperio(tmp_path / "a.svs", [flat(300, 300)], properties))


def test_placeholder_dpi_is_refused_and_not_passed_over(tmp_path):
    with pytest.raises(ResolutionError, match=r"352\.778 um/px \(from openslide\)"):
        open_slide(tiff(tmp_path, resolution=(72, 72), resolutionunit="INCH"))
    Image.new("RGB", (9, 9)).save(tmp_path / "b.tif", dpi=(72, 72))
    with pytest.raises(ResolutionError, match=r"352\.778 um/px \(from tiff-resolution\)"):
        open_slide(tmp_path / "b.tif")


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "level"), [(1.0, 0), (1.9, 0), (1.999, 1), (2.0, 1), (3.99, 1), (3.996, 2), (4.0, 2), (99.0, 2), (0.5, 0)]
)
def test_the_coarsest_level_not_coarser_than_asked_is_read(tmp_path, scale, level):
    image = smooth_grey(1001, 1203)  # halves are ceil-ed: OpenSlide reports downsamples of 1.997 and 3.990
    path = write_tiff(tmp_path / "a.tif", halves(image, 2, 4))
    with open_slide(path, 0.5) as slide:
        assert slide.level_downsamples == [1, 2, 4]
        assert slide.level_for(scale, scale) == level
        assert slide.level_for(scale, 100.0) == level  # the finer axis decides


def test_ceiled_pyramids_place_pixels_rightly_to_the_far_corner(tmp_path):
    image = smooth_grey(601, 6003)
    path = write_tiff(tmp_path / "a.tif", halves(image, 4))
    with open_slide(path, 0.5) as slide:
        for l0_x in (0, 400, 3000, 5600):
            truth = np.array(Image.fromarray(image[80:480, l0_x : l0_x + 400]).reduce(4))
            assert difference(slide.read(l0_x, 80, (400, 400), (100, 100)), truth) < 2.5


def test_reading_at_level_zero_changes_nothing(tmp_path):
    path = write_tiff(tmp_path / "a.tif", [smooth_grey(600, 700)])
    with open_slide(path, 0.5) as slide, openslide.OpenSlide(path) as direct:
        expected = np.array(direct.read_region((37, 53), 0, (300, 200)).convert("RGB"))
        assert np.array_equal(slide.read(37, 53, (300, 200), (300, 200)), expected)


def test_resampling_is_pillows_antialiased_bilinear(tmp_path):
    path = write_tiff(tmp_path / "a.tif", [smooth_grey(600, 700)])
    with open_slide(path, 0.5) as slide:
        full = Image.fromarray(slide.read(10, 20, (448, 447), (448, 447)))
        columns = full.resize((224, 447), Image.Resampling.BILINEAR)
        expected = np.array(columns.resize((224, 225), Image.Resampling.BILINEAR))
        assert np.array_equal(slide.read(10, 20, (448, 447), (224, 225)), expected)


@pytest.mark.parametrize(("name", "reader"), [("a.tif", "direct"), ("a.tif", "openslide"), ("a.png", "image")])
@pytest.mark.parametrize("part", [(0, 0, 700, 600), (37, 53, 601, 502), (300, 200, 700, 900), (-50, -70, 500, 900)])
@pytest.mark.parametrize("size", [(100, 90), (333, 599), (601, 502), (601, 40), (900, 950)])
def test_what_is_read_in_strips_is_what_is_read_at_once(tmp_path, monkeypatch, name, reader, part, size):
    image = noisy(smooth_grey(600, 700), 20)
    Image.fromarray(image).save(tmp_path / name) if reader == "image" else write_tiff(tmp_path / name, [image])
    with open_slide(tmp_path / name, 0.5, "auto" if reader == "image" else reader) as slide:
        assert slide.reader == reader
        whole = slide.read(*part[:2], part[2:], size)
        monkeypatch.setattr("wsi_mil.slides.base._AT_ONCE_PX", 50_000)
        parts, read_level = [], slide.read_level
        monkeypatch.setattr(slide, "read_level", lambda *some: parts.append(some) or read_level(*some))
        assert np.array_equal(slide.read(*part[:2], part[2:], size), whole)
    assert len(parts) > 1
    assert all((y + height) % 256 == 0 for _, _, y, _, height in parts[:-1])  # where rows of tiles end


def test_last_tile_of_a_floored_level_has_no_white_border(tmp_path):
    image = np.zeros((1003, 1003, 3), np.uint8)
    path = write_tiff(tmp_path / "a.tif", [image, image[:250, :250]])  # 1003 / 4 = 250.75 rounded down
    with open_slide(path, 0.5) as slide:
        assert slide.read(603, 603, (400, 400), (100, 100)).max() < 10


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_outside_is_background_not_black(tmp_path, name):
    image = flat(300, 300, (10, 20, 30))
    path = tmp_path / name
    Image.fromarray(image).save(path) if name == "a.png" else write_tiff(path, [image])
    with open_slide(path, 0.5) as slide:
        pixels = slide.read(250, 250, (100, 100), (100, 100))
        assert np.abs(pixels[:45, :45].astype(int) - (10, 20, 30)).max() < 8
        assert (pixels[55:, 55:] == 255).all()


def test_transparent_is_white(tmp_path):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((200, 100, 50, 255), (0, 0, 32, 64))
    image.save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", 0.5) as slide:
        pixels = slide.read(0, 0, (64, 64), (64, 64))
    assert (pixels[:, :32] == (200, 100, 50)).all()
    assert (pixels[:, 32:] == 255).all()


def test_a_thumbnail_read_in_blocks_is_that_of_the_whole(tmp_path):
    image = smooth_grey(2300, 4500, cell=64)
    write_pyramid(tmp_path / "a.tif", image, 0.5, levels=1)
    with open_slide(tmp_path / "a.tif") as slide:
        small = slide.thumbnail(5.3)
    assert small.image.shape == (217, 425, 3)
    assert small.mpp_x * 425 == pytest.approx(0.5 * 4500)
    assert difference(small.image, np.array(Image.fromarray(image).resize((425, 217), Image.Resampling.BILINEAR))) < 2.5


def test_a_thumbnail_is_never_enlarged(tmp_path):
    with open_slide(write_tiff(tmp_path / "a.tif", [flat(40, 50)]), 4.0) as slide:
        small = slide.thumbnail(1.0)
    assert (small.image.shape, small.mpp_x) == ((40, 50, 3), 4.0)


# --- plain images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "LA", "RGBA"])
def test_8_bit_images_are_read(tmp_path, mode):
    image = Image.fromarray(smooth_grey(50, 60))
    (image.quantize() if mode == "P" else image.convert(mode)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", 0.5) as slide:
        assert (slide.reader, slide.l0_size) == ("image", (60, 50))
        assert difference(slide.read(0, 0, (60, 50), (60, 50)), smooth_grey(50, 60)) < 4


@pytest.mark.parametrize("mode", ["1", "I;16", "F", "CMYK"])
def test_other_images_are_refused_by_name(tmp_path, mode):
    image = Image.new("F", (9, 9)) if mode == "F" else Image.new(mode, (9, 9))
    image.save(tmp_path / "a.tif")
    with pytest.raises(SlideUnreadable, match=f"{mode}.*8-bit RGB"):
        open_slide(tmp_path / "a.tif", 0.5)


def test_png_and_jpeg_need_an_mpp_whatever_their_dpi(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (9, 9)).save(tmp_path / name, dpi=(50_800, 50_800))
        with pytest.raises(ResolutionError, match="--slide-mpp"):
            open_slide(tmp_path / name)


def test_an_untiled_tiff_has_its_resolution_from_tags(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.tif", resolution_unit=3, x_resolution=20_000, y_resolution=40_000)
    with open_slide(tmp_path / "a.tif") as slide:
        assert (slide.mpp_x, slide.mpp_y, slide.mpp_source) == pytest.approx((0.5, 0.25, "tiff-resolution"))


def test_an_image_too_large_to_hold_is_refused_before_it_is_decoded(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [len(header[4:]).to_bytes(4, "big"), header, zlib.crc32(header).to_bytes(4, "big"), b"\0\0\0\1IDAT\0"]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(SlideUnreadable, match=r"30000 x 30000.*convert it to a tiled TIFF"):
        open_slide(tmp_path / "a.png", 0.5)


def test_a_truncated_image_fails_when_read(tmp_path):
    Image.fromarray(smooth_grey(200, 200)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with open_slide(tmp_path / "a.png", 0.5) as slide, pytest.raises(SlideUnreadable, match=r"a\.png.*cannot be read"):
        slide.read(0, 0, (200, 200), (200, 200))


def test_no_handle_is_left_open(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with open_slide(tmp_path / "a.png", 0.5) as slide:
            slide.read(0, 0, (9, 9), (9, 9))
        with pytest.raises(ResolutionError):
            open_slide(tmp_path / "a.png")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- what is no slide --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (b"", "empty file"),
        (b"anything else", "OpenSlide: Unsupported.*as a plain image: is no PNG, JPEG or TIFF"),
        (b"\x89PNG broken", "Pillow"),
    ],
)
def test_what_is_no_slide_says_so_on_one_line(tmp_path, content, message):
    (tmp_path / "a.svs").write_bytes(content)
    with pytest.raises(SlideUnreadable, match=message) as caught:
        open_slide(tmp_path / "a.svs", 0.5)
    assert "a.svs" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    for function in (open_slide, slide_fingerprint):
        with pytest.raises(SlideUnreadable, match=r"gone\.svs.*No such file"):
            function(tmp_path / "gone.svs")


# --- finding -----------------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def ids(folder: Path) -> list[str]:
    return [slide.slide_id for slide in find_slides(folder)]


def test_slide_ids_are_relative_paths_without_known_extensions(tmp_path):
    touch(
        tmp_path, "b/TCGA-AA-01.2.SVS", "a.ome.tif", "c.tiff", "d.v2.ndpi", "notes.txt", ".hidden.svs", ".cache/e.svs"
    )
    assert ids(tmp_path) == ["a", "b/TCGA-AA-01.2", "c", "d.v2"]
    assert find_slides(tmp_path)[1].path == tmp_path / "b/TCGA-AA-01.2.SVS"


def test_files_that_would_share_an_id_keep_their_extensions(tmp_path):
    touch(tmp_path, "a.svs", "a.tif", "b.svs", "sub/a.tif")
    assert ids(tmp_path) == ["a.svs", "a.tif", "b", "sub/a"]


def test_companions_are_no_slides(tmp_path):
    touch(tmp_path, "m.mrxs", "m/Data0001.jpg", "m/deep/x.png", "v_map.jpg", "v-0-0.jpg", "other.jpg")
    (tmp_path / "v.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile=v-0-0.jpg\nMapFile=v_map.jpg\nNoLayers=1\n"
    )
    assert ids(tmp_path) == ["m", "other", "v"]


def test_one_slide_may_be_named_itself(tmp_path):
    touch(tmp_path, "a.svs")
    assert find_slides(tmp_path / "a.svs") == [("a", tmp_path / "a.svs")]


def test_nothing_to_find_says_what_was_looked_for(tmp_path):
    with pytest.raises(SlideError, match="does not exist"):
        find_slides(tmp_path / "gone")
    with pytest.raises(SlideError, match=r"no slide.*\.mrxs.*\.ndpi"):
        find_slides(tmp_path)


def test_extensions_are_sorted_longest_first():
    assert list(EXTENSIONS) == sorted(EXTENSIONS, key=len, reverse=True)


def test_a_dicom_series_is_one_slide(tmp_path, monkeypatch):
    touch(tmp_path, "1.dcm", "2.dcm", "3.dcm", "broken.dcm", "sub/4.dcm")
    series = {"1.dcm": "A", "2.dcm": "A", "3.dcm": "B", "4.dcm": "A"}
    monkeypatch.setattr("wsi_mil.slides.discovery.series_of", lambda path: series.get(path.name))
    assert ids(tmp_path) == ["1", "3", "broken", "sub/4"]
    before = slide_fingerprint(tmp_path / "1.dcm")
    (tmp_path / "2.dcm").write_bytes(b"xx")
    assert slide_fingerprint(tmp_path / "1.dcm") != before


# --- fingerprints ------------------------------------------------------------------------------------------------


def test_a_fingerprint_follows_content_not_time_or_place(tmp_path):
    path = tmp_path / "a.svs"
    path.write_bytes(bytes(3_000_000))
    before = slide_fingerprint(path)
    shutil.copy(path, tmp_path / "b.svs")
    os.utime(tmp_path / "b.svs", (1, 1))
    assert slide_fingerprint(tmp_path / "b.svs") == before
    for position in (0, 2_999_999):
        changed = bytearray(3_000_000)
        changed[position] = 1
        path.write_bytes(changed)
        assert slide_fingerprint(path) != before
    path.write_bytes(bytes(3_000_001))
    assert slide_fingerprint(path) != before


def test_a_fingerprint_covers_the_companion_folder(tmp_path):
    touch(tmp_path, "m.mrxs", "m/Data.dat")
    before = slide_fingerprint(tmp_path / "m.mrxs")
    (tmp_path / "m/Data.dat").write_bytes(b"longer")
    assert slide_fingerprint(tmp_path / "m.mrxs") != before


# --- real files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reader", "mpp", "levels"),
    [
        ("cmu-1-small-region.svs", "direct", 0.499, 1),
        ("CMU-1-Small-Region_pyramid.tif", "direct", 0.499, 4),
        ("fluorescence-dapi.ndpi", "direct", 0.228175, 4),
        ("small.svs", "direct", 0.499, 1),
    ],
)
def test_real_slides(shared, name, reader, mpp, levels):
    with open_slide(shared / "data/wsi" / name) as slide:
        assert (slide.reader, slide.mpp_source, len(slide.level_downsamples)) == (reader, "openslide", levels)
        assert slide.mpp_x == pytest.approx(mpp, rel=1e-5)
        width, height = slide.l0_size
        assert slide.read(0, 0, (width, height), (8, 8)).shape == (8, 8, 3)


def test_the_levels_of_a_real_pyramid_show_the_same(shared):
    with (
        open_slide(shared / "data/wsi/cmu-1-small-region.svs") as single,
        open_slide(shared / "data/wsi/CMU-1-Small-Region_pyramid.tif") as pyramid,
    ):
        assert pyramid.level_downsamples == [1, 2, 4, 8]
        place = (800, 0, (1024, 1024), (256, 256))
        assert difference(single.read(*place), pyramid.read(*place)) < 6


@pytest.mark.parametrize("name", ["camelyon-jpeg.dcm", "camelyon-jpeg2000.dcm", "boxes.tiff"])
def test_real_slides_of_nonsense_resolution_are_refused_and_read_when_it_is_given(shared, name):
    path = shared / "data/wsi" / name
    with pytest.raises(ResolutionError, match=r"(28\.969|352\.778) um/px.*--slide-mpp"):
        open_slide(path)
    with open_slide(path, 8.0) as slide:
        assert slide.thumbnail(16.0).image.std() > 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unreadable.svs", "Bogus marker length"),
        ("unopenable.tiff", "Unsupported TIFF compression"),
        ("broken.svs", "is no PNG, JPEG or TIFF"),
        ("broken-html.svs", "web page"),
        ("lfs-pointer.ndpi", "git lfs pull"),
        ("grey10kx5k.tif", r"352\.778 um/px"),
        ("yb10kx5k.zstd.tiff", r"352\.858 um/px"),
    ],
)
def test_bad_files_fail_alone_with_one_line(shared, name, message):
    with pytest.raises(WsiMilError, match=message) as caught, open_slide(shared / "data/wsi_bad" / name) as slide:
        slide.thumbnail(8.0)
    assert name in str(caught.value)
    with open_slide(shared / "data/wsi/small.svs") as slide:
        assert slide.thumbnail(8.0).image.size


def test_a_large_grey_image_is_read_without_a_warning(shared):
    with open_slide(shared / "data/wsi_bad/grey10kx5k.tif", 0.5) as slide:
        assert (slide.reader, slide.l0_size) == ("image", (10_000, 5_000))
        assert slide.thumbnail(8.0).image.shape == (312, 625, 3)


def test_a_user_who_contradicts_the_file_is_believed_and_told(tmp_path, caplog):
    write_pyramid(tmp_path / "a.tif", np.zeros((300, 300, 3), np.uint8), 0.5)
    with open_slide(tmp_path / "a.tif", 0.51) as slide:
        assert slide.mpp_x == 0.51
    assert not caplog.messages
    with open_slide(tmp_path / "a.tif", 2.0) as slide:
        assert (slide.mpp_x, slide.mpp_source) == (2.0, "option")
    assert "says 0.5 um/px, but is taken for 2 as told" in caplog.text


def test_resolution_tags_count_before_the_objective_in_any_format():
    hints = Hints(pixels_per_unit=("28571", "28571"), unit="centimeter", power="20")
    found = resolve(Path("a.svs"), None, hints)
    assert found.source == "tiff-resolution"
    assert found.mpp_x == pytest.approx(0.35, abs=1e-4)
    properties = {"tiff.XResolution": "28571", "tiff.YResolution": "28571", "tiff.ResolutionUnit": "centimeter"}
    assert openslide_reader._hints({**properties, "openslide.objective-power": "20"}) == hints


def test_slides_that_cannot_be_told_apart_are_refused_with_both_named(tmp_path):
    for name in ("a.tif", "a.svs", "a.tif.svs"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SlideError, match=r"a\.tif\.svs would both be called a\.tif: rename"):
        find_slides(tmp_path)


def test_files_that_differ_by_case_keep_their_extensions_or_are_refused(tmp_path):
    touch(tmp_path, "A.svs", "a.tif", "Sub/b.svs", "sub/c.svs")
    assert ids(tmp_path) == ["A.svs", "Sub/b", "a.tif", "sub/c"]
    touch(tmp_path, "a.svs")
    both = r"A\.svs and .*/a\.svs would both be called a\.svs on disks that tell no case apart: rename one of them"
    with pytest.raises(SlideError, match=both):
        find_slides(tmp_path)
    (tmp_path / "a.svs").rename(tmp_path / "sub" / "B.SVS")
    with pytest.raises(SlideError, match=r"Sub/b\.svs and .*sub/B\.SVS would both be called sub/B\.SVS on disks"):
        find_slides(tmp_path)


def test_a_hidden_file_is_no_slide_though_it_is_named(tmp_path):
    (tmp_path / ".a.svs").touch()
    with pytest.raises(SlideError, match=r"\.a\.svs is hidden"):
        find_slides(tmp_path / ".a.svs")


def test_loops_broken_links_and_folders_of_artifacts_hold_no_slides(tmp_path):
    write_pyramid(tmp_path / "a.tif", np.zeros((300, 300, 3), np.uint8), 0.5)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "tiles" / "runs").mkdir(parents=True)
    (tmp_path / "tiles" / "summary.csv").write_text("")
    (tmp_path / "tiles" / "a.jpg").write_bytes(b"preview")
    assert [slide.slide_id for slide in find_slides(tmp_path)] == ["a"]
    (tmp_path / "tiles" / "a.h5").touch()
    with pytest.raises(SlideError, match="holds no slide"):
        find_slides(tmp_path / "tiles")
    for name in ("x.dcm", "y.vms"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    assert [slide.slide_id for slide in find_slides(tmp_path)] == ["a", "x", "y"]
    with pytest.raises(SlideUnreadable, match=r"x\.dcm"):
        slide_fingerprint(tmp_path / "x.dcm")


def test_pictures_that_wsimil_wrote_are_no_slides_and_are_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    explained = "predictions/explanations/a"
    touch(tmp_path, "a.tif", *(f"{explained}/{name}" for name in ("explanation.json", "tiles.csv", "heatmap.png")))
    touch(tmp_path, "tiles/summary.csv", "tiles/runs/1.csv", "tiles/a.jpg", "feats/summary.csv", "feats/runs/1.csv")
    touch(tmp_path, "new/cache/a.jpg", "new/cache/a.h5")  # of a first run that was killed
    touch(tmp_path, "foreign/explanation.json", "foreign/b.png")
    assert ids(tmp_path) == ["a", "foreign/b", "new/cache/a"]
    assert not caplog.messages
    found = find_slides(tmp_path, out=tmp_path / "new" / ".." / "new")
    assert [slide.slide_id for slide in found] == ["a", "foreign/b"]
    (told,) = caplog.messages
    assert (
        told == f"{tmp_path}: pictures in folders that wsimil writes are no slides, and passed over: {explained}, tiles"
    )
    caplog.clear()
    touch(tmp_path, "predictions/explanations/b/explanation.json")
    touch(tmp_path, "predictions/explanations/b/tiles.csv", "predictions/explanations/b/overlay.ome.tif")
    find_slides(tmp_path, out=tmp_path / "new")
    assert caplog.messages[0].endswith(f"passed over: {explained}, predictions/explanations/b, tiles")
    caplog.clear()
    assert [slide.slide_id for slide in find_slides(tmp_path / "a.tif", out=tmp_path)] == ["a"]
    assert "a" in [slide.slide_id for slide in find_slides(tmp_path, out=tmp_path)]  # artifacts may go beside slides


@pytest.mark.parametrize("find", [lambda folder: find_slides(folder), lambda folder: list(artifacts(folder))])
def test_a_folder_that_may_not_be_listed_is_named_and_one_that_is_gone_is_not(tmp_path, monkeypatch, find):
    write_pyramid(tmp_path / "a.tif", np.zeros((300, 300, 3), np.uint8), 0.5)
    (tmp_path / "site").mkdir()
    listed = os.scandir

    def refusing(code):
        def scandir(path):
            if str(path).endswith("site"):
                raise OSError(code, os.strerror(code), str(path))
            return listed(path)

        return scandir

    monkeypatch.setattr(os, "scandir", refusing(errno.EACCES))
    with pytest.raises(WsiMilError, match=r"site cannot be listed \(Permission denied\): allow it"):
        find(tmp_path)
    monkeypatch.setattr(os, "scandir", refusing(errno.ENOENT))
    find(tmp_path)


def test_what_is_written_is_read_by_pillow_too(tmp_path):
    image = smooth_grey(300, 500)
    write_pyramid(tmp_path / "a.tif", image, 0.5)
    with Image.open(tmp_path / "a.tif") as file:
        assert np.abs(np.asarray(file.convert("RGB")).astype(int) - image).max() < 12


@pytest.mark.parametrize("side", [256, 512])
def test_a_level_of_just_one_tile_is_written(tmp_path: Path, side: int) -> None:
    image = np.zeros((side, side, 3), np.uint8)
    image[:, side // 2 :] = 200
    write_pyramid(tmp_path / "a.tif", image, 0.5)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.levels[-1][:2] == (256, 256)
        small = slide.read(0, 0, (side, side), (256, 256))
    assert np.abs(small[:, :120].astype(int)).max() < 5
    assert np.abs(small[:, 136:].astype(int) - 200).max() < 5


def test_a_pyramid_with_a_level_larger_than_the_slide_is_refused_and_not_read_as_a_picture(tmp_path):
    levels = [pyramids.textured(1024, 1024), pyramids.textured(2048, 512)]
    path = pyramids.write(tmp_path / "a.tif", levels, pyramids.Kind())
    with pytest.raises(SlideDamaged, match="a level of 512 x 2,048 px in a slide of 1,024 x 1,024 px"):
        open_slide(path)
