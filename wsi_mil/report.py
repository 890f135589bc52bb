"""One self-contained HTML page per run."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wsi_mil.learning import best_epoch
from wsi_mil.pages import render
from wsi_mil.train import Trained

Cells = tuple[str, ...]


class Picture(NamedTuple):
    """An image with its caption."""

    caption: str
    data: bytes
    """PNG or JPEG."""

    @property
    def source(self) -> str:
        """The image as a data URI."""
        kind = "png" if self.data.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


class Curve(NamedTuple):
    """One line of a chart."""

    name: str
    values: tuple[float, ...]


class Chart(NamedTuple):
    """Lines over the epochs."""

    caption: str
    curves: tuple[Curve, ...]
    least_top: float = 0.0
    """The upper edge is at least here."""
    width: int = 640
    height: int = 240

    @property
    def top(self) -> float:
        """The value at the upper edge."""
        values = [value for curve in self.curves for value in curve.values if math.isfinite(value)]
        return max([*values, self.least_top]) or 1.0

    def points(self, curve: Curve) -> str:
        """A curve as the points of an SVG polyline: x over the whole width, 0 at the lower edge."""
        step = self.width / max(len(curve.values) - 1, 1)
        scale = self.height / (self.top or 1.0)
        heights = ((index * step, self.height - value * scale) for index, value in enumerate(curve.values))
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in heights if math.isfinite(y))


@dataclass(frozen=True)
class Section:
    """A part of a page; what is empty is left out."""

    heading: str
    text: str = ""
    header: Cells = ()
    rows: Sequence[Cells] = ()
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()


def page(title: str, lead: str, sections: Sequence[Section]) -> bytes:
    """Render a page."""
    return render("report.html", title=title, lead=lead, sections=sections)


def training_page(trained: Trained, pictures: Sequence[Picture] = ()) -> bytes:
    """The report of one training: cohort, curves, predictions of the slides it did not learn from, provenance."""
    made = trained.checkpoint
    best = best_epoch(trained.history)
    lead = (
        f"{made.aggregator} on {made.recipe.encoder} features, {' or '.join(made.classes)}. The weights of epoch"
        f" {best.epoch + 1} of {len(trained.history)} were kept: lowest validation loss, {best.val_loss:.3f}."
    )
    legend = "Colour is attention: faint violet where the model hardly looked, orange and yellow where it did."
    shown = Section("Slides", legend if pictures else "", pictures=pictures)
    sections = [_cohort(trained), _curves(trained), _judged(trained), shown]
    return page("Training report", lead, [*sections, _provenance(trained)])


def number(value: float) -> str:
    """A figure with three decimals, or a dash where it is undefined."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def _cohort(trained: Trained) -> Section:
    classes, members = trained.checkpoint.classes, trained.cohort.members
    rows = []
    for part in ("train", "val", "test"):
        slides = [member for member in members if member.split == part]
        counts = [str(sum(member.label == name for member in slides)) for name in classes]
        patients = len({member.patient_id for member in slides})
        rows.append((part, str(patients), str(len(slides)), *counts, number(trained.auroc(part))))
    text = "".join(f"{slide_id} was left out: {reason}. " for slide_id, reason in trained.cohort.left_out.items())
    return Section("Cohort", text, ("split", "patients", "slides", *classes, "AUROC"), rows)


def _curves(trained: Trained) -> Section:
    history = trained.history
    losses = Chart(
        "Loss, weighted by class",
        (
            Curve("train", tuple(epoch.train_loss for epoch in history)),
            Curve("validation", tuple(epoch.val_loss for epoch in history)),
        ),
    )
    auroc = Chart("Validation AUROC", (Curve("validation", tuple(epoch.val_auroc for epoch in history)),), 1.0)
    return Section("Learning curves", charts=(losses, auroc))


def _judged(trained: Trained) -> Section:
    classes = trained.checkpoint.classes
    rows = [
        (row.slide_id, row.split, row.label, row.predicted(classes), *(f"{p:.3f}" for p in row.probabilities))
        for row in trained.predictions
        if row.split != "train"
    ]
    text = "Slides that the model did not learn from. Validation slides chose the epoch; only test slides are a test."
    return Section("Predictions", text, ("slide", "split", "label", "predicted", *classes), rows)


def _provenance(trained: Trained) -> Section:
    made = trained.checkpoint
    facts = {
        "encoder": f"{made.recipe.encoder} ({made.encoder_weights}, sha256 {made.recipe.encoder_weights_sha256[:16]})",
        "tile": f"{made.recipe.tile_um:g} µm read as {made.recipe.tile_px} px",
        "aggregator": f"{made.aggregator} {made.options}",
        "training": str(made.training["params"]),
        "fingerprint": made.training["fingerprint"],
        "cohort": made.training["cohort"],
        "versions": ", ".join(f"{name} {version}" for name, version in made.training["versions"].items()),
    }
    return Section("Provenance", header=("what", "value"), rows=list(facts.items()))
