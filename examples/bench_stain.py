"""What normalising the stain of tiles costs on one core: `python bench_stain.py [PICTURE]`.

Prints milliseconds per tile of 224 px, and seconds to fit a slide (128 tiles, without reading them), on a picture of
stained tissue, or on one painted here. Reading and the encoder come on top of it, the same with and without.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_mil.stain import METHODS, fit_slide
from wsi_mil.synthetic import SyntheticParams, paint_slide

SIDE = 224


def main() -> None:
    """Measure each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, help="a picture of stained tissue, at least 224 px a side")
    parser.add_argument("--rounds", type=int, default=20, help="of which the fastest counts")
    options = parser.parse_args()
    if options.picture:
        image = np.asarray(Image.open(options.picture).convert("RGB"))
    else:
        image = paint_slide(0, SyntheticParams.quick())
    rng = np.random.default_rng(0)
    corners = rng.integers(0, np.array(image.shape[1::-1]) - SIDE + 1, (128, 2))
    tiles = np.stack([image[y : y + SIDE, x : x + SIDE] for x, y in corners])
    places = np.stack([np.arange(len(tiles)), np.zeros(len(tiles), np.int64)], axis=1)

    def read(coords: np.ndarray) -> np.ndarray:
        return tiles[coords[:, 0]]

    print("| method | ms per tile | s to fit a slide |\n|---|---|---|")
    for method in METHODS[1:]:
        normalise = fit_slide(method, read, places, Path("the picture"))
        fitting = _fastest(lambda method=method: fit_slide(method, read, places, Path("the picture")), 3)
        each = _fastest(lambda normalise=normalise: normalise.all(tiles[:16]), options.rounds) / 16
        print(f"| {method} | {1000 * each:.2f} | {fitting:.2f} |")


def _fastest(function: Callable[[], object], rounds: int) -> float:
    """CPU seconds of the fastest of some calls, of all threads together."""
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        function()
        taken.append(time.process_time() - started)
    return min(taken)


if __name__ == "__main__":
    main()
