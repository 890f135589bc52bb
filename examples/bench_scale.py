"""What one slide costs in every stage, and what 100, 10,000 and 1,000,000 of them need.

    python examples/bench_scale.py                                   # a quarter of an hour on two cores, 2 GB of disk
    python examples/bench_scale.py --side-um 3000 --tiles-read 32    # a small slide: shows the way, not the result

The slide is painted: 0.25 um/px, JPEG tiles of 256 px, a round section that covers half of a square. Tiling, reading
tiles and distances are measured as `wsimil tile --dry-run` measures them, the encoder on a few batches, training and
answers on a bag of as many tiles. CPU seconds are those of all threads. Prints Markdown.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
import torch
from bench_report import cpu_model
from bench_slides import texture
from PIL import Image

from wsi_mil.aggregators import build, infer
from wsi_mil.bags import Bag, collate
from wsi_mil.encoders import find_encoder, load_encoder
from wsi_mil.estimate import Cost, estimate
from wsi_mil.explain import LookOptions, look
from wsi_mil.stage import Item
from wsi_mil.tasks import Classification
from wsi_mil.tiling import TileParams, TileStage

MPP, TILE, GLASS = 0.25, 256, (243, 241, 243)
COHORTS = (100, 10_000, 1_000_000)
EPOCHS, CORES, GPU_RATE = 30, 64, 1_000
"""Of a training; of a machine; tiles/s that a GPU is taken to encode: an assumption, where all else is measured."""
_POOL = 64  # different tiles of tissue


def write_slide(path: Path, side_um: float) -> Path:
    """Write a slide of three levels, tile by tile, so that it need not fit into memory."""
    side = round(side_um / MPP / TILE) * TILE
    sheet = texture(8 * TILE, 8 * TILE, 0)
    pool = [sheet[y : y + TILE, x : x + TILE] for y in range(0, 8 * TILE, TILE) for x in range(0, 8 * TILE, TILE)]
    tissue, glass = [_jpeg(tile) for tile in pool], _jpeg(np.full((TILE, TILE, 3), GLASS, np.uint8))
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(3):
            width, per_cm = -(-side // 4**level), 10_000 / MPP / 4**level
            tiff.write(
                _tiles(-(-width // TILE), tissue, glass),
                shape=(width, width, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(1, 1),
                metadata=None,
                subfiletype=min(level, 1),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
            )
    return path


def _jpeg(tile: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=80, subsampling="4:4:4")
    return buffer.getvalue()


def _tiles(count: int, tissue: list[bytes], glass: bytes) -> Iterator[bytes]:
    """A disc that covers half of the square, row by row."""
    middle, radius = (count - 1) / 2, count * (0.5 / np.pi) ** 0.5
    for index in range(count * count):
        y, x = divmod(index, count)
        inside = np.hypot(x - middle, y - middle) <= radius
        yield tissue[(x + 7 * y) % len(tissue)] if inside else glass


def cpu(function: Callable[[], object]) -> float:
    """CPU seconds of a call, of all threads, after one to warm up."""
    function()
    began = time.process_time()
    function()
    return time.process_time() - began


def encoder_cost(name: str, weights: str | None, count: int) -> float:
    """CPU seconds per tile."""
    encoder = load_encoder(name, weights, "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), np.uint8)
    return cpu(lambda: encoder.encode(pixels)) / count


def model_costs(tiles: int, dim: int) -> dict[str, float]:
    """CPU seconds of a step of training, of an answer and of its reasons, on a bag of so many tiles."""
    torch.manual_seed(0)
    model, task = build("das-mil", dim, 2), Classification(("neg", "pos"))
    bag = Bag("bag", torch.randn(tiles, dim), 256.0 * torch.randint(0, 200, (tiles, 2)), {})
    batch = collate([bag])
    model.train()
    step = cpu(lambda: task.loss(model(batch).logits, 0).backward())
    model.eval()
    answer = cpu(lambda: infer(model, bag))
    return {"step": step, "predict": answer, "explain": cpu(lambda: look(model, bag, LookOptions(occlusions=0)))}


def print_costs(costs: dict[str, Cost]) -> None:
    """What one slide costs."""
    print("| stage | CPU s | read, MB | written, MB |\n| :-- | --: | --: | --: |")
    for name, cost in costs.items():
        print(f"| {name} | {cost.cpu_s:.3g} | {cost.read / 1e6:.3g} | {cost.written / 1e6:.3g} |")


def print_cohorts(costs: dict[str, Cost], tiles: int, slide_bytes: int) -> None:
    """What cohorts of such slides need."""
    once = [name for name in costs if not name.startswith(("train", "answer", "explain"))]
    encoding = next(name for name in once if "encoder" in name)
    whole, fed = (sum(costs[name].cpu_s for name in names) for names in (once, [n for n in once if n != encoding]))
    read, written = sum(costs[name].read for name in once), sum(costs[name].written for name in once)
    training = EPOCHS * next(cost.cpu_s for name, cost in costs.items() if name.startswith("train"))
    print(
        f"\n| slides | tiles | slides on disk, TB | artifacts, TB | read, TB | machine days, all on CPUs | machine days"
        f" beside GPUs | GPU hours at {GPU_RATE:,} tiles/s | training, {EPOCHS} epochs, CPU hours |"
    )
    print("|" + " --: |" * 9)
    for count in COHORTS:
        days = [count * seconds / 86_400 / CORES for seconds in (whole, fed)]
        sizes = [count * amount / 1e12 for amount in (slide_bytes, written, read)]
        hours = [count * tiles / GPU_RATE / 3600, count * training / 3600]
        cells = [f"{count:,}", f"{count * tiles:,}", *(f"{value:,.3g}" for value in (*sizes, *days, *hours))]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side-um", type=float, default=20_000.0, help="of the slide, a square")
    parser.add_argument("--encoder", default="ctranspath")
    parser.add_argument("--weights", default="random:0", help="of the encoder: what is drawn is not timed otherwise")
    parser.add_argument("--tiles-read", type=int, default=128, help="that the encoder is timed on")
    options = parser.parse_args()
    spec = find_encoder(options.encoder)
    print(f"torch {torch.__version__}; {cpu_model()}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        path = write_slide(Path(folder) / "slide.tif", options.side_um)
        told = estimate(TileStage(TileParams(), 1), [Item("slide", path)], spec.dim)
    (found,) = told.sample
    per_tile = encoder_cost(options.encoder, options.weights or None, options.tiles_read)
    models = model_costs(found.tiles, spec.dim)
    size = f"{options.side_um / 1000:g} mm a side, {told.slide_bytes / 1e6:,.0f} MB, {found.tiles:,} tiles of 256 um"
    print(f"one slide: {size}; {options.encoder}, das-mil\n")
    features = found.tiles * spec.dim * 2
    costs = {
        "tile": found.costs["tile"],
        "extract: reading tiles": found.costs["extract"],
        "extract: the encoder, on CPU": Cost(per_tile * found.tiles, 0, 0),
        "distances": found.costs["distances"],
        "train: an epoch": Cost(models["step"], features, 0),
        "answer of a trained model": Cost(models["predict"], features, 0),
        "explain: its reasons": Cost(models["explain"], features, 0),
    }
    print_costs(costs)
    print_cohorts(costs, found.tiles, told.slide_bytes)


if __name__ == "__main__":
    main()
