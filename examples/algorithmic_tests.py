"""Which models keep to the rule that makes a bag positive, which see where things are, and how near the best they come.

    python examples/algorithmic_tests.py                                    # every model: hours
    python examples/algorithmic_tests.py --models das-mil abmil --seeds 1   # minutes
    python examples/algorithmic_tests.py --out mil-tests.csv --keep --page docs/mil-tests.md

Prints a Markdown table to stdout, what it is doing to stderr. --page replaces the table of that page, between
its two markers. --keep takes what --out holds as measured, so that models can be added: it must be there, of sets as
large as now. Without --keep nothing may be there: no run overwrites another. The tests:

* single concept, multi-concept, false frequency: the unit tests of Raff and Holt (2023). The training bags hold a
  trap, a short cut to the labels that is not the rule; the test bags turn it round. A model *fails* if its test AUROC
  is below 0.5, and *passes* otherwise. It can only pass what it has learnt, to a training AUROC above 0.9; to fail,
  0.6 is enough. In brackets the AUROC on bags without the trap: what the model knows beside it.
* ShiftedMean: AUROC on the test bags, and in brackets how far it is below the best possible, which is computed.
* collage: accuracy on the test bags.

Figures are means over the seeds; a seed decides the bags, the first weights and the order of training. `reference` is
no model of the registry but one made to keep to the rule, so that a failure is the model's and not the test's;
`reference-free` is the same network without what keeps it to the rule.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from algorithmic_bags import PARTS, RAFF_HOLT, ShiftedMean, draw_collages
from algorithmic_rows import Row, check_out, check_page, replace_table, rows_kept
from bench_report import Columns, markdown
from collage_data import presence
from fitting import InMemory, accuracy, auroc, fit
from row_files import write_rows
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil import metrics
from wsi_mil.aggregators import AGGREGATORS, Aggregator, Output
from wsi_mil.aggregators.pooling import max_pool
from wsi_mil.bags import Batch
from wsi_mil.errors import OptionError, WsiMilError
from wsi_mil.learning import LearnParams

SHIFTED_MEAN, COLLAGE = "ShiftedMean", "collage"
TESTS = (*RAFF_HOLT, SHIFTED_MEAN, COLLAGE)
_AMONG_TEN = {
    "gcn": {"neighbours": 0, "distance_weights": True},
    "gat": {"neighbours": 3},
    "mil-gnn": {"neighbours": 3},
}
"""Options on collages: with the 8 neighbours that graphs have on slides, all of ten digits would be alike."""


@dataclass(frozen=True)
class Sizes:
    """How many bags, and how long to learn from them."""

    train: int
    val: int
    test: int
    epochs: int
    name: str = "other"
    """What rows call them."""


SIZES = {name: Sizes(300, 75, 300, 12, "full") for name in RAFF_HOLT} | {
    SHIFTED_MEAN: Sizes(300, 100, 1000, 15, "full"),
    COLLAGE: Sizes(200, 100, 1000, 15, "full"),
}
QUICK = dict.fromkeys(TESTS, Sizes(12, 12, 12, 1, "quick"))


@dataclass(frozen=True)
class PresenceParams:
    """Options of `Presence`."""

    hidden: int = 64
    """Width of all layers."""


class Presence(Aggregator):
    """A model that cannot but keep to the rule: the largest score of any instance, then only weights above zero.

    So one more instance never lowers the answer, whatever it is, and one that is there already does not change it. It
    is no model for slides: it shows that the tests of Raff and Holt can be learnt and passed.

    ``Output.attention``: the share of the largest scores that an instance gave.
    """

    uses_position = "none"
    Params = PresenceParams
    rising: ClassVar[bool] = True
    """Whether the weights after the largest scores are above zero."""

    def __init__(self, dim: int, classes: int, params: PresenceParams):
        super().__init__(dim, classes, params)
        self.score = nn.Sequential(nn.Linear(dim, params.hidden), nn.ReLU(), nn.Linear(params.hidden, params.hidden))
        self.join, self.classify = nn.Linear(params.hidden, params.hidden), nn.Linear(params.hidden, 1)

    def forward(self, batch: Batch) -> Output:
        """Logits (0, z) and attention of each bag."""
        pooled = max_pool(self.score(self.standardise(batch)), batch.mask)
        # Leaky, because a plain ReLU of weights above zero often dies and leaves nothing to learn from.
        z = self._weigh(self.classify, functional.leaky_relu(self._weigh(self.join, pooled.embedding), 0.1))
        return Output(torch.cat([torch.zeros_like(z), z], dim=1), pooled.attention)

    def _weigh(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return functional.linear(x, layer.weight.abs() if self.rising else layer.weight, layer.bias)


class FreePresence(Presence):
    """The same network, whose weights may be of either sign: all that keeps it to the rule is gone."""

    rising = False


REFERENCE = "reference"
MODELS: dict[str, type[Aggregator]] = {**AGGREGATORS, REFERENCE: Presence, "reference-free": FreePresence}


class Trial(NamedTuple):
    """Bags of all parts, how a model is judged on them, and what is the most that can be had."""

    parts: dict[str, InMemory]
    figure: Callable[[Aggregator, InMemory], float]
    best: float | None = None
    unplaced: float | None = None
    """The most, or nearly, that a model without positions can have."""


def prepare(test: str, sizes: Sizes, seed: int) -> Trial:
    """The bags of one test."""
    counts = dict(zip(PARTS, (sizes.train, sizes.val, sizes.test, sizes.test), strict=True))
    if test in RAFF_HOLT:
        return Trial({part: RAFF_HOLT[test].draw(part, count, seed) for part, count in counts.items()}, auroc)
    del counts["plain"]  # there is no trap
    if test == SHIFTED_MEAN:
        shifted = ShiftedMean()
        parts = {part: shifted.draw(part, count, seed) for part, count in counts.items()}
        bags, targets = [example.bag.features.numpy() for example in parts["test"]], np.array(parts["test"].targets)
        odds = np.array([(shifted.log_odds(bag), shifted.log_odds_without_order(bag)) for bag in bags])
        best, unplaced = (metrics.auroc(targets, np.stack([-column, column], axis=1)) for column in odds.T)
        return Trial(parts, auroc, best, unplaced)
    drawn = {part: draw_collages(part, count, seed) for part, count in counts.items()}
    unplaced = statistics.fmean(presence(layout) == layout.positive for layout in drawn["test"].layouts)
    return Trial({part: collages.bags for part, collages in drawn.items()}, accuracy, 1.0, unplaced)


def measure(test: str, name: str, seed: int, sizes: Sizes) -> Row:
    """Train one model on one test."""
    trial, began = prepare(test, sizes, seed), time.monotonic()
    params = LearnParams(epochs=sizes.epochs, patience=sizes.epochs, lr=2e-3, seed=seed)
    options: dict[str, Any] = _AMONG_TEN.get(name, {}) if test == COLLAGE else {}
    model = fit(MODELS[name], trial.parts["train"], trial.parts["val"], params, **options)
    figures = {part: trial.figure(model, bags) for part, bags in trial.parts.items() if part != "val"}
    return Row(
        test=test,
        model=name,
        seed=seed,
        train=figures["train"],
        result=figures["test"],
        plain=figures.get("plain"),
        best=trial.best,
        unplaced=trial.unplaced,
        seconds=time.monotonic() - began,
        sizes=sizes.name,
    )


def summarise(rows: list[Row]) -> list[Columns]:
    """A line per model, then what is possible."""
    names = list(dict.fromkeys(row.model for row in rows))
    table: list[Columns] = []
    for name in names:
        kind = MODELS[name]
        line: Columns = {"model": f"`{name}`", "positions": "array order" if kind.ordered else kind.uses_position}
        for test in dict.fromkeys(row.test for row in rows):
            line[test] = _summary([row for row in rows if (row.test, row.model) == (test, name)])
        table.append(line)
    for title, field in (("best possible", "best"), ("without positions", "unplaced")):
        line = {"model": title, "positions": None}
        for test in dict.fromkeys(row.test for row in rows):
            line[test] = _mean([row for row in rows if row.test == test], field)
        table.append(line)
    return table


def _summary(rows: list[Row]) -> str | None:
    if not rows:
        return None
    result = _mean(rows, "result")
    if rows[0].test in RAFF_HOLT:
        verdicts = Counter(row.verdict for row in rows)
        shares = [word if len(verdicts) == 1 else f"{word} {count}/{len(rows)}" for word, count in verdicts.items()]
        return f"{', '.join(shares)} {result} ({_mean(rows, 'plain')})"
    if rows[0].test == SHIFTED_MEAN:
        gap = statistics.fmean((row.best or 0.0) - row.result for row in rows)
        return f"{result} ({-gap:+.2f})"
    return result


def _mean(rows: list[Row], field: str) -> str | None:
    figures = [getattr(row, field) for row in rows if getattr(row, field) is not None]
    return f"{statistics.fmean(figures):.2f}" if figures else None


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help="of the registry")
    add("--tests", nargs="+", choices=TESTS, default=list(TESTS), metavar="NAME")
    add("--seeds", type=int, default=3, help="how many")
    add("--out", type=Path, default=Path("mil-tests.csv"), help="every figure, one line per training")
    add("--keep", action="store_true", help="do not measure again what --out holds")
    add("--page", type=Path, help="page to put the table into")
    add("--quick", action="store_true", help="tiny sets: shows the way, not the result")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: give a positive number")
    if options.page and options.quick:
        parser.error("--page takes no figures of --quick, which are none: leave one of the two out")
    for name in ("models", "tests"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))  # named twice, trained once
    return options


def kept(path: Path, sizes: str) -> list[Row]:
    """The rows of an earlier run, where all of them can stand beside those of sets of these ``sizes``.

    Raises:
        OptionError: there is no such file, or a row is of a model or test that is gone, or of sets of other sizes.
        TableError: the file is damaged.
    """
    rows = rows_kept(path)
    for row in rows:
        for what, name, known in (("model", row.model, MODELS), ("test", row.test, TESTS)):
            if name not in known:
                raise OptionError(
                    f"--keep: {path} holds rows of {name}, no {what} here: delete them or give another --out"
                )
        if row.sizes != sizes:
            raise OptionError(f"--keep: {path} holds rows of {row.sizes} sets, these are {sizes}: give another --out")
    return rows


def train(options: argparse.Namespace, rows: list[Row]) -> None:
    """Train what ``rows`` lack, and add it to them; --out is whole at any moment.

    Raises:
        StorageError: --out cannot be written.
    """
    done = {(row.test, row.model, row.seed) for row in rows}
    sizes = QUICK if options.quick else SIZES
    for name, test, seed in itertools.product(options.models, options.tests, range(options.seeds)):
        if (test, name, seed) not in done:
            rows.append(measure(test, name, seed, sizes[test]))
            told = f"{name}, {test}, seed {seed}: {rows[-1].result:.3f} in {rows[-1].seconds:.0f} s"
            print(told, file=sys.stderr, flush=True)
            write_rows(options.out, rows)


def main() -> None:
    """Train, print, write. What cannot go well is refused before hours of training."""
    options = parse()
    torch.set_num_threads(1)  # bags are small: more threads cost more than they give
    try:
        check_out(options.out, options.keep)
        rows = kept(options.out, "quick" if options.quick else "full") if options.keep else []
        if options.page:
            check_page(options.page)
        train(options, rows)
        table = list(markdown(summarise(rows)))
        print("\n".join(table))
        if options.quick:
            print("These are not results: --quick shows the way on tiny sets.")
        if options.page:
            replace_table(options.page, table)
    except (WsiMilError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
