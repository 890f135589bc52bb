"""Slides read straight from their tiles: OpenSlide's pixels, whatever the codec, or OpenSlide itself."""

import errno
import os
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyramids import Kind, textured, write

from wsi_mil.errors import OptionError, SlideUnreadable
from wsi_mil.slides import open_slide
from wsi_mil.slides.base import Slide
from wsi_mil.slides.direct import NotDirect, open_directly, tiff
from wsi_mil.slides.direct.codecs import Undecodable, decode_jpeg2000, jpeg_decoder
from wsi_mil.slides.direct.file import PositionalFile
from wsi_mil.slides.direct.keeper import Keeper, Key
from wsi_mil.slides.direct.slide import DirectSlide
from wsi_mil.slides.resample import RESAMPLE, resample

WIDTH, HEIGHT = 1301, 1003  # odd, so that levels are rounded up and downsamples are not whole
KINDS = {
    "420": Kind(),
    "422": Kind(subsampling=(2, 1)),
    "444": Kind(subsampling=(1, 1)),
    "rgb": Kind(photometric="rgb", subsampling=None),
    "240px": Kind(tile=240),
    "512px": Kind(tile=512),
    "sparse": Kind(sparse=frozenset({0, 5, 7})),
    "aperio-422": Kind(subsampling=(2, 1), aperio=True),
    "aperio-rgb": Kind(photometric="rgb", subsampling=None, aperio=True),
    "aperio-j2k-rgb": Kind("aperio_jp2000_rgb", photometric="rgb", aperio=True),
    "aperio-j2k-ycbcr": Kind("aperio_jp2000_ycbc", photometric="ycbcr", aperio=True),
    "lzw": Kind("lzw", photometric="rgb"),
    "lzw-predicted": Kind("lzw", photometric="rgb", predictor=True),
    "deflate": Kind("adobe_deflate", photometric="rgb", predictor=True),
    "zstd": Kind("zstd", photometric="rgb"),
    "philips": Kind(philips=True),
    "philips-sparse": Kind(philips=True, sparse=frozenset({0, 9})),
    "raw-sparse": Kind("none", photometric="rgb", sparse=frozenset({1})),
}


def halved(image: np.ndarray, times: int) -> np.ndarray:
    return np.array(Image.fromarray(image).reduce(2**times)) if times else image


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    image = textured(HEIGHT, WIDTH)
    paths = {}
    for name, kind in KINDS.items():
        levels = [halved(image, times) for times in range(3)]
        if kind.compression == "aperio_jp2000_ycbc":
            levels = [np.array(Image.fromarray(level).convert("YCbCr")) for level in levels]
        paths[name] = write(folder / f"{name}.{'svs' if kind.aperio else 'tif'}", levels, kind)
    return paths


@pytest.fixture(scope="module")
def pairs(slides) -> Iterator[dict[str, tuple[Slide, openslide.OpenSlide]]]:
    opened = {name: (open_slide(path, 0.5), openslide.OpenSlide(path)) for name, path in slides.items()}
    yield opened
    for ours, theirs in opened.values():
        ours.close()
        theirs.close()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_directly_and_says_why(name, pairs):
    ours, _ = pairs[name]
    assert ours.reader == "direct"
    assert ours.why.startswith("equal to OpenSlide at ")


@settings(max_examples=150)
@given(data=st.data())
def test_both_readers_agree_bit_for_bit_wherever_openslide_can_be_asked(data, pairs):
    ours, theirs = pairs[data.draw(st.sampled_from(list(KINDS)))]
    level = data.draw(st.integers(0, 2))
    width, height = (data.draw(st.integers(1, 300)) for _ in range(2))
    downsample = theirs.level_downsamples[level]
    whole = downsample == round(downsample)
    x, y = (data.draw(st.integers(0, side - 1)) if whole else 0 for side in theirs.level_dimensions[level])
    expected = theirs.read_region((round(x * downsample), round(y * downsample)), level, (width, height))
    white = Image.new("RGBA", expected.size, "white")
    white.alpha_composite(expected)
    assert np.array_equal(ours.read_level(level, x, y, width, height), np.array(white.convert("RGB")))


