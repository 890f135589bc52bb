"""What sharing a training among processes gains and costs: one process beside several that talk by gloo, on this CPU.

    python examples/bench_ddp.py                        # some minutes on two cores
    python examples/bench_ddp.py --devices 4 --tiles 2000

Sizes of bags are drawn as those of slides are: log-normal about a median, cut at 100,000 tiles. Told are the share of
time that ranks would wait for each other, by dealing bags in turn and by their cost (tiles squared), if bags took as
long as their costs say; how long an epoch of training takes, in the median after one to warm up, on one thread a
process; and how far the first step's gradients lie apart, beside the largest of them. Prints Markdown.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from bench_report import cpu_model
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from wsi_mil.aggregators import AGGREGATORS, build
from wsi_mil.bags import Bag
from wsi_mil.learning import Epoch, Example, LearnParams, Pace, RunParams, learn
from wsi_mil.learning.dealing import idle_share, shares_of, steps_of
from wsi_mil.tasks import Classification

_CLASSES = ("neg", "pos")
_MOST_TILES = 100_000


def sizes(count: int, middle: int, spread: float, seed: int) -> list[int]:
    """Tiles of so many bags."""
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(seed)).mul(spread).exp().mul(middle)
    return drawn.round().clamp(16, _MOST_TILES).int().tolist()


class Drawn:
    """Bags in memory, of random features on compact sections."""

    in_memory = True

    def __init__(self, tiles: list[int], dim: int) -> None:
        self.tiles, self.targets, self.bags = tiles, [index % 2 for index in range(len(tiles))], []
        for index, count in enumerate(tiles):
            features = torch.randn(count, dim, generator=torch.Generator().manual_seed(index))
            side, cells = int((count - 1) ** 0.5) + 1, torch.arange(count)
            coords_um = 256.0 * torch.stack([cells % side, cells // side], dim=1)
            self.bags.append(Bag(f"s{index}", features, coords_um, {}))

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> Example:
        return Example(self.bags[index], self.targets[index])


class Noting:
    """Classification that leaves the gradients of the first step in a file, in whichever process it is learnt."""

    def __init__(self, path: Path) -> None:
        self.task, self.path, self.asked, self.noted = Classification(_CLASSES), path, False, False
        self.outputs, self.columns = self.task.outputs, self.task.columns

    def loss(self, outputs: Tensor, target: int) -> Tensor:
        """That of the task; the first time, it has the gradients of the step noted."""
        if not self.asked and os.environ.get("RANK", "0") == "0":
            self.asked = True
            register_optimizer_step_pre_hook(self.note)
        return self.task.loss(outputs, target)

    def note(self, optimiser: torch.optim.Optimizer, *_: object) -> None:
        """Write them, unless it was done."""
        if not self.noted:
            self.noted = True
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            torch.save([p.grad for p in parameters if p.grad is not None], self.path)

    def answers(self, outputs: Tensor) -> np.ndarray:
        """Those of the task."""
        return self.task.answers(outputs)

    def judge(self, targets: Sequence[int], answers: np.ndarray) -> dict[str, float]:
        """As the task judges."""
        return self.task.judge(targets, answers)


class Times:
    """Writes down how long each epoch took, and when it was over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, epoch: Epoch, pace: Pace) -> None:
        """One is over."""
        if os.environ.get("RANK", "0") == "0":
            with self.path.open("a") as file:
                file.write(f"{pace.seconds}\n")


def trained(name: str, train: Drawn, devices: int, per_step: int, rounds: int) -> tuple[float, float, list[Tensor]]:
    """Seconds of an epoch, seconds of all with starting and validation, and gradients of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        times, task = Times(Path(folder) / "times"), Noting(Path(folder) / "gradients")
        torch.manual_seed(0)
        model = build(name, train.bags[0].features.shape[1], 2, dropout=0.0)
        params = LearnParams(epochs=rounds + 1, patience=rounds + 1, bags_per_step=per_step, clip=0.0)
        began = time.perf_counter()
        learn(model, task, train, Drawn([50, 60], model.dim), params, RunParams(devices, watch=times))
        seconds = time.perf_counter() - began
        epochs = [float(line) for line in times.path.read_text().splitlines()]
        return median(epochs[1:]), seconds, torch.load(task.path)


def waiting(costs: list[int], devices: int, per_step: int) -> tuple[float, float]:
    """Share of their time that ranks wait, by dealing in turn and by cost."""
    steps = steps_of(range(len(costs)), per_step)
    in_turn = [[step[rank::devices] for rank in range(devices)] for step in steps]
    return idle_share(in_turn, costs), idle_share(shares_of(steps, costs, devices), costs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--aggregators", nargs="+", default=["das-mil", "abmil"], choices=AGGREGATORS, metavar="NAME")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--tiles", type=int, default=1000, help="of the median bag that is trained on")
    parser.add_argument("--spread", type=float, default=0.8, help="standard deviation of the logarithm of sizes")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--count", type=int, default=24, help="of bags")
    parser.add_argument("--bags-per-step", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}; {cpu_model()}; load: {os.getloadavg()[0]:.1f}\n")
    costs = [tiles**2 for tiles in sizes(2000, 8000, options.spread, 0)]
    print(
        "| devices | bags a step | waiting, dealt in turn, % | waiting, dealt by cost, % |\n| --: | --: | --: | --: |"
    )
    for devices in (2, 4, 8):
        for per_device in (1, 2, 4, 8, 16):
            shares = [f"{100 * share:.0f}" for share in waiting(costs, devices, devices * per_device)]
            print(f"| {devices} | {devices * per_device} | {' | '.join(shares)} |")
    print(
        f"\n| model | one process, s an epoch | {options.devices} processes, s an epoch | ratio"
        " | with start, one and several, s | greatest difference of gradients |"
    )
    print("| :-- | --: | --: | --: | --: | --: |")
    train = Drawn(sizes(options.count, options.tiles, options.spread, 1), options.dim)
    for name in options.aggregators:
        alone, alone_all, one = trained(name, train, 1, options.bags_per_step, options.rounds)
        shared, shared_all, several = trained(name, train, options.devices, options.bags_per_step, options.rounds)
        largest = max(float(grad.abs().max()) for grad in one)
        apart = max(float((a - b).abs().max()) for a, b in zip(one, several, strict=True)) / largest
        cells = [name, f"{alone:.2f}", f"{shared:.2f}", f"{shared / alone:.2f}", f"{alone_all:.0f}, {shared_all:.0f}"]
        print(f"| {' | '.join(cells)} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    main()
