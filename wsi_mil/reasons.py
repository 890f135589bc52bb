"""Answers with their reasons: slides, or bags, are predicted and explained, and one page shows both."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from wsi_mil import checkpoint, predict
from wsi_mil.cohort import SEVERAL
from wsi_mil.explain import Explained, ExplainOptions, LookOptions, explain_bags
from wsi_mil.interop import PeerOptions, own_bags
from wsi_mil.predict import PredictOptions
from wsi_mil.predictions import Prediction
from wsi_mil.report import Told, distance_section, predicted_distances, prediction_page
from wsi_mil.slides import SlideFile, find_slides
from wsi_mil.stage import Item, artifact_path
from wsi_mil.store import write_bytes

PAGE, EXPLANATIONS = "report.html", "explanations"
"""Within the folder of predictions."""


@dataclass(frozen=True)
class Asked:
    """What is asked about: slides, or features."""

    slides: Sequence[SlideFile] = ()
    """Raw slides."""
    bags: Path | None = None
    """Instead of them: an artifact of features, or a folder of such, whoever made them."""
    peers: PeerOptions = field(default_factory=PeerOptions)
    """What is known of features that another program made."""
    mpp: float | None = None
    """Level-0 um/px of all slides, whatever their files say; None = as they say."""
    slides_at: Path | None = None
    """Where the slides of ``bags`` lie, if they moved."""
    tiles: Path | None = None
    """Where the tiles of ``bags`` lie, which know their quality and the outline of the tissue."""


class Answered(NamedTuple):
    """What came of it."""

    rows: list[Prediction]
    explained: list[Explained]
    """Empty where nobody asked for reasons."""

    @property
    def failed(self) -> dict[str, str]:
        """Why a slide has no answer or no explanation."""
        told = {one.slide_id: f"explain: {one.error}" for one in self.explained if one.status == "failed"}
        return {row.slide_id: row.error for row in self.rows if row.status == "failed"} | told


def answer(
    path: Path, asked: Asked, options: PredictOptions, closely: LookOptions | None, commands: Sequence[str] = ()
) -> Answered:
    """Predict, explain if wanted, and write the page of both, ``report.html``.

    Args:
        path: the checkpoint.
        asked: slides or features.
        options: how predictions are made, and where everything goes: explanations under ``explanations/``.
        closely: how closely to look; None = nothing is explained.
        commands: what was typed, so that the page tells how to repeat it.

    Raises:
        WsiMilError: as `wsi_mil.predict.predict_slides` and `wsi_mil.predict.predict_bags`.
    """
    if asked.bags is None:
        rows = predict.predict_slides(path, asked.slides, options, asked.mpp)
        cache = options.out / "cache"
        bags = [Item(slide.slide_id, artifact_path(cache / "feats", slide.slide_id)) for slide in asked.slides]
        tiles, moved = cache / "tiles", dict(asked.slides)
    else:
        made = own_bags(asked.bags, asked.peers, options.workers)
        bags = predict.find_bags(asked.bags) if made.items is None else list(made.items)
        rows = predict.predict_bags(path, bags, options, made.failed)
        tiles, moved = asked.tiles, dict(find_slides(asked.slides_at)) if asked.slides_at else {}
    explained: list[Explained] = []
    if closely is not None:
        how = ExplainOptions(options.out / EXPLANATIONS, closely, options.device, tiles, moved, options.overwrite)
        explained = explain_bags(path, _together(rows, bags), how)
    asked_too = [] if closely is None else bags
    _write_page(path, rows, explained, options, commands, [bag.source for bag in asked_too])
    return Answered(rows, explained)


def _together(rows: Sequence[Prediction], bags: Sequence[Item]) -> list[list[Item]]:
    """The bags of each answer: one slide, or all of a patient."""
    known = {bag.slide_id: bag for bag in bags}
    named = [
        [row.slide_id] if row.slide_id in known else row.slide_id.split(SEVERAL) for row in rows if row.status == "done"
    ]
    return [[known[name] for name in names] for names in named]


def _write_page(
    path: Path,
    rows: Sequence[Prediction],
    explained: Sequence[Explained],
    options: PredictOptions,
    commands: Sequence[str],
    bags: Sequence[Path],
) -> None:
    made = checkpoint.load(path)
    learnt = distance_section(predicted_distances(made, bags, options.device))
    told = Told(made, checkpoint.digest(path), tuple(commands), [learnt])
    folders = [one.folder for one in explained if one.status == "done"]
    write_bytes(options.out / PAGE, prediction_page(rows, told, folders))
