"""Extraction from end to end, beside the usual way and beside its parts: `python bench_extract.py [--rounds 3]`.

Six slides of uneven size are painted (or `--slides`), and go through `wsi_mil.extract` by three encoders: one that
costs next to nothing, so that decoding is the bottleneck; one that sleeps for a fixed time per batch, as a GPU would
let the CPU sleep; and a network of timm. Beside it, with the same encoders and tiles:

* the usual way: for each slide a torch DataLoader, whose workers read tile by tile through OpenSlide and Pillow;
* its parts: all tiles read and nothing else, and the encoder alone on as many batches.

Ratios are of medians, of rounds that take turns in one run. `--sparse-side` adds the peak memory of a huge slide, in a
process of its own. Prints Markdown.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import bench_slides
import numpy as np
import openslide
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from wsi_mil import store
from wsi_mil.devices import default_batch, pick_device
from wsi_mil.encoders import Encoder, load_encoder
from wsi_mil.executors import available_cores, map_ordered
from wsi_mil.extract import ExtractParams, ExtractStage
from wsi_mil.slides import open_slide
from wsi_mil.stage import artifact_items, run

CHUNK = 8
WAYS = ("decode alone", "encoder alone", "DataLoader", "ours")


class Tiny:
    """Next to nothing: the mean colours of 8 x 8 cells, of every eighth pixel."""

    name, dim, tile_px, mpp, precision = "tiny", 192, bench_slides.TILE_PX, None, "fp32"
    preprocessing: Mapping[str, Any] = {}
    network: Mapping[str, Any] = {}
    weights, weights_sha256 = "built-in", "0" * 64

    def encode(self, tiles: Any) -> torch.Tensor:
        """Encode tiles, uint8 (tiles, height, width, 3)."""
        pixels = torch.as_tensor(tiles)[:, ::8, ::8].float().permute(0, 3, 1, 2)
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 8).flatten(1)


class Sleeping(Tiny):
    """As long per batch as it is told, without the CPU."""

    name = "sleeping"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def encode(self, tiles: Any) -> torch.Tensor:
        """Encode tiles, uint8 (tiles, height, width, 3)."""
        time.sleep(self.seconds)
        return torch.zeros(len(tiles), self.dim)


class Spent(NamedTuple):
    """What something took."""

    wall: float
    cpu: float


class Plan(NamedTuple):
    """What is measured."""

    tiles: Path
    """The folder of their artifacts."""
    out: Path
    batch: int
    threads: int

    @property
    def artifacts(self) -> list[store.Artifact]:
        """All of them."""
        return [store.read(item.source) for item in artifact_items(self.tiles)]


class ByOpenSlide(Dataset):
    """The tiles of a slide as most programs read them: one by one, through OpenSlide and Pillow."""

    def __init__(self, tiles: store.Artifact) -> None:
        self.coords, self.attrs = tiles.arrays["coords"], tiles.attrs
        self.slide: openslide.OpenSlide | None = None  # opened in the worker

    def __len__(self) -> int:
        return len(self.coords)

    def __getitem__(self, index: int) -> np.ndarray:
        self.slide = self.slide or openslide.OpenSlide(self.attrs["slide_path"])
        l0_side, side_px = int(self.attrs["l0_tile_width"]), int(self.attrs["tile_px"])
        level = self.slide.get_best_level_for_downsample(l0_side / side_px)
        side = round(l0_side / self.slide.level_downsamples[level])
        region = self.slide.read_region(tuple(self.coords[index].tolist()), level, (side, side)).convert("RGB")
        return np.array(region.resize((side_px, side_px), Image.Resampling.BILINEAR))


def by_data_loader(plan: Plan, encoder: Encoder) -> None:
    """Extract in the usual way: a DataLoader per slide."""
    for tiles in plan.artifacts:
        loader = DataLoader(ByOpenSlide(tiles), plan.batch, num_workers=plan.threads)
        made = torch.cat([encoder.encode(batch) for batch in loader]).half().numpy()
        store.write(plan.out / "loader.h5", store.Artifact({"features": made, "coords": tiles.arrays["coords"]}))


def by_us(plan: Plan, encoder: Encoder) -> None:
    """Extract as `wsimil extract` does."""
    stage = ExtractStage(ExtractParams.of(encoder), encoder, plan.threads, plan.batch)
    with tempfile.TemporaryDirectory(dir=plan.out) as folder:
        report = run(stage, artifact_items(plan.tiles), Path(folder))
    if report.failed:
        raise SystemExit(f"failed: {report.failed}")


def decode_alone(plan: Plan, _: Encoder) -> None:
    """Read all tiles, in as many threads, and do nothing with them."""
    for tiles in plan.artifacts:
        coords, attrs = tiles.arrays["coords"], tiles.attrs
        sizes = ((attrs["l0_tile_width"], attrs["l0_tile_height"]), (attrs["tile_px"], attrs["tile_px"]))
        chunks = (coords[start : start + CHUNK] for start in range(0, len(coords), CHUNK))
        with open_slide(Path(attrs["slide_path"])) as slide:
            slide.expect(coords, *sizes)
            read = closing(
                map_ordered(lambda chunk, s=slide, z=sizes: len(s.read_tiles(chunk, *z)), chunks, plan.threads)
            )
            with read as counts:
                assert sum(counts) == len(coords)


def encoder_alone(plan: Plan, encoder: Encoder) -> None:
    """Encode as many full batches as the cohort fills."""
    count = sum(len(tiles.arrays["coords"]) for tiles in plan.artifacts)
    pixels = bench_slides.texture(bench_slides.TILE_PX, bench_slides.TILE_PX * plan.batch, 0)
    batch = pixels.reshape(plan.batch, bench_slides.TILE_PX, bench_slides.TILE_PX, 3)
    for _ in range(-(-count // plan.batch)):
        encoder.encode(batch)


def cpu_seconds() -> float:
    """Of this process and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(function: Callable[[Plan, Encoder], None], plan: Plan, encoder: Encoder) -> Spent:
    """What a way takes."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    function(plan, encoder)
    return Spent(time.perf_counter() - wall, cpu_seconds() - cpu)


def compare(plan: Plan, encoder: Encoder, rounds: int) -> dict[str, Spent]:
    """Medians of all ways, which take turns."""
    functions = dict(zip(WAYS, (decode_alone, encoder_alone, by_data_loader, by_us), strict=True))
    found: dict[str, list[Spent]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, function in functions.items():
            found[way].append(measured(function, plan, encoder))
    return {way: Spent(*map(median, zip(*all_of, strict=True))) for way, all_of in found.items()}


def row(name: str, found: dict[str, Spent]) -> str:
    """One encoder's line."""
    decode, encode, loader, ours = (found[way] for way in WAYS)
    longest, shared = max(decode.wall, encode.wall), (decode.cpu + encode.cpu) / available_cores()
    cells = [
        *(f"{found[way].wall:.2f}" for way in WAYS),
        *(f"{one.cpu:.2f}" for one in (loader, ours)),
        f"{ours.wall / longest:.2f}",
        f"{ours.wall / shared:.2f}",
        f"{loader.wall / ours.wall:.2f}",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def report_memory(slide: Path, batch: int, threads: int) -> None:
    """Extract one slide by the tiny encoder, here, and print the megabytes that this took at most."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tiles").mkdir()
        bench_slides.lay_tiles(slide, folder / "tiles", 256.0)
        warm = Tiny().encode(np.zeros((batch, 224, 224, 3), np.uint8))
        before = peak_mb()
        by_us(Plan(folder / "tiles", folder, batch, threads), Tiny())
        count = len(store.read(folder / "tiles" / f"{slide.stem}.h5").arrays["coords"])
    print(f"{count} tiles, {len(warm)} at once: peak {peak_mb() - before:.0f} MB beyond the {before:.0f} MB before")


def peak_mb() -> float:
    """The most memory that this process has had."""
    status = Path("/proc/self/status")  # on Linux, getrusage counts what the parent had at the time of the fork
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--slides", type=Path, nargs="+", help="slides to take instead of painted ones")
    parser.add_argument("--count", type=int, default=6, help="of painted slides")
    parser.add_argument("--side", type=int, default=16_384, help="of the largest of them, pixels")
    parser.add_argument("--tile-um", type=float, default=224.0, help="side of a tile: 224 px")
    parser.add_argument("--model", default="timm:vit_tiny_patch16_224", help="the network, with random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=0, help="0: what suits the device")
    parser.add_argument("--sleep", type=float, default=0.1, help="seconds per batch of the sleeping encoder")
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sparse-side", type=int, default=0, help="of a nearly empty slide, such as 100000")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    asked = options()
    batch = asked.batch or default_batch(pick_device(asked.device))
    if asked.memory_of:
        report_memory(asked.memory_of, batch, asked.workers)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tiles").mkdir()
        for slide in asked.slides or bench_slides.paint_cohort(folder, asked.count, asked.side):
            bench_slides.lay_tiles(slide, folder / "tiles", asked.tile_um)
        plan = Plan(folder / "tiles", folder, batch, asked.workers)
        counts = [len(tiles.arrays["coords"]) for tiles in plan.artifacts]
        print(f"{len(counts)} slides of {min(counts)} to {max(counts)} tiles, {sum(counts)} in all; {batch} at once;")
        print(f"{asked.workers} reading threads or processes, {available_cores()} cores, {asked.rounds} rounds\n")
        print(
            "| encoder | "
            + ", s | ".join(WAYS)
            + ", s | DataLoader, CPU s | ours, CPU s | by longest part | by CPU s / cores | DataLoader by ours |"
        )
        print("| :-- |" + " --: |" * (len(WAYS) + 5))
        network = load_encoder(asked.model, None if asked.model == "morphology" else "random:0", asked.device)
        for encoder in (Tiny(), Sleeping(asked.sleep), network):
            encoder.encode(
                np.zeros((batch, bench_slides.TILE_PX, bench_slides.TILE_PX, 3), np.uint8)
            )  # loads libraries
            print(row(encoder.name, compare(plan, encoder, asked.rounds)), flush=True)
        if asked.sparse_side:
            slide = bench_slides.write_sparse(folder / "sparse.tif", asked.sparse_side)
            command = [sys.executable, __file__, "--memory-of", str(slide), "--batch", str(batch)]
            done = subprocess.run(
                [*command, "--workers", str(asked.workers)], capture_output=True, text=True, check=True
            )
            print(f"\n{asked.sparse_side} x {asked.sparse_side} px: {done.stdout.strip()}")


if __name__ == "__main__":
    main()
