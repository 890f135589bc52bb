"""The page of predictions: what was said of each slide, how sure that is, and what was looked at."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from wsi_mil.answering import notes
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.cohort import SEVERAL
from wsi_mil.errors import one_line
from wsi_mil.explain import MANIFEST, read_manifest
from wsi_mil.guards import inside
from wsi_mil.predictions import Prediction
from wsi_mil.report.page import MOST_BYTES, Picture, Section, as_jpeg, page
from wsi_mil.report.provenance import model_facts, provenance
from wsi_mil.stage import attempt

_MOST_ANSWERS, _MOST_WARNINGS, _MOST_EXPLAINED = 3000, 500, 100  # a page stays below 10 MB; tables hold the rest
_MOST_LETTERS = 200  # of one line: a name or an error may be of any length
_PAIRS = 8
_DRAWN = ("heatmap", "contribution", "pairs", "top_tiles", "bottom_tiles")
"""Pictures of an explanation, in the order of a page; those of one class of several have its name behind."""


_Made = tuple[Path, dict[str, Any]]
"""The folder of an explanation, and its manifest."""


class Told(NamedTuple):
    """What stands beside the answers."""

    model: Checkpoint
    digest: str
    """Of its file."""
    commands: tuple[str, ...]
    """That make the same again."""
    learnt: Sequence[Section] = ()
    """What distance the model learnt."""


class Reasons(NamedTuple):
    """What is there to explain the answers."""

    explained: Sequence[Path] = ()
    """Folders of `wsi_mil.explain.write_explanation`, in the order in which they are shown."""
    failed: Mapping[str, str] = {}
    """Why a slide, by its slide_id, has no explanation though one was asked for."""
    notes: Sequence[str] = ()
    """What else there is to say of them."""


def prediction_page(
    rows: Sequence[Prediction], told: Told, reasons: Reasons | None = None, earlier: Sequence[Prediction] = ()
) -> bytes:
    """Render the page of predictions.

    Args:
        rows: the answers of this call.
        told: by which model, and how to repeat it.
        reasons: what was looked at. Slides and pictures are shown as far as 10 MB go, and the page says where the
            others are.
        earlier: what the same model answered before, in the same folder.

    Raises:
        ArtifactCorrupt: an explanation names files that are not in its folder.
    """
    reasons = reasons or Reasons()
    every = [*rows, *earlier]
    done = sum(row.status == "done" for row in every)
    lead = f"{done} of {len(every)} answered by {told.model.aggregator}: {' or '.join(told.model.classes)}."
    made = [(folder, read_manifest(folder)) for folder in reasons.explained]
    doubts = _warnings(every, told.model, made, reasons)
    parts = [_answers(rows, earlier, told.model, reasons.failed), doubts, *_explanations(made), *told.learnt]
    return page("Predictions", lead, [*parts, _provenance(told)])


def _answers(
    rows: Sequence[Prediction], earlier: Sequence[Prediction], model: Checkpoint, unexplained: Mapping[str, str]
) -> Section:
    every = [*rows, *earlier]
    cells = [
        (
            _short(row.slide_id),
            row.predicted or row.status,
            *([f"{p:.3f}" for p in row.probabilities] or ["–"] * len(model.classes)),
            "–" if row.spread is None else f"{row.spread:.3f}",
            str(row.tiles),
            _remark(row, unexplained),
        )
        for row in every[:_MOST_ANSWERS]
    ]
    text = "Probabilities are calibrated on the validation patients of training."
    if model.threshold is not None:
        text += f" The model decides for {model.classes[1]} from {model.threshold:.3f} on."
    if len(model.parts) > 1:
        text += f" Spread is the standard deviation over the {len(model.parts)} models that answer together."
    if earlier:
        text += f" The last call asked for the first {len(rows)}; the others the same model answered before."
    if len(every) > _MOST_ANSWERS:
        text += f" Here are the first {_MOST_ANSWERS} of {len(every)}; predictions.csv beside this page has all."
    return Section("Answers", text, ("slide", "answer", *model.classes, "spread", "tiles", "remark"), cells)


def _remark(row: Prediction, unexplained: Mapping[str, str]) -> str:
    """Why there is no answer, or how much there is to say of it."""
    if row.error:
        return _short(row.error)
    told = [f"{len(row.warnings)} to bear in mind"] if row.warnings else []
    lacking = {row.slide_id, *row.slide_id.split(SEVERAL)} & unexplained.keys()
    return "; ".join([*told, *(["not explained"] if lacking else [])])


def _warnings(rows: Sequence[Prediction], model: Checkpoint, made: Sequence[_Made], reasons: Reasons) -> Section:
    """What the model cannot tell, in what slides are unlike its training, and what explanations lack."""
    about = [(slide_id, f"not explained: {error}") for slide_id, error in reasons.failed.items()]
    about += [(row.slide_id, warning) for row in rows for warning in row.warnings]
    about += [(one["slide_id"], note) for _, one in made for note in one["notes"]]
    points = [_short(f"{slide_id}: {warning}.") for slide_id, warning in about[:_MOST_WARNINGS]]
    if len(about) > _MOST_WARNINGS:
        points.append(f"{len(about) - _MOST_WARNINGS} more: see predictions.csv and each {MANIFEST}.")
    general = [f"{note[:1].upper()}{note[1:]}." for note in [*notes(model), *reasons.notes]]
    return Section("To bear in mind", points=[*general, *points])


class _Room:
    """How much of a page is left for pictures; once it does not do for one, none is looked at any more."""

    def __init__(self) -> None:
        self.left, self.full = MOST_BYTES, False

    def takes(self, path: Path, caption: str) -> Picture | None:
        """A picture as the page holds it, if there is room."""
        picture = None if self.full else _picture(path, caption)
        self.full = picture is None or len(picture.data) > self.left
        if picture is None or self.full:
            return None
        self.left -= len(picture.data)
        return picture


def _explanations(made: Sequence[_Made]) -> Iterator[Section]:
    """A section for each slide, with pictures as long as there is room."""
    room = _Room()
    for folder, one in made[:_MOST_EXPLAINED]:
        shown = attempt(_explanation, folder, one, room)
        if isinstance(shown, Exception):  # of whatever was done to files that may have lain there for long
            shown = Section(_short(one["slide_id"]), f"What is in {folder} cannot be shown: {one_line(shown)}.")
        yield shown
    if others := made[_MOST_EXPLAINED:]:
        text = f"They are explained, each in its own folder, in {others[0][0].parent}."
        yield Section(f"{len(others)} more slides", text)


def _explanation(folder: Path, one: dict[str, Any], room: _Room) -> Section:
    drawn = _drawn(one)
    taken = (room.takes(inside(folder, name), f"{one['slide_id']}: {text}") for name, text in drawn)
    pictures = [picture for picture in taken if picture is not None]
    more = f" More of its pictures are in {folder}." if len(pictures) < len(drawn) else ""
    return Section(_short(one["slide_id"]), _sentence(one) + more, *_pairs(folder, one), pictures=pictures)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"


def _sentence(made: dict[str, Any]) -> str:
    """What was said of a slide, and what the tiles gave to it."""
    name = made["told_classes"][-1] if len(made["told_classes"]) == 1 else made["predicted"]
    said = f"Predicted {made['predicted']}, {name} with probability {made['probabilities'][name]:.3f}."
    if made["base"] is None:
        return f"{said} This model does not tell what each tile gave to that."
    evidence, base = made["evidence"][name], made["base"][name]
    what = "Log-odds" if len(made["classes"]) == 2 else "Evidence (its logit over the mean of the others)"
    told = f"{said} {what} of {name}: {evidence:+.2f}, of which tiles gave {evidence - base:+.2f}"
    if not made["together"]:
        return f"{told}."
    others = _short(", ".join(made["together"]))
    return f"{told}; those of this slide {made['given'][name]:+.2f}, as the model was asked together with {others}."


def _drawn(made: dict[str, Any]) -> list[tuple[str, str]]:
    """The pictures of an explanation and what they are, in the order of a page."""
    files: dict[str, str] = made["files"]
    return [
        (name, text)
        for start in _DRAWN
        for name, text in files.items()
        if name.endswith(".png") and (name == f"{start}.png" or name.startswith(f"{start}_"))
    ]


def _picture(path: Path, caption: str) -> Picture:
    with Image.open(path) as image:
        return Picture(caption, as_jpeg(image))


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
    return provenance([("checkpoint", f"digest {told.digest}"), *model_facts(told.model)], told.commands)
