"""Explain what a checkpoint says of slides, each in a folder of its own; one that fails does not stop the others."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from wsi_mil import checkpoint, store
from wsi_mil.aggregators import Aggregator
from wsi_mil.bags import Bag, as_one, read_bag
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.errors import one_line
from wsi_mil.explain.looking import Look, LookOptions, look
from wsi_mil.explain.places import read_places
from wsi_mil.explain.shares import part_of
from wsi_mil.explain.slide_file import find_slide, open_again
from wsi_mil.explain.writing import Facts, explanation_fingerprint, is_explained, write_explanation
from wsi_mil.guards import inside
from wsi_mil.progress import progress
from wsi_mil.stage import Item, artifact_path, attempt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExplainOptions:
    """How explanations are made."""

    out: Path
    """Folder of the explanations; each slide has one in it, called by its slide_id."""
    look: LookOptions = field(default_factory=LookOptions)
    device: str = "cpu"
    """Where the model runs."""
    tiles: Path | None = None
    """Folder of the artifacts of tiles, which know their quality and the outline of the tissue; None = not told."""
    slides: Mapping[str, Path] = field(default_factory=dict)
    """By slide_id, where slides lie that are not at their recorded path any more."""
    overwrite: bool = False
    """Replace explanations by another model, or of other features."""


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

    Raises:
        WeightsError: there is no such checkpoint.
    """
    store.sweep(options.out)
    asked = [tuple(items) for items in questions]
    made = checkpoint.load(path)
    explainer = _Explainer(made, checkpoint.digest(path), made.model().to(options.device), options)
    found = list[Explained]()
    with progress("explain", len(asked)) as track:
        for items in asked:
            began = time.perf_counter()
            answer = attempt(explainer.explain, items)
            seconds = (time.perf_counter() - began) / len(items)
            if isinstance(answer, Exception):
                log.error("%s: %s", ", ".join(item.slide_id for item in items), one_line(answer))
                told = [("failed", one_line(answer))] * len(items)
            else:
                told = [(status, "") for status in answer]
            for item, (status, error) in zip(items, told, strict=True):
                place = explainer.folder(item.slide_id) if status == "done" else options.out
                found.append(Explained(item.slide_id, status, place, seconds, error))
            track.advance(items[0].slide_id)
    return sorted(found, key=lambda one: one.slide_id)


class _Slide(NamedTuple):
    """One slide to explain."""

    item: Item
    bag: Bag
    facts: Facts
    file: Path | None
    """The slide itself; None where it is not at hand."""


@dataclass(frozen=True)
class _Explainer:
    made: Checkpoint
    digest: str
    network: Aggregator
    options: ExplainOptions

    def explain(self, items: Sequence[Item]) -> list[str]:
        """Explain slides that the model is asked about together; the status of each."""
        bags = [read_bag(item.source) for item in items]
        for item, bag in zip(items, bags, strict=True):
            self.made.require(bag, item.source)
        filled = [self._slide(item, bag) for item, bag in zip(items, bags, strict=True) if len(bag.features)]
        if not all(self._is_finished(slide) for slide in filled):
            seen = look(self.network, as_one(bags, items[0].slide_id), self.options.look)
            self._write(filled, seen)
        return ["done" if len(bag.features) else "empty" for bag in bags]

    def folder(self, slide_id: str) -> Path:
        """Where the explanation of a slide goes."""
        return inside(self.options.out, slide_id)

    def _slide(self, item: Item, bag: Bag) -> _Slide:
        tiles = None if self.options.tiles is None else artifact_path(self.options.tiles, item.slide_id)
        if tiles is not None and not tiles.exists():
            tiles = None
        facts = Facts(
            classes=self.made.classes,
            predicted="",
            model=self.digest,
            places=read_places(item.source, tiles),
            method=asdict(self.options.look),
        )
        return _Slide(item, bag, facts, find_slide(bag, tiles, self.options.slides))

    def _is_finished(self, slide: _Slide) -> bool:
        key = explanation_fingerprint(slide.bag, slide.facts, slide.file is not None)
        return is_explained(self.folder(slide.item.slide_id), key, self.options.overwrite)

    def _write(self, slides: Sequence[_Slide], seen: Look) -> None:
        predicted, start = self.made.decide(seen.probabilities.tolist()), 0
        for item, bag, facts, file in slides:
            part = part_of(seen, start, start + len(bag.features))
            start += len(bag.features)
            told = replace(facts, predicted=predicted)
            with nullcontext() if file is None else open_again(file, bag) as opened:
                write_explanation(self.folder(item.slide_id), opened, bag, part, told, self.options.overwrite)
