"""Bags of other programs -> features of ours: the stage behind ``wsimil import``, and behind ``--bags`` of such bags.

``--bags`` converts into a cache beside the folder that it names. That is a stage's folder like any other, so nothing
in it is ever stale, and everything downstream reads artifacts of ours only.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from wsi_mil import store
from wsi_mil.cohort import read_resolutions
from wsi_mil.errors import ArtifactError, OptionError, SlideError, one_line
from wsi_mil.interop.bag import APPROXIMATE, UNNAMED, PeerBag, checked, own_artifact
from wsi_mil.interop.clam import companions
from wsi_mil.interop.detection import read_peer
from wsi_mil.interop.discovery import cache_of, holds_own, peer_items, vanished
from wsi_mil.progress import Progress
from wsi_mil.runs import Report, RunOptions
from wsi_mil.slides import find_slides, open_slide, slide_fingerprint
from wsi_mil.slides.resolution import MPP_RANGE, Resolution
from wsi_mil.stage import Item, Result, artifact_items, artifact_path, per_slide, run

log = logging.getLogger(__name__)

_NEAR = 1.2  # the size of tiles against the nominal one: as near as scanners of one magnification are


@dataclass(frozen=True)
class PeerOptions:
    """What the user knows of bags that their files do not say."""

    slides: Path | None = None
    """Folder of the slides, whose files tell their resolution."""
    table: Path | None = None
    """``slides.csv``, with the um/px of each slide."""
    mpp: float | None = None
    """Level-0 um/px of all slides that the table does not name."""
    encoder: str | None = None
    """What the encoder is called, or which of AtlasPatch's it is; None = as the files say."""

    def __post_init__(self) -> None:
        low, high = MPP_RANGE
        if self.mpp is not None and not low <= self.mpp <= high:
            raise OptionError(f"--mpp {self.mpp:g}: give um per level-0 px, between {low} and {high:g}")
        if self.encoder == "":
            raise OptionError("--encoder is empty: give a name, or leave the option out")


@dataclass(frozen=True)
class ImportParams:
    """What decides all features of a run alike."""

    encoder: str | None = None
    """As the user calls it."""


class Told(NamedTuple):
    """What is known of a slide beside its bag."""

    resolution: Resolution
    slide: Path | None = None


class ImportStage:
    """``<slide>.h5`` or ``.pt`` of another program -> ``feats/<slide_id>.h5``."""

    name = "import"
    version = 1

    def __init__(self, params: ImportParams, told: Mapping[str, Told | Exception], workers: int = 1) -> None:
        """Make the stage.

        Args:
            params: what decides all features alike.
            told: by slide_id what is known of slides, or why their resolution cannot be had.
            workers: threads.
        """
        self.params, self.told, self.workers = params, dict(told), workers

    def upstream(self, item: Item) -> str:
        """The content of the bag's files, and the resolution that the slide was given."""
        prints = [slide_fingerprint(path) for path in (item.source, *companions(item.source))]
        told = self._told(item)
        given = [f"mpp={told.resolution.mpp_x!r},{told.resolution.mpp_y!r} {told.resolution.source}"] if told else []
        return " ".join([*prints, *given])

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        """Convert each bag in a thread."""
        return per_slide(self.convert, items, self.workers, track)

    def convert(self, item: Item) -> Result:
        """Convert one bag.

        Raises:
            ArtifactError: the file holds no features of tiles, or such that cannot be used.
            ResolutionError: nothing tells the slide's um per px.
        """
        bag, told = read_peer(item.source, self.params.encoder), self._told(item)
        made = own_artifact(bag, item.source, item.slide_id, told.resolution if told else None, self.params.encoder)
        if told and told.slide:
            made.attrs["slide_path"] = str(told.slide.absolute())
        _warn_of_size(item.slide_id, bag, made)
        return Result(made, len(bag.features))

    def _told(self, item: Item) -> Told | None:
        told = self.told.get(item.slide_id)
        if isinstance(told, Exception):
            raise told
        return told


@dataclass(frozen=True)
class OwnBags:
    """Where the artifacts of some bags lie."""

    folder: Path
    items: list[Item] | None = None
    """The bags that were converted; None = ``folder`` is ours, and nothing was looked at."""
    failed: dict[str, Exception] = field(default_factory=dict)
    """Those that could not be, by slide_id."""


def import_bags(source: Path, out: Path, peers: PeerOptions, options: RunOptions) -> Report:
    """Write the bags of another program as features of ours.

    Args:
        source: a file, or a folder, of TRIDENT, CLAM, STAMP or AtlasPatch.
        out: where the artifacts go.
        peers: what the files do not say.
        options: how to run.

    Raises:
        ArtifactError: ``source`` holds no bags, or ours.
        ArtifactStale: ``out`` holds others, and overwriting was not asked for.
    """
    if not source.exists():
        raise ArtifactError(f"{source} does not exist: name a folder of features, or a file")
    items = peer_items(source)
    if out.resolve().is_relative_to(source.resolve()):
        raise OptionError(f"--out {out} lies in {source}: name another folder")
    if holds_own(source):
        raise ArtifactError(f"{source} holds artifacts of wsimil already: use it as it is, by --bags {source}")
    return _convert(items, out, peers, options)


