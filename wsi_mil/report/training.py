"""The page of one training."""

from collections.abc import Sequence

from wsi_mil.learning import best_epoch
from wsi_mil.report.distances import DistanceUse, distance_section
from wsi_mil.report.page import Chart, Curve, Picture, Section, number, page
from wsi_mil.train import Trained


def training_page(trained: Trained, pictures: Sequence[Picture] = (), distances: DistanceUse | None = None) -> bytes:
    """The report of one training: cohort, curves, predictions of the slides it did not learn from, what distance it
    learnt, provenance."""
    made = trained.checkpoint
    best = best_epoch(trained.history)
    lead = (
        f"{made.aggregator} on {made.recipe.encoder} features, {' or '.join(made.classes)}. The weights of epoch"
        f" {best.epoch + 1} of {len(trained.history)} were kept: lowest validation loss, {best.val_loss:.3f}."
    )
    legend = "Colour is attention: faint violet where the model hardly looked, orange and yellow where it did."
    shown = Section("Slides", legend if pictures else "", pictures=pictures)
    learnt = [] if distances is None else [distance_section(distances)]
    sections = [_cohort(trained), _curves(trained), _judged(trained), *learnt, shown]
    return page("Training report", lead, [*sections, _provenance(trained)])


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
    names = history[0].figures if history else {}
    figures = Chart(
        "Figures on validation",
        tuple(Curve(_plain(name), tuple(epoch.figures[name] for epoch in history)) for name in names),
        1.0,
    )
    return Section("Learning curves", charts=(losses, figures))


def _plain(name: str) -> str:
    return name.removeprefix("val_").replace("_", " ").replace("auroc", "AUROC")


def _judged(trained: Trained) -> Section:
    classes = trained.checkpoint.classes
    rows = [
        (row.slide_id, row.split, row.label, row.predicted, *(f"{p:.3f}" for p in row.probabilities))
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
