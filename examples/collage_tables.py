"""The tables of docs/results.md about MNIST-COLLAGE, from the rows beside it.

    python examples/collage_tables.py docs/mnist-collage

DIR holds what `mnist_collage.py` wrote: fresh.csv with fresh.learnt.csv and fresh.trials.csv, other-layouts.csv (the
same models on other test collages), and paper.csv. Prints the table of protocol fresh, then that of protocol paper, in
Markdown. Only what all five seeds were run of has a row.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from collage_data import RULES
from collage_models import READERS_TRIED
from collage_runs import Score
from collage_search import Trial
from mnist_collage import Learnt, mean_accuracy, spread, verdict
from row_files import read_rows

from wsi_mil.errors import WsiMilError

SEEDS = 5
NEEDED = (
    "fresh.csv",
    "fresh.learnt.csv",
    "fresh.trials.csv",
    "other-layouts.csv",
    "other-layouts.learnt.csv",
    "paper.csv",
)
NONE = "–"
FRESH = {
    "variant": ":--",
    "model": ":--",
    "accuracy %": "--:",
    "on others %": "--:",
    "AUROC %": "--:",
    "rate": "--:",
    "options": ":--",
    "reader": ":--",
    "trials": "--:",
    "near to far, px (true)": ":--",
}
"""Columns of protocol fresh, and to which side they are set."""
PAPER = ("model", "collage %", "published %", "SE", "inv %", "published %", "SE")


def fresh_table(folder: Path) -> Iterator[str]:
    """Protocol fresh: a line per variant and model, best first, and how its models came about.

    Raises:
        WsiMilError: other-layouts.csv is of other models, or a row's learning rate, options and reader are not known,
            or are not those of the other seeds.
    """
    learnt = {row[:4]: row for row in read_rows(folder / "fresh.learnt.csv", Learnt)}
    for row in read_rows(folder / "other-layouts.learnt.csv", Learnt):
        if learnt.get(row[:4], row) != row:
            told = f"{row.model} {row.variant} {row.seed}"
            raise WsiMilError(f"{folder}/other-layouts.learnt.csv: {told} is not the model of fresh.learnt.csv")
    trials = Counter((row.model, row.variant) for row in read_rows(folder / "fresh.trials.csv", Trial))
    scores, others = _whole(folder / "fresh.csv", "fresh"), _whole(folder / "other-layouts.csv", "fresh")
    yield _line(FRESH)
    yield _line(FRESH.values())
    for variant in RULES:
        for model in _best_first(scores, variant):
            mine = scores[model, variant]
            how = [learnt[score[:4]] for score in mine if score[:4] in learnt]
            if len(how) < SEEDS or len({(row.lr, row.choice, row.reader) for row in how}) > 1:
                raise WsiMilError(f"{folder}/fresh.learnt.csv does not give one recipe of {model} {variant}")
            auroc = spread([score.auroc for score in mine])
            reached = _accuracy(mine), _accuracy(others.get((model, variant), [])), auroc
            reader = NONE if how[0].reader == READERS_TRIED[0] else how[0].reader
            recipe = f"{how[0].lr:g}", how[0].choice or NONE, reader, str(trials[model, variant])
            yield _line((variant, model, *reached, *recipe, _thresholds(how)))


def _accuracy(rows: Sequence[Score]) -> str:
    return spread([score.accuracy for score in rows]) if rows else NONE


def _thresholds(how: Sequence[Learnt]) -> str:
    """Where the head nearest to the true threshold passes from near to far, seed by seed."""
    if not all(row.near_becomes_far_px for row in how):
        return NONE
    true = RULES[how[0].variant].threshold_px
    heads = [map(float, row.near_becomes_far_px.split()) for row in how]
    nearest = [min(px, key=lambda each: abs(each - true)) for px in heads]
    return f"{', '.join(f'{px:.0f}' for px in nearest)} ({true:.0f})"


def paper_table(folder: Path) -> Iterator[str]:
    """Protocol paper: a line per model, best on COLLAGE first, beside what was published."""
    scores = _whole(folder / "paper.csv", "paper")
    yield _line(PAPER)
    yield _line((":--", *["--:"] * (len(PAPER) - 1)))
    for model in _best_first(scores, next(iter(RULES))):
        if all((model, variant) in scores for variant in RULES):
            yield _line((model, *(cell for variant in RULES for cell in _beside(scores[model, variant]))))


def _beside(mine: Sequence[Score]) -> tuple[str, str, str]:
    """Ours, the published accuracy, and how far apart they are in standard errors of the difference."""
    accuracies = [score.accuracy for score in mine]
    published, _, errors = verdict(mine[0].model, mine[0].variant, accuracies).partition(" (")
    return spread(accuracies), published, errors.removesuffix(" SE)")


def _whole(path: Path, protocol: str) -> dict[tuple[str, str], list[Score]]:
    """Rows of a protocol by model and variant, seed by seed, where no seed is missing."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in sorted(read_rows(path, Score)):
        if score.protocol == protocol and score.seed < SEEDS:
            groups.setdefault((score.model, score.variant), []).append(score)
    return {pair: mine for pair, mine in groups.items() if len(mine) == SEEDS}


def _best_first(scores: dict[tuple[str, str], list[Score]], variant: str) -> list[str]:
    """The models of a variant, by mean accuracy; of equals by name."""
    # Rounded, because the means of the same figures in another order can differ in the last digit.
    means = {model: round(mean_accuracy(mine), 9) for (model, of), mine in scores.items() if of == variant}
    return sorted(means, key=lambda model: (-means[model], model))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="of the CSV files, such as docs/mnist-collage")
    folder = parser.parse_args().folder
    if missing := [name for name in NEEDED if not (folder / name).exists()]:
        parser.error(f"{folder} does not hold {', '.join(missing)}")
    try:
        print("\n".join(fresh_table(folder)), "\n".join(paper_table(folder)), sep="\n\n")
    except WsiMilError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
