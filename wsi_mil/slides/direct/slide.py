"""A slide whose pixels are decoded here, from the tables of its file."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from wsi_mil.errors import SlideUnreadable
from wsi_mil.slides.base import Part, Slide
from wsi_mil.slides.direct.codecs import Undecodable
from wsi_mil.slides.direct.file import PositionalFile
from wsi_mil.slides.direct.keeper import Keeper, Key, Pixels
from wsi_mil.slides.direct.layout import Compressed, TileTable
from wsi_mil.slides.resample import kernels_for, resample

_MOST_BYTES = 384 << 20  # of decoded tiles kept for later: the border row of a slide of 100,000 px takes a fifth
_SCALED_TOLERANCE = 0.03  # 0.252 um/px is meant to be half of 0.5: 1 % of enlargement blurs less than scaling does


class _Band(NamedTuple):
    """What of a part of a level lies in one row of tiles."""

    part: Part
    keys: list[Key]
    """Of the tiles, from left to right."""
    left: int
    """Where the first of them begins, in pixels of the part."""


class DirectSlide(Slide):
    """A slide read from its compressed tiles."""

    reader = "direct"

    def __init__(self, like: Slide, stored: Sequence[TileTable], scaled: Sequence[TileTable] = ()) -> None:
        """Open the file.

        Args:
            like: the slide, as another reader opened it.
            stored: where the tiles of each of its levels lie.
            scaled: of levels that only a scaled decoding makes.
        """
        tables = (*stored, *scaled)
        sizes = [(table.width, table.height) for table in tables]
        super().__init__(like.path, sizes, like.resolution, like.background)
        if scaled:
            self.resampling, self.tolerance = f"libjpeg-scaled, {self.resampling}", _SCALED_TOLERANCE
        self._tables = tables
        self._files: dict[Path, PositionalFile] = {}
        try:
            for table in tables:
                path = table.path or like.path
                self._files[path] = self._files.get(path) or PositionalFile(path)
        except BaseException:
            self.close()
            raise
        self._keeper = Keeper(self._decoded, _MOST_BYTES)

    def expect(
        self, l0_corners: Int64[np.ndarray, "tiles 2"], l0_size: tuple[int, int], size_px: tuple[int, int]
    ) -> None:
        self._keeper.expect(key for part in self.locate_all(l0_corners, l0_size, size_px) for key in self._keys(part))

    def read_tiles(
        self, l0_corners: Int64[np.ndarray, "tiles 2"], l0_size: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "tiles height width 3"]:
        parts = self.locate_all(l0_corners, l0_size, size_px)
        tiles = np.empty((len(parts), size_px[1], size_px[0], 3), np.uint8)
        bands = [self._bands(part) for part in parts]
        missing = self._keeper.missing(dict.fromkeys(key for some in bands for band in some for key in band.keys))
        read = self._compressed(missing)
        for tile, part, some in zip(tiles, parts, bands, strict=True):  # one by one: what is just decoded is in cache
            kernels = kernels_for(part[3:], size_px)
            if kernels and self._is_inside(part):
                self._resample_bands(kernels, part, some, read, tile)
            else:
                tile[:] = resample(self._borrowed(part, read, expected=True), size_px)
        return tiles

    def _resample_bands(
        self, kernels: Any, part: Part, bands: list["_Band"], read: dict[Key, Compressed], tile: Pixels
    ) -> None:
        """Resize a part of a level, all inside it, band by band.

        So a megabyte less is written and read again for each tile, most of it not from the nearest cache.
        """
        narrow = np.empty((part.height, tile.shape[1], 3), np.uint8)
        done = 0
        for band in bands:
            decoded = self._keeper.borrow(band.keys, read)
            try:
                first, pieces = self._pieces(kernels, decoded, band)
                kernels.add_band(pieces, first, part.width, narrow[done : done + band.part.height])
            finally:
                self._keeper.give_back(band.keys, expected=True)
            done += band.part.height
        kernels.finish(narrow, tile)

    def _bands(self, part: Part) -> list["_Band"]:
        """Cut a part of a level into what lies in each row of tiles; what is outside the level is in none."""
        level, x, y, width, height = part
        table = self._tables[level]
        first, last = max(0, x) // table.tile_width, -(-min(table.width, x + width) // table.tile_width)
        bands, end, columns = [], min(table.height, y + height), table.columns
        top = max(0, y)
        while top < end:
            row = top // table.tile_height
            bottom = min(end, (row + 1) * table.tile_height)
            keys = [Key(level, row * columns + column) for column in range(first, last)]
            bands.append(_Band(Part(level, x, top, width, bottom - top), keys, first * table.tile_width - x))
            top = bottom
        return bands

    def _pieces(self, kernels: Any, decoded: dict[Key, Pixels], band: "_Band") -> tuple[int, list[Any]]:
        """The tiles of a band with their columns that count, put together if they are many; and their first row."""
        part, table = band.part, self._tables[band.part.level]
        if len(band.keys) > kernels.MOST_PIECES:
            return 0, [kernels.Piece(self._composed(decoded, part), 0, part.width)]
        pieces, left = [], band.left
        for key in band.keys:
            right = left + table.tile_width
            pieces.append(kernels.Piece(decoded[key], max(0, -left), min(table.tile_width, part.width - left)))
            left = right
        return part.y % table.tile_height, pieces

    def _is_inside(self, part: Part) -> bool:
        table = self._tables[part.level]
        right, bottom = part.x + part.width, part.y + part.height
        return part.x >= 0 and part.y >= 0 and right <= table.width and bottom <= table.height

    def _tile_rows(self, level: int) -> int:
        return self._tables[level].tile_height

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
        return self._borrowed(Part(level, x, y, width, height), {}, expected=False)

    def _borrowed(
        self, part: Part, read: dict[Key, Compressed], expected: bool
    ) -> UInt8[np.ndarray, "{part.height} {part.width} 3"]:
        """A part of a level, of tiles that were kept, or are decoded now."""
        keys = self._keys(part)
        decoded = self._keeper.borrow(keys, read)
        try:
            return self._composed(decoded, part)
        finally:
            self._keeper.give_back(keys, expected)

    def _keys(self, part: Part) -> list[Key]:
        return [key for band in self._bands(part) for key in band.keys]

    def _composed(self, decoded: dict[Key, Pixels], part: Part) -> UInt8[np.ndarray, "{part.height} {part.width} 3"]:
        """A part of a level, put together from its tiles; background where the level ends."""
        level, x, y, width, height = part
        table = self._tables[level]
        canvas = np.empty((height, width, 3), np.uint8)
        if not self._is_inside(part):
            canvas[:] = self.background
        for key in self._keys(part):
            left, top = table.corner(key.index)
            x0, y0 = max(x, left, 0), max(y, top, 0)
            x1 = min(x + width, left + table.tile_width, table.width)
            y1 = min(y + height, top + table.tile_height, table.height)
            canvas[y0 - y : y1 - y, x0 - x : x1 - x] = decoded[key][y0 - top : y1 - top, x0 - left : x1 - left]
        return canvas

    def _compressed(self, keys: Iterable[Key]) -> dict[Key, Compressed]:
        """Read the bytes of some tiles, those that lie side by side at once."""
        places: dict[Path, dict[Key, tuple[int, int]]] = {}
        for key in keys:
            table = self._tables[key.level]
            if count := int(table.counts[key.index]):
                places.setdefault(table.path or self.path, {})[key] = (int(table.offsets[key.index]), count)
        found: dict[Key, Compressed] = {}
        for path, spans in places.items():
            try:
                read = self._files[path].read_all(list(spans.values()))
            except OSError as error:
                raise SlideUnreadable(f"{path} cannot be read: {error.strerror or error}") from error
            found |= dict(zip(spans, read, strict=True))
        return found

    def _decoded(self, keys: Sequence[Key], read: dict[Key, Compressed]) -> Iterator[Pixels]:
        """Decode tiles, in the order of their keys; ``read`` holds the bytes of some."""
        if lacking := [key for key in keys if key not in read]:
            read = read | self._compressed(lacking)
        for key in keys:
            yield self._pixels(key, read[key]) if key in read else self._blank(self._tables[key.level])

    def _pixels(self, key: Key, data: Compressed) -> Pixels:
        table = self._tables[key.level]
        row, column = divmod(key.index, table.columns)
        where = f"{self.place}: tile {column}, {row} of level {key.level}"
        if len(data) < table.counts[key.index]:
            raise SlideUnreadable(f"{where} lies beyond the end of the file: copy or download it again")
        try:
            return table.decode(data)
        except Undecodable as error:
            raise SlideUnreadable(
                f"{where} cannot be decoded: {error}: try --reader openslide (of `wsimil tile` and `extract`)"
            ) from error

    def _blank(self, table: TileTable) -> Pixels:
        """A tile that was never scanned."""
        return np.full((table.tile_height, table.tile_width, 3), self.background, np.uint8)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
