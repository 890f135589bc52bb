"""Stage 3: features -> distances. Nearest neighbours, and the exact distribution of all pairwise distances.

No n x n array is made unless asked for. On a tile grid the number of pairs at each displacement is the
autocorrelation of the grid's occupancy, so one FFT counts all pairs of a slide exactly (100,000 tiles take about as
long as 100). Coordinates that lie on no small grid are counted block by block.
"""

import functools
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.fft import irfft2, next_fast_len, rfft2

from wsi_mil import publishing, store
from wsi_mil.bags import FEATURE_STAGES, read_features
from wsi_mil.errors import ArtifactCorrupt, ArtifactError, ArtifactStale, OptionError
from wsi_mil.memory import available_memory
from wsi_mil.nearest import nearest
from wsi_mil.progress import Progress
from wsi_mil.stage import Item, Result, RunOptions, artifact_items, artifact_path, attempt, per_slide, run

log = logging.getLogger(__name__)

BIN_UM = 16.0
"""Width of a bin of the histogram. One width for all, so that histograms of different slides can be added."""
_GRID_CELLS_PER_TILE = 40
_BLOCK = 2048
_MADE_BY = ("distances", 2)


@dataclass(frozen=True)
class DistanceParams:
    """Everything that decides the distances of a slide."""

    k: int = 8
    """Nearest neighbours per tile, itself left out; fewer where the slide has fewer tiles."""
    dense: bool = False
    """Also store the whole matrix of distances, float32, tiles x tiles."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise OptionError(f"--k {self.k}: give at least one neighbour")


@dataclass(frozen=True)
class DistanceStage:
    """``feats/<slide_id>.h5`` -> ``distances/<slide_id>.h5``."""

    params: DistanceParams
    out: Path
    """Where the artifacts will lie: its disk must have room for dense matrices."""
    workers: int = 1
    name: str = _MADE_BY[0]
    version: int = _MADE_BY[1]
    beside: tuple[str, ...] = ()

    @property
    def in_turn(self) -> bool:
        """Whether a worker may measure but one slide at a time: a dense matrix may take the free memory."""
        return self.params.dense

    def upstream(self, item: Item) -> str:
        """Fingerprint of the features."""
        attrs = store.read_attrs(item.source, {"stage", "fingerprint"})
        if attrs.get("stage") not in FEATURE_STAGES:
            raise ArtifactError(f"{item.source} holds no features: make them with `wsimil extract`")
        return attrs["fingerprint"]

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        """Measure each slide in a thread; dense matrices one at a time, since each may take the free memory."""
        if self.params.dense:
            return ((item, attempt(self.measure, item)) for item in items)
        return per_slide(self.measure, items, self.workers, track)

    def measure(self, item: Item) -> Result:
        """Measure one slide."""
        features = read_features(item.source)
        coords, attrs = features.arrays["coords"], features.attrs
        if lacking := [name for name in ("status", "tile_um") if name not in attrs]:
            mend = "make it again with `wsimil extract --overwrite`"
            raise ArtifactCorrupt(f"{item.source} lacks '{lacking[0]}': {mend}")
        um_per_px = np.array([attrs["mpp_x"], attrs["mpp_y"]])
        coords_um = coords * um_per_px
        index, um = nearest(coords_um, self.params.k)
        arrays = {"neighbours": index, "neighbours_um": um, "histogram": histogram(coords, um_per_px)}
        if self.params.dense:
            arrays["distances"] = dense(coords_um, self.out)
        kept = {"bin_um": BIN_UM, "status": attrs["status"], "tile_um": attrs["tile_um"]}
        kept |= {key: attrs[key] for key in ("mpp_source", "reason", "tissue_mm2") if key in attrs}
        return Result(store.Artifact(arrays, kept), len(coords))


def histogram(coords: Int[np.ndarray, "tiles 2"], um_per_px: Float[np.ndarray, " 2"]) -> Int[np.ndarray, " _"]:
    """Count all unordered pairs of tiles by distance, exactly.

    Args:
        coords: level-0 px.
        um_per_px: um per px along x and y.

    Returns:
        Counts; bin b holds the distances in [b, b + 1) * `BIN_UM`. They sum to tiles * (tiles - 1) / 2.
    """
    if len(coords) < 2:
        return np.zeros(0, np.int64)
    origin = coords - coords.min(axis=0)
    step = np.array([max(np.gcd.reduce(axis), 1) for axis in origin.T])
    cells = origin // step
    width, height = cells.max(axis=0) + 1
    if width * height <= _GRID_CELLS_PER_TILE * len(coords) + 1_000_000:
        return _histogram_of_grid(cells, step * um_per_px)
    return _histogram_by_blocks(coords * um_per_px)


def dense(coords_um: Float[np.ndarray, "tiles 2"], out: Path) -> Float[np.ndarray, "tiles tiles"]:
    """All pairwise distances in um, float32.

    Raises:
        OptionError: the matrix would not fit into the free memory or on the disk of ``out``.
    """
    size = len(coords_um) ** 2 * 4
    room = min(available_memory() // 2, shutil.disk_usage(publishing.existing(out)).free)
    if size > room:
        raise OptionError(
            f"--store dense: the matrix of {len(coords_um):,} tiles takes {size / 1e6:,.0f} MB and {room / 1e6:,.0f} MB"
            " are free: leave --store out, models compute what they need from the coordinates"
        )
    matrix = np.empty((len(coords_um), len(coords_um)), np.float32)
    step = max(1, _BLOCK * _BLOCK // len(coords_um)) if len(coords_um) else 1
    for start in range(0, len(coords_um), step):
        rows = slice(start, start + step)
        matrix[rows] = np.linalg.norm(coords_um[rows, None] - coords_um[None], axis=2)
    return matrix


def merge(histograms: list[Int[np.ndarray, " _"]]) -> Int[np.ndarray, " _"]:
    """Add histograms of different lengths."""
    total = np.zeros(max((len(one) for one in histograms), default=0), np.int64)
    for one in histograms:
        total[: len(one)] += one
    return total


def quantile(counts: Int[np.ndarray, " _"], q: float) -> float:
    """The distance in um below which a share q of all pairs lies, interpolated within its bin."""
    if not counts.sum():
        raise ArtifactError("no slide has two tiles, so there are no distances")
    cumulative = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    return float(np.interp(q, cumulative, np.arange(len(cumulative)) * BIN_UM))


def histograms(items: list[Item], folder: Path) -> list[Int[np.ndarray, " _"]]:
    """The histograms of some slides, from the artifacts in ``folder``; those that are absent or damaged are made first.

    Whole artifacts of other features are somebody's work, and cannot be told from those of features made anew. Where
    any lie there nothing is written, and what is lacking is counted for this time only. Artifacts of any ``k`` will do,
    since the histogram does not depend on it.

    Raises:
        ArtifactStale: what lies there are no distances at all.
    """
    paths = {item.slide_id: artifact_path(folder, item.slide_id) for item in items}
    current = {item.slide_id: _is_current(item, paths[item.slide_id]) for item in items}
    wanting = [item for item in items if not current[item.slide_id]]
    if any(one is False for one in current.values()):
        _tell_kept(folder)
        return [read_histogram(paths[item.slide_id]) if current[item.slide_id] else _counted(item) for item in items]
    if wanting:
        options = RunOptions(refresh=True)
        stage = DistanceStage(DistanceParams(), folder, options.threads)
        for error in run(stage, wanting, folder, options).failed.values():
            raise error
    return [read_histogram(path) for path in paths.values()]


def _counted(item: Item) -> Int[np.ndarray, " _"]:
    """The histogram of a slide's features."""
    return _counted_in(item.source, store.read_fingerprint(item.source))


