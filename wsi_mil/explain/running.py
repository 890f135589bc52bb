"""Explain what a checkpoint says of slides, each in a folder of its own; one that fails does not stop the others."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from wsi_mil import checkpoint, publishing
from wsi_mil.aggregators import Aggregator
from wsi_mil.answering import notes
from wsi_mil.bags import Bag, as_one, read_bag
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.cohort import SEVERAL
from wsi_mil.crew import portable
from wsi_mil.dispatch import each
from wsi_mil.errors import one_line
from wsi_mil.explain.looking import Look, LookOptions, look
from wsi_mil.explain.manifest import Facts, warn_again
from wsi_mil.explain.places import read_places
from wsi_mil.explain.shares import part_of
from wsi_mil.explain.slide_file import find_slide, open_again
from wsi_mil.explain.writing import explanation_folder, is_explained, write_explanation
from wsi_mil.progress import progress
from wsi_mil.remote import CacheParams
from wsi_mil.slides import Place
from wsi_mil.stage import Item, artifact_path, attempt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExplainOptions:
    """How explanations are made."""

    out: Path
    """Folder of the explanations; each slide has one in it (`explanation_folder`)."""
    look: LookOptions = field(default_factory=LookOptions)
    device: str = "cpu"
    """Where the model runs."""
    tiles: Path | None = None
    """Folder of the artifacts of tiles, which know their quality and the outline of the tissue; None = not told."""
    slides: Mapping[str, Place] = field(default_factory=dict)
    """By slide_id, where slides lie that are not at their recorded path any more."""
    overwrite: bool = False
    """Replace explanations by another model, or of other features."""
    warnings: Mapping[str, Sequence[str]] | None = None
    """By slide_id, what `predict` warned of, for the manifests; None = it was not asked."""
    cache: CacheParams = field(default_factory=CacheParams)
    """Where slides that were recorded far away are staged."""
    scheduler: str = ""
    """Address of a Dask cluster whose workers explain, on a ``device`` as ``--device`` says it; "" = this process does.
    """

    def absolute(self) -> "ExplainOptions":
        """The same, for whoever works in another folder."""
        tiles = self.tiles and self.tiles.absolute()
        slides = {name: place.absolute() for name, place in self.slides.items()}
        return replace(self, out=self.out.absolute(), tiles=tiles, slides=slides, cache=self.cache.absolute())


class Explained(NamedTuple):
    """What became of one slide."""

    slide_id: str
    status: str
    """"done", "empty" (no tiles, so nothing to explain) or "failed"."""
    folder: Path
    """Where its explanation lies, if it is done."""
    seconds: float = 0.0
    error: str = ""


def explain_bags(path: Path, questions: Iterable[Sequence[Item]], options: ExplainOptions) -> list[Explained]:
    """Explain what a checkpoint says of bags.

    Args:
        path: the checkpoint.
        questions: artifacts of features; those of several slides that the model is asked about together (of a patient)
            are explained by what it says of all of them, each slide with its share.
        options: how.

    Returns:
        What became of each slide, by slide_id. Of several that are asked about together, one whose explanation cannot
        be written fails alone; one whose features cannot be read fails all, as there is no answer without it.

    Raises:
        WeightsError: there is no such checkpoint.
        ClusterError: the options name a cluster that cannot do it.
    """
    publishing.sweep(options.out)
    asked = [tuple(items) for items in questions]
    found = list[Explained]()
    with progress("explain", len(asked)) as track:
        for items, told in _answers(path, asked, options):
            became, seconds = ([told] * len(items), 0.0) if isinstance(told, Exception) else told
            found += [_entered(options.out, item, one, seconds) for item, one in zip(items, became, strict=True)]
            track.advance(items[0].slide_id)
    return sorted(found, key=lambda one: one.slide_id)


def _answers(
    path: Path, asked: Sequence[tuple[Item, ...]], options: ExplainOptions
) -> Iterator[tuple[tuple[Item, ...], Any]]:
    """Questions with what became of them, here or on a cluster, as they are done."""
    if not options.scheduler:
        here = _explainer(path, options, options.device)
        yield from ((items, here.work(items)) for items in asked)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    there = [tuple(item._replace(source=item.source.absolute()) for item in items) for items in asked]
    with publishing.marked(options.out.absolute()) as mark:
        seen = [path.absolute(), *(item.source for items in there[:1] for item in items)]
        make = partial(_explainer, path.absolute(), options.absolute())
        yield from each(options.scheduler, options.device, make, seen, there, mark)


def _explainer(path: Path, options: ExplainOptions, device: str) -> "_Explainer":
    made = checkpoint.load(path)
    return _Explainer(made, checkpoint.digest(path), made.model().to(device), options)


def _entered(out: Path, item: Item, became: str | Exception, seconds: float) -> Explained:
    """The line of a slide, an error being told in the log."""
    folder = explanation_folder(out, item.slide_id)
    if not isinstance(became, Exception):
        return Explained(item.slide_id, became, folder, seconds)
    log.error("%s: %s", item.slide_id, one_line(became))
    return Explained(item.slide_id, "failed", folder, seconds, one_line(became))


class _Slide(NamedTuple):
    """One slide to explain."""

    bag: Bag
    facts: Facts
    file: Place | None
    """The slide itself; None where it is not at hand."""


@dataclass(frozen=True)
class _Explainer:
    made: Checkpoint
    digest: str
    network: Aggregator
    options: ExplainOptions
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Whoever asks a network listens to its parts: one after the other."""

    def work(self, items: Sequence[Item]) -> tuple[list[str | Exception], float]:
        """Explain slides that the model is asked about together: what became of each, and the seconds for each."""
        with self.turn:
            began = time.perf_counter()
            told = attempt(self.explain, items)
            became = [told] * len(items) if isinstance(told, Exception) else told
            seconds = (time.perf_counter() - began) / len(items)
        return [one if isinstance(one, str) else portable(one) for one in became], seconds

    def explain(self, items: Sequence[Item]) -> list[str | Exception]:
        """Explain slides that the model is asked about together; what became of each."""
        bags = [self._bag(item) for item in items]
        filled = [bag for bag in bags if len(bag.features)]
        slides = {
            bag.slide_id: attempt(self._unfinished, item, bag, filled)
            for item, bag in zip(items, bags, strict=True)
            if len(bag.features)
        }
        if any(isinstance(slide, _Slide) for slide in slides.values()):
            # As `predict` asks: the same bag gives the same answer to the bit.
            seen = look(self.network, as_one(filled, SEVERAL.join(slides)), self.options.look)
            start = 0
            for bag in filled:
                part = part_of(seen, start, start + len(bag.features))
                start += len(bag.features)
                if isinstance(slide := slides[bag.slide_id], _Slide):
                    slides[bag.slide_id] = attempt(self._write, slide, part)
        became = (slides.get(bag.slide_id, "empty") for bag in bags)
        return [one if isinstance(one, Exception) else one or "done" for one in became]

    def _bag(self, item: Item) -> Bag:
        bag = read_bag(item.source)
        self.made.require(bag, item.source)
        return bag._replace(slide_id=item.slide_id)

    def _unfinished(self, item: Item, bag: Bag, together: Sequence[Bag]) -> _Slide | None:
        """What there is to explain; None if that is done already."""
        tiles = None if self.options.tiles is None else artifact_path(self.options.tiles, item.slide_id)
        if tiles is not None and not tiles.exists():
            tiles = None
        facts = Facts(
            classes=self.made.classes,
            predicted="",
            model=self.digest,
            places=read_places(item.source, tiles),
            method=asdict(self.options.look),
            together={one.slide_id: str(one.attrs.get("fingerprint", "")) for one in together if one is not bag},
            warnings=self._warnings(item.slide_id),
            model_notes=tuple(notes(self.made)),
        )
        slide = _Slide(bag, facts, find_slide(bag, tiles, self.options.slides, self.options.cache))
        folder = explanation_folder(self.options.out, item.slide_id)
        if not is_explained(folder, bag, facts, slide.file is not None, self.options.overwrite):
            return slide
        warn_again(folder, facts)
        return None

    def _warnings(self, slide_id: str) -> tuple[str, ...] | None:
        told = self.options.warnings
        return None if told is None else tuple(told.get(slide_id, ()))

    def _write(self, slide: _Slide, seen: Look) -> None:
        told = replace(slide.facts, predicted=self.made.decide(seen.probabilities.tolist()))
        folder = explanation_folder(self.options.out, slide.bag.slide_id)
        with nullcontext() if slide.file is None else open_again(slide.file, slide.bag) as opened:
            write_explanation(folder, opened, slide.bag, seen, told, self.options.overwrite)