@settings(max_examples=100)
@given(data=st.data())
def test_a_read_is_the_nearest_rectangle_of_stored_pixels(data, slides):
    """Also where OpenSlide blends neighbours, since 1301 / 651 is no whole number."""
    name = data.draw(st.sampled_from(["lzw", "raw-sparse"]))
    level = data.draw(st.integers(0, 2))
    scale = 2**level
    with tifffile.TiffFile(slides[name]) as file, open_slide(slides[name], 0.5) as slide:
        stored = file.pages[level].asarray()
        side = data.draw(st.integers(1, 60))
        l0_x = data.draw(st.integers(0, WIDTH - side * scale))
        l0_y = data.draw(st.integers(0, HEIGHT - side * scale))
        found = slide.read(l0_x, l0_y, (side * scale, side * scale), (side, side))
    x, y = (
        min(round(start / scale), size - side) for start, size in ((l0_x, stored.shape[1]), (l0_y, stored.shape[0]))
    )
    expected = stored[y : y + side, x : x + side]
    if name == "raw-sparse" and level == 0:
        expected = np.where(_missing(expected.shape, x, y), 255, expected)
    assert np.array_equal(found, expected)


def _missing(shape: tuple[int, ...], x: int, y: int) -> np.ndarray:
    """Where tile 1 of level 0 is."""
    rows, columns = np.ogrid[y : y + shape[0], x : x + shape[1]]
    return ((rows < 256) & (columns >= 256) & (columns < 512))[..., None]


def test_several_tiles_at_once_are_those_read_one_by_one(pairs):
    ours, _ = pairs["420"]
    corners = np.array([(x, y) for y in range(-40, 900, 130) for x in range(-40, 1200, 130)])
    many = ours.read_tiles(corners, (200, 200), (96, 96))
    one_by_one = np.stack([ours.read(int(x), int(y), (200, 200), (96, 96)) for x, y in corners])
    assert np.array_equal(many, one_by_one)


def test_each_stored_tile_is_decoded_once_and_none_is_kept(slides, monkeypatch):
    decoded: list[Key] = []
    pixels = DirectSlide._pixels
    monkeypatch.setattr(DirectSlide, "_pixels", lambda self, key, data: decoded.append(key) or pixels(self, key, data))
    corners = np.array([(x, y) for y in range(50, 700, 100) for x in range(50, 1000, 100)])
    with open_slide(slides["420"], 0.5) as slide, ThreadPoolExecutor(4) as pool:
        decoded.clear()
        slide.expect(corners, (128, 128), (128, 128))
        parts = [corners[start : start + 3] for start in range(0, len(corners), 3)]
        tiles = list(pool.map(lambda part: slide.read_tiles(part, (128, 128), (128, 128)), parts))
        assert len(decoded) == len(set(decoded)) == 4 * 5
        assert not slide._keeper._kept
        again = slide.read_tiles(corners[:3], (128, 128), (128, 128))
        assert np.array_equal(tiles[0], again)


def test_memory_is_bounded_even_if_tiles_are_wanted_again(slides):
    with open_slide(slides["420"], 0.5) as slide:
        slide._keeper._most = 4 * 256 * 256 * 3
        corners = np.array([(x, y) for y in range(0, 900, 256) for x in range(0, 1200, 256)])
        slide.expect(np.concatenate([corners, corners]), (256, 256), (256, 256))
        first = [slide.read_tiles(corners[[index]], (256, 256), (256, 256)) for index in range(len(corners))]
        assert slide._keeper._bytes <= slide._keeper._most
        second = [slide.read_tiles(corners[[index]], (256, 256), (256, 256)) for index in range(len(corners))]
        assert np.array_equal(first, second)


def test_no_thread_waits_for_one_that_waits_for_it():
    lock, calls = threading.Lock(), []

    def decode(keys, read):
        for key in keys:
            with lock:
                calls.append(key)
            yield np.full((1, 1, 3), key.index, np.uint8)

    keeper = Keeper(decode, 1 << 20)
    keys = [Key(0, index) for index in range(40)]
    keeper.expect(keys * 8)

    def use(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(40)
        for part in np.split(order, 10):
            chosen = [keys[index] for index in part]
            found = keeper.borrow(chosen, {})
            assert [int(found[key][0, 0, 0]) for key in chosen] == part.tolist()
            keeper.give_back(chosen, expected=True)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(use, seed) for seed in range(8)]:
            future.result(timeout=60)
    assert sorted(calls) == keys
    assert not keeper._kept