@functools.lru_cache(maxsize=1 << 16)
def _counted_in(path: Path, _fingerprint: str) -> Int[np.ndarray, " _"]:  # once, however many rounds ask for it
    features = read_features(path)
    return histogram(features.arrays["coords"], np.array([features.attrs[name] for name in ("mpp_x", "mpp_y")]))


def read_histogram(path: Path) -> Int[np.ndarray, " _"]:
    """The histogram of an artifact of distances.

    Raises:
        ArtifactMissing: there is no such file.
        ArtifactCorrupt: it is damaged, or holds none.
    """
    counts = store.read(path).arrays.get("histogram")
    if counts is None or counts.ndim != 1 or counts.dtype.kind != "i" or counts.min(initial=0) < 0:
        raise ArtifactCorrupt(f"{path} holds no counts of distances: make it again by `wsimil distances --overwrite`")
    return counts


def _is_current(item: Item, path: Path) -> bool | None:
    """Whether an artifact is of these features, made by this version; None where none lies there, or a damaged one."""
    said = ("stage", "stage_version", "upstream")
    attrs = attempt(store.read_attrs, path, said) if path.exists() else None
    if not isinstance(attrs, dict):
        return None
    if attrs.get("stage") != _MADE_BY[0]:
        raise ArtifactStale(f"{path} holds no distances: name another folder by --distances")
    return tuple(map(attrs.get, said)) == (*_MADE_BY, store.read_fingerprint(item.source))


