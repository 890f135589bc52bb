"""What runs said of the same bags, read off their tables."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi_mil.cohort import some_names
from wsi_mil.errors import OptionError, TableError
from wsi_mil.evaluation.answers import Answers
from wsi_mil.predictions import TABLE, read_predictions

log = logging.getLogger(__name__)


def answers_in(run: Path) -> Answers:
    """What a run's table says of labelled bags: without those that took part in training.

    Raises:
        TableError: it holds none that were tested.
    """
    table = table_of(run)
    rows, classes, _ = read_predictions(table)
    rows = [row for row in rows if row.label]
    if any(row.split in ("train", "val") for row in rows):
        tested = [row for row in rows if row.split not in ("train", "val")]  # "" where no split was drawn up
        if not tested:
            raise TableError(
                f"{table} holds no test slide: judge the model by `wsimil evaluate` on slides that it did not learn"
                " from, and name that folder"
            )
        gone = len(rows) - len(tested)
        log.info("%s: %d of %d slides took part in training, and are left out", table, gone, len(rows))
        rows = tested
    return Answers.of(rows, classes)


def table_of(run: Path) -> Path:
    """The table of predictions that a path, a file or the folder of a run, names.

    Raises:
        OptionError: there is none.
    """
    table = run / TABLE if run.is_dir() else run
    if not table.is_file():
        inside = ", ".join(str(found.parent) for found in sorted(run.glob(f"*/{TABLE}")))
        raise OptionError(
            f"{run}: there is no {TABLE}: name folders of `wsimil crossval` (one per model) or `wsimil evaluate`"
            f"{f', such as {inside}' if inside else ''}"
        )
    return table


def matched(tables: dict[str, Answers]) -> dict[str, Answers]:
    """The bags that every run has, in one order.

    Raises:
        TableError: there are none, or the runs do not agree on classes, labels or patients.
    """
    (first_name, first), *others = tables.items()
    common = set(first.ids).intersection(*(other.ids for _, other in others))
    if not common:
        raise TableError(f"{' and '.join(tables)} have no slide in common: compare runs on the same cohort")
    ids = sorted(common)
    found = {}
    for name, answers in tables.items():
        if set(answers.classes) != set(first.classes):
            raise TableError(f"{name} knows the classes {answers.classes}, {first_name} {first.classes}")
        where = {bag: row for row, bag in enumerate(answers.ids)}
        found[name] = answers.where(np.array([where[bag] for bag in ids])).with_classes(first.classes)
        if left := len(answers) - len(ids):
            log.warning("%s: %d of %d bags are not in every run, and are left out", name, left, len(answers))
        truth = [found[name].classes[label] for label in found[name].labels]
        wanted = [first.classes[label] for label in found[first_name].labels]
        if wrong := [bag for bag, one, other in zip(ids, truth, wanted, strict=True) if one != other]:
            raise TableError(f"{name} and {first_name} do not agree on the label of {some_names(wrong)}")
    return _of_the_same_patients(found)


def _of_the_same_patients(tables: dict[str, Answers]) -> dict[str, Answers]:
    """The same answers with one opinion of whose bags they are: where a run was told of no patients, that of others."""
    telling = {name: answers for name, answers in tables.items() if answers.patients != answers.ids}
    if not telling:
        return tables
    (first_name, first), *others = telling.items()
    for name, answers in others:
        pairs = zip(first.ids, first.patients, answers.patients, strict=True)
        if wrong := [bag for bag, one, other in pairs if one != other]:
            raise TableError(
                f"{name} and {first_name} do not agree on the patient of {some_names(wrong)}: judge one anew"
            )
    for name in set(tables) - set(telling):
        log.warning("%s was told of no patients: bags are of the patients that %s names", name, first_name)
    return {name: replace(answers, patients=first.patients) for name, answers in tables.items()}