def test_a_tile_that_fails_fails_for_all_and_may_be_tried_again():
    broken = [True]

    def decode(keys, read):
        for _ in keys:
            if broken[0]:
                raise SlideUnreadable("no")
            yield np.zeros((1, 1, 3), np.uint8)

    keeper = Keeper(decode, 1 << 20)
    for _ in range(2):
        with pytest.raises(SlideUnreadable):
            keeper.borrow([Key(0, 0)], {})
    broken[0] = False
    assert keeper.borrow([Key(0, 0)], {})[Key(0, 0)].shape == (1, 1, 3)


# --- proof -------------------------------------------------------------------------------------------------------


def test_a_difference_from_openslide_means_openslide(tmp_path):
    """Level 0 lacks tiles, so that OpenSlide makes up those of level 1 that lie over them."""
    image = textured(HEIGHT, WIDTH)
    kind = Kind(aperio=True, sparse=frozenset({2, 3}))
    path = write(tmp_path / "a.svs", [image, halved(image, 1)], kind)
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert "missing" in slide.why
    with pytest.raises(SlideUnreadable, match=r"cannot be read directly: .* missing.*: leave out --reader"):
        open_slide(path, reader="direct")


def test_colours_are_what_the_file_says_even_if_that_is_wrong(tmp_path):
    """RGB in a file that says YCbCr, as some writers do: OpenSlide believes the file, and so the direct reader must."""
    path = write(tmp_path / "a.tif", [textured(HEIGHT, WIDTH)], Kind(photometric="rgb", subsampling=None))
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(6)
    with open_slide(path, reader="auto") as slide, open_slide(path, reader="openslide") as theirs:
        assert np.array_equal(slide.read_level(0, 0, 0, 256, 256), theirs.read_level(0, 0, 0, 256, 256))


def test_the_proof_looks_at_all_corners_the_middle_and_the_fullest_tile(slides, monkeypatch):
    seen = []
    read = DirectSlide.read_level
    monkeypatch.setattr(DirectSlide, "read_level", lambda self, *part: seen.append(part) or read(self, *part))
    with open_slide(slides["lzw"]):
        pass
    on_level_0 = {part[1:3] for part in seen if part[0] == 0}
    assert {(0, 0), (WIDTH - 64, 0), (0, HEIGHT - 64), (WIDTH - 64, HEIGHT - 64)} < on_level_0
    assert len(on_level_0) == 8
    assert {part[0] for part in seen} == {0, 1, 2}


@pytest.mark.parametrize("place", range(8))
def test_one_wrong_pixel_at_a_place_of_the_proof_is_enough(place, slides, monkeypatch):
    read, calls = DirectSlide.read_level, []

    def spoilt(self, *part):
        pixels = read(self, *part)
        if len(calls) == place:
            pixels[-1, -1, 1] ^= 1
        calls.append(part)
        return pixels

    monkeypatch.setattr(DirectSlide, "read_level", spoilt)
    with open_slide(slides["420"]) as slide:
        assert slide.reader == "openslide"
        assert "differs from OpenSlide's by up to 1 grey levels" in slide.why


def test_two_pages_of_one_size_cannot_be_told_apart(tmp_path):
    """They differ between the places of the proof alone, which would take the first for both."""
    image = textured(2048, 2048)
    other = image.copy()
    other[1536:1792, 256:512] = 0
    path = write(tmp_path / "a.tif", [image, other], Kind("lzw", photometric="rgb"))
    part = (1, 256, 1536, 256, 256)
    with open_slide(path) as ours, open_slide(path, reader="openslide") as theirs:
        assert np.array_equal(ours.read_level(*part), theirs.read_level(*part))
        assert (ours.reader, ours.why) == ("openslide", "several of its pages have 2048 x 2048 pixels")


def test_what_cannot_be_decoded_for_the_proof_is_openslides_and_no_advice_is_given(shared):
    with open_slide(shared / "data/wsi_bad/unreadable.svs", 0.5) as slide:
        assert slide.reader == "openslide"
        assert "--reader" not in slide.why
        assert slide.why.startswith("level 0 at (0, 0) cannot be compared with OpenSlide's: ")


