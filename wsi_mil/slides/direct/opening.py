"""From a slide that OpenSlide has opened to one that is read directly, and proved."""

from collections.abc import Sequence

from wsi_mil.slides.base import Level
from wsi_mil.slides.direct import dicom, tiff
from wsi_mil.slides.direct.layout import NotDirect, TileTable
from wsi_mil.slides.direct.proof import prove
from wsi_mil.slides.direct.slide import DirectSlide
from wsi_mil.slides.openslide_reader import OpenSlideSlide

_VENDORS = ("aperio", "dicom", "generic-tiff", "hamamatsu", "philips")
_LONGEST = 1 << 20  # bytes of a small tile: as many as headers may take; of a larger one, twice those of its pixels
_REDUCTIONS = (2, 4, 8)  # what libjpeg's inverse transform offers


def open_directly(slide: OpenSlideSlide, fast: bool = False) -> DirectSlide:
    """Read a slide from its tiles.

    Args:
        slide: it, as OpenSlide opened it; it stays open, and nobody needs it afterwards.
        fast: see `open_slide`.

    Raises:
        NotDirect: its format is not understood here, or its pixels differ from OpenSlide's.
    """
    if slide.vendor not in _VENDORS:
        raise NotDirect(f"{slide.vendor} is a format for OpenSlide")
    read_tables = dicom.read_tables if slide.vendor == "dicom" else tiff.read_tables
    tables = read_tables(slide.path, slide.levels)
    for table in tables:
        _require_credible(table, (table.path or slide.path).stat().st_size)
    if slide.vendor == "aperio" and any((table.counts == 0).any() for table in tables):
        raise NotDirect("some of its tiles are missing, which OpenSlide makes up from finer levels")
    direct = DirectSlide(slide, tables, _between(slide.levels, tables) if fast else [])
    try:
        places = prove(direct, tables, slide)
    except BaseException:
        direct.close()
        raise
    direct.why = f"equal to OpenSlide at {places} places"
    return direct


def _require_credible(table: TileTable, file_bytes: int) -> None:
    """Refuse tables that are cut off, or lie, before any memory is taken for what they promise.

    Raises:
        NotDirect: a tile is not within the file, or longer than one can be.
    """
    if min(table.offsets.min(), table.counts.min()) < 0 or (table.counts > file_bytes - table.offsets).any():
        raise NotDirect("its tables point beyond its end")
    longest = int(table.counts.max())
    if longest > max(_LONGEST, 2 * 3 * table.tile_width * table.tile_height):
        raise NotDirect(f"a tile of {table.tile_width} x {table.tile_height} pixels takes {longest:,} bytes")


def _between(levels: Sequence[Level], tables: Sequence[TileTable]) -> list[TileTable]:
    """Levels that a scaled decoding of their finer neighbour makes, between those that are stored."""
    scales = sorted(level.scale_x for level in levels)
    made = []
    for level, table in zip(levels, tables, strict=False):
        coarser = next((scale for scale in scales if scale > level.scale_x), float("inf"))
        tables_between = (table.reduced(factor) for factor in _REDUCTIONS if level.scale_x * factor < 0.99 * coarser)
        made += [one for one in tables_between if one is not None]
    return made
