"""What a model looked at, in tables: a row per tile, and a row per pair of tiles."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from wsi_mil.explain.looking import Look, Pairs
from wsi_mil.explain.places import Places
from wsi_mil.publishing import replacing_text

Figures = dict[str, Float[np.ndarray, " tiles"]]
"""Of each tile, by the name of the column; NaN where it was not found out."""


def told_classes(classes: Sequence[str]) -> range:
    """Which classes are told of: of two only the last, because what speaks for it speaks against the other."""
    return range(1, 2) if len(classes) == 2 else range(len(classes))


def figures(look: Look, places: Places, classes: Sequence[str]) -> Figures:
    """All that is told of each tile but where it is: what the model made of it, then what the slide says of it."""
    found: Figures = {"attention": look.attention}
    if look.attended is not None:
        found["attended"] = look.attended
    if look.contribution is not None:
        found |= {f"contribution_{classes[index]}": look.contribution[:, index] for index in told_classes(classes)}
    found |= {f"occlusion_{classes[index]}": look.occlusion[:, index] for index in told_classes(classes)}
    return found | places.columns


def write_tiles(path: Path, places: Places, columns: Figures) -> None:
    """Publish a row per tile: ``tile,l0_x,l0_y,x_um,y_um``, then figures.

    Tiles count from 0; the top left corner is in level-0 pixels, the centre in um.
    """
    rows = enumerate(zip(places.coords.tolist(), places.centres_um.tolist(), strict=True))
    where = [f"{tile},{x},{y},{x_um:.2f},{y_um:.2f}" for tile, ((x, y), (x_um, y_um)) in rows]
    texts = [[_text(value) for value in values.tolist()] for values in columns.values()]
    with replacing_text(path) as file:
        csv.writer(file, lineterminator="\n").writerow(["tile", "l0_x", "l0_y", "x_um", "y_um", *columns])
        file.writelines(",".join(row) + "\n" for row in zip(where, *texts, strict=True))


def write_pairs(path: Path, places: Places, pairs: Pairs) -> None:
    """Publish a row per pair, strongest first for each tile: ``tile`` and ``partner`` count the tiles from 0."""
    rank = np.broadcast_to(np.arange(1, pairs.partners.shape[1] + 1), pairs.partners.shape)
    tile = np.broadcast_to(pairs.tiles[:, None], pairs.partners.shape)
    there = pairs.partners >= 0  # a small bag has fewer
    rows = zip(*(array[there].tolist() for array in (tile, *pairs[1:], rank)), strict=True)
    with replacing_text(path) as file:
        file.write("tile,l0_x,l0_y,partner,partner_l0_x,partner_l0_y,weight,distance_um,rank\n")
        for one, other, weight, distance_um, place in rows:
            (x, y), (other_x, other_y) = places.coords[[one, other]].tolist()
            told = f"{_text(weight)},{_text(distance_um, '.2f')}"
            file.write(f"{one},{x},{y},{other},{other_x},{other_y},{told},{place}\n")


def _text(value: float, form: str = ".9g") -> str:
    """A number as text; nothing where it is none."""
    return format(value, form) if value == value else ""
