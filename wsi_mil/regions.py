"""Polygons that somebody drew: regions say where to make tiles, annotations say what a tile shows.

Both are files in a folder, one per slide, in level-0 pixels. Regions become a mask at the scale of the tissue's;
annotations become the share of each tile that each class covers, exactly.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from wsi_mil.errors import ArtifactCorrupt, OptionError, PolygonError
from wsi_mil.geometry import SUFFIXES, Area, Drawing, box_shares, cell_shares, merged, read_drawing, without
from wsi_mil.guards import parse_words
from wsi_mil.slides import without_extension
from wsi_mil.store import Artifact

log = logging.getLogger(__name__)

TISSUE = "Tissue"
"""The class of the outlines that `wsimil tile` writes: regions of it take the place of the tissue found."""
_NOTHING = "no tissue in the regions of {}"
_NAMED = 5  # slides in a message


class Labels(NamedTuple):
    """What was annotated on the tiles of a slide."""

    classes: list[str]
    """Sorted by name."""
    shares: Float32[np.ndarray, "tiles classes"]
    """Share of a tile that a class covers, 0 to 1; classes that overlap both count."""


@dataclass(frozen=True)
class RegionParams:
    """Which regions count."""

    include: Sequence[str] = ()
    """Classes whose regions are tiled; none named: all that are not excluded."""
    exclude: Sequence[str] = ()
    """Classes whose regions are cut out."""

    def __post_init__(self) -> None:
        if both := sorted(set(self.include) & set(self.exclude)):
            raise OptionError(f"--include {both[0]} --exclude {both[0]}: give one or the other")

    def included(self, classes: Collection[str]) -> list[str]:
        """Those of some classes that are tiled."""
        return [name for name in classes if name not in self.exclude and (not self.include or name in self.include)]


@dataclass(frozen=True)
class Drawings:
    """Folders of files with polygons: ``<folder>/<slide_id>`` and ``.geojson``, ``.json`` or ``.xml``.

    A file may leave out the folder of its slide where only one slide has that name, see `among`.
    """

    regions: Path | None = None
    """Where to make tiles."""
    annotations: Path | None = None
    """What tiles show."""
    lone: Collection[str] = frozenset()
    """Names, without folders, that only one slide has."""

    def __post_init__(self) -> None:
        for option, folder in self._folders():
            if not folder.is_dir():
                raise OptionError(f"--{option} {folder}: no such folder: name one that holds a file for each slide")

    def among(self, slide_ids: Iterable[str]) -> "Drawings":
        """The same, of a cohort of slides."""
        times = Counter(PurePosixPath(slide_id).name for slide_id in slide_ids)
        return replace(self, lone=frozenset(name for name, count in times.items() if count == 1))

    def absolute(self) -> "Drawings":
        """The same, for whoever works in another folder."""
        regions, annotations = (folder and folder.absolute() for folder in (self.regions, self.annotations))
        return replace(self, regions=regions, annotations=annotations)

    def upstream(self, slide_id: str) -> str:
        """Fingerprint of what was drawn on a slide: nothing, or words to follow that of the slide's content.

        Raises:
            PolygonError: a file cannot be read, or there are two.
        """
        files = [(option, self._file(folder, slide_id)) for option, folder in self._folders()]
        return "".join(f" {option}={_content(file)}" for option, file in files if file)

    def files(self, slide_id: str) -> list[tuple[str, Path]]:
        """The files of polygons of a slide, each after the option that names its folder."""
        return [
            (f"--{option}", path) for option, folder in self._folders() for path in self._candidates(folder, slide_id)
        ]

    def tell_missing(self, slide_ids: Sequence[str]) -> None:
        """Say which slides have no file: they are tiled as without."""
        for option, folder in self._folders():
            files = {slide_id: self._candidates(folder, slide_id) for slide_id in slide_ids}
            if missing := [slide_id for slide_id, own in files.items() if not own]:
                taken = {path for own in files.values() for path in own}
                more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
                names = ", ".join(_with_near_misses(folder, missing, taken)[:_NAMED]) + more
                what = f"{len(missing)} of {len(slide_ids)} slides have no file there and are tiled as without"
                log.warning("--%s %s: %s: %s", option, folder, what, names)

    def require_classes(self, slide_ids: Iterable[str], params: RegionParams) -> None:
        """Refuse names of classes that no slide has, as a slip of the pen would leave every slide empty.

        A file that cannot be read is passed over here, and fails its own slide.

        Raises:
            OptionError: of an option's classes there are no regions, though there are such of others.
        """
        named, seen = {"--include": set(params.include), "--exclude": set(params.exclude)}, set[str]()
        for slide_id in slide_ids if params.include or params.exclude else ():
            try:
                file = self._file(self.regions, slide_id)
                seen |= set(read_drawing(file).areas) if file else set()
            except PolygonError:
                continue
            if all(classes <= seen for classes in named.values()):
                return
        for option, classes in named.items():
            if seen and classes and not classes & seen:
                wanted, there = ", ".join(sorted(classes)), ", ".join(sorted(seen))
                raise OptionError(f"{option} {wanted}: no slide has regions of it; give of these: {there}")

    def tissue(
        self,
        slide_id: str,
        found: Bool[np.ndarray, "height width"],
        reason: str,
        l0_size: tuple[int, int],
        params: RegionParams,
    ) -> tuple[Bool[np.ndarray, "height width"], str]:
        """The tissue that is to be tiled, after what was drawn on a slide.

        Tissue found counts inside the regions that are included, or everywhere if the file has only excluded ones.
        Regions of class "Tissue" count whole, whatever was found. Excluded ones count nowhere.

        Args:
            slide_id: of the slide.
            found: tissue as it was found, over the whole slide at any scale.
            reason: why there is none; "" if there is.
            l0_size: (width, height) of the slide, level-0 pixels.
            params: which regions count.

        Returns:
            The mask, a pixel of it counting if at least half of it does, and why it is empty; both as they came where
            no regions were drawn.

        Raises:
            PolygonError: the file cannot be read, or lies outside the slide.
        """
        file = self._file(self.regions, slide_id)
        if file is None:
            return found, reason
        drawing = _read(file, l0_size)
        mask = _masked(found, drawing, l0_size, params)
        return mask, "" if mask.any() else _why_empty(file, drawing, params) or reason or _NOTHING.format(file)

    def annotated(self, slide_id: str, l0_size: tuple[int, int]) -> dict[str, Area] | None:
        """What was annotated on a slide, by class, sorted by name; None where nobody did.

        Args:
            slide_id: of the slide.
            l0_size: (width, height) of the slide, level-0 pixels.

        Raises:
            PolygonError: the file cannot be read, or lies outside the slide.
        """
        file = self._file(self.annotations, slide_id)
        return None if file is None else _read(file, l0_size).areas

    def _folders(self) -> list[tuple[str, Path]]:
        both = (("regions", self.regions), ("annotations", self.annotations))
        return [(option, folder) for option, folder in both if folder is not None]

    def _file(self, folder: Path | None, slide_id: str) -> Path | None:
        """The file of polygons of a slide, if it has one.

        Raises:
            PolygonError: it has two.
        """
        found = self._candidates(folder, slide_id) if folder else []
        if len(found) > 1:
            raise PolygonError(f"{' and '.join(map(str, found))} are of one slide: remove all but one of them")
        return found[0] if found else None

    def _candidates(self, folder: Path, slide_id: str) -> list[Path]:
        name = PurePosixPath(slide_id).name
        for called in (slide_id, name) if name in self.lone else (slide_id,):
            if found := [path for suffix in SUFFIXES if (path := folder / f"{called}{suffix}").is_file()]:
                return found
        return []


def label_tiles(areas: Mapping[str, Area], coords: Int64[np.ndarray, "tiles 2"], l0_tile: tuple[int, int]) -> Labels:
    """What was annotated on tiles.

    Args:
        areas: what each class covers, as `Drawings.annotated` tells it.
        coords: top left corners of the tiles (x, y), level-0 pixels.
        l0_tile: (width, height) of a tile, level-0 pixels.
    """
    shares = [box_shares(area, coords, l0_tile) for area in areas.values()]
    return Labels(list(areas), np.reshape(shares, (len(areas), len(coords))).T.astype(np.float32, order="C"))


def read_labels(artifact: Artifact) -> Labels | None:
    """What was annotated on the tiles of an artifact, of `wsimil tile` or `wsimil extract`; None where nobody did."""
    if "annotations" not in artifact.arrays:
        return None
    shares = artifact.arrays["annotations"]
    try:
        classes = parse_words(artifact.array_attrs["annotations"].get("classes"))
    except ValueError as error:
        raise ArtifactCorrupt(f"annotations of tiles have no names ({error}): tile with --overwrite") from error
    if shares.ndim != 2 or shares.shape[1] != len(classes):
        raise ArtifactCorrupt(f"{len(classes)} annotations are named, and {shares.shape} there: tile with --overwrite")
    return Labels(classes, shares)


def _with_near_misses(folder: Path, slide_ids: Sequence[str], taken: Collection[Path]) -> list[str]:
    """Slides without a file; before the others those for which one lies there that is called nearly like them."""
    there: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path not in taken:
            there.setdefault(without_extension(path.stem).lower(), path)
    near = {slide_id: there.get(PurePosixPath(slide_id).name.lower()) for slide_id in slide_ids}
    told = [
        f"{slide_id} (if {file.relative_to(folder)} is of it, call that {slide_id}{file.suffix.lower()})"
        for slide_id, file in near.items()
        if file
    ]
    return told + [slide_id for slide_id, file in near.items() if not file]


def _content(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise PolygonError(f"{file} cannot be read: {error.strerror or error}") from error


def _read(file: Path, l0_size: tuple[int, int]) -> Drawing:
    """Read a file, and compare it with its slide.

    Raises:
        PolygonError: it cannot be read, or nothing in it lies on the slide.
    """
    drawing = read_drawing(file)
    left, top, right, bottom = drawing.bounds.T
    outside = (right <= 0) | (bottom <= 0) | (left >= l0_size[0]) | (top >= l0_size[1])
    if outside.any():
        what = f"{outside.sum()} of {len(outside)} polygons lie outside the slide of {l0_size[0]} x {l0_size[1]} px"
        if outside.all():
            raise PolygonError(f"{file}: {what}: draw them on this very slide; coordinates must be its level-0 pixels")
        log.warning("%s: %s and say nothing", file, what)
    return drawing


def _masked(
    found: Bool[np.ndarray, "height width"], drawing: Drawing, l0_size: tuple[int, int], params: RegionParams
) -> Bool[np.ndarray, "height width"]:
    areas = drawing.areas
    cut = merged([drawing.cut, *(areas[name] for name in areas if name in params.exclude)])
    included = params.included(areas)
    if not included and not params.include and not cut.is_empty:
        return found & ~_raster(cut, found.shape, l0_size)
    inside = without(merged(areas[name] for name in included if name != TISSUE), cut)
    mask = found & _raster(inside, found.shape, l0_size)
    if TISSUE in included:
        mask |= _raster(without(areas[TISSUE], cut), found.shape, l0_size)
    return mask


def _raster(area: Area, shape: tuple[int, ...], l0_size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """The pixels of a mask, over the whole slide, of which at least half lies in an area."""
    mask = np.zeros(shape, bool)
    if area.is_empty:
        return mask
    left, top, right, bottom = area.bounds
    x, columns = _window(left, right, shape[1], l0_size[0])
    y, rows = _window(top, bottom, shape[0], l0_size[1])
    mask[rows, columns] = cell_shares(area, x, y) >= 0.5
    return mask


def _window(start: float, end: float, count: int, l0_side: int) -> tuple[np.ndarray, slice]:
    """Along one axis, the lines between a mask's pixels from the one at ``start`` to the one at ``end``."""
    first, last = (int(np.clip(place * count // l0_side, 0, count - 1)) for place in (start, end))
    return np.arange(first, last + 2) * (l0_side / count), slice(first, last + 1)


def _why_empty(file: Path, drawing: Drawing, params: RegionParams) -> str:
    """Why nothing was chosen; "" where something was, but no tissue in it."""
    if not len(drawing.bounds):
        return f"{file} has no polygon"
    if params.include and not params.included(drawing.areas):
        there = ", ".join(drawing.areas) or "none"
        return f"{file} has no region of class {', '.join(params.include)}; its classes: {there}"
    return ""
