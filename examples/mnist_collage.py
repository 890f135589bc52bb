"""MNIST-COLLAGE: which models learn that it is a distance that tells the classes apart.

    python examples/mnist_collage.py --mnist DIR --protocol fresh --models das-mil self-attention --seeds 5
    python examples/mnist_collage.py --mnist DIR --protocol paper --variant inv --seeds 5 --out inv.csv

A collage is a bag of digits, positive if some 0 and some 1 are closer than 80 px (*collage*) or farther apart than
170 px (*inv*): see collage_data.py, for the protocols collage_runs.py. DIR holds the four files of MNIST; without it
they are downloaded to --cache, and offline scikit-learn's digits stand in. Each run is a row of --out (model, variant,
protocol, seed, accuracy, auroc), written as soon as it is known: started again, the script goes on where it stopped.
For das-mil it draws, beside the table, collages with their attention and the learned distance curves.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from collage_data import RULES, Source, load_source
from collage_models import PUBLISHED, READERS
from collage_pictures import draw_collages, draw_curves, transitions_px
from collage_runs import (
    FRESH_EPOCHS,
    PAPER_EPOCHS,
    TRAININGS,
    Recipe,
    Score,
    fresh_collages,
    paper_collages,
    run_fresh,
    run_paper,
)
from collage_search import search
from collage_work import in_processes, read_rows, write_rows

from wsi_mil.aggregators import AGGREGATORS
from wsi_mil.errors import WsiMilError
from wsi_mil.executors import available_cores
from wsi_mil.progress import print_table, show_messages


class Run(NamedTuple):
    """What is to be trained and tested."""

    model: str
    variant: str
    protocol: str
    seed: int


def run(job: Run, recipe: Recipe | int, source: Source, pictures: Path | None) -> tuple[Score, list[float]]:
    """Train and test by a recipe, or as published for so many epochs; das-mil draws pictures if a folder is given.

    Also gives its learned transitions, in px.
    """
    if isinstance(recipe, int):
        score, model = run_paper(job.model, job.variant, job.seed, source, recipe)
        examples = paper_collages(job.variant, source).test
    else:
        score, model = run_fresh(job.model, job.variant, job.seed, recipe, source)
        examples = fresh_collages(job.variant, source).test
    transitions = transitions_px(model)
    if pictures is not None and transitions:
        positive = [example for example in examples if example.target][:2]
        negative = [example for example in examples if not example.target][:1]
        stem = f"{job.model}-{job.variant}-{job.protocol}"
        draw_collages(model, positive + negative, job.variant, pictures / f"{stem}-collages.png")
        draw_curves(model, job.variant, pictures / f"{stem}-curves.png")
    return score, transitions


def refuse_a_mixture(options: argparse.Namespace, source: Source) -> None:
    """Results made of other digits, with other epochs or another learning rate do not go into one table."""
    path = options.out.with_suffix(".json")
    known = json.loads(path.read_text()) if path.exists() else {}
    trainings = TRAININGS if options.protocol == "fresh" else 1
    now = {
        "digits": source.name,
        "epochs": options.epochs,
        "lr": options.lr,
        "reader": options.reader if options.protocol == "fresh" else "published",
        "trainings": trainings,
    }
    before = {"trainings": 1, **known.get(options.protocol, now)}  # as it was before there were several
    if differing := [name for name, value in now.items() if before.get(name) != value]:
        told = ", ".join(f"{name} {before.get(name)}, now {now[name]}" for name in differing)
        raise SystemExit(f"error: {options.out} was made with {told}: give another --out")
    path.write_text(json.dumps({**known, options.protocol: now}))


def summary(scores: list[Score], protocol: str) -> list[list[str]]:
    """A row per variant and model, best first: mean and standard deviation over seeds, in percent."""
    rows = []
    for variant in RULES:
        groups: dict[str, list[Score]] = {}
        for score in scores:
            if (score.variant, score.protocol) == (variant, protocol):
                groups.setdefault(score.model, []).append(score)
        for model, mine in sorted(groups.items(), key=lambda item: -statistics.mean(s.accuracy for s in item[1])):
            accuracies = [score.accuracy for score in mine]
            row = [variant, model, str(len(mine)), spread(accuracies), spread([score.auroc for score in mine])]
            rows.append(row + ([verdict(model, variant, accuracies)] if protocol == "paper" else []))
    return rows


def spread(values: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def verdict(model: str, variant: str, accuracies: list[float]) -> str:
    """The published accuracy, and how far ours is from it in standard errors of the difference."""
    mean, deviation = PUBLISHED[model].accuracy[variant]
    published = f"{100 * mean:.1f} ± {100 * deviation:.1f}"
    if len(accuracies) < 2:
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
    add(
        "--reader",
        choices=READERS,
        default=next(iter(READERS)),
        help="of protocol fresh: the network that reads digits",
    )
    add("--epochs", type=int, help="none: those of the protocol; fewer show the way, not the result")
    add("--out", type=Path, default=Path("mnist-collage.csv"))
    add("--workers", type=int, default=available_cores(), help="runs at a time")
    options = parser.parse_args()
    unpublished = [model for model in options.models if model not in PUBLISHED]
    if options.protocol == "paper" and unpublished:
        parser.error(f"{', '.join(unpublished)}: not in the published table, which has {', '.join(PUBLISHED)}")
    for name in ("workers", "epochs", "lr"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} {value}: give a positive number")
    if options.seeds < 0:
        parser.error(f"--seeds {options.seeds}: give 0 or a positive number")
    if options.protocol == "paper" and (options.lr is not None or options.reader != parser.get_default("reader")):
        parser.error("--lr, --reader: protocol paper has its own")
    return options


def main() -> None:
    """Search, run, tabulate."""
    options = parse()
    show_messages()
    try:
        source = load_source(options.mnist, options.cache)
    except WsiMilError as error:
        raise SystemExit(f"error: {error}") from None
    options.out.parent.mkdir(parents=True, exist_ok=True)
    refuse_a_mixture(options, source)
    scores: list[Score] = read_rows(options.out, Score)
    known = {tuple(score)[:4] for score in scores}
    jobs = itertools.product(options.models, options.variant, [options.protocol], range(options.seeds))
    runs = [Run(*job) for job in jobs if job not in known]
    recipes: dict[tuple[str, str], Recipe] = {}
    if options.protocol == "fresh" and (runs or not options.seeds):
        given = Recipe(options.lr or 0.0, options.epochs or FRESH_EPOCHS, options.reader)
        pairs = itertools.product(options.models, options.variant)
        recipes = search(options, source) if options.lr is None else dict.fromkeys(pairs, given)
    arguments = [
        (
            job,
            recipes.get((job.model, job.variant), options.epochs or PAPER_EPOCHS),
            source,
            None if job.seed else options.out.parent,
        )
        for job in runs
    ]
    for score, transitions in in_processes(run, arguments, options.workers, "runs"):
        scores.append(score)
        write_rows(options.out, scores)
        learned = ", ".join(f"{each:.0f}" for each in transitions)
        print(
            f"{' '.join(map(str, score[:4]))}: accuracy {score.accuracy:.4f}, AUROC {score.auroc:.4f}"
            + (f"; near becomes far at {learned} px" if learned else ""),
            flush=True,
        )
    header = ["variant", "model", "seeds", "accuracy %", "AUROC %"]
    header += ["published %"] if options.protocol == "paper" else []
    print_table(f"{source.name}, protocol {options.protocol}", header, summary(scores, options.protocol))


if __name__ == "__main__":
    main()