@pytest.mark.parametrize("error", [struct.error("short"), OverflowError("long"), ZeroDivisionError("no width")])
def test_whatever_tables_do_to_their_reader_leaves_the_slide_to_openslide(error, slides, monkeypatch):
    def broken(_: Path) -> None:
        raise error

    monkeypatch.setattr(tiff.tifffile, "TiffFile", broken)
    with open_slide(slides["420"]) as slide:
        assert (slide.reader, slide.why) == ("openslide", f"its tables are not understood: {error}")


def test_other_pixels_are_openslides(tmp_path):
    with tifffile.TiffWriter(tmp_path / "grey.tif") as tiff:
        tiff.write(np.zeros((512, 512), np.uint8), tile=(256, 256), photometric="minisblack", compression="lzw")
    with open_slide(tmp_path / "grey.tif", 0.5) as slide:
        assert (slide.reader, slide.why) == ("openslide", "its pixels are not 8-bit RGB side by side")


def test_levels_of_philips_end_where_openslide_says_not_where_their_tiles_do(pairs):
    ours, theirs = pairs["philips"]
    assert [level[:2] for level in ours.levels] == list(theirs.level_dimensions)
    assert any(width % 256 or height % 256 for width, height in theirs.level_dimensions)


def test_tables_beyond_the_end_of_a_file_are_no_reason_to_allocate(tmp_path):
    path = write(tmp_path / "a.tif", [textured(HEIGHT, WIDTH)], Kind())
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["TileByteCounts"]
        tag.overwrite([*tag.value[:-1], 2 << 30])
    with pytest.raises(SlideUnreadable, match="a tile takes 2,147,483,648 bytes of a file of"):
        open_slide(path)


@pytest.mark.parametrize("offset", [2**62, 2**63 - 8, 2**64 - 8])
def test_places_that_no_number_can_hold_are_no_places(offset, tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in (0, 1):  # OpenSlide looks at the tiles of the coarsest when it opens
            image = halved(textured(1400, 1400), level)
            file.write(image, tile=(256, 256), compression="lzw", photometric="rgb", subfiletype=level)
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["TileOffsets"]
        tag.overwrite([*tag.value[:4], offset, *tag.value[5:]])
    with open_slide(path, 0.5, reader="openslide") as slide, pytest.raises(NotDirect):
        open_directly(slide)


def test_a_tile_longer_than_any_can_be_is_not_read(tmp_path):
    """Though the file holds as many bytes."""
    path = write(tmp_path / "a.tif", [textured(HEIGHT, WIDTH)], Kind())
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["TileByteCounts"]
        tag.overwrite([*tag.value[:-1], 40 << 20])
    os.truncate(path, 48 << 20)
    with open_slide(path) as slide:
        assert (slide.reader, slide.why) == ("openslide", "a tile of 256 x 256 pixels takes 41,943,040 bytes")


def _lying_jpeg(pixels: np.ndarray) -> bytes:
    data = bytearray(simplejpeg.encode_jpeg(pixels))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">2H", 9000, 9000)
    return bytes(data)


def _lying_jpeg2000(pixels: np.ndarray, kind: str) -> bytes:
    data = bytearray(imagecodecs.jpeg2k_encode(pixels, level=35, codecformat=kind))
    size = data.index(b"\xff\x4f\xff\x51") + 8
    data[size : size + 8] = struct.pack(">2I", 9000, 9000)
    return bytes(data)


@pytest.mark.parametrize("kind", ["jpeg", "J2K", "JP2"])
def test_a_tile_that_says_it_is_huge_is_believed_by_nobody(kind):
    pixels = textured(256, 256)
    data = _lying_jpeg(pixels) if kind == "jpeg" else _lying_jpeg2000(pixels, kind)
    decode = jpeg_decoder(b"", (256, 256), rgb=False) if kind == "jpeg" else partial(decode_jpeg2000, (256, 256))
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable, match="9000 x 9000 pixels instead of 256 x 256"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"\xff\x4f\xff\x51", b"\xff\x4f\xff\x51" + bytes(90), b"rubbish" * 20])
def test_what_is_no_jpeg2000_is_undecodable(data):
    with pytest.raises(Undecodable):
        decode_jpeg2000((256, 256), data)


