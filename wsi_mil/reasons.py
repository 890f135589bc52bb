"""Answers with their reasons: slides, or bags, are predicted and explained, and one page shows both."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from wsi_mil import checkpoint, predict, publishing
from wsi_mil.answering import JSON, as_json
from wsi_mil.asked import find_bags, nameable
from wsi_mil.cohort import SEVERAL
from wsi_mil.errors import ArtifactStale, OptionError, one_line
from wsi_mil.evaluation import refuse_judged, refuse_model
from wsi_mil.explain import (
    MANIFEST,
    Explained,
    ExplainOptions,
    Head,
    LookOptions,
    explain_bags,
    learnt_distances,
    read_manifest,
)
from wsi_mil.interop import PeerOptions, holds_own, own_bags
from wsi_mil.predict import PredictOptions
from wsi_mil.predictions import TABLE, Prediction, read_predictions
from wsi_mil.remote import Url
from wsi_mil.report import (
    DistanceUse,
    Reasons,
    Told,
    distance_files,
    distance_section,
    predicted_distances,
    prediction_page,
)
from wsi_mil.slides import SlideFile, find_slides
from wsi_mil.stage import Item, artifact_path, attempt
from wsi_mil.tile_distances import TileDistances

PAGE, EXPLANATIONS, TILES = "report.html", "explanations", Path("tiles")
"""The first two within the folder of predictions; the last where the tiles of bags of ours lie unless told."""


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
    slides_at: Path | Url | None = None
    """A folder, or an address, where the slides of ``bags`` lie, if they moved."""
    tiles: Path | None = None
    """Where the tiles of ``bags`` lie, which know their quality and the outline of the tissue; None = in `TILES`, if it
    is there."""


class Answered(NamedTuple):
    """What came of it."""

    rows: list[Prediction]
    explained: list[Explained]
    """Empty where nobody asked for reasons."""
    out: Path
    """Where all of it was written."""

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
        OptionError: options were given that tell nothing of what is asked about, or answers would go where a model is.
        ArtifactStale: what came of judging a model lies there.
    """
    publishing.sweep(options.out)
    refuse_judged(options.out)
    refuse_model(options.out)
    if asked.bags is None:
        rows = predict.predict_slides(path, asked.slides, options, asked.mpp)
        cache = options.out / "cache"
        named, _ = nameable(asked.slides)
        bags = [Item(slide.slide_id, artifact_path(cache / "feats", slide.slide_id)) for slide in named]
        tiles, moved = cache / "tiles", dict(asked.slides)
    else:
        ours = not asked.bags.exists() or holds_own(asked.bags)
        tiles = _tiles_of(asked, ours)
        made = own_bags(asked.bags, asked.peers, options.workers, pictures=closely is not None)
        bags = find_bags(asked.bags) if made.items is None else list(made.items)
        rows = predict.predict_bags(path, bags, options, made.failed)
        moved = dict(find_slides(asked.slides_at, options.cache)) if asked.slides_at else {}
    explained: list[Explained] = []
    if closely is not None:
        together = list(_together(rows, bags))
        warnings = {bag.slide_id: row.warnings for row, asked_about in together for bag in asked_about}
        where = (options.out / EXPLANATIONS, closely, options.device, tiles, moved, options.overwrite)
        how = ExplainOptions(*where, warnings, options.cache, options.scheduler)
        explained = explain_bags(path, [asked_about for _, asked_about in together], how)
    answered = Answered(rows, explained, options.out)
    asked_too = [] if closely is None else bags
    _write_page(path, answered, options, commands, [bag.source for bag in asked_too])
    return answered


def told_as_json(path: Path, answered: Answered) -> str:
    """What came of a call, as one object of JSON: its answers, the files it wrote, and what became of each explanation.

    Args:
        path: the checkpoint.
        answered: what came of it.
    """
    told = predict.told_as_object(path, answered.rows)
    files = {"table": TABLE, "json": JSON, "page": PAGE}
    explained = [
        {
            "slide_id": one.slide_id,
            "status": one.status,
            "folder": str(one.folder) if one.status == "done" else None,
            "error": one.error,
        }
        for one in answered.explained
    ]
    files = {what: str(answered.out / name) for what, name in files.items()}
    return as_json(told | {"files": files, "explained": explained})


def learnt(path: Path, out: Path, overwrite: bool = False) -> tuple[list[Head], list[Path]]:
    """Write what distance a checkpoint learnt, as a table and a figure.

    Args:
        path: the checkpoint.
        out: the folder that they go to.
        overwrite: replace those of another checkpoint.

    Returns:
        Where its heads pass from near to far, and the files; neither of a model that learns no such thing.

    Raises:
        ArtifactStale: those of another checkpoint lie there, and overwriting was not asked for. Nothing is written.
    """
    made = checkpoint.load(path)
    use = DistanceUse(learnt_distances(made.model()), tiles=TileDistances.recorded(made.training))
    files = {out / name: data for name, data in distance_files(use).items()}
    for file, data in files.items():
        if not overwrite and file.exists() and file.read_bytes() != data:
            raise ArtifactStale(
                f"{file} tells of another model, or was written otherwise: add --overwrite, or give another --out"
            )
    for file, data in files.items():
        publishing.write_bytes(file, data)
    return list(use.heads), list(files)


