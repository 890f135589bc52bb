"""Bags of other programs -> features of ours: the stage behind ``wsimil import``, and behind ``--bags`` of such bags.

``--bags`` converts into a cache beside the folder that it names. That is a stage's folder like any other: what is stale
is converted again, and everything downstream reads artifacts of ours only.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wsi_mil import store
from wsi_mil.errors import ArtifactError, ArtifactStale, OptionError, ResolutionError, one_line
from wsi_mil.guards import parse_json
from wsi_mil.interop.bag import APPROXIMATE, OF_TILES, UNNAMED, PeerBag, own_artifact
from wsi_mil.interop.clam import companions
from wsi_mil.interop.detection import content_of, l0_size_of, read_peer
from wsi_mil.interop.discovery import cache_of, holds_own, peer_items, vanished
from wsi_mil.interop.naming import doubts_of, require_encoder
from wsi_mil.interop.telling import PeerOptions, Told, told_of
from wsi_mil.progress import Progress
from wsi_mil.remote import is_brought, origin
from wsi_mil.runs import Report, RunOptions
from wsi_mil.slides import recorded
from wsi_mil.stage import Item, Result, artifact_items, artifact_path, per_slide, run

log = logging.getLogger(__name__)

_NEAR = 1.2  # the size of tiles against the nominal one: as near as scanners of one magnification are


@dataclass(frozen=True)
class ImportParams:
    """What decides all features of a run alike."""

    encoder: str | None = None
    """As the user calls it."""


class ImportStage:
    """``<slide>.h5`` or ``.pt`` of another program -> ``feats/<slide_id>.h5``."""

    name = "import"
    version = 3
    beside = ()

    def __init__(self, params: ImportParams, told: Mapping[str, Told | Exception], workers: int = 1) -> None:
        """Make the stage.

        Args:
            params: what decides all features alike.
            told: by slide_id what is known of slides, or why their resolution cannot be had.
            workers: threads.
        """
        self.params, self.told, self.workers = params, dict(told), workers

    def upstream(self, item: Item) -> str:
        """The content of the bag's files, and the resolution that the slide was given.

        Raises:
            ArtifactError: the slide that is at hand is another one, or a file is damaged.
        """
        told, files = self._told(item), [item.source, *companions(item.source)]
        if told and told.l0_size:
            _require_same_slide(item, files, told)
        parts = [content_of(path, self.params.encoder) for path in files]
        if told and told.resolution:
            parts.append(f"mpp={told.resolution.mpp_x!r},{told.resolution.mpp_y!r} {told.resolution.source}")
        return " ".join(parts)

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        """Convert each bag in a thread."""
        return per_slide(self.convert, items, self.workers, track)

    def convert(self, item: Item) -> Result:
        """Convert one bag.

        Raises:
            ArtifactError: the file holds no features of tiles, or such that cannot be used, or of another encoder.
            ResolutionError: nothing tells the slide's um per px.
        """
        bag, told = read_peer(item.source, self.params.encoder), self._told(item) or Told(None)
        require_encoder(bag, item.source, self.params.encoder)
        try:
            made = own_artifact(bag, item.source, item.slide_id, told.resolution, self.params.encoder)
        except ResolutionError as error:
            if told.slide is None:
                raise
            raise ResolutionError(f"{error}; {told.slide} does not tell it") from error
        _require_tiles_inside(item, made, bag.l0_size or told.l0_size)
        if told.slide:
            made.attrs["slide_path"] = recorded(told.slide)
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
        OptionError: ``out`` lies in ``source``.
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


def own_bags(source: Path, peers: PeerOptions, workers: int = 0, pictures: bool = False) -> OwnBags:
    """Find the artifacts of a folder of bags, or of one file, whoever made them; what is not ours is converted first.

    Args:
        source: a folder of features, or a file of one slide.
        peers: what files of other programs do not say.
        workers: threads; 0 = the cores this process may use.
        pictures: whether slides that are named with bags of ours show what they are of; um/px these say themselves.

    Raises:
        ArtifactError: no bag of another program could be converted; names the first reason.
        OptionError: the cache cannot be written, or options were given that say nothing of bags of ours.
    """
    if not source.exists() or holds_own(source):
        _refuse_idle(source, replace(peers, slides=None) if pictures else peers)
        return OwnBags(source)
    items, cache = peer_items(source), _writable_cache(source)
    log.info("%s holds features of another program, which are kept as our own in %s", source, cache)
    report = _convert(items, cache, peers, RunOptions(refresh=True, workers=workers))
    if source.is_dir():
        for path in vanished(cache, items):
            path.unlink(missing_ok=True)  # another command may be doing the same
    for slide_id, error in report.failed.items():  # what is there of an earlier run must not stand in for it
        if not isinstance(error, ArtifactStale):
            artifact_path(cache, slide_id).unlink(missing_ok=True)
    made = [Item(item.slide_id, artifact_path(cache, item.slide_id)) for item in items]
    made = [item for item in made if item.slide_id not in report.failed]
    if not made:
        slide_id, error = next(iter(report.failed.items()))
        raise ArtifactError(f"--bags {source}: none of {len(items)} can be used; {slide_id}: {one_line(error)}")
    return OwnBags(cache, made, dict(report.failed))


def _writable_cache(source: Path) -> Path:
    """Where the converted bags of a folder go."""
    cache, first = cache_of(source), f"`wsimil import {origin(source)} --out feats/` first"
    if is_brought(source):  # what is converted would lie in the cache of what is far away, beyond its bound
        raise OptionError(f"--bags {source} holds features of another program: {first}")
    if not os.access(cache if cache.exists() else cache.parent, os.W_OK):
        raise OptionError(f"--bags {source}: {cache} cannot be written: {first}")
    return cache


def _convert(items: list[Item], out: Path, peers: PeerOptions, options: RunOptions) -> Report:
    chosen = options.part(items)
    told = told_of(chosen, peers, [item.slide_id for item in items])  # its table is of all shards
    stage = ImportStage(ImportParams(peers.encoder), told, options.threads)
    report = run(stage, items, out, options)
    _follow_slides(out, report.skipped, stage.told)
    _warn_of_doubts(out, {item.slide_id for item in chosen} - report.failed.keys(), peers.encoder)
    return report


def _follow_slides(out: Path, slide_ids: Iterable[str], told: Mapping[str, Told | Exception]) -> None:
    """Correct where the slides lie that moved since their bags were converted: it decides no fingerprint."""
    for slide_id in slide_ids:
        now, path = told.get(slide_id), artifact_path(out, slide_id)
        if not isinstance(now, Told) or now.slide is None:
            continue
        slide_path = recorded(now.slide)
        if store.read_attrs(path).get("slide_path") != slide_path:
            made = store.read(path)
            store.write(path, replace(made, attrs={**made.attrs, "slide_path": slide_path}))


def _require_same_slide(item: Item, files: Iterable[Path], told: Told) -> None:
    """Refuse the namesake of a bag's slide."""
    for width, height in filter(None, map(l0_size_of, files)):
        if (width, height) != told.l0_size:
            raise ArtifactError(
                f"{item.source} is of a slide of {width} x {height} px, but {told.slide} has"
                f" {' x '.join(map(str, told.l0_size or ()))}: name the folder of its own slides by --slides"
            )