def test_a_plain_image_is_read_by_no_reader_that_is_named(tmp_path):
    Image.fromarray(textured(300, 300)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", 0.5) as slide:
        assert slide.reader == "image"
    for reader in ("direct", "openslide"):
        with pytest.raises(
            SlideUnreadable,
            match=rf"a\.png: OpenSlide: .*; only as a plain image, which --reader {reader} does not read: leave out",
        ):
            open_slide(tmp_path / "a.png", 0.5, reader)


def test_readers_are_chosen_by_name(slides):
    with open_slide(slides["420"], reader="openslide") as slide:
        assert (slide.reader, slide.why) == ("openslide", "")
    with open_slide(slides["420"], reader="direct") as slide:
        assert slide.reader == "direct"
    with pytest.raises(OptionError, match="--reader fast: give one of auto, direct, openslide"):
        open_slide(slides["420"], reader="fast")
    with pytest.raises(OptionError, match=r"--reader openslide --fast-decode: .*: leave out one of the two"):
        open_slide(slides["420"], reader="openslide", fast=True)


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("cmu-1-small-region.svs", "direct"),
        ("CMU-1-Small-Region_pyramid.tif", "direct"),
        ("fluorescence-dapi.ndpi", "direct"),
        ("small.svs", "direct"),
        ("boxes.tiff", "direct"),
    ],
)
def test_real_slides(shared, name, reader):
    path = shared / "data/wsi" / name
    with open_slide(path, 0.5) as ours, open_slide(path, 0.5, reader="openslide") as theirs:
        assert ours.reader == reader
        for y in range(0, ours.l0_size[1], 700):
            part = (0, 0, y, ours.l0_size[0], min(700, ours.l0_size[1] - y))
            assert np.array_equal(ours.read_level(*part), theirs.read_level(*part))


# --- damage ------------------------------------------------------------------------------------------------------


def test_a_slide_that_was_cut_off_fails_by_name(tmp_path):
    path = write(tmp_path / "a.tif", [textured(2000, 2000)], Kind())
    with open_slide(path) as slide:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(SlideUnreadable, match=r"a\.tif: tile \d, \d of level 0 (lies beyond|cannot be decoded)"):
            slide.read_tiles(np.array([(0, 0), (1700, 1700)]), (256, 256), (256, 256))


