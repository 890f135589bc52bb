"""What it costs to see what a model looked at: time and memory of `wsi_mil.explain.look`, beside a plain prediction.

    python examples/bench_explain.py --tiles 30000 --occlusions 4

das-mil as it is by default, on random features of 768 numbers in float32, each line in a fresh process that has looked
at a small bag before. Memory is the peak of the resident set above the bag. Prints Markdown.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from bench_attention import PRELOADED, status_bytes
from bench_report import cpu_model

from wsi_mil.aggregators import AGGREGATORS, Aggregator, build, infer
from wsi_mil.bags import Bag
from wsi_mil.explain import LookOptions, look

_DIM, _WARM_TILES = 768, 300


class Cost(NamedTuple):
    """Of one answer."""

    seconds: float
    memory: int
    """Bytes."""


def cost(name: str, tiles: int, occlusions: int | None, threads: int) -> Cost:
    """Measured in this process, which has done nothing yet: of a prediction if occlusions is None, else of a look."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build(name, _DIM, 2).eval()
    answer(model, _bag(_WARM_TILES), occlusions)  # kernels are compiled, threads started
    bag = _bag(tiles)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak up to now
    before, began = status_bytes("VmRSS"), time.perf_counter()
    answer(model, bag, occlusions)
    return Cost(time.perf_counter() - began, status_bytes("VmHWM") - before)


def answer(model: Aggregator, bag: Bag, occlusions: int | None) -> None:
    """Predict, or look."""
    if occlusions is None:
        infer(model, bag)
    else:
        look(model, bag, LookOptions(occlusions=occlusions))


def _bag(tiles: int) -> Bag:
    """Random tiles of 256 um on a section of 5 cm."""
    return Bag("bag", torch.randn(tiles, _DIM), 256.0 * torch.randint(0, 200, (tiles, 2)), {})


def fresh(name: str, tiles: int, occlusions: int | None, threads: int) -> Cost:
    """`cost` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "wsi_mil.explain"])
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(cost, name, tiles, occlusions, threads).result()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="das-mil", choices=AGGREGATORS, metavar="MODEL", help="a registry name")
    parser.add_argument("--tiles", type=int, nargs="+", default=[30_000])
    parser.add_argument("--occlusions", type=int, default=LookOptions.occlusions, help="tiles left out one by one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    print(f"{options.model}; torch {torch.__version__}; {cpu_model()}; threads: {options.threads}\n", flush=True)
    print("| tiles | answer | seconds | memory MB | time to predict | memory to predict |")
    print("| --: | :-- | --: | --: | --: | --: |")
    without = options.occlusions
    lines = {"predict": None, "look, nothing left out": 0, f"look, {without} tiles left out": without}
    for tiles in options.tiles:
        baseline: Cost | None = None
        for line, occlusions in lines.items():
            taken = fresh(options.model, tiles, occlusions, options.threads)
            baseline = baseline or taken
            ratios = f"{taken.seconds / baseline.seconds:.2f} | {taken.memory / baseline.memory:.2f}"
            print(f"| {tiles} | {line} | {taken.seconds:.2f} | {taken.memory / 1e6:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
