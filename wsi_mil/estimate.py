"""What a cohort will take, measured on some of its slides: CPU time, bytes read, bytes written, by stage.

Nothing is written but to a temporary folder. Slides are drawn evenly by the size of their files, which their tissue
mostly decides, so that a handful of them stands for all.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64

from wsi_mil import store
from wsi_mil.bags import FEATURE_STAGES
from wsi_mil.distances import DistanceParams, DistanceStage
from wsi_mil.errors import OptionError, SlideError, one_line
from wsi_mil.progress import progress
from wsi_mil.slides import Slide, open_slide, slide_bytes
from wsi_mil.stage import Item, Result, attempt
from wsi_mil.tiling import TileStage

SAMPLE = 8
"""Slides that are measured."""
USUAL_ENCODER = "ctranspath"
"""Whose features are counted, where nobody names another."""
STAGES = ("tile", "extract", "distances")
"""Those whose costs are measured, in their order."""
_READ_TILES = 256  # of a slide: neighbours, since they share what is stored
_CHUNK = 8  # tiles read at once, as extraction does
_PLACE_BYTES = 16  # of a tile: x and y
_IO = Path("/proc/self/io")
Value = TypeVar("Value")


class Cost(NamedTuple):
    """What one stage takes."""

    cpu_s: float
    """CPU seconds of all threads."""
    read: int
    """Bytes that were asked for, whether a disk or a cache gave them."""
    written: int
    """Bytes."""

    def times(self, count: float) -> "Cost":
        """What it takes so many times."""
        return Cost(self.cpu_s * count, round(self.read * count), round(self.written * count))


class Measured(NamedTuple):
    """What was found of one slide."""

    slide_id: str
    tiles: int
    costs: dict[str, Cost]
    """By stage; of extract without the encoder's own time."""


@dataclass(frozen=True)
class Estimate:
    """What a cohort will take, if the slides that were measured stand for all."""

    slides: int
    """How many the cohort has."""
    slide_bytes: int
    """What they take on disk."""
    sample: list[Measured]
    failed: dict[str, Exception] = field(default_factory=dict)
    """Slides of the sample that failed; the cohort will have as large a share of them."""

    @property
    def working(self) -> float:
        """How many slides will not fail."""
        return self.slides * len(self.sample) / (len(self.sample) + len(self.failed))

    @property
    def tiles(self) -> int:
        """How many tiles there will be."""
        return round(self.working * float(np.mean([one.tiles for one in self.sample])))

    def total(self, stage: str) -> Cost:
        """What a stage will take of the whole cohort."""
        costs = np.array([one.costs[stage] for one in self.sample], float)
        cpu_s, read, written = costs.mean(axis=0).tolist()
        return Cost(cpu_s, round(read), round(written)).times(self.working)


def estimate(stage: TileStage, items: Sequence[Item], dim: int, count: int = SAMPLE) -> Estimate:
    """Measure what tiling, reading tiles and distances take of some slides, one after the other.

    Args:
        stage: which tiles are made, and how.
        items: the cohort.
        dim: length of the feature vectors that will be stored.
        count: how many slides are measured.

    Raises:
        OptionError: there are no items, or this system does not tell what is read.
        SlideError: not one of the slides that were tried can be tiled.
    """
    if not items:
        raise OptionError("--shard: this part of the cohort holds no slide: leave it out")
    if not _IO.exists():
        raise OptionError(f"--dry-run: only Linux tells what a process reads ({_IO}), and this system does not")
    sizes = {item.slide_id: slide_bytes(item.source) for item in items}
    chosen = _evenly(sorted(items, key=lambda item: (sizes[item.slide_id], item.slide_id)), count)
    found, failed = list[Measured](), dict[str, Exception]()
    with TemporaryDirectory(prefix="wsimil-") as folder, progress("measure", len(chosen)) as track:
        for item in chosen:
            made: Measured | Exception = attempt(_measure, stage, item, dim, Path(folder))
            if isinstance(made, Exception):
                failed[item.slide_id] = made
            else:
                found.append(made)
                track.step(made.tiles)
            track.advance(item.slide_id)
    if not found:
        slide_id, error = next(iter(failed.items()))
        tried = f"none of {len(chosen)} slides that were tried can be tiled"
        raise SlideError(f"{tried}, as {slide_id}: {one_line(error)}")
    return Estimate(len(items), sum(sizes.values()), found, failed)