def test_a_disk_that_fails_is_told_with_the_slide(slides, monkeypatch):
    def broken(*_: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with open_slide(slides["420"]) as slide:
        monkeypatch.setattr(PositionalFile, "_read_some", broken)
        with pytest.raises(SlideUnreadable, match=r"420\.tif cannot be read: Input/output error"):
            slide.read(0, 0, (100, 100), (100, 100))


def test_a_tile_of_rubbish_fails_by_name(tmp_path):
    path = write(tmp_path / "a.tif", [textured(2000, 2000)], Kind())
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[9], page.databytecounts[9]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"rubbish" * (count // 7))
    with open_slide(path) as slide:
        assert slide.reader == "direct"
        with pytest.raises(
            SlideUnreadable, match=r"tile 1, 1 of level 0 cannot be decoded: .*: try --reader openslide"
        ):
            slide.read(300, 300, (100, 100), (100, 100))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe0\xff\xff", b"\xff\xd8\xff\xd9", b"abc"]
)
@pytest.mark.parametrize("rgb", [False, True])
def test_what_is_no_jpeg_is_undecodable(data, rgb):
    with pytest.raises(Undecodable):
        jpeg_decoder(b"", (256, 256), rgb)(data)


def test_tables_that_make_no_sense_leave_the_slide_to_openslide(tmp_path):
    path = write(tmp_path / "a.tif", [textured(700, 700)], Kind())
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["TileOffsets"]
        tag.overwrite([value + (1 << 30) for value in tag.value])
    with pytest.raises(SlideUnreadable):
        open_slide(path, reader="direct").read(0, 0, (100, 100), (100, 100))


def test_spans_are_read_together_and_returned_in_their_order(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    (tmp_path / "a").write_bytes(content)
    file = PositionalFile(tmp_path / "a")
    reads = []
    some = file._read_some
    file._read_some = lambda *span: reads.append(span) or some(*span)
    spans = [(250_000, 10), (10, 20), (0, 5), (100_000, 1000), (102_000, 1), (299_990, 50), (400_000, 9)]
    assert file.read_all(spans) == [content[start : start + count] for start, count in spans]
    assert len(reads) < len(spans) + 2
    file.close()


# --- scaled decoding ---------------------------------------------------------------------------------------------


def test_fast_decoding_is_nearly_the_same_and_says_so(tmp_path):
    smooth = np.array(Image.fromarray(textured(200, 260)).resize((2080, 1600), Image.Resampling.BICUBIC))
    path = write(tmp_path / "a.tif", [smooth], Kind(subsampling=(1, 1)))
    with open_slide(path) as exact, open_slide(path, fast=True) as fast:
        assert (exact.resampling, len(exact.levels)) == ("pillow-bilinear-antialiased", 1)
        assert fast.resampling == "libjpeg-scaled, pillow-bilinear-antialiased"
        assert fast.level_downsamples == [1, 2, 4, 8]
        assert fast.levels[3][:2] == (260, 200)
        for side in (512, 508, 1024, 1100):  # 508 is 1 % less than twice 256: scaled all the same
            asked = (100, 200, (side, side), (256, 256))
            error = exact.read(*asked).astype(float) - fast.read(*asked)
            assert 10 * np.log10(255**2 / np.mean(error**2)) > 30
            assert fast.locate(*asked).level == (1 if side < 1024 else 2)


def test_fast_decoding_changes_nothing_that_is_not_coarser_than_stored(slides):
    with open_slide(slides["420"]) as exact, open_slide(slides["420"], fast=True) as fast:
        asked = (100, 200, (256, 256), (256, 256))
        assert np.array_equal(exact.read(*asked), fast.read(*asked))
        assert [level for level in fast.level_downsamples if level < 4] == [1, 2]  # no other half than the stored one


@pytest.mark.parametrize("name", ["lzw", "aperio-j2k-rgb"])
def test_fast_decoding_is_for_jpegs_and_others_take_no_notice(name, slides):
    with open_slide(slides[name]) as exact, open_slide(slides[name], fast=True) as slide:
        assert slide.reader == "direct"
        assert (len(slide.levels), slide.resampling) == (3, RESAMPLE)
        asked = (0, 0, (508, 508), (256, 256))  # 1 % less than level 1 has: not to be enlarged
        assert slide.locate(*asked) == exact.locate(*asked)


# --- resampling --------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    length=st.integers(1, 400),
    size=st.integers(1, 300),
    kind=st.sampled_from(["noise", "extremes", "flat"]),
    seed=st.integers(0, 9),
)
def test_resampling_is_pillows_bit_for_bit(length, size, kind, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (length, length, 3), dtype=np.uint8)
    if kind == "extremes":
        pixels = (pixels > 127).astype(np.uint8) * 255
    if kind == "flat":
        pixels[:] = 255
    expected = np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    assert np.array_equal(resample(pixels, (size, size)), expected)


SIDES = st.integers(1, 200)


def by_axes(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By Pillow, columns first: one axis at a time, as every version of it does alike."""
    columns = Image.fromarray(pixels).resize((size[0], len(pixels)), Image.Resampling.BILINEAR)
    return np.array(columns.resize(size, Image.Resampling.BILINEAR))


@pytest.mark.parametrize("numba", [True, False])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.tuples(SIDES, SIDES), size=st.tuples(SIDES, SIDES), seed=st.integers(0, 9))
@example((392, 147), (108, 288), 0)  # tall, by the same factor along both axes
@example((300, 100), (50, 150), 0)
@example((101, 100), (64, 64), 0)
@example((300, 40), (64, 64), 0)
@example((100, 64), (64, 64), 0)  # along one axis alone
@example((64, 100), (64, 64), 0)
@example((1, 1), (3, 7), 0)
def test_images_of_all_shapes_are_resized_alike_with_and_without_numba(monkeypatch, numba, shape, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    with monkeypatch.context() as patch:
        if not numba:
            patch.setattr("wsi_mil.slides.resample._kernels", lambda: None)
        assert np.array_equal(resample(pixels, size), by_axes(pixels, size))


def test_without_numba_pillow_does_it(monkeypatch):
    monkeypatch.setattr("wsi_mil.slides.resample._kernels", lambda: None)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    expected = np.array(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(resample(pixels, (64, 64)), expected)
