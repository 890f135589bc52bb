"""Answers with their reasons: slides, or bags, are predicted and explained, and one page shows both."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from wsi_mil import checkpoint, predict
from wsi_mil.cohort import SEVERAL
from wsi_mil.errors import ArtifactStale, OptionError
from wsi_mil.explain import Explained, ExplainOptions, Head, LookOptions, explain_bags, learnt_distances
from wsi_mil.interop import PeerOptions, holds_own, own_bags
from wsi_mil.predict import PredictOptions
from wsi_mil.predictions import Prediction
from wsi_mil.publishing import write_bytes
from wsi_mil.report import DistanceUse, Told, distance_files, distance_section, predicted_distances, prediction_page
from wsi_mil.slides import SlideFile, find_slides
from wsi_mil.stage import Item, artifact_path
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
    slides_at: Path | None = None
    """Where the slides of ``bags`` lie, if they moved."""
    tiles: Path | None = None
    """Where the tiles of ``bags`` lie, which know their quality and the outline of the tissue; None = in `TILES`, if it
    is there."""


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
        OptionError: options were given that tell nothing of what is asked about.
    """
    if asked.bags is None:
        rows = predict.predict_slides(path, asked.slides, options, asked.mpp)
        cache = options.out / "cache"
        bags = [Item(slide.slide_id, artifact_path(cache / "feats", slide.slide_id)) for slide in asked.slides]
        tiles, moved = cache / "tiles", dict(asked.slides)
    else:
        ours = not asked.bags.exists() or holds_own(asked.bags)
        tiles = _tiles_of(asked, ours)
        # Slides tell of other programs' features what these do not; of ours they only show what was looked at.
        peers = replace(asked.peers, slides=None) if ours and closely is not None else asked.peers
        made = own_bags(asked.bags, peers, options.workers)
        bags = predict.find_bags(asked.bags) if made.items is None else list(made.items)
        rows = predict.predict_bags(path, bags, options, made.failed)
        moved = dict(find_slides(asked.slides_at)) if asked.slides_at else {}
    explained: list[Explained] = []
    if closely is not None:
        where = (options.out / EXPLANATIONS, closely, options.device, tiles, moved, options.overwrite)
        how = ExplainOptions(*where, options.scheduler)
        explained = explain_bags(path, _together(rows, bags), how)
    asked_too = [] if closely is None else bags
    _write_page(path, rows, explained, options, commands, [bag.source for bag in asked_too])
    return Answered(rows, explained)


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
            raise ArtifactStale(f"{file} tells of another model: add --overwrite, or give another --out")
    for file, data in files.items():
        write_bytes(file, data)
    return list(use.heads), list(files)


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


def _together(rows: Sequence[Prediction], bags: Sequence[Item]) -> list[list[Item]]:
    """The bags of each answer: one slide, or all of a patient."""
    known = {bag.slide_id: bag for bag in bags}
    return [[known[name] for name in _members(row.slide_id, known)] for row in rows if row.status == "done"]


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
    path: Path,
    rows: Sequence[Prediction],
    explained: Sequence[Explained],
    options: PredictOptions,
    commands: Sequence[str],
    bags: Sequence[Path],
) -> None:
    made = checkpoint.load(path)
    device = "cpu" if options.scheduler else options.device  # what the cluster has is not here
    learnt = distance_section(predicted_distances(made, bags, device))
    told = Told(made, checkpoint.digest(path), tuple(commands), [learnt])
    folders = [one.folder for one in explained if one.status == "done"]
    write_bytes(options.out / PAGE, prediction_page(rows, told, folders))
