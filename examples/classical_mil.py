"""Musk1, Fox and Elephant: the classical sets of multiple instance learning, by their ten folds.

    python examples/classical_mil.py --data mil_classic                          # a quarter of an hour
    python examples/classical_mil.py --data mil_classic --sets Musk1 --models abmil

These sets have no positions: all instances of a bag lie at (0, 0). Nor have they an order, so only models that ignore
both are run. Each fold is the test set once, the next fold is for early stopping, the other eight are learnt from.
--data holds NAME.npz with the arrays ``X`` (instances, dim), ``bag`` (instances,) from 0 in rising order, ``y`` (bags,)
0 or 1, and ``fold`` (repeats, bags). Prints a Markdown table to stdout: means and standard deviations over the folds.
"""

import argparse
import statistics
import sys
import zlib
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from bench_report import Columns, markdown
from fitting import InMemory, accuracy, auroc, fit
from jaxtyping import Int

from wsi_mil.aggregators import AGGREGATORS
from wsi_mil.bags import Bag
from wsi_mil.errors import ArtifactCorrupt, ArtifactMissing, WsiMilError
from wsi_mil.learning import Example, LearnParams

SETS = ("Musk1", "Fox", "Elephant")
ARRAYS = ("X", "bag", "y", "fold")
_NOT_READ = (BadZipFile, EOFError, KeyError, TypeError, ValueError, zlib.error)
MODELS = [name for name, kind in AGGREGATORS.items() if kind.uses_position == "none" and not kind.ordered]


class Classic(NamedTuple):
    """One of the sets."""

    bags: InMemory
    folds: Int[np.ndarray, "repeats bags"]
    """The fold that a bag is tested in."""


class Parts(NamedTuple):
    """One round of cross-validation."""

    train: InMemory
    val: InMemory
    test: InMemory


def read_set(folder: Path, name: str) -> Classic:
    """Read a set.

    Raises:
        ArtifactMissing: the folder does not hold it.
        ArtifactCorrupt: the file does not hold the arrays of a set, or they do not belong together.
    """
    path = folder / f"{name}.npz"
    if not path.exists():
        raise ArtifactMissing(f"{path} is missing: --data takes a folder that holds {name}.npz")
    features, bag, labels, folds = _arrays(path)
    starts = np.flatnonzero(np.diff(bag)) + 1
    bags: list[Example] = []
    for instances, label in zip(np.split(features.astype(np.float32), starts), labels, strict=True):
        nowhere = torch.zeros(len(instances), 2)
        bags.append(Example(Bag(f"{name}-{len(bags)}", torch.from_numpy(instances), nowhere, {}), int(label)))
    return Classic(InMemory(bags), folds.astype(np.int64))


def _arrays(path: Path) -> list[np.ndarray]:
    """The four arrays of a set's file, which belong together."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:  # np.load alone leaves a damaged file open
            arrays = [file[name] for name in ARRAYS]
    except _NOT_READ:  # what numpy says of it speaks of pickles, which no set is
        told = f"{path} cannot be read: it must be an npz file of the arrays {', '.join(ARRAYS)}; copy it there anew"
        raise ArtifactCorrupt(told) from None
    features, bag, labels, folds = arrays
    numbered = bag.ndim == 1 and np.array_equal(np.unique(bag), np.arange(labels.size)) and (np.diff(bag) >= 0).all()
    if features.ndim != 2 or len(features) != len(bag) or not numbered or folds.shape[1:] != labels.shape:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(ARRAYS, arrays, strict=True))
        raise ArtifactCorrupt(
            f"{path}: {shapes} do not belong together, or bag does not rise from 0: copy it there anew"
        )
    return arrays


def split(classic: Classic, repeat: int, fold: int) -> Parts:
    """Test on a fold, stop by the next one, learn from the others."""
    folds = classic.folds[repeat]
    after = (fold + 1) % (folds.max() + 1)
    chosen = (~np.isin(folds, (fold, after)), folds == after, folds == fold)
    return Parts(*(InMemory(classic.bags[index] for index in np.flatnonzero(mask)) for mask in chosen))


def cross_validate(classic: Classic, model: str, repeats: int, epochs: int) -> Columns:
    """The row of a model: accuracy and AUROC over the folds."""
    accuracies, areas = [], []
    for repeat in range(repeats):
        for fold in range(int(classic.folds[repeat].max()) + 1):
            parts = split(classic, repeat, fold)
            learn = LearnParams(epochs=epochs, patience=max(epochs // 4, 1), seed=repeat)
            trained = fit(AGGREGATORS[model], parts.train, parts.val, learn)
            accuracies.append(accuracy(trained, parts.test))
            areas.append(auroc(trained, parts.test))
    return {"accuracy": _mean_and_std(accuracies), "AUROC": _mean_and_std(areas)}


def _mean_and_std(figures: list[float]) -> str:
    return f"{statistics.fmean(figures):.3f} ± {statistics.stdev(figures):.3f}"


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the npz files")
    add("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="NAME")
    add("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME", help="that ignore positions and order")
    add("--repeats", type=int, default=1, choices=range(1, 6), help="of the ten folds")
    add("--epochs", type=int, default=40, help="at most; a quarter of them without a lower validation loss ends it")
    return parser.parse_args()


def main() -> None:
    """Train and print; what is missing is told on one line."""
    options = parse()
    torch.set_num_threads(1)  # bags are small: more threads cost more than they give
    try:
        run(options)
    except (WsiMilError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def run(options: argparse.Namespace) -> None:
    """Train and print. All sets are read first: what one lacks is told before hours of training on the others."""
    table: list[Columns] = []
    for name, classic in {name: read_set(options.data, name) for name in options.sets}.items():
        for model in options.models:
            row = cross_validate(classic, model, options.repeats, options.epochs)
            table.append({"set": name, "model": f"`{model}`", **row})
            print(f"{name}, {model}: accuracy {row['accuracy']}", file=sys.stderr, flush=True)
    print("These sets have no positions: all instances lie at (0, 0).\n")
    print("\n".join(markdown(table)))


if __name__ == "__main__":
    main()
