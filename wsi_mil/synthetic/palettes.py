"""What a painter of sections needs at hand, made once per resolution: a piece of stroma, noise, nuclei to stamp.

Everything is an amount of stain, 1 being about as much haematoxylin as a dense nucleus takes. Fields repeat without a
seam, so that a slide of any size can be covered with them from any offset.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

Sprite = Float32[np.ndarray, "_ _"]
"""Amounts of haematoxylin on a small square with a pixel in its middle; sprites differ in size."""

FIELD_UM = 1792.0
_SPRITES = 64
_FIBROBLASTS_PER_MM2 = 420
_LONE_LYMPHOCYTES_PER_MM2 = 25


@dataclass(frozen=True)
class Palette:
    """Ingredients of a slide at one resolution; fields are square and repeat without a seam."""

    stroma_h: Float32[np.ndarray, "height width"]
    """Haematoxylin of stroma: faint, with the nuclei of fibroblasts lying along the fibres."""
    stroma_e: Float32[np.ndarray, "height width"]
    """Eosin of stroma: wavy bundles of fibres with clefts between them."""
    grain: Float32[np.ndarray, "height width"]
    """Fine smooth noise of standard deviation 1, a few micrometres wide: cytoplasm, ragged edges."""
    lobes: Float32[np.ndarray, "height width"]
    """Coarse smooth noise of standard deviation 1: its zero lines part a nest into cords of cells."""
    noise: Float32[np.ndarray, "height width"]
    """Scanner noise of standard deviation 1."""
    tumour: tuple[Sprite, ...]
    """Haematoxylin of large pale nuclei with a rim, clumped chromatin and often a nucleolus."""
    lymphocytes: tuple[Sprite, ...]
    """Haematoxylin of small round dark nuclei."""


@lru_cache(maxsize=2)
def palette(mpp: float) -> Palette:
    """Make the palette for a resolution: always the same one, for what differs between slides is drawn per slide."""
    rng = np.random.default_rng(20305)
    size = round(FIELD_UM / mpp)
    lymphocytes = tuple(_lymphocyte(rng, mpp) for _ in range(_SPRITES))
    stroma_h, stroma_e = _stroma(rng, size, mpp, lymphocytes)
    return Palette(
        stroma_h=stroma_h,
        stroma_e=stroma_e,
        grain=_field(rng, size, mpp, 2.0),
        lobes=_field(rng, size, mpp, 34.0),
        noise=_field(rng, size, 1.0, 0.5),
        tumour=tuple(_tumour(rng, mpp) for _ in range(_SPRITES)),
        lymphocytes=lymphocytes,
    )


def stamp(
    canvas: Float32[np.ndarray, "height width"],
    sprites: tuple[Sprite, ...],
    rows: list[int],
    columns: list[int],
    which: list[int],
) -> None:
    """Stamp sprites centred on the given pixels; where nuclei overlap the darker one shows. Sprites must lie inside."""
    for row, column, index in zip(rows, columns, which, strict=True):
        sprite = sprites[index]
        half = len(sprite) // 2
        window = canvas[row - half : row - half + len(sprite), column - half : column - half + len(sprite)]
        np.maximum(window, sprite, out=window)


def _field(
    rng: np.random.Generator, size: int, mpp: float, wide_um: float, long_um: float | None = None
) -> Float32[np.ndarray, "height width"]:
    """Seamless Gaussian noise of standard deviation 1, smoothed by ``wide_um`` down and ``long_um`` across."""
    long_um = wide_um if long_um is None else long_um
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    down = np.exp(-2 * np.square(np.pi * np.fft.fftfreq(size) * wide_um / mpp))
    across = np.exp(-2 * np.square(np.pi * np.fft.rfftfreq(size) * long_um / mpp))
    field = np.fft.irfft2(spectrum * down[:, None] * across, s=(size, size)).astype(np.float32)
    return (field - field.mean()) / field.std()


def _stroma(
    rng: np.random.Generator, size: int, mpp: float, lymphocytes: tuple[Sprite, ...]
) -> tuple[Float32[np.ndarray, "height width"], Float32[np.ndarray, "height width"]]:
    """Haematoxylin and eosin of stroma: fibres that run across in some places, down in others, and wind."""
    across, across_angle = _fibres(rng, size, mpp)
    down, down_angle = _fibres(rng, size, mpp)
    share = 1 / (1 + np.exp(-4 * _field(rng, size, mpp, 120.0)))
    fibres = share * across + (1 - share) * down.T
    angle = np.where(share > 0.5, across_angle, np.pi / 2 - down_angle.T)
    eosin = 0.265 + 0.05 * np.tanh(fibres) + 0.02 * _field(rng, size, mpp, 1.0)
    eosin *= np.clip(1 + 0.6 * (fibres + 1.5), 0.15, 1)  # clefts where there is least
    nuclei = _fibroblasts(rng, angle, mpp, lymphocytes)
    eosin -= 0.5 * eosin * np.minimum(2 * nuclei, 1)
    haematoxylin = 0.035 + 0.01 * fibres + nuclei
    return haematoxylin.astype(np.float32), eosin.astype(np.float32)


def _fibres(
    rng: np.random.Generator, size: int, mpp: float
) -> tuple[Float32[np.ndarray, "height width"], Float32[np.ndarray, "height width"]]:
    """Streaks that run across and wind, of standard deviation near 1, and their direction in radians."""
    straight = 0.85 * _field(rng, size, mpp, 1.3, 14.0) + 0.5 * _field(rng, size, mpp, 4.0, 45.0)
    shift = 24.0 * _field(rng, size, mpp, 80.0) + 2.5 * _field(rng, size, mpp, 14.0)
    rows, columns = np.indices((size, size), dtype=np.float32)
    wound = ndimage.map_coordinates(straight, [rows + shift / mpp, columns], order=1, mode="grid-wrap")
    slope = (np.roll(shift, -1, axis=1) - np.roll(shift, 1, axis=1)) / (2 * mpp)
    return wound, -np.arctan(slope)


def _fibroblasts(
    rng: np.random.Generator,
    angle: Float32[np.ndarray, "height width"],
    mpp: float,
    lymphocytes: tuple[Sprite, ...],
) -> Float32[np.ndarray, "height width"]:
    """Haematoxylin of spindle nuclei along the fibres, with a rare lymphocyte among them."""
    size, area_mm2 = len(angle), (len(angle) * mpp / 1000) ** 2
    spindles, lone = round(_FIBROBLASTS_PER_MM2 * area_mm2), round(_LONE_LYMPHOCYTES_PER_MM2 * area_mm2)
    rows, columns = rng.integers(0, size, (2, spindles + lone))
    sprites = [_spindle(rng, mpp, float(angle[rows[i], columns[i]])) for i in range(spindles)]
    sprites += [lymphocytes[i] for i in rng.integers(0, len(lymphocytes), lone)]
    margin = max(len(sprite) for sprite in sprites)
    canvas = np.zeros((size + 2 * margin, size + 2 * margin), np.float32)
    stamp(canvas, tuple(sprites), (rows + margin).tolist(), (columns + margin).tolist(), list(range(len(sprites))))
    for _ in range(2):  # what hangs over an edge comes in at the opposite one
        canvas[margin : 2 * margin] = np.maximum(canvas[margin : 2 * margin], canvas[-margin:])
        canvas[-2 * margin : -margin] = np.maximum(canvas[-2 * margin : -margin], canvas[:margin])
        canvas = canvas.T
    return canvas[margin:-margin, margin:-margin]


def _spindle(rng: np.random.Generator, mpp: float, angle: float) -> Sprite:
    long_um, wide_um = rng.uniform(6.0, 11.0), rng.uniform(1.5, 2.4)
    nucleus, _, _ = _ellipse(long_um, wide_um, angle + rng.normal(0, 0.15), mpp)
    return nucleus * np.float32(rng.uniform(0.45, 0.8))


def _lymphocyte(rng: np.random.Generator, mpp: float) -> Sprite:
    radius_um = rng.uniform(2.9, 3.8)
    nucleus, x_um, y_um = _ellipse(radius_um * rng.uniform(1, 1.15), radius_um, rng.uniform(0, np.pi), mpp)
    clumps = _spots(rng, x_um, y_um, 4, 2.0, 0.9)
    return nucleus * np.float32(rng.uniform(0.72, 1.02)) * (1 + 0.2 * clumps).astype(np.float32)


def _tumour(rng: np.random.Generator, mpp: float) -> Sprite:
    radius_um = float(np.clip(rng.lognormal(np.log(5.2), 0.2), 3.6, 8.5))
    stretch, angle = rng.uniform(1.0, 1.4), rng.uniform(0, np.pi)
    nucleus, x_um, y_um = _ellipse(radius_um * stretch, radius_um, angle, mpp)
    inner, _, _ = _ellipse(radius_um * stretch - 1.1, radius_um - 1.1, angle, mpp, len(nucleus))
    chromatin = rng.uniform(0.2, 0.34) + 0.1 * _spots(rng, x_um, y_um, 6, 0.6 * radius_um, 1.0)
    nucleoli = _spots(rng, x_um, y_um, int(rng.integers(0, 3)), 0.35 * radius_um, 0.8)
    filled = np.where(nucleus > 0, chromatin + 0.16 * (1 - inner) + 0.3 * nucleoli, 0)
    return (nucleus * filled).astype(np.float32)


def _ellipse(
    long_um: float, wide_um: float, angle: float, mpp: float, side: int | None = None
) -> tuple[Float32[np.ndarray, "k k"], Float32[np.ndarray, "k k"], Float32[np.ndarray, "k k"]]:
    """Coverage of an ellipse with soft edges in the middle of a square, and the coordinates of its pixels."""
    side = side or 2 * int(np.ceil(long_um / mpp + 1)) + 1
    axis = ((np.arange(side) - side // 2) * mpp).astype(np.float32)
    x_um, y_um = np.meshgrid(axis, axis)
    along, beside = x_um * np.cos(angle) + y_um * np.sin(angle), y_um * np.cos(angle) - x_um * np.sin(angle)
    inside_um = (1 - np.hypot(along / long_um, beside / wide_um)) * wide_um
    return np.clip(inside_um / max(mpp, 0.8) + 0.5, 0, 1).astype(np.float32), x_um, y_um


def _spots(
    rng: np.random.Generator,
    x_um: Float32[np.ndarray, "k k"],
    y_um: Float32[np.ndarray, "k k"],
    count: int,
    spread_um: float,
    radius_um: float,
) -> Sprite:
    """Soft spots of height 1 scattered about the middle."""
    spots = np.zeros_like(x_um)
    for x, y in rng.normal(0, spread_um, (count, 2)):
        spots += np.exp(-0.5 * (np.square(x_um - x) + np.square(y_um - y)) / radius_um**2).astype(np.float32)
    return np.minimum(spots, 1)
