"""Pictures of what a model looked at in the slides that it judged best and worst, for the pages that judge it."""

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from wsi_mil.aggregators import Aggregator, infer
from wsi_mil.bags import Bag, as_one, read_bag
from wsi_mil.cohort import Cohort, some_names
from wsi_mil.errors import SlideError, one_line
from wsi_mil.explain import attention_png, find_slide, open_again, require_one_slide, slide_path
from wsi_mil.predictions import Prediction
from wsi_mil.remote import CacheParams
from wsi_mil.report.page import MOST_BYTES, Picture, Section, as_jpeg
from wsi_mil.slides import Place, find_slides
from wsi_mil.stage import artifact_path, attempt

log = logging.getLogger(__name__)


class Notable(NamedTuple):
    """A bag worth looking at."""

    row: Prediction
    why: str
    """As a clause: "judged best of 12 near"."""


@dataclass(frozen=True)
class SlideFiles:
    """Where pictures come from."""

    feats: Path
    """Folder of the features."""
    tiles: Path | None = None
    """Folder of the tiles, which know the fingerprint of their slide; None = a slide of that name is believed."""
    moved: Mapping[str, Place] = field(default_factory=dict)
    """By slide_id, where slides lie that are not at their recorded path any more."""
    cache: CacheParams | None = None
    """Where slides that were recorded far away are staged; None = they are not fetched for a picture."""

    @classmethod
    def at(cls, feats: Path, tiles: Path, slides: Path | None, cache: CacheParams | None = None) -> "SlideFiles":
        """Those of the folders that commands name, whether they are there or not."""
        return cls(feats, tiles if tiles.is_dir() else None, dict(find_slides(slides)) if slides else {}, cache)


def notable(rows: Sequence[Prediction], classes: Sequence[str]) -> list[Notable]:
    """Of each class the bag that was judged best and the one that was judged worst, among those not trained on.

    Best has the highest probability of its own class, worst the lowest: the most wrong, or where all are right the
    least sure. A class of one bag has only one.
    """
    found = []
    for index, name in enumerate(classes):
        unseen = [row for row in rows if row.label == name and row.split != "train" and row.status == "done"]
        order = sorted(unseen, key=lambda row: -row.probabilities[index])
        if not order:
            continue
        worst = "the most wrong" if order[-1].predicted != name else "right, but the least sure"
        ends = [(order[0], "best"), (order[-1], f"worst ({worst})")] if len(order) > 1 else [(order[0], "alone")]
        for row, which in ends:
            probability = f"{name} with probability {row.probabilities[index]:.3f}"
            why = f"judged {which} of {len(order)} {name}" if len(order) > 1 else f"the only {name}"
            found.append(Notable(row, f"{why}: predicted {row.predicted}, {probability}"))
    return found


def slides_section(
    judged: Mapping[str, Sequence[Notable]],
    model_of: Callable[[str, Prediction], Aggregator],
    cohort: Cohort,
    files: SlideFiles,
) -> Section:
    """Heat maps of the slides that models judged best and worst.

    Of a patient's slides the one that got most attention is drawn. Slides that are not at hand, or cannot be read, are
    passed over, with one message; so are those for which a page of 10 MB has no room.

    Args:
        judged: by the name of a model, what it judged (`notable`).
        model_of: the network that gave an answer, by the model's name and the answer.
        cohort: whose bags these are.
        files: where slides and features lie.
    """
    drawer = _Drawer(cohort, files)
    pictures, lost = list[Picture](), dict[str, str]()
    for name, some in judged.items():
        of = f"{name}, " if len(judged) > 1 else ""
        for row, why in some:
            drawn = attempt(drawer.draw, model_of(name, row), row)
            if isinstance(drawn, Exception):  # a picture is not worth the training
                lost[row.slide_id] = one_line(drawn)
            elif sum(len(picture.data) for picture in pictures) + len(drawn.data) > MOST_BYTES:
                lost[row.slide_id] = "the page would become too large"
            else:
                pictures.append(Picture(f"{drawn.slide_id}{_where(row)}: {of}{why}", drawn.data))
    if lost:
        reasons = "; ".join(dict.fromkeys(lost.values()))
        log.warning("no picture in the report of %s: %s", some_names(list(lost)), reasons)
    text = "Colour is attention: faint yellow where the model hardly looked, red and violet where it did."
    return Section("Best and worst slides", text if pictures else "", pictures=pictures)


def _where(row: Prediction) -> str:
    parts = [f"tested in round {row.fold}" if row.fold else row.split]
    return f" ({parts[0]})" if parts[0] else ""


class _Drawn(NamedTuple):
    slide_id: str
    data: bytes


class _Drawer:
    """Draws what models looked at in the bags of a cohort."""

    def __init__(self, cohort: Cohort, files: SlideFiles) -> None:
        self.units, self.files = {unit.bag_id: unit for unit in cohort.units}, files

    def draw(self, model: Aggregator, row: Prediction) -> _Drawn:
        """The slide of a bag that got most attention.

        Raises:
            SlideError: it is not at hand, or is another one.
        """
        slides = [read_bag(artifact_path(self.files.feats, one.slide_id)) for one in self.units[row.slide_id].members]
        bag, attention = max(_looked_at(model, slides, row.slide_id), key=lambda part: part[1].sum())
        return _Drawn(bag.slide_id, self._attention_jpeg(bag, attention))

    def _attention_jpeg(self, bag: Bag, attention: Float[np.ndarray, " tiles"]) -> bytes:
        require_one_slide(bag)
        path = slide_path(bag, self.files.moved, self.files.cache)
        if path is None:
            raise SlideError("its slide is not where it was: name the folder of slides by --slides")
        tiles = None if self.files.tiles is None else artifact_path(self.files.tiles, bag.slide_id)
        find_slide(bag, tiles if tiles is not None and tiles.exists() else None, self.files.moved, self.files.cache)
        with open_again(path, bag) as slide, Image.open(io.BytesIO(attention_png(slide, bag, attention))) as drawn:
            return as_jpeg(drawn)


def _looked_at(
    model: Aggregator, slides: Sequence[Bag], bag_id: str
) -> Iterator[tuple[Bag, Float[np.ndarray, " tiles"]]]:
    """Each slide of a bag that has tiles, with its tiles' shares of attention."""
    joined = as_one(list(slides), bag_id)
    attention = infer(model, joined).attention
    start = 0
    for slide in slides:
        if end := len(slide.features):
            yield slide, attention[start : start + end]
            start += end