def learnt_as_json(path: Path, heads: Sequence[Head], files: Sequence[Path]) -> str:
    """What distance a checkpoint learnt, as one object of JSON; a length that is not finite is null.

    Args:
        path: the checkpoint.
        heads: of `learnt`.
        files: of `learnt`.
    """
    shown = [one._asdict() | {name: getattr(one, name) for name in ("near_um", "far_um")} for one in heads]
    told = [{name: value if _is_told(value) else None for name, value in one.items()} for one in shown]
    return as_json({"model": checkpoint.digest(path), "heads": told, "files": [str(file) for file in files]})


def _is_told(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _tiles_of(asked: Asked, ours: bool) -> Path | None:
    """Where the tiles of bags lie, if anywhere."""
    if asked.tiles is None:
        return TILES if ours and TILES.is_dir() else None
    if not ours:
        raise OptionError(
            f"--tiles {asked.tiles}: {asked.bags} holds features of another program's tiles: leave it out"
        )
    if not asked.tiles.is_dir():
        raise OptionError(f"--tiles {asked.tiles}: no folder is there: name that of `wsimil tile`")
    return asked.tiles


def _together(rows: Sequence[Prediction], bags: Sequence[Item]) -> Iterator[tuple[Prediction, list[Item]]]:
    """The bags of each answer: one slide, or all of a patient."""
    known = {bag.slide_id: bag for bag in bags}
    return ((row, [known[name] for name in _members(row.slide_id, known)]) for row in rows if row.status == "done")


def _members(name: str, known: Collection[str]) -> list[str]:
    """The slides that a row's name joins, though one may be called ``a; b`` itself; none if they are unknown."""
    if name in known:
        return [name]
    words = name.split(SEVERAL)
    for count in range(1, len(words)):
        first, rest = SEVERAL.join(words[:count]), SEVERAL.join(words[count:])
        if first in known and (others := _members(rest, known)):
            return [first, *others]
    return []


def _write_page(
    path: Path, answered: Answered, options: PredictOptions, commands: Sequence[str], bags: Sequence[Path]
) -> None:
    """The page of the whole folder: the answers of this call, then those that the model gave before."""
    made = checkpoint.load(path)
    device = "cpu" if options.scheduler else options.device  # what the cluster has is not here
    learnt = distance_section(predicted_distances(made, bags, device))
    told = Told(made, checkpoint.digest(path), tuple(commands), [learnt])
    table, _, _ = read_predictions(options.out / TABLE)
    answers = {row.slide_id: row.status for row in answered.rows}
    # A failure takes no answer away, so the table may hold one of a slide that failed now.
    earlier = [row for row in table if answers.get(row.slide_id) != row.status]
    reasons = _reasons(answered, [*answered.rows, *earlier], told.digest)
    publishing.write_bytes(options.out / PAGE, prediction_page(answered.rows, told, reasons, earlier))


def _reasons(answered: Answered, rows: Sequence[Prediction], digest: str) -> Reasons:
    """The explanations of the answers on a page: those of this call first, then others that lie there."""
    folders = [one.folder for one in answered.explained if one.status == "done"]
    failed = {one.slide_id: one.error for one in answered.explained if one.status == "failed"}
    named = {slide_id: row for row in rows if row.status == "done" for slide_id in _parts(row.slide_id)}
    others, notes = 0, list[str]()
    there = {path.parent for path in (answered.out / EXPLANATIONS).glob(f"*/{MANIFEST}")}
    for folder in sorted(there - {*folders}):
        if folder.name.endswith(".tmp"):  # another process is at it
            continue
        told = attempt(read_manifest, folder)
        if isinstance(told, Exception):
            notes.append(one_line(told))
        elif not _explains(told, named.get(told["slide_id"]), digest):
            others += 1
        elif told["slide_id"] not in failed:  # it is told why not
            folders.append(folder)
    if others:
        notes.append(f"{answered.out / EXPLANATIONS} holds explanations of other answers, not shown here: {others}")
    return Reasons(folders, failed, notes)


def _parts(name: str) -> set[str]:
    """What slides may be called whose names a row joins."""
    return {name, *name.split(SEVERAL)}


def _explains(told: dict[str, Any], row: Prediction | None, digest: str) -> bool:
    """Whether an explanation is of a row: by the same model, of the same slides, with the same answer to the bit."""
    if row is None or told["model"] != digest:
        return False
    slides = SEVERAL.join([told["slide_id"], *told["together"]])
    said = tuple(told["probabilities"].values())
    return said == row.probabilities and sorted(slides.split(SEVERAL)) == sorted(row.slide_id.split(SEVERAL))
