"""Predictions as a table: one row per slide, a probability per class."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from wsi_mil import store
from wsi_mil.errors import TableError


class Prediction(NamedTuple):
    """What a model says of one slide."""

    slide_id: str
    status: str
    """"done", "empty" (no tiles, so no probabilities) or "failed"."""
    probabilities: tuple[float, ...] = ()
    """One per class; they sum to 1."""
    tiles: int = 0
    label: str = ""
    """The true class, where it is known."""
    split: str = ""
    """"train", "val" or "test", where the slide was part of the training cohort."""
    error: str = ""
    """Why there are no probabilities."""

    def predicted(self, classes: Sequence[str]) -> str:
        """The most probable class."""
        if not self.probabilities:
            return ""
        return classes[max(range(len(classes)), key=self.probabilities.__getitem__)]


def write_predictions(path: Path, rows: Iterable[Prediction], classes: Sequence[str], model: str) -> None:
    """Publish a table of predictions: ``slide_id,status,predicted,p_<class>...,tiles,label,split,error,model``."""
    with store.replacing_text(path) as file:
        writer = csv.writer(file)
        writer.writerow([*_FIXED[:3], *(f"p_{name}" for name in classes), *_FIXED[3:]])
        for row in rows:
            shown = [f"{p:.6f}" for p in row.probabilities] or [""] * len(classes)
            rest = [row.tiles, row.label, row.split, row.error, model]
            writer.writerow([row.slide_id, row.status, row.predicted(classes), *shown, *rest])


def read_predictions(path: Path) -> tuple[list[Prediction], tuple[str, ...], str]:
    """Read a table of predictions: its rows, the class names, and the digest of the model that made it."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        if not set(_FIXED) <= set(names):
            raise TableError(f"{path} is no table of predictions: move it away, or give another --out")
        classes = tuple(name.removeprefix("p_") for name in names if name.startswith("p_"))
        rows, model = [], ""
        for row in reader:
            probabilities = tuple(float(row[f"p_{name}"]) for name in classes if row[f"p_{name}"])
            known = (row["status"], probabilities, int(row["tiles"]), row["label"], row["split"], row["error"])
            rows.append(Prediction(row["slide_id"], *known))
            model = row["model"]
    return rows, classes, model


_FIXED = ("slide_id", "status", "predicted", "tiles", "label", "split", "error", "model")
