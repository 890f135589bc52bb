"""Where everything lies on a synthetic slide, before a single pixel is painted.

The label must be visible in positions alone, so whatever a model without positions could see is made the same for
both classes:

* Both layouts of a slide, near and far, are drawn together: from one tissue outline, the same nests and clusters, and
  the same two triangles that nests and clusters form among themselves. Only how the two triangles lie to each other
  differs, and the slide keeps the layout that its label asks for. A draw that fits only one class is thrown away.
* No tile can tell on its own: nests, clusters, holes and the glass around the tissue keep so far from each other
  (``clearance_um``, ``near_um``) that hardly a tile touches two of them.

Frame: micrometres from the slide's top left corner, x to the right, y down, as ``coords_um``.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from wsi_mil.errors import OptionError
from wsi_mil.synthetic.params import REACH, SyntheticParams

LABELS = ("near", "far")
_GRID_UM = 16.0
_ANGLES = 360
_SECTIONS, _DRAWS = 20, 20
_CANDIDATES, _PLACES = 1024, 64


@dataclass(frozen=True)
class Blob:
    """A region with a wavy outline: the tissue, a hole in it, a nest, a cluster."""

    kind: str
    """tissue, hole, nest or cluster."""
    x_um: float
    y_um: float
    profile_um: Float[np.ndarray, " k"]
    """Distance of the outline from the centre at k equally spaced angles, from the x axis towards the y axis."""

    @cached_property
    def radius_um(self) -> float:
        """Mean radius."""
        return float(self.profile_um.mean())

    @cached_property
    def reach_um(self) -> float:
        """Largest radius."""
        return float(self.profile_um.max())

    @cached_property
    def area_um2(self) -> float:
        """Area."""
        return float(np.pi * np.square(self.profile_um).mean())

    def depth_um(
        self, x_um: Float[np.ndarray, "*height"], y_um: Float[np.ndarray, "*height"]
    ) -> Float[np.ndarray, "*height"]:
        """How far inside the outline each point lies, measured along its radius; negative outside."""
        dx, dy = x_um - self.x_um, y_um - self.y_um
        turns = np.arctan2(dy, dx) * (len(self.profile_um) / (2 * np.pi))
        closed = np.append(self.profile_um, self.profile_um[0])
        return np.interp(turns % len(self.profile_um), np.arange(len(closed)), closed) - np.hypot(dx, dy)


@dataclass(frozen=True)
class Layout:
    """One slide: its label and where everything lies."""

    label: str
    """near or far."""
    tissue: Blob
    holes: tuple[Blob, ...]
    nests: tuple[Blob, ...]
    clusters: tuple[Blob, ...]

    @property
    def closest_um(self) -> float:
        """Distance of the closest nest and cluster, centre to centre: what the label is about."""
        return float(_distances(_centres(self.nests), _centres(self.clusters)).min())


def label_of(seed: int, index: int) -> str:
    """Label of slide number ``index``: of the slides 2k and 2k + 1 one is near, the other far."""
    coin = int(np.random.default_rng([seed, index // 2, 1]).integers(2))
    return LABELS[(index + coin) % 2]


def layout(seed: int, index: int, params: SyntheticParams) -> Layout:
    """Draw the layout of slide number ``index``.

    Raises:
        OptionError: no layout was found: the sizes and distances wanted do not fit the slide.
    """
    rng = np.random.default_rng([seed, index, 2])
    for attempt in range(_SECTIONS * _DRAWS):
        if attempt % _DRAWS == 0:
            tissue = _tissue(rng, params)
            room = _room(tissue, params)
        twins = _draw(rng, tissue, room, params)
        if twins is not None:
            return twins[label_of(seed, index)]
    raise OptionError(f"--side-um {params.side_um:g}: too small for these nests, clusters and distances; give more")


def _draw(
    rng: np.random.Generator, tissue: Blob, room: Float[np.ndarray, "height width"], params: SyntheticParams
) -> dict[str, Layout] | None:
    """Draw one slide in its two layouts, or None where either does not fit."""
    holes = [_blob(rng, "hole", float(rng.uniform(40, 110)), 0.25) for _ in range(rng.integers(3))]
    sizes = params.radius_um * rng.uniform(0.94, 1.06, params.nests + params.clusters)
    shapes = [_blob(rng, "nest" if i < params.nests else "cluster", float(size), 0.18) for i, size in enumerate(sizes)]
    groups = _group(rng, params.nests, params), _group(rng, params.clusters, params)
    if groups[0] is None or groups[1] is None:
        return None
    ranges = {"near": params.near_um, "far": (params.far_um, np.inf)}
    twins = {}
    for label in LABELS:
        centres = _place(rng, (groups[0], groups[1]), room, ranges[label], params)
        hollows = None if centres is None else _place_holes(rng, holes, centres, room, params)
        if centres is None or hollows is None:
            return None
        blobs = tuple(_at(shape, centre) for shape, centre in zip(shapes, centres, strict=True))
        twins[label] = Layout(label, tissue, hollows, blobs[: params.nests], blobs[params.nests :])
    return twins


def _group(rng: np.random.Generator, k: int, params: SyntheticParams) -> Float[np.ndarray, "k 2"] | None:
    """Draw k points about the origin, uniform in a disc that is not much larger than they need."""
    reach = params.spacing_um * 0.6 * np.sqrt(k)
    points = rng.uniform(-reach, reach, (_CANDIDATES, k, 2))
    inside = (np.hypot(points[..., 0], points[..., 1]) < reach).all(axis=1)
    apart = _distances(points, points) + np.where(np.eye(k), np.inf, 0.0)
    fits = np.flatnonzero(inside & (apart.min(axis=(1, 2)) >= params.spacing_um))
    return points[fits[0]] if len(fits) else None


def _place(
    rng: np.random.Generator,
    groups: tuple[Float[np.ndarray, "nests 2"], Float[np.ndarray, "clusters 2"]],
    room: Float[np.ndarray, "height width"],
    closest_um: tuple[float, float],
    params: SyntheticParams,
) -> Float[np.ndarray, "k 2"] | None:
    """Turn and shift both groups at random until they fit the tissue at the distance wanted; centres of all blobs."""
    nests, clusters = (_scatter(rng, group, room, params) for group in groups)
    closest = _distances(nests[:, None], clusters[None]).min(axis=(2, 3))
    fits = np.argwhere((closest >= closest_um[0]) & (closest < closest_um[1]))
    if not len(fits):
        return None
    nest, cluster = fits[rng.integers(len(fits))]
    return np.concatenate([nests[nest], clusters[cluster]])


def _scatter(
    rng: np.random.Generator,
    group: Float[np.ndarray, "k 2"],
    room: Float[np.ndarray, "height width"],
    params: SyntheticParams,
) -> Float[np.ndarray, "candidates k 2"]:
    """Copies of a group, each turned by a random angle and shifted to a random place; those that the tissue holds."""
    angle = rng.uniform(0, 2 * np.pi, _CANDIDATES)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1).reshape(-1, 2, 2)
    centres = group @ turn + rng.uniform(0, params.side_um, (_CANDIDATES, 1, 2))
    free = _lookup(room, centres).min(axis=1) > REACH * params.radius_um + params.clearance_um
    return centres[free][:_PLACES]


def _place_holes(
    rng: np.random.Generator,
    holes: list[Blob],
    centres: Float[np.ndarray, "k 2"],
    room: Float[np.ndarray, "height width"],
    params: SyntheticParams,
) -> tuple[Blob, ...] | None:
    """Put the holes where they touch nothing; they come last, for where they lie says nothing without positions."""
    placed: list[Blob] = []
    for hole in holes:
        spots = rng.uniform(0, params.side_um, (_CANDIDATES, 2))
        clear = _lookup(room, spots) > 2 * hole.reach_um
        apart_um = REACH * params.radius_um + params.clearance_um + hole.reach_um
        clear &= (_distances(spots, centres) > apart_um).all(axis=1)
        for other in placed:
            clear &= _distances(spots, _centres((other,)))[:, 0] > 2 * (hole.reach_um + other.reach_um)
        if not clear.any():
            return None
        placed.append(_at(hole, spots[clear.argmax()]))
    return tuple(placed)


def _tissue(rng: np.random.Generator, params: SyntheticParams) -> Blob:
    """The section: a rounded square, turned and dented, with notches down to a tenth of a millimetre."""
    angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES) + rng.uniform(0, 2 * np.pi)
    square = (np.abs(np.cos(angle)) ** 2.6 + np.abs(np.sin(angle)) ** 2.6) ** (-1 / 2.6)
    profile = square * (1 + 0.045 * _waves(rng, 7, 0.9) + 0.008 * _waves(rng, 60, 0.3))
    half = 0.46 * params.side_um
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    extent = np.maximum(np.abs(np.cos(angles)), np.abs(np.sin(angles))) * profile
    return Blob("tissue", params.side_um / 2, params.side_um / 2, profile * (half / extent.max()))


def _blob(rng: np.random.Generator, kind: str, radius_um: float, roughness: float) -> Blob:
    """A blob at the origin whose outline keeps within a share of its mean radius; its area is that of the circle."""
    waves = _waves(rng, 9, 0.8)
    profile = 1 + roughness * waves / max(1.0, float(np.abs(waves).max()))
    return Blob(kind, 0.0, 0.0, radius_um * profile / np.sqrt(np.square(profile).mean()))


def _waves(rng: np.random.Generator, orders: int, fall: float) -> Float[np.ndarray, " k"]:
    """Smooth noise round a circle, of standard deviation near 1: waves of the orders 2 to ``orders``."""
    order = np.arange(2, orders + 1)
    weight = order ** -float(fall)
    phase = rng.uniform(0, 2 * np.pi, len(order))
    angle = np.arange(_ANGLES)[:, None] * (2 * np.pi / _ANGLES)
    return (np.cos(order * angle + phase) * weight).sum(axis=1) * np.sqrt(2 / np.square(weight).sum())


def _room(tissue: Blob, params: SyntheticParams) -> Float[np.ndarray, "height width"]:
    """Distance to the glass around the tissue, from below, on a grid of 16 um."""
    centres = (np.arange(np.ceil(params.side_um / _GRID_UM)) + 0.5) * _GRID_UM
    x_um, y_um = np.meshgrid(centres, centres)
    inside: Bool[np.ndarray, "height width"] = tissue.depth_um(x_um, y_um) > 0
    return ndimage.distance_transform_edt(inside) * _GRID_UM - 2 * _GRID_UM


def _lookup(grid: Float[np.ndarray, "height width"], points: Float[np.ndarray, "*k 2"]) -> Float[np.ndarray, "*k"]:
    column, row = (np.floor(points[..., axis] / _GRID_UM).astype(int) for axis in (0, 1))
    end = len(grid) - 1
    inside = (np.minimum(column, row) >= 0) & (np.maximum(column, row) <= end)
    return np.where(inside, grid[np.clip(row, 0, end), np.clip(column, 0, end)], -np.inf)


def _at(blob: Blob, centre: Float[np.ndarray, " 2"]) -> Blob:
    return Blob(blob.kind, float(centre[0]), float(centre[1]), blob.profile_um)


def _centres(blobs: tuple[Blob, ...]) -> Float[np.ndarray, "k 2"]:
    return np.array([(blob.x_um, blob.y_um) for blob in blobs])


def _distances(one: Float[np.ndarray, "*n 2"], other: Float[np.ndarray, "*m 2"]) -> Float[np.ndarray, "*nm"]:
    """All distances between the points of one set and of another, set by set."""
    x, y = (one[..., :, None, axis] - other[..., None, :, axis] for axis in (0, 1))
    return np.sqrt(x * x + y * y)