@functools.cache
def _tell_kept(folder: Path) -> None:
    """Say once of a folder, whatever number of rounds ask for it, that it stays as it is."""
    log.warning(
        "%s holds distances of other features, or of another version of wsimil: they stay as they are, and training"
        " counts its own. Name another folder by --distances, or replace them by `wsimil distances --overwrite`",
        folder,
    )


def write_summary(folder: Path) -> None:
    """Write ``summary.json``: quantiles of each slide's distances and of all, for people to read.

    Damaged artifacts are left out; ``summary.csv`` names them.
    """
    read = {item.slide_id: attempt(read_histogram, item.source) for item in artifact_items(folder)}
    counts = {slide_id: one for slide_id, one in read.items() if isinstance(one, np.ndarray)}
    slides = {slide_id: _quantiles(one) for slide_id, one in counts.items()}
    summary = {"unit": "um", "bin_um": BIN_UM, "all": _quantiles(merge(list(counts.values()))), "slides": slides}
    with publishing.replacing_text(folder / "summary.json") as file:
        json.dump(summary, file, indent=1)


def _quantiles(counts: Int[np.ndarray, " _"]) -> Mapping[str, float | int]:
    shares = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0) if counts.sum() else ()
    return {"pairs": int(counts.sum()), **{f"q{100 * q:g}": round(quantile(counts, q), 1) for q in shares}}


def _histogram_of_grid(cells: Int[np.ndarray, "tiles 2"], step_um: Float[np.ndarray, " 2"]) -> Int[np.ndarray, " _"]:
    width, height = (int(side) for side in cells.max(axis=0) + 1)
    shape = (next_fast_len(2 * height - 1, real=True), next_fast_len(2 * width - 1, real=True))
    occupied = np.zeros(shape)
    np.add.at(occupied, (cells[:, 1], cells[:, 0]), 1.0)  # tiles may coincide
    spectrum = rfft2(occupied)
    pairs = np.rint(irfft2(spectrum * spectrum.conj(), shape)).astype(np.int64)
    dy = np.minimum(np.arange(shape[0]), shape[0] - np.arange(shape[0])) * step_um[1]
    dx = np.minimum(np.arange(shape[1]), shape[1] - np.arange(shape[1])) * step_um[0]
    bins = _bins(np.hypot(dy[:, None], dx[None]))
    counts = np.bincount(bins.ravel(), pairs.ravel(), minlength=1).astype(np.int64)
    counts[0] -= len(cells)  # each tile with itself
    return _trimmed(counts // 2)


def _histogram_by_blocks(coords_um: Float[np.ndarray, "tiles 2"]) -> Int[np.ndarray, " _"]:
    longest = math.hypot(*(coords_um.max(axis=0) - coords_um.min(axis=0)))
    counts = np.zeros(int(longest / BIN_UM) + 2, np.int64)
    for start in range(0, len(coords_um), _BLOCK):
        rows = coords_um[start : start + _BLOCK]
        for other in range(start, len(coords_um), _BLOCK):
            columns = coords_um[other : other + _BLOCK]
            found = np.linalg.norm(rows[:, None] - columns[None], axis=2)
            weight = 1 if other == start else 2  # a block on the diagonal sees each pair twice, another one once
            counts += weight * np.bincount(_bins(found).ravel(), minlength=len(counts))
    counts[0] -= len(coords_um)
    return _trimmed(counts // 2)


def _bins(um: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    # A millionth of a um decides nothing, but keeps a distance that lies on a bin's edge from falling by rounding.
    return ((um + 1e-6) / BIN_UM).astype(np.int64)


def _trimmed(counts: Int[np.ndarray, " _"]) -> Int[np.ndarray, " _"]:
    filled = np.flatnonzero(counts)
    return counts[: filled[-1] + 1] if len(filled) else counts[:0]
