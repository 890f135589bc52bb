"""Pictures of what a model looked at, for the page of its training."""

import logging
from pathlib import Path

import numpy as np
from jaxtyping import Float

from wsi_mil.aggregators import Aggregator, infer
from wsi_mil.bags import Bag, as_one, read_bag
from wsi_mil.cohort import Unit
from wsi_mil.errors import SlideError, one_line
from wsi_mil.explain import attention_png, require_one_slide
from wsi_mil.report.page import Picture
from wsi_mil.slides import open_slide
from wsi_mil.stage import artifact_path, attempt
from wsi_mil.train import Trained

log = logging.getLogger(__name__)


def attention_pictures(trained: Trained, feats: Path, per_class: int = 1) -> list[Picture]:
    """Draw the attention over the slides that were judged best, ``per_class`` of each class, none of them trained on.

    Of a patient's slides the one that got most of it is drawn. Slides whose file has moved or cannot be read are passed
    over, with a message.
    """
    made = trained.checkpoint
    model = made.model()
    units = {unit.bag_id: unit for unit in trained.cohort.units}
    pictures = []
    for index, name in enumerate(made.classes):
        unseen = [row for row in trained.predictions if row.label == name and row.split != "train"]
        best = sorted(unseen, key=lambda row: -row.probabilities[index])[:per_class]
        for row in best:
            bag, attention = _looked_at(model, units[row.slide_id], feats)
            answer = f"predicted {row.predicted}, {name} with probability {row.probabilities[index]:.3f}"
            caption = f"{bag.slide_id} ({row.split}): label {name}; {answer}"
            drawn = attempt(_attention_png, bag, attention)
            if isinstance(drawn, Exception):  # a picture is not worth the training
                log.warning("no picture of %s in the report: %s", bag.slide_id, one_line(drawn))
            else:
                pictures.append(Picture(caption, drawn))
    return pictures


def _looked_at(model: Aggregator, unit: Unit, feats: Path) -> tuple[Bag, Float[np.ndarray, " tiles"]]:
    """The slide of a bag that got most attention, and its tiles' shares."""
    slides = [read_bag(artifact_path(feats, member.slide_id)) for member in unit.members]
    joined = as_one(slides, unit.bag_id)
    attention = infer(model, joined).attention
    if joined.slide is None:
        return next(bag for bag in slides if len(bag.features)), attention
    filled = [bag for bag in slides if len(bag.features)]
    shares = [attention[(joined.slide == number).numpy()] for number in range(len(filled))]
    most = max(range(len(filled)), key=lambda number: shares[number].sum())
    return filled[most], shares[most]


def _attention_png(bag: Bag, attention: Float[np.ndarray, " tiles"]) -> bytes:
    require_one_slide(bag)
    if "slide_path" not in bag.attrs:
        raise SlideError("its features do not tell where the slide is: name the folder of slides by --slides")
    mpp = bag.attrs["mpp_x"] if bag.attrs.get("mpp_source") == "option" else None
    with open_slide(Path(bag.attrs["slide_path"]), mpp) as slide:
        return attention_png(slide, bag, attention)