def _require_tiles_inside(item: Item, made: store.Artifact, l0_size: tuple[int, int] | None) -> None:
    """Refuse tiles of which not even a part lies on the slide."""
    if l0_size is None or made.attrs["mpp_source"] == OF_TILES:
        return
    coords, tile = made.arrays["coords"], [made.attrs["l0_tile_width"], made.attrs["l0_tile_height"]]
    outside = np.flatnonzero((coords >= np.array(l0_size)).any(axis=1) | (coords + np.array(tile) <= 0).any(axis=1))
    if outside.size:
        (l0_x, l0_y), (width, height) = coords[outside[0]], l0_size
        raise ArtifactError(
            f"{item.source}: the tile at ({l0_x}, {l0_y}) lies outside its slide of {width} x {height} px: make it"
            " again with the program that wrote it"
        )


def _warn_of_size(slide_id: str, bag: PeerBag, made: store.Artifact) -> None:
    """Say so where the tiles of a slide are not of the size that their nominal magnification promises."""
    nominal, real = bag.nominal_um, made.attrs["tile_um"]
    if nominal and not 1 / _NEAR < real / nominal < _NEAR:
        log.warning("%s: its tiles are %.4g um wide, not %.4g as their magnification says", slide_id, real, nominal)


def _warn_of_doubts(out: Path, slide_ids: set[str], encoder: str | None) -> None:
    """Say once, for all slides, what was guessed, and what is odd about the name that their encoder was given."""
    attrs = {name: store.read_attrs(artifact_path(out, name)) for name in sorted(slide_ids)}
    rough = [name for name, found in attrs.items() if found["mpp_source"] in (APPROXIMATE, "objective-power")]
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
    said = {name: parse_json(found["tile_params"])["encoder"] for name, found in attrs.items()} if encoder else {}
    for doubt in doubts_of(encoder, said) if encoder else ():
        log.warning("%s", doubt)


def _refuse_idle(source: Path, peers: PeerOptions) -> None:
    """Refuse what would silently do nothing."""
    given = {"--slides": peers.slides, "--slides-csv": peers.table, "--mpp": peers.mpp, "--encoder": peers.encoder}
    named = [option for option, value in given.items() if value is not None]
    if named and (source.is_file() or artifact_items(source)):
        raise OptionError(f"{named[0]}: {source} holds features of wsimil, which say it themselves: leave it out")
