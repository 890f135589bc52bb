"""All pictures of one slide: what the model looked at, what each tile spoke for, the tiles themselves."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from wsi_mil.explain.annotations import class_colour
from wsi_mil.explain.figure import FAINT, backdrop, png_of
from wsi_mil.explain.heatmap import attention_picture, contribution_picture
from wsi_mil.explain.looking import Look
from wsi_mil.explain.overlay import Overlay, write_overlays
from wsi_mil.explain.pairs_picture import pairs_picture
from wsi_mil.explain.places import Places
from wsi_mil.explain.scales import attention_scale, contribution_scale
from wsi_mil.explain.sheet import sheet_size, tile_sheet
from wsi_mil.explain.tables import told_classes
from wsi_mil.publishing import write_bytes
from wsi_mil.slides import Slide

SIDE_PX = 1000


def draw(
    folder: Path,
    slide: Slide,
    slide_id: str,
    look: Look,
    places: Places,
    classes: Sequence[str],
    predicted: str,
) -> dict[str, str]:
    """Draw a slide's pictures into a folder; what each file is, by its name.

    Raises:
        SlideUnreadable: the slide's pixels cannot be read.
    """
    ground = backdrop(slide, SIDE_PX)
    answer = f"predicted {predicted}, p = {look.probabilities[list(classes).index(predicted)]:.3f}"
    pictures: dict[str, tuple[Image.Image, str]] = {
        "heatmap.png": (
            attention_picture(ground, places, look.attention, slide_id, f"Attention of each tile; {answer}"),
            "attention over the slide",
        )
    }
    if look.pairs is not None:
        drawn = pairs_picture(
            ground, places, look.pairs, slide_id, f"What the tiles that counted most attended to; {answer}"
        )
        pictures["pairs.png"] = drawn, "the tiles that counted most and their strongest partners"
    if look.contribution is None:
        pictures |= _sheets(slide, slide_id, places, look.attention, None, answer)
    else:
        for side in _sides(classes):
            values = look.contribution[:, side.index]
            subtitle = f"What each tile gave to {side.evidence}; {answer}"
            image = contribution_picture(ground, places, values, side.ends, slide_id, subtitle)
            pictures[f"contribution{side.ending}.png"] = image, f"what each tile gave to {side.evidence}"
            pictures |= _sheets(slide, slide_id, places, look.attention, (side, values), answer)
    for name, (image, _) in pictures.items():
        write_bytes(folder / name, png_of(image))
    overlays = _overlays(look, classes)
    write_overlays(folder, slide, places, overlays)
    told = {name: what for name, (_, what) in pictures.items()}
    return told | {
        name: f"{one.title}: a pyramid of the slide's area with um per pixel" for name, one in overlays.items()
    }


class _Side(NamedTuple):
    """A class whose evidence is drawn."""

    index: int
    evidence: str
    """What tiles give to."""
    ends: tuple[str, str]
    """What evidence below and above 0 means: of two classes, what speaks against one speaks for the other."""
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    """Of tiles below and above 0."""
    ending: str
    """What the names of its files end in: nothing for two classes, else the class."""


def _sides(classes: Sequence[str]) -> list[_Side]:
    if len(classes) == 2:
        ends = (f"for {classes[0]}", f"for {classes[1]}")
        return [_Side(1, f"the log-odds of {classes[1]}", ends, (class_colour(0), class_colour(1)), "")]
    endings = _endings(classes)
    return [
        _Side(
            index,
            f"the evidence for {classes[index]}",
            (f"against {classes[index]}", f"for {classes[index]}"),
            (FAINT, class_colour(index)),
            endings[index],
        )
        for index in told_classes(classes)
    ]


def _endings(classes: Sequence[str]) -> list[str]:
    """What names of files end in, one for each class also on a disk that tells no case."""
    stems = [re.sub(r"[^\w.-]+", "-", name)[:60] for name in classes]
    alike = len({stem.casefold() for stem in stems}) < len(stems)
    return [f"_{index}-{stem}" if alike else f"_{stem}" for index, stem in enumerate(stems)]


def _overlays(look: Look, classes: Sequence[str]) -> dict[str, Overlay]:
    """Attention, and what tiles gave to each class, by the name of the file."""
    overlays = {"overlay.ome.tif": Overlay("attention", look.attention, attention_scale(look.attention))}
    if look.contribution is None:
        return overlays
    for side in _sides(classes):
        values = look.contribution[:, side.index]
        title = f"what each tile gave to {side.evidence}"
        overlays[f"overlay_contribution{side.ending}.ome.tif"] = Overlay(title, values, contribution_scale(values))
    return overlays


def _sheets(
    slide: Slide,
    slide_id: str,
    places: Places,
    attention: Float[np.ndarray, " tiles"],
    told: tuple[_Side, Float[np.ndarray, " tiles"]] | None,
    answer: str,
) -> dict[str, tuple[Image.Image, str]]:
    """The tiles of largest and smallest contribution, else attention."""
    side, values = told or (None, attention)
    order, count = np.argsort(-values, kind="stable"), sheet_size(len(values))
    what = f"contribution to {side.evidence}" if side else "attention"
    wide = f"{places.l0_tile[0] * places.mpp[0]:.0f} um wide"
    sheets = {}
    for end, word, chosen in (("top", "largest", order[:count]), ("bottom", "smallest", order[::-1][:count])):
        first = [f"{value:+.3g}" if side else f"attention {value:.3g}" for value in values[chosen].tolist()]
        second = [f"tile {tile}" + (f", attention {attention[tile]:.2g}" if side else "") for tile in chosen.tolist()]
        colours = [side.colours[int(value > 0)] if side and value else FAINT for value in values[chosen].tolist()]
        about = f"Tiles of {word} {what}"
        texts = list(zip(first, second, strict=True))
        image = tile_sheet(slide, places, chosen, texts, colours, slide_id, f"{about}, {wide}; {answer}")
        sheets[f"{end}_tiles{side.ending if side else ''}.png"] = image, f"tiles{about[5:]}"
    return sheets
