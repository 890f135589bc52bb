"""How busy training keeps the device, and the memory that one large slide takes.

    python examples/bench_train.py                                   # some minutes on two cores
    python examples/bench_train.py --large 100000                    # a quarter of an hour more
    python examples/bench_train.py --aggregator abmil --count 20 --rounds 9

Bags of equal length are written as `wsimil extract` writes them, float16, and learnt from as `wsimil train` does with
bags too many for memory: each is read again in every epoch, ahead of the device. Beside it a bare loop takes the same
bags as tensors in memory, forward and backward and nothing else; the two take turns, epoch by epoch, after one of each
to warm up, and medians are compared. Memory is the peak of the resident set of a process of its own that does one step
on one bag of --large tiles. Prints Markdown.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from bench_report import cpu_model, show

from wsi_mil import store
from wsi_mil.aggregators import AGGREGATORS, Aggregator, build
from wsi_mil.bags import collate, read_bag
from wsi_mil.learning import Epoch, Example, LearnParams, Pace, RunParams, learn
from wsi_mil.memory import peak_memory
from wsi_mil.tasks import Classification

_CLASSES = ("neg", "pos")


class OnDisk:
    """Bags that are read whenever they are asked for."""

    in_memory = False

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.targets = paths, [index % 2 for index in range(len(paths))]

    @property
    def tiles(self) -> list[int]:
        """How many tiles each has."""
        return [store.survey(path).shapes["features"][0] for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        return Example(read_bag(self.paths[index]), self.targets[index])


class Round(NamedTuple):
    """An epoch of each loop."""

    rate: float
    """Bags per second of training."""
    waited: float
    """Share of its time that it waited for bags."""
    bare: float
    """Bags per second of the bare loop."""


def write_bag(path: Path, tiles: int, dim: int, seed: int) -> Path:
    """Write a bag of random features on a compact section; return its path."""
    generator = torch.Generator().manual_seed(seed)
    side, cells = int((tiles - 1) ** 0.5) + 1, torch.arange(tiles)
    arrays = {
        "features": torch.randn(tiles, dim, generator=generator).half().numpy(),
        "coords": (512 * torch.stack([cells % side, cells // side], dim=1)).numpy(),
    }
    attrs = {"stage": "extract", "slide_id": path.stem, "mpp_x": 0.5, "mpp_y": 0.5}
    attrs |= {"l0_tile_width": 512, "l0_tile_height": 512}
    store.write(path, store.Artifact(arrays, attrs))
    return path


def bare_rate(model: Aggregator, bags: OnDisk) -> float:
    """Bags per second, forward and backward, of tensors that are in memory already."""
    task = Classification(_CLASSES)
    batches = [(collate([bag]), target) for bag, target in (bags[index] for index in range(len(bags)))]
    model.train()
    began = time.perf_counter()
    for batch, target in batches:
        task.loss(model(batch).logits, target).backward()
        model.zero_grad(set_to_none=True)
    return len(batches) / (time.perf_counter() - began)


def compare(model: Aggregator, train: OnDisk, val: OnDisk, rounds: int) -> list[Round]:
    """Train, and run the bare loop after each epoch; the first of each is left out."""
    found: list[Round] = []
    bare = deepcopy(model)

    def watch(epoch: Epoch, pace: Pace) -> None:
        found.append(Round(pace.rate, pace.waited / pace.seconds, bare_rate(bare, train)))

    params = LearnParams(epochs=rounds + 1, patience=rounds + 1)
    learn(model, Classification(_CLASSES), train, val, params, RunParams(watch=watch))
    return found[1:]


def one_step(name: str, path: Path, val: Path, dim: int) -> int:
    """Bytes that this process fills at most when it trains on one bag."""
    learn(build(name, dim, 2), Classification(_CLASSES), OnDisk([path]), OnDisk([val]), LearnParams(epochs=1))
    return peak_memory()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--aggregator", default="das-mil", choices=AGGREGATORS, metavar="NAME")
    parser.add_argument("--tiles", type=int, default=10_000, help="of each bag")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--count", type=int, default=4, help="of bags")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--large", type=int, default=20_000, help="tiles of the bag whose memory is told; 0: none")
    parser.add_argument("--step", nargs=2, type=Path, metavar="BAG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.step:
        print(one_step(options.aggregator, *options.step, options.dim))
        return
    print(f"torch {torch.__version__}; {cpu_model()}; threads: {options.threads}; load: {os.getloadavg()[0]:.1f}\n")
    with tempfile.TemporaryDirectory() as name:
        paths = [
            write_bag(Path(name) / f"s{index}.h5", options.tiles, options.dim, index) for index in range(options.count)
        ]
        small = write_bag(Path(name) / "small.h5", min(options.tiles, 100), options.dim, options.count)
        torch.manual_seed(0)
        rounds = compare(build(options.aggregator, options.dim, 2), OnDisk(paths), OnDisk([small]), options.rounds)
        rate, bare = median(found.rate for found in rounds), median(found.bare for found in rounds)
        ratio, waited = (median(v) for v in zip(*((r.rate / r.bare, 100 * r.waited) for r in rounds), strict=True))
        print("| model | bags | tiles | bags/s | bare loop, bags/s | to bare loop | waiting for data, % |")
        print("| :-- | --: | --: | --: | --: | --: | --: |")
        cells = [options.aggregator, str(options.count), str(options.tiles), *map(show, (rate, bare))]
        print("| " + " | ".join([*cells, f"{ratio:.3f}", f"{waited:.2f}"]) + " |", flush=True)
        if options.large:
            large = write_bag(Path(name) / "large.h5", options.large, options.dim, 0)
            command = [sys.executable, __file__, "--step", str(large), str(small), "--aggregator", options.aggregator]
            command += ["--dim", str(options.dim), "--threads", str(options.threads)]
            began = time.perf_counter()
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seconds = time.perf_counter() - began
            peak = int(done.stdout) / 2**30
            print(f"\nOne bag of {options.large} tiles: peak {peak:.2f} GiB, {seconds:.0f} s from start to end")


if __name__ == "__main__":
    main()
