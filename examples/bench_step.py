"""What a training step costs: time and memory of a model on one bag, beside self-attention that knows no distance.

    python examples/bench_step.py das-mil das-mil-paper --tiles 4000 10000 30000

One step forward and backward of each model as it is by default, on features of 768 numbers, in a fresh process that has
taken a small step before. Memory is the peak of the resident set above the bag. Prints Markdown.
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

from wsi_mil.aggregators import AGGREGATORS, build
from wsi_mil.bags import Bag, Batch, collate

_BASELINE, _DIM, _WARM_TILES = "self-attention", 768, 300


class Cost(NamedTuple):
    """Of one step."""

    seconds: float
    memory: int
    """Bytes."""


def cost(model: str, tiles: int, threads: int) -> Cost:
    """Measured in this process, which has done nothing yet."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = build(model, _DIM, 2)
    network(_bag(_WARM_TILES)).logits.sum().backward()  # kernels are compiled, threads started
    bag = _bag(tiles)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak up to now
    before, began = status_bytes("VmRSS"), time.perf_counter()
    network(bag).logits.sum().backward()
    return Cost(time.perf_counter() - began, status_bytes("VmHWM") - before)


def _bag(tiles: int) -> Batch:
    """Random tiles of 256 um on a section of 5 cm."""
    return collate([Bag("bag", torch.randn(tiles, _DIM), 256.0 * torch.randint(0, 200, (tiles, 2)), {})])


def fresh(model: str, tiles: int, threads: int) -> Cost:
    """`cost` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "wsi_mil.aggregators"])
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(cost, model, tiles, threads).result()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", choices=AGGREGATORS, metavar="model", help=", ".join(AGGREGATORS))
    parser.add_argument("--tiles", type=int, nargs="+", default=[4_000, 10_000, 30_000])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    print(f"torch {torch.__version__}; {cpu_model()}; threads: {options.threads}\n", flush=True)
    print(f"| tiles | model | seconds | memory MB | time to {_BASELINE} |\n| --: | :-- | --: | --: | --: |")
    for tiles in options.tiles:
        baseline = fresh(_BASELINE, tiles, options.threads)
        for model in (_BASELINE, *options.models):
            taken = baseline if model == _BASELINE else fresh(model, tiles, options.threads)
            ratio = taken.seconds / baseline.seconds
            print(f"| {tiles} | {model} | {taken.seconds:.2f} | {taken.memory / 1e6:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