def _evenly(items: list[Item], count: int) -> list[Item]:
    """So many of a list at even distances, or all."""
    count = min(count, len(items))
    return [items[int((index + 0.5) * len(items) / count)] for index in range(count)]


def _measure(stage: TileStage, item: Item, dim: int, folder: Path) -> Measured:
    """Run the stages of one slide, and keep nothing."""
    made, tiling = _spent(lambda: _tiled(stage, item))
    coords = made.artifact.arrays["coords"]
    path = folder / "tiles.h5"
    store.write(path, made.artifact)
    written = path.stat().st_size + sum(map(len, made.files.values()))
    path.unlink()
    costs = {"tile": tiling._replace(written=written)}
    costs["extract"] = _reading(stage, item, made, dim)
    costs["distances"] = _distances(item, made, dim, folder)
    return Measured(item.slide_id, len(coords), costs)


def _tiled(stage: TileStage, item: Item) -> Result:
    stage.upstream(item)  # hashing belongs to it
    return stage.tile(item)


def _reading(stage: TileStage, item: Item, made: Result, dim: int) -> Cost:
    """What reading all tiles for an encoder takes, from some that lie together; and the size of their features."""
    coords, attrs = made.artifact.arrays["coords"], made.artifact.attrs
    some = _together(coords, _READ_TILES)
    l0_size = (attrs["l0_tile_width"], attrs["l0_tile_height"])
    size_px = (attrs["tile_px"], attrs["tile_px"])

    opening = _spent(lambda: _open(stage, item).close())[1]
    with _open(stage, item) as slide:
        slide.expect(some, l0_size, size_px)
        starts = range(0, len(some), _CHUNK)
        _, reading = _spent(lambda: [slide.read_tiles(some[i : i + _CHUNK], l0_size, size_px) for i in starts])
    reading = reading.times(len(coords) / max(1, len(some)))
    written = len(coords) * (2 * dim + _PLACE_BYTES)
    return Cost(opening.cpu_s + reading.cpu_s, opening.read + reading.read, written)


def _open(stage: TileStage, item: Item) -> Slide:
    return open_slide(item.source, stage.mpp.get(item.slide_id), stage.params.reader)


def _together(coords: Int64[np.ndarray, "tiles 2"], count: int) -> Int64[np.ndarray, "some 2"]:
    """Those nearest to the middle of all, in the order of the list."""
    if len(coords) <= count:
        return coords
    away = np.abs(coords - np.median(coords, axis=0)).max(axis=1)
    return coords[np.sort(np.argsort(away, kind="stable")[:count])]


def _distances(item: Item, made: Result, dim: int, folder: Path) -> Cost:
    """What the distances take of features, which are empty here, and read whole as any: their checksum is verified."""
    path, out = folder / "feats.h5", folder / "distances.h5"
    coords, attrs = made.artifact.arrays["coords"], made.artifact.attrs
    attrs = {"status": "done", **attrs, "stage": FEATURE_STAGES[0], "slide_id": item.slide_id}
    store.write(path, store.Artifact({"features": np.zeros((len(coords), dim), np.float16), "coords": coords}, attrs))
    stage = DistanceStage(DistanceParams(), folder)
    found, cost = _spent(lambda: stage.measure(Item(item.slide_id, path)))
    store.write(out, found.artifact)
    written = out.stat().st_size
    path.unlink()
    out.unlink()
    return cost._replace(written=written)


def _spent(function: Callable[[], Value]) -> tuple[Value, Cost]:
    """Call a function, and measure what it took but for what it wrote."""
    cpu_s, read = time.process_time(), _bytes_read()
    value = function()
    return value, Cost(time.process_time() - cpu_s, _bytes_read() - read, 0)


def _bytes_read() -> int:
    """Bytes that this process has asked files for so far, as Linux counts them."""
    return next(int(line.split()[1]) for line in _IO.read_text().splitlines() if line.startswith("rchar"))
