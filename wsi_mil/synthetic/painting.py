"""Paints a layout so that it looks like a section stained with haematoxylin and eosin.

A slide is painted as two maps, how much haematoxylin and how much eosin lies at each pixel, and turned into light only
at the end, by the law of Beer and Lambert: ``RGB = glass * 10 ** -(H * haematoxylin + E * eosin)``.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8, UInt32
from PIL import Image

from wsi_mil.synthetic.layouts import Blob, Layout
from wsi_mil.synthetic.palettes import Palette, Sprite, palette, stamp
from wsi_mil.synthetic.params import SyntheticParams

# Optical density in red, green and blue of one unit of stain (Macenko et al., ISBI 2009).
HAEMATOXYLIN = np.array([0.5626, 0.7201, 0.4062])
EOSIN = np.array([0.2159, 0.8012, 0.5581])
_COARSE_UM = 8.0
_STRIP_PX = 256
# Amounts of stain are rounded to 8 bits for the table that turns them into light. Zero lies above the lowest step, so
# that noise shows on bare glass too.
_STEPS = (130.0, 230.0)
_ZERO = 12.0


class Stains(NamedTuple):
    """Amounts of both stains at every pixel of a slide, or of a window of it."""

    haematoxylin: Float32[np.ndarray, "height width"]
    eosin: Float32[np.ndarray, "height width"]


def paint(layout: Layout, params: SyntheticParams, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
    """Paint a slide, ``params.side_px`` pixels square, in RGB.

    Args:
        layout: what lies where.
        params: gives size and resolution.
        rng: draws all that the layout leaves open: textures, nuclei, stain, noise.
    """
    colours = palette(params.mpp)
    stains = Stains(*_cover((colours.stroma_h, colours.stroma_e), params.side_px, rng))
    _cut_tissue(stains, layout, params.mpp, colours, rng)
    for blob in layout.nests:
        _paint_nest(stains, blob, params.mpp, colours, rng)
    for blob in layout.clusters:
        _paint_cluster(stains, blob, params.mpp, colours, rng)
    return _develop(stains, _light(rng), colours, rng)


def _cover(
    fields: tuple[Float32[np.ndarray, "k k"], ...], side_px: int, rng: np.random.Generator
) -> list[Float32[np.ndarray, "height width"]]:
    """Cover the slide with fields that belong together, all shifted and turned over in one random way."""
    size = len(fields[0])
    shift = tuple(rng.integers(0, size, 2))
    steps, transposed = rng.choice([-1, 1], 2), rng.integers(2)
    reps = -(-side_px // size)
    covered = []
    for field in fields:
        turned = np.roll(field.T if transposed else field, shift, (0, 1))[:: steps[0], :: steps[1]]
        covered.append(np.tile(turned, (reps, reps))[:side_px, :side_px])
    return covered


def _cut_tissue(stains: Stains, layout: Layout, mpp: float, colours: Palette, rng: np.random.Generator) -> None:
    """Take away the stain outside the tissue and in its holes, and let it vary over the section, in place."""
    side_px = len(stains.eosin)
    coarse = int(np.ceil(side_px * mpp / _COARSE_UM)) + 1
    x_um, y_um = np.meshgrid(*[(np.arange(coarse) + 0.5) * _COARSE_UM] * 2)
    depth = layout.tissue.depth_um(x_um, y_um)
    for hole in layout.holes:
        depth = np.minimum(depth, -hole.depth_um(x_um, y_um))
    gain = 1 + 0.09 * _smooth(rng, coarse, 10) + 0.06 * _smooth(rng, coarse, 40)
    gain = gain * (1 + 0.18 * np.exp(-np.square(depth / 25)))  # edges take more stain
    fields = [Image.fromarray(field.astype(np.float32)) for field in (depth, gain)]
    size, offset = len(colours.grain), int(rng.integers(len(colours.grain)))
    for top in range(0, side_px, _STRIP_PX):
        rows = slice(top, min(top + _STRIP_PX, side_px))
        scale = mpp / _COARSE_UM
        box = (0.0, rows.start * scale, side_px * scale, rows.stop * scale)
        target = (side_px, rows.stop - rows.start)
        deep, strength = (np.array(field.resize(target, Image.Resampling.BILINEAR, box=box)) for field in fields)
        ragged = colours.grain[np.arange(rows.start + offset, rows.stop + offset) % size]
        deep += np.tile(3 * ragged, -(-side_px // size))[:, :side_px]
        strength *= np.clip(deep / 5 + 0.5, 0, 1)
        stains.haematoxylin[rows] *= strength
        stains.eosin[rows] *= strength


def _crop(
    fields: tuple[Float32[np.ndarray, "k k"], ...], shape: tuple[int, ...], rng: np.random.Generator
) -> list[Float32[np.ndarray, "height width"]]:
    """The same piece, from anywhere, of fields that belong together."""
    size = len(fields[0])
    rows, columns = ((np.arange(length) + rng.integers(size)) % size for length in shape)
    return [field[rows[:, None], columns] for field in fields]


def _smooth(rng: np.random.Generator, size: int, points: int) -> Float[np.ndarray, "height width"]:
    """Noise of standard deviation near 1 that is drawn at so many points per side and smooth between them."""
    drawn = Image.fromarray(rng.standard_normal((points, points), dtype=np.float32))
    return np.array(drawn.resize((size, size), Image.Resampling.BICUBIC))


def _window(stains: Stains, blob: Blob, mpp: float) -> tuple[Stains, Float[np.ndarray, "height width"]]:
    """The part of the slide around a blob, and how deep inside the blob each pixel lies, in um."""
    reach = blob.reach_um + 40
    rows, columns = (
        slice(max(round((centre - reach) / mpp), 0), min(round((centre + reach) / mpp), len(stains.eosin)))
        for centre in (blob.y_um, blob.x_um)
    )
    y_um, x_um = ((np.arange(part.start, part.stop) + 0.5) * mpp for part in (rows, columns))
    depth = blob.depth_um(*np.meshgrid(x_um, y_um))
    return Stains(stains.haematoxylin[rows, columns], stains.eosin[rows, columns]), depth


def _paint_nest(stains: Stains, blob: Blob, mpp: float, colours: Palette, rng: np.random.Generator) -> None:
    """Cords of tumour cells, parted by thin septa of stroma and shrunk a little from it."""
    window, depth = _window(stains, blob, mpp)
    grain, lobes = _crop((colours.grain, colours.lobes), depth.shape, rng)
    deep = np.minimum(depth + 3 * grain, 75 * (np.abs(lobes) - 0.09)).astype(np.float32)
    gap = np.exp(-np.square((deep + 4) / 3)) * (depth > -15)
    cells = np.clip(deep / 3 + 0.5, 0, 1)
    _mix(window, cells, 0.16 + 0.025 * grain, 0.21 + 0.03 * grain)
    for stain in window:
        stain *= 1 - 0.5 * gap
    places = _scatter(rng, depth.shape, 14.5 / mpp, 2.4 / mpp)
    _stamp_cells(window, colours.tumour, places, deep > 4, rng)


def _paint_cluster(stains: Stains, blob: Blob, mpp: float, colours: Palette, rng: np.random.Generator) -> None:
    """Lymphocytes, crowded in the middle and looser towards the outline, in loose stroma."""
    window, depth = _window(stains, blob, mpp)
    grain, lobes = _crop((colours.grain, colours.lobes), depth.shape, rng)
    _mix(window, (0.7 * np.clip(depth / 60, 0, 1)).astype(np.float32), 0.12 + 0.03 * grain, 0.16 + 0.03 * grain)
    crowd = np.clip(depth / 90 + 0.12, 0, 0.96) * (depth > 4) * np.clip(1.1 + 0.25 * lobes, 0.3, 1)
    places = _scatter(rng, depth.shape, 7.6 / mpp, 1.3 / mpp)
    _stamp_cells(window, colours.lymphocytes, places, crowd > rng.random(depth.shape), rng)


def _mix(
    window: Stains,
    share: Float32[np.ndarray, "height width"],
    haematoxylin: Float32[np.ndarray, "height width"],
    eosin: Float32[np.ndarray, "height width"],
) -> None:
    """Replace a share of what is there, in place."""
    for stain, new in zip(window, (haematoxylin, eosin), strict=True):
        stain += share * (new - stain)


def _scatter(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_px: float, jitter_px: float
) -> Float[np.ndarray, "k 2"]:
    """Rows and columns of places for cells: a honeycomb, shaken."""
    rows = np.arange(0, shape[0], spacing_px * np.sqrt(0.75))
    columns = np.arange(0, shape[1], spacing_px)
    row, column = np.meshgrid(rows, columns, indexing="ij")
    column[1::2] += spacing_px / 2
    places = np.stack([row.ravel(), column.ravel()], axis=-1)
    return places + rng.normal(0, jitter_px, places.shape)


def _stamp_cells(
    window: Stains,
    sprites: tuple[Sprite, ...],
    places: Float[np.ndarray, "k 2"],
    allowed: Bool[np.ndarray, "height width"],
    rng: np.random.Generator,
) -> None:
    """Stamp nuclei at the places that are allowed, in place; eosin gives way to them."""
    margin = max(len(sprite) for sprite in sprites)
    rows, columns = np.round(places).astype(int).T
    inside = (rows >= 0) & (columns >= 0) & (rows < allowed.shape[0]) & (columns < allowed.shape[1])
    rows, columns = rows[inside], columns[inside]
    kept = allowed[rows, columns]
    rows, columns = rows[kept] + margin, columns[kept] + margin
    canvas = np.zeros((allowed.shape[0] + 2 * margin, allowed.shape[1] + 2 * margin), np.float32)
    stamp(canvas, sprites, rows.tolist(), columns.tolist(), rng.integers(0, len(sprites), len(rows)).tolist())
    nuclei = canvas[margin:-margin, margin:-margin]
    window.haematoxylin[...] += nuclei
    window.eosin[...] *= 1 - 0.55 * np.minimum(2.5 * nuclei, 1)


def _light(rng: np.random.Generator) -> UInt32[np.ndarray, " k"]:
    """Colour by 256 * haematoxylin + eosin, in steps, red in the lowest byte: stain, glass and lamp of one slide."""
    strengths = rng.uniform(0.88, 1.14, 2)
    vectors = np.stack([HAEMATOXYLIN, EOSIN]) + rng.uniform(-0.025, 0.025, (2, 3))
    glass = np.array([244.0, 242.0, 238.0]) + rng.uniform(-2, 2) + rng.uniform(-1.5, 1.5, 3)
    amounts = [(np.arange(256) - _ZERO) / steps * strength for steps, strength in zip(_STEPS, strengths, strict=True)]
    density = amounts[0][:, None, None] * vectors[0] + amounts[1][:, None] * vectors[1]
    colour = np.clip(np.round(glass * 10**-density), 0, 255).astype(np.uint32).reshape(-1, 3)
    return colour[:, 0] | colour[:, 1] << 8 | colour[:, 2] << 16


def _develop(
    stains: Stains, light: UInt32[np.ndarray, " k"], colours: Palette, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Turn stain into light, with the noise of the scanner. The maps are used up: they are scaled in place."""
    side_px, size = len(stains.eosin), len(colours.noise)
    image = np.empty((side_px, side_px, 3), np.uint8)
    reps = -(-side_px // size)
    for top in range(0, side_px, _STRIP_PX):
        rows = slice(top, min(top + _STRIP_PX, side_px))
        steps = []
        for stain, per_unit in zip(stains, _STEPS, strict=True):
            strip = stain[rows]
            strip *= per_unit
            noise = colours.noise[(np.arange(rows.stop - rows.start) + rng.integers(size)) % size]
            strip += np.tile(noise, reps)[:, :side_px]
            strip += _ZERO + 0.5
            steps.append(np.clip(strip, 0, 255, out=strip).astype(np.uint16, order="C"))
        steps[0] <<= 8
        steps[0] |= steps[1]
        image[rows] = light[steps[0]].view(np.uint8).reshape(-1, side_px, 4)[..., :3]
    return image
