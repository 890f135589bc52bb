"""The page of predictions: what was said of each slide, how sure that is, and what was looked at."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from wsi_mil.checkpoint import Checkpoint
from wsi_mil.explain import MANIFEST
from wsi_mil.guards import inside, parse_json
from wsi_mil.predictions import Prediction
from wsi_mil.report.page import Picture, Section, page

_MOST_BYTES = 6_000_000  # of pictures: written as text they take a third more, and a page stays below 10 MB
_QUALITY = 88
_PAIRS = 8
_DRAWN = ("heatmap", "contribution", "pairs", "top_tiles", "bottom_tiles")
"""Pictures of an explanation, in the order of a page; those of one class of several have its name behind."""


class Told(NamedTuple):
    """What stands beside the answers."""

    model: Checkpoint
    digest: str
    """Of its file."""
    commands: tuple[str, ...]
    """That make the same again."""
    learnt: Sequence[Section] = ()
    """What distance the model learnt."""


def prediction_page(rows: Sequence[Prediction], told: Told, explained: Sequence[Path] = ()) -> bytes:
    """Render the page of predictions.

    Args:
        rows: the answers.
        told: by which model, and how to repeat it.
        explained: folders of `wsi_mil.explain.write_explanation`. Pictures are shown as far as 10 MB go.
    """
    done = sum(row.status == "done" for row in rows)
    lead = f"{done} of {len(rows)} answered by {told.model.aggregator}: {' or '.join(told.model.classes)}."
    parts = [_answers(rows, told.model), _warnings(rows), *_explanations(explained), *told.learnt]
    return page("Predictions", lead, [*parts, _provenance(told)])


def _answers(rows: Sequence[Prediction], model: Checkpoint) -> Section:
    cells = [
        (
            row.slide_id,
            row.predicted or row.status,
            *([f"{p:.3f}" for p in row.probabilities] or ["–"] * len(model.classes)),
            "–" if row.spread is None else f"{row.spread:.3f}",
            str(row.tiles),
            row.error or f"{len(row.warnings)} to bear in mind" * bool(row.warnings),
        )
        for row in rows
    ]
    text = "Probabilities are calibrated on the validation patients of training."
    if model.threshold is not None:
        text += f" The model decides for {model.classes[1]} from {model.threshold:.3f} on."
    if len(model.parts) > 1:
        text += f" Spread is the standard deviation over the {len(model.parts)} models that answer together."
    return Section("Answers", text, ("slide", "answer", *model.classes, "spread", "tiles", "remark"), cells)


def _warnings(rows: Sequence[Prediction]) -> Section:
    points = [f"{row.slide_id}: {warning}." for row in rows for warning in row.warnings]
    return Section("To bear in mind", points=points)


def _explanations(folders: Sequence[Path]) -> Iterator[Section]:
    """A section for each slide, with pictures as long as there is room."""
    room = _MOST_BYTES
    for folder in folders:
        made = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        pictures = list(_pictures(folder, made)) if room > 0 else []
        size = sum(len(picture.data) for picture in pictures)
        if size > room:
            pictures, room = [], 0
        room -= size
        text = _sentence(made)
        if not pictures:
            text += f" Its pictures are in {folder}." if _has_pictures(made) else " " + " ".join(made["notes"]) + "."
        yield Section(made["slide_id"], text, *_pairs(folder, made), pictures=pictures)


def _sentence(made: dict[str, Any]) -> str:
    """What was said of a slide, and what the tiles gave to it."""
    name = made["told_classes"][-1] if len(made["told_classes"]) == 1 else made["predicted"]
    said = f"Predicted {made['predicted']}, {name} with probability {made['probabilities'][name]:.3f}."
    if made["base"] is None:
        return f"{said} This model does not tell what each tile gave to that."
    evidence, base = made["evidence"][name], made["base"][name]
    what = "Log-odds" if len(made["classes"]) == 2 else "Evidence (its logit over the mean of the others)"
    return f"{said} {what} of {name}: {evidence:+.2f}, of which tiles gave {evidence - base:+.2f}."


def _has_pictures(made: dict[str, Any]) -> bool:
    return any(name.endswith(".png") for name in made["files"])


def _pictures(folder: Path, made: dict[str, Any]) -> Iterator[Picture]:
    names = [name for start in _DRAWN for name in made["files"] if name.startswith(start) and name.endswith(".png")]
    for name in names:
        with Image.open(inside(folder, name)) as image:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        yield Picture(f"{made['slide_id']}: {made['files'][name]}", buffer.getvalue())


def _pairs(folder: Path, made: dict[str, Any]) -> tuple[tuple[str, ...], Sequence[tuple[str, ...]]]:
    """The strongest pairs, as the header and the rows of a table."""
    if "pairs.csv" not in made["files"]:
        return (), []
    mpp_x, mpp_y = made["mpp"]
    with (folder / "pairs.csv").open(encoding="utf-8", newline="") as file:
        strongest = sorted(csv.DictReader(file), key=lambda row: -float(row["weight"]))[:_PAIRS]

    def place(row: dict[str, str], x: str, y: str) -> str:
        return f"{int(row[x]) * mpp_x / 1000:.2f}, {int(row[y]) * mpp_y / 1000:.2f}"

    rows = [
        (
            place(row, "l0_x", "l0_y"),
            place(row, "partner_l0_x", "partner_l0_y"),
            f"{float(row['distance_um']):.0f}" if row["distance_um"] else "–",
            f"{float(row['weight']):.3f}",
        )
        for row in strongest
    ]
    return ("tile at x, y (mm)", "attended to x, y (mm)", "distance (µm)", "share of its attention"), rows


def _provenance(told: Told) -> Section:
    made = told.model
    facts = {
        "model": f"{made.aggregator}, digest {told.digest}",
        "encoder": f"{made.recipe.encoder} ({made.encoder_weights}, sha256 {made.recipe.encoder_weights_sha256[:16]})",
        "tile": f"{made.recipe.tile_um:g} µm read as {made.recipe.tile_px} px",
        "trained by": f"wsi_mil {made.version}, fingerprint {made.training.get('fingerprint', '–')}",
        "to repeat": "; ".join(told.commands),
    }
    return Section("Provenance", header=("what", "value"), rows=list(facts.items()))
