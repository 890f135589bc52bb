"""What tiling a slide costs, and how fast its tiles are read.

    python examples/bench_reading.py [--slide SLIDE ...] [--side 20000] [--tiles 144] [--rounds 5]

First, CPU seconds of each step of tiling, beside reading the slide's thumbnail. Then tiles of 256 px read at half of
the slide's resolution, on one thread: by OpenSlide and Pillow tile by tile, as most programs do it; by wsimil, exactly
and with --fast-decode; and the limit, decoding the same compressed tiles from memory and nothing else. "By the first"
is how many times as many tiles per CPU second as the common way; "to the last", how many times as long as the limit.

Without a slide one is painted: sections of H&E on glass, 1 um/px, --side pixels wide and high, as a JPEG pyramid.
Tissue is sought twice, the second time on the same thumbnail under a green and a blue stroke of a pen.
Steps are those of `wsimil tile`, on one thread; the last row is a lattice of a million places, whatever the slide.
Prints Markdown.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench_slides import STAINS
from reading_rates import L0_TILE, rates, write_slide
from scipy import ndimage

from wsi_mil.geometry import outline
from wsi_mil.grid import Lattice, l0_tile_size, lattice, tiles_on_tissue
from wsi_mil.qc import measure
from wsi_mil.slides import open_slide, write_pyramid
from wsi_mil.tissue import WORKING_MPP, find_tissue

_FINE_PX = 4000  # the mask of a slide of 64 mm
_INKS = ((0.05, (40, 160, 110)), (0.2, (30, 60, 190)))  # where down the slide, and the colour
_STROKE_UM = 800.0


class Step(NamedTuple):
    """CPU time of one step."""

    name: str
    seconds: float
    what: str


def paint(path: Path, side: int) -> Path:
    """Write a slide of two sections, textured as tissue is."""
    rng = np.random.default_rng(0)
    coarse = side // 64
    rows, columns = np.ogrid[:coarse, :coarse]
    inside = np.zeros((coarse, coarse), bool)
    for x, y, radius in ((0.3, 0.35, 0.22), (0.68, 0.62, 0.27)):
        inside |= (columns - x * coarse) ** 2 + (rows - y * coarse) ** 2 < (radius * coarse) ** 2
    stain = np.where(inside, ndimage.gaussian_filter(rng.normal(size=(3, coarse, coarse)), (0, 1, 1)).argmax(0) + 1, 0)
    image = STAINS[stain.astype(np.uint8)].repeat(64, 0).repeat(64, 1)
    image += rng.integers(0, 12, image.shape, dtype=np.uint8)
    write_pyramid(path, image, 1.0)
    return path


def inked(image: np.ndarray, mpp: float) -> np.ndarray:
    """A thumbnail under strokes of a pen, from left to right, the lower one across tissue of the painted slide."""
    seen = image.copy()
    height, width = image.shape[:2]
    for share, ink in _INKS:
        top, margin = int(share * height), width // 16
        stroke = seen[top : top + round(_STROKE_UM / mpp), margin : width - margin]
        stroke[:] = stroke * (np.array(ink) / 255)  # transparencies multiply
    return seen


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function returns, and the CPU seconds that it took."""
    began = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - began


def steps(path: Path) -> list[Step]:
    """Tile one slide, step by step."""
    with open_slide(path) as slide:
        thumbnail, reading = timed(slide.thumbnail, WORKING_MPP)
        tissue, finding = timed(find_tissue, *thumbnail)
        image, mpp_x, mpp_y = thumbnail
        under_pens, finding_pens = timed(find_tissue, inked(image, mpp_y), mpp_x, mpp_y)
        _, tracing = timed(outline, tissue.mask, 1.0, 1.0)
        grid = lattice(slide.l0_size, l0_tile_size(256.0, slide.mpp_x, slide.mpp_y))
        tiles, choosing = timed(tiles_on_tissue, tissue.mask, grid, 0.5)
        _, judging = timed(measure, slide, grid, tiles.coords, tissue.ink)
    million = Lattice((1_024_000, 1_024_000), (1024, 1024), (1024, 1024))
    fine = np.asarray(tissue.mask).repeat(_FINE_PX // len(tissue.mask) + 1, 0)[:_FINE_PX]
    fine = fine.repeat(_FINE_PX // fine.shape[1] + 1, 1)[:, :_FINE_PX]
    _, many = timed(tiles_on_tissue, fine, million, 0.5)
    size = "x".join(map(str, thumbnail.image.shape[1::-1]))
    return [
        Step("thumbnail", reading, f"{size} px"),
        Step("tissue", finding, f"{tissue.area_mm2:.0f} mm2"),
        Step("tissue with pen strokes", finding_pens, f"{under_pens.ink.mean():.1%} under ink"),
        Step("outline", tracing, ""),
        Step("lattice", choosing, f"{len(tiles.coords)} tiles"),
        Step("quality", judging, f"{1000 * judging / max(1, len(tiles.coords)):.2f} ms a tile"),
        Step("lattice of a million", many, f"1000 x 1000 places, mask {_FINE_PX} x {_FINE_PX} px"),
    ]


def print_steps(path: Path) -> None:
    """Print what tiling a slide costs."""
    found = steps(path)
    print(f"\n{path.name}\n\n| step | CPU s | by thumbnail | |\n| :-- | --: | --: | :-- |")
    for step in found:
        ratio = step.seconds / max(found[0].seconds, 1e-9)
        print(f"| {step.name} | {step.seconds:.3f} | {ratio:.2f} | {step.what} |")


def print_rates(path: Path, tiles: int, rounds: int) -> None:
    """Print how many tiles a second are read, on the file's own lattice and off it."""
    for offset in (0, 100):
        found = rates(path, offset, tiles, rounds)
        print(f"\n{path.name}, {f'{offset} px off the lattice of' if offset else 'on the lattice of'} its tiles\n")
        print("| way | tiles per CPU s | tiles per s | by the first | to the last | PSNR, dB |")
        print("| :-- | --: | --: | --: | --: | --: |")
        for rate in found:
            first, last = rate.per_cpu_s / found[0].per_cpu_s, rate.per_cpu_s / found[-1].per_cpu_s
            same = {None: "", float("inf"): "identical"}.get(rate.psnr, f"{rate.psnr or 0:.1f}")
            print(f"| {rate.way} | {rate.per_cpu_s:.0f} | {rate.per_s:.0f} | {first:.2f} | {1 / last:.2f} | {same} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--slide", type=Path, action="append", dest="slides", help="of yours, instead of painted ones")
    parser.add_argument("--side", type=int, default=20_000, help="of the slide painted for tiling, pixels")
    parser.add_argument("--tiles", type=int, default=144, help="tiles that are read in each way")
    parser.add_argument("--rounds", type=int, default=5, help="of reading")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in options.slides or [paint(Path(folder) / "painted.tif", options.side)]:
            print_steps(path)
        side = L0_TILE * int(options.tiles**0.5) + 200
        for path in options.slides or [write_slide(Path(folder) / f"{c}.svs", side, c) for c in ("jpeg", "jpeg2000")]:
            print_rates(path, options.tiles, options.rounds)


if __name__ == "__main__":
    main()
