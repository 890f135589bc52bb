"""The page of one training."""

from collections.abc import Sequence

from wsi_mil.evaluation import Answers, Judged, judge
from wsi_mil.learning import best_epoch
from wsi_mil.metrics import Resampling
from wsi_mil.report.chart import Chart, Curve
from wsi_mil.report.cohort import cohort_section
from wsi_mil.report.distance_use import DistanceUse
from wsi_mil.report.distances import distance_section
from wsi_mil.report.judged import judged_sections
from wsi_mil.report.page import NOTHING, Section, page
from wsi_mil.report.pictures import SlideFiles, notable, slides_section
from wsi_mil.report.provenance import model_facts, provenance
from wsi_mil.train import Trained

_RESAMPLES = 1000


def training_page(
    trained: Trained,
    slides: Section = NOTHING,
    distances: DistanceUse | None = None,
    commands: Sequence[str] = (),
) -> bytes:
    """The report of one training: cohort, curves, how good it is on slides that it did not learn from, what distance it
    learnt, its best and worst slides, provenance.

    Args:
        trained: the training.
        slides: `training_slides`.
        distances: what it made of distances.
        commands: what was typed.
    """
    made = trained.checkpoint
    best = best_epoch(trained.history)
    lead = (
        f"{made.aggregator} on {made.recipe.encoder} features, {' or '.join(made.classes)}. The weights of epoch"
        f" {best.epoch + 1} of {len(trained.history)} were kept: lowest validation loss, {best.val_loss:.3f}."
    )
    judged = _judged(trained)
    sections = [
        cohort_section(trained.cohort), _curves(trained), *judged_sections(judged, _notes(judged)),
        _predictions(trained),
        *([] if distances is None else [distance_section(distances)]), slides, provenance(model_facts(made), commands),
    ]  # fmt: skip
    return page("Training report", lead, sections)


def training_slides(trained: Trained, files: SlideFiles) -> Section:
    """Heat maps of the slides that it judged best and worst among those that it did not learn from."""
    made, network = trained.checkpoint, trained.checkpoint.model()
    judged = {made.aggregator: notable(trained.predictions, made.classes)}
    return slides_section(judged, lambda *_: network, trained.cohort, files)


def _judged(trained: Trained) -> list[Judged]:
    """Of test patients, and of validation patients beside them or, where there are no others, alone."""
    how = Resampling(trained.checkpoint.training["params"]["learn"]["seed"], _RESAMPLES)
    parts = {"test": "test patients", "val": "validation patients"}
    rows = {part: [row for row in trained.predictions if row.split == part] for part in parts}
    classes = trained.checkpoint.classes
    return [judge(name, Answers.of(rows[part], classes), how) for part, name in parts.items() if rows[part]]


def _notes(judged: Sequence[Judged]) -> list[str]:
    """What to bear in mind, of each part by name."""
    flattered = "validation patients chose the epoch, temperature and threshold, so that figures on them flatter"
    return [flattered, *(f"{found.name}: {note}" for found in judged for note in found.notes)]


def _curves(trained: Trained) -> Section:
    history = trained.history
    losses = Chart(
        "Loss, weighted by class",
        (
            Curve("train", tuple(epoch.train_loss for epoch in history)),
            Curve("validation", tuple(epoch.val_loss for epoch in history)),
        ),
        up="loss",
    )
    names = history[0].figures if history else {}
    figures = Chart(
        "Figures on validation",
        tuple(Curve(_plain(name), tuple(epoch.figures[name] for epoch in history)) for name in names),
        1.0,
        up="figure",
    )
    return Section("Learning curves", charts=(losses, figures))


def _plain(name: str) -> str:
    return name.removeprefix("val_").replace("_", " ").replace("auroc", "AUROC")


def _predictions(trained: Trained) -> Section:
    classes = trained.checkpoint.classes
    rows = [
        (row.slide_id, row.split, row.label, row.predicted, *(f"{p:.3f}" for p in row.probabilities))
        for row in trained.predictions
        if row.split != "train"
    ]
    text = "Slides that the model did not learn from. Validation slides chose the epoch; only test slides are a test."
    return Section("Predictions", text, ("slide", "split", "label", "predicted", *classes), rows)
