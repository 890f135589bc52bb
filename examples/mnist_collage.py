"""MNIST-COLLAGE: which models learn that it is a distance that tells the classes apart.

    python examples/mnist_collage.py --mnist DIR --protocol fresh --models das-mil self-attention --seeds 5
    python examples/mnist_collage.py --mnist DIR --protocol paper --variant inv --seeds 5 --out inv.csv

A collage is a bag of digits, positive if some 0 and some 1 are closer than 80 px (*collage*) or farther apart than
170 px (*inv*): see collage_data.py, for the protocols collage_runs.py. DIR holds the four files of MNIST; without it
they are downloaded to --cache, and offline scikit-learn's digits stand in. Each run is a row of --out (model, variant,
protocol, seed, accuracy, auroc), written as soon as it is known: started again, the script goes on where it stopped.
Beside it, OUT.learnt.csv tells the learning rate, options and reader of each row, and OUT.trials.csv every trial;
OUT.weights holds what was trained, so that nothing is trained twice.
For das-mil and das-mil-paper it draws collages with their attention and the learned distance curves (OUT-*.png).
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from collage_data import RULES, Source, load_source
from collage_models import PUBLISHED, READERS, READERS_TRIED
from collage_pictures import draw_collages, draw_curves, telling, transitions_px
from collage_record import record
from collage_runs import (
    FRESH_EPOCHS,
    PAPER_EPOCHS,
    TEST_SEED,
    Recipe,
    Score,
    fresh_collages,
    paper_collages,
    run_fresh,
    run_paper,
)
from collage_search import search, weights_of
from collage_work import in_processes
from row_files import read_rows, write_rows

from wsi_mil.aggregators import AGGREGATORS
from wsi_mil.errors import WsiMilError
from wsi_mil.executors import available_cores
from wsi_mil.progress import print_table, show_messages


class Learnt(NamedTuple):
    """How a row of the table came about, and where heads that know a distance pass from near to far."""

    model: str
    variant: str
    protocol: str
    seed: int
    lr: float
    choice: str
    reader: str
    near_becomes_far_px: str


class Job(NamedTuple):
    """What is to be trained and tested: by a recipe, or as published for so many epochs."""

    model: str
    variant: str
    protocol: str
    seed: int
    recipe: Recipe | int
    test_seed: int
    weights: Path
    """Folder of what has been trained."""
    pictures: Path | None
    """How the names of pictures begin, which models that know a distance have."""


def run(job: Job, source: Source) -> tuple[Score, Learnt]:
    """Train and test; a model that knows a distance is drawn if pictures have a name."""
    if isinstance(job.recipe, int):
        score, model = run_paper(job.model, job.variant, job.seed, source, job.recipe)
        examples, how = paper_collages(job.variant, source).test, (PUBLISHED[job.model].lr, "", "published")
    else:
        score, model = run_fresh(job.model, job.variant, job.seed, job.recipe, source, job.weights, job.test_seed)
        examples = fresh_collages(job.variant, source, job.test_seed).test
        how = how_of(job.recipe)
    transitions = transitions_px(model)
    if job.pictures is not None and transitions:
        stem = f"{job.pictures}-{job.model}-{job.variant}-{job.protocol}"
        draw_collages(model, telling(examples), job.variant, Path(f"{stem}-collages.png"))
        draw_curves(model, job.variant, Path(f"{stem}-curves.png"))
    return score, Learnt(*score[:4], *how, " ".join(f"{each:.0f}" for each in transitions))


def how_of(recipe: Recipe) -> tuple[float, str, str]:
    """What `Learnt` tells of a recipe."""
    return recipe.lr, recipe.choice, recipe.reader


def summary(scores: list[Score], protocol: str) -> list[list[str]]:
    """A row per variant and model, best first: mean and standard deviation over seeds, in percent."""
    rows = []
    for variant in RULES:
        groups: dict[str, list[Score]] = {}
        for score in scores:
            if (score.variant, score.protocol) == (variant, protocol):
                groups.setdefault(score.model, []).append(score)
        means = {model: mean_accuracy(mine) for model, mine in groups.items()}
        for model in sorted(groups, key=lambda model: -means[model]):
            mine = groups[model]
            accuracies = [score.accuracy for score in mine]
            row = [variant, model, str(len(mine)), spread(accuracies), spread([score.auroc for score in mine])]
            rows.append(row + ([verdict(model, variant, accuracies)] if protocol == "paper" else []))
    return rows


def mean_accuracy(rows: Sequence[Score]) -> float:
    """Mean over seeds; 0 if a training diverged, so that it is last."""
    mean = statistics.fmean(row.accuracy for row in rows)
    return 0.0 if math.isnan(mean) else mean


def spread(values: list[float]) -> str:
    """Mean and standard deviation, in percent, or how many trainings diverged."""
    if diverged := sum(map(math.isnan, values)):
        return f"{diverged} of {len(values)} diverged"
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def verdict(model: str, variant: str, accuracies: list[float]) -> str:
    """The published accuracy, and how far ours is from it in standard errors of the difference."""
    mean, deviation = PUBLISHED[model].accuracy[variant]
    published = f"{100 * mean:.1f} ± {100 * deviation:.1f}"
    if len(accuracies) < 2 or any(map(math.isnan, accuracies)):
        return published
    error = (deviation**2 / 5 + statistics.stdev(accuracies) ** 2 / len(accuracies)) ** 0.5
    return f"{published} ({(statistics.mean(accuracies) - mean) / error:+.1f} SE)"


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--mnist", type=Path, help="folder of the four files of MNIST; none: they are downloaded")
    add("--cache", type=Path, default=Path.home() / ".cache" / "wsi_mil" / "mnist", help="where downloads are kept")
    add("--variant", choices=RULES, nargs="+", default=list(RULES))
    add("--protocol", choices=("paper", "fresh"), default="fresh")
    add("--models", choices=AGGREGATORS, nargs="+", metavar="MODEL", default=["das-mil"], help=", ".join(AGGREGATORS))
    add("--seeds", type=int, default=1, help="how many; 0: trials only")
    add("--lr", type=float, help="of protocol fresh; none: chosen among trials on the validation collages")
    tried = " and ".join(READERS_TRIED)
    add("--reader", choices=READERS, help=f"of protocol fresh; none: chosen among {tried}, the first of them with --lr")
    add("--test-seed", type=int, default=TEST_SEED, help="of protocol fresh: decides the test collages")
    add("--epochs", type=int, help="none: those of the protocol; fewer show the way, not the result")
    add("--out", type=Path, default=Path("mnist-collage.csv"))
    add("--workers", type=int, default=available_cores(), help="runs at a time")
    options = parser.parse_args()
    unpublished = [model for model in options.models if model not in PUBLISHED]
    if options.protocol == "paper" and unpublished:
        parser.error(f"{', '.join(unpublished)}: not in the published table, which has {', '.join(PUBLISHED)}")
    for name in ("workers", "epochs", "lr"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name} {value}: give a positive number")
    if options.out.suffix != ".csv" or options.out.is_dir():
        parser.error(f"--out {options.out}: give the name of a file that ends in .csv")
    if options.seeds < 0:
        parser.error(f"--seeds {options.seeds}: give 0 or a positive number")
    fresh_alone = [name for name in ("lr", "reader", "test_seed") if getattr(options, name) != parser.get_default(name)]
    if options.protocol == "paper" and fresh_alone:
        told = ", ".join("--" + name.replace("_", "-") for name in fresh_alone)
        parser.error(f"{told}: protocol paper has its own")
    return options


def recipes_of(options: argparse.Namespace, source: Source) -> dict[tuple[str, str], Recipe | int]:
    """How each model learns each variant."""
    pairs = list(itertools.product(options.models, options.variant))
    if options.protocol == "paper":
        return dict.fromkeys(pairs, options.epochs or PAPER_EPOCHS)
    if options.lr is not None:
        reader = options.reader or READERS_TRIED[0]
        return dict.fromkeys(pairs, Recipe(options.lr, options.epochs or FRESH_EPOCHS, reader))
    return dict(search(options, source))


class Table:
    """The rows of --out, and how each came about."""

    def __init__(self, out: Path) -> None:
        self.path, self.beside = out, out.with_suffix(".learnt.csv")
        self.scores: list[Score] = read_rows(self.path, Score)
        self.learnt: list[Learnt] = read_rows(self.beside, Learnt)

    def enter(self, score: Score, learnt: Learnt) -> None:
        """Add a row; how it came about first, so that no row is without."""
        self.scores.append(score)
        self.learnt = [row for row in self.learnt if row[:4] != learnt[:4]] + [learnt]
        write_rows(self.beside, sorted(self.learnt))
        write_rows(self.path, sorted(self.scores))

    def drop(self, model: str, variant: str, recipe: Recipe) -> None:
        """Forget rows of protocol fresh of another recipe: trials since have chosen this one."""
        stale = {
            row[:4]
            for row in self.learnt
            if row[:3] == (model, variant, "fresh") and (row.lr, row.choice, row.reader) != how_of(recipe)
        }
        if stale:
            told = " ".join(filter(None, (f"{recipe.lr:g}", recipe.choice, recipe.reader)))
            print(f"{model} {variant}: {told} is chosen now: {len(stale)} rows are made anew")
        self.scores = [row for row in self.scores if row[:4] not in stale]
        self.learnt = [row for row in self.learnt if row[:4] not in stale]

    def jobs(self, options: argparse.Namespace, recipes: dict[tuple[str, str], Recipe | int]) -> list[Job]:
        """What is not there yet."""
        known, out = {row[:4] for row in self.scores}, options.out
        rows = [
            (model, variant, options.protocol, seed)
            for (model, variant), seed in itertools.product(recipes, range(options.seeds))
        ]
        return [
            Job(*row, recipes[row[:2]], options.test_seed, weights_of(out), None if row[3] else out.with_suffix(""))
            for row in rows
            if row not in known
        ]


def main() -> None:
    """Search, run, tabulate."""
    options = parse()
    show_messages()
    try:
        tabulate(options)
    except (WsiMilError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def tabulate(options: argparse.Namespace) -> None:
    """Bring the table up to what is asked for, and print it."""
    source = load_source(options.mnist, options.cache)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record(options, source)
    table, recipes = Table(options.out), recipes_of(options, source)
    for pair, recipe in recipes.items():
        if isinstance(recipe, Recipe):
            table.drop(*pair, recipe)
    jobs = [(job, source) for job in table.jobs(options, recipes)]
    for score, learnt in in_processes(run, jobs, options.workers, "runs"):
        table.enter(score, learnt)
        learned = learnt.near_becomes_far_px.replace(" ", ", ")
        print(
            f"{' '.join(map(str, score[:4]))}: accuracy {score.accuracy:.4f}, AUROC {score.auroc:.4f}"
            + (f"; near becomes far at {learned} px" if learned else ""),
            flush=True,
        )
    header = ["variant", "model", "seeds", "accuracy %", "AUROC %"]
    header += ["published %"] if options.protocol == "paper" else []
    print_table(f"{source.name}, protocol {options.protocol}", header, summary(table.scores, options.protocol))


if __name__ == "__main__":
    main()