def own_bags(source: Path, peers: PeerOptions, workers: int = 0) -> OwnBags:
    """Find the artifacts of a folder of bags, or of one file, whoever made them; what is not ours is converted first.

    Args:
        source: a folder of features, or a file of one slide.
        peers: what files of other programs do not say.
        workers: threads; 0 = the cores this process may use.

    Raises:
        ArtifactError: no bag of another program could be converted; names the first reason.
        OptionError: the cache cannot be written, or options were given that say nothing of bags of ours.
    """
    if not source.exists() or holds_own(source):
        _refuse_idle(source, peers)
        return OwnBags(source)
    items, cache = peer_items(source), cache_of(source)
    if not os.access(cache if cache.exists() else cache.parent, os.W_OK):
        raise OptionError(f"--bags {source}: {cache} cannot be written: `wsimil import {source} --out feats/` first")
    report = _convert(items, cache, peers, RunOptions(refresh=True, workers=workers))
    if source.is_dir():
        for path in vanished(cache, items):
            path.unlink()
    made = [Item(item.slide_id, artifact_path(cache, item.slide_id)) for item in items]
    made = [item for item in made if item.slide_id not in report.failed]
    if not made:
        slide_id, error = next(iter(report.failed.items()))
        raise ArtifactError(f"--bags {source}: none of {len(items)} can be used; {slide_id}: {one_line(error)}")
    return OwnBags(cache, made, dict(report.failed))


def _convert(items: list[Item], out: Path, peers: PeerOptions, options: RunOptions) -> Report:
    chosen = options.part(items)
    stage = ImportStage(ImportParams(peers.encoder), told_of(chosen, peers), options.threads)
    report = run(stage, items, out, options)
    _warn_of_doubts(out, {item.slide_id for item in chosen} - report.failed.keys())
    return report


def told_of(items: list[Item], peers: PeerOptions) -> dict[str, Told | Exception]:
    """What the user, or the slide itself, says of the resolution of each slide: the first that says anything."""
    names = [item.slide_id for item in items]
    table = read_resolutions(peers.table, names) if peers.table else {}
    slides = {slide.slide_id: slide.path for slide in find_slides(peers.slides)} if peers.slides else {}
    told: dict[str, Told | Exception] = {}
    for slide_id in names:
        mpp = table.get(slide_id, peers.mpp)
        try:
            path = _slide_of(slide_id, slides)
            if mpp is not None:
                told[slide_id] = Told(checked(slide_id, Resolution(mpp, mpp, "option")), path)
            elif path:
                with open_slide(path) as slide:
                    told[slide_id] = Told(Resolution(slide.mpp_x, slide.mpp_y, slide.mpp_source), path)
        except SlideError as error:
            told[slide_id] = error
    return told


def _slide_of(slide_id: str, slides: Mapping[str, Path]) -> Path | None:
    """The slide of a bag; other programs leave out its folder."""
    if slide_id in slides:
        return slides[slide_id]
    name = PurePosixPath(slide_id).name
    found = sorted(other for other in slides if PurePosixPath(other).name == name)
    if len(found) > 1:
        raise SlideError(f"{slide_id} may be any of {', '.join(found)}: give a table slide,mpp by --slides-csv")
    return slides[found[0]] if found else None


def _warn_of_size(slide_id: str, bag: PeerBag, made: store.Artifact) -> None:
    """Say so where the tiles of a slide are not of the size that their nominal magnification promises."""
    nominal, real = bag.nominal_um, made.attrs["tile_um"]
    if nominal and not 1 / _NEAR < real / nominal < _NEAR:
        log.warning("%s: its tiles are %.4g um wide, not %.4g as their magnification says", slide_id, real, nominal)


def _warn_of_doubts(out: Path, slide_ids: set[str]) -> None:
    """Say once, for all slides, what was guessed."""
    attrs = {name: store.read_attrs(artifact_path(out, name)) for name in sorted(slide_ids)}
    rough = [name for name, found in attrs.items() if found["mpp_source"] == APPROXIMATE]
    if rough:
        log.warning(
            "%d slides, such as %s: about %.3g um/px, which is 10 / their nominal magnification: give --slides, --mpp"
            " or a table slide,mpp by --slides-csv", len(rough), rough[0], attrs[rough[0]]["mpp_x"],
        )  # fmt: skip
    for guess, times in Counter(found["guessed"] for found in attrs.values() if "guessed" in found).items():
        log.warning("guessed for %d slides: %s", times, guess)
    unnamed = [name for name, found in attrs.items() if found["encoder"] == UNNAMED]
    if unnamed:
        log.warning("%d slides, such as %s, do not say their encoder: name it by --encoder", len(unnamed), unnamed[0])


def _refuse_idle(source: Path, peers: PeerOptions) -> None:
    """Refuse what would silently do nothing."""
    given = {"--slides": peers.slides, "--slides-csv": peers.table, "--mpp": peers.mpp, "--encoder": peers.encoder}
    named = [option for option, value in given.items() if value is not None]
    if named and (source.is_file() or artifact_items(source)):
        raise OptionError(f"{named[0]}: {source} holds features of wsimil, which say it themselves: leave it out")
