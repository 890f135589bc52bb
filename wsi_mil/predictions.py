"""Predictions as a table: one row per bag, a probability per class."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from wsi_mil import publishing
from wsi_mil.cohort import SEVERAL
from wsi_mil.errors import ArtifactCorrupt, TableError
from wsi_mil.tasks import Classification

TABLE = "predictions.csv"
"""What a table of predictions is called, in whatever folder."""
_BETWEEN = "; "
"""Between warnings."""


class Prediction(NamedTuple):
    """What a model says of one slide, or of one patient's slides."""

    slide_id: str
    """The slide; those of a patient's bag, joined by "; "."""
    status: str
    """"done", "empty" (no tiles, so no probabilities) or "failed"."""
    probabilities: tuple[float, ...] = ()
    """One per class, calibrated; they sum to 1."""
    tiles: int = 0
    label: str = ""
    """The true class, where it is known."""
    split: str = ""
    """"train", "val" or "test", where the slide was part of the training cohort."""
    error: str = ""
    """Why there are no probabilities."""
    predicted: str = ""
    """The class that the model decides for."""
    patient_id: str = ""
    """Its owner, where that is known."""
    fold: str = ""
    """The round of cross-validation that tested it."""
    spread: float | None = None
    """Of an ensemble: the standard deviation over its members of the probability of the predicted class, calibrated."""
    seconds: float | None = None
    """How long it took from the slide to the answer; what was there already took no time."""
    warnings: tuple[str, ...] = ()
    """Why the answer may be worth less than others; none holds "; "."""


def write_predictions(path: Path, rows: Iterable[Prediction], classes: Sequence[str], model: str) -> None:
    """Publish a table of predictions.

    Its columns: ``slide_id,status,predicted,p_<class>...,tiles,label,split,error,patient_id,fold,spread,seconds,
    warnings,model``.
    """
    with publishing.replacing_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(
            [*_BEFORE, *Classification(tuple(classes)).columns, *_AFTER, *_TOLD, *_MEASURED, "warnings", "model"]
        )
        for row in rows:
            shown = [repr(float(p)) for p in row.probabilities] or [""] * len(classes)
            rest = [getattr(row, name) for name in (*_AFTER, *_TOLD, *_MEASURED)]
            writer.writerow(
                [row.slide_id, row.status, row.predicted, *shown, *rest, _BETWEEN.join(row.warnings), model]
            )


def entered(before: Iterable[Prediction], rows: Iterable[Prediction], of_patients: bool) -> list[Prediction]:
    """The rows of a table after more are entered, by slide_id.

    Args:
        before: the rows so far.
        rows: more of them. A failure takes no answer away.
        of_patients: whether a row may join several slides; then no slide has two answers, and the later one stands,
            unless it lacks slides that failed now and were part of the answer before.
    """

    table, rows = _Answers(of_patients), list(rows)
    for row in before:
        table.put(row)
    failed = {row.slide_id for row in rows if row.status == "failed"}
    for row in rows:
        table.enter(row, failed)
    return [table.rows[name] for name in sorted(table.rows)]


class _Answers:
    """Rows, and which of them answer for a slide."""

    def __init__(self, of_patients: bool) -> None:
        self.of_patients, self.rows = of_patients, dict[str, Prediction]()
        self.holders: defaultdict[str, set[str]] = defaultdict(set)

    def slides(self, row: Prediction) -> set[str]:
        """What a row is of."""
        return set(row.slide_id.split(SEVERAL)) if self.of_patients else {row.slide_id}

    def put(self, row: Prediction) -> None:
        """Add a row."""
        self.rows[row.slide_id] = row
        for slide in self.slides(row):
            self.holders[slide].add(row.slide_id)

    def enter(self, row: Prediction, failed: Set[str]) -> None:
        """Add a row in place of those that it shares slides with, if it is to stand."""
        names = {name for slide in self.slides(row) for name in self.holders[slide]}
        sharing = [self.rows[name] for name in names if name in self.rows]
        if row.status == "failed" and sharing:
            return
        if row.status == "done":
            if any(old.status == "done" and failed & (self.slides(old) - self.slides(row)) for old in sharing):
                return
            for old in sharing:
                del self.rows[old.slide_id]
        self.put(row)


def read_predictions(path: Path) -> tuple[list[Prediction], tuple[str, ...], str]:
    """Read a table of predictions: its rows, the class names, and the digest of the model that made it.

    Raises:
        TableError: it is none.
        ArtifactCorrupt: it is damaged.
    """
    try:
        return _read_predictions(path)
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise ArtifactCorrupt(
            f"{path} is damaged ({error}): predict again with --overwrite, or give another --out"
        ) from error


def _read_predictions(path: Path) -> tuple[list[Prediction], tuple[str, ...], str]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        if not {*_BEFORE, *_AFTER, "model"} <= set(names):
            raise TableError(f"{path} is no table of predictions: move it away, or give another --out")
        classes = tuple(name.removeprefix("p_") for name in names if name.startswith("p_"))
        rows, model = [], ""
        for row in reader:
            probabilities = tuple(float(row[f"p_{name}"]) for name in classes if row[f"p_{name}"])
            told: dict[str, Any] = {name: row[name] for name in (*_BEFORE, "label", "split", "error")}
            later: dict[str, Any] = {name: row[name] for name in _TOLD if name in row}  # wsimil 0.1 wrote none of these
            later |= {name: float(row[name]) for name in _MEASURED if row.get(name)}
            later["warnings"] = tuple(filter(None, row.get("warnings", "").split(_BETWEEN)))
            rows.append(Prediction(**told, **later, probabilities=probabilities, tiles=int(row["tiles"])))
            model = row["model"]
    return rows, classes, model


_BEFORE = ("slide_id", "status", "predicted")
_AFTER = ("tiles", "label", "split", "error")
_TOLD = ("patient_id", "fold")
_MEASURED = ("spread", "seconds")
