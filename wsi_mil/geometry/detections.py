"""Many boxes with figures, as GeoJSON that QuPath opens as detections; written as it goes, no object for each."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Float, Int

_SPACE = uuid.UUID("5d5f6f0e-2f0b-5d0c-9a61-7f1f6a0a9c11")  # of our names among all UUIDs; any would do


class Kind(NamedTuple):
    """A class of objects, as QuPath shows it."""

    name: str
    colour: tuple[int, int, int]
    """Red, green, blue: 0 to 255."""


def write_detections(
    file: IO[str],
    owner: str,
    coords: Int[np.ndarray, "boxes 2"],
    l0_size: tuple[int, int],
    kinds: Sequence[Kind | None],
    measurements: Mapping[str, Float[np.ndarray, " boxes"]],
) -> None:
    """Write boxes of one size as a GeoJSON feature collection (RFC 7946) of QuPath's detections.

    A ring is closed and runs counter-clockwise, x and y taken as they stand. Each box has an id that is the same
    whenever it is written again, and no other's: QuPath takes two objects of one id for the same object. It is named
    by its number, from 0.

    Args:
        file: where to, as UTF-8.
        owner: what the boxes are of, such as the slide_id: other owners' boxes have other ids.
        coords: top left corners (x, y), level-0 pixels.
        l0_size: (width, height) of each box, level-0 pixels.
        kinds: the class of each box; None = unclassified.
        measurements: figures by name; those that are not finite are left out, as JSON has no word for them.
    """
    heads = {kind: _head(kind) for kind in set(kinds)}
    width, height = l0_size
    between = "\n"
    file.write('{"type":"FeatureCollection","features":[')
    rows = zip(coords.tolist(), kinds, _told(measurements, len(coords)), strict=True)
    for index, ((x, y), kind, told) in enumerate(rows):
        right, bottom = x + width, y + height
        name = uuid.uuid5(_SPACE, f"{owner} {index} {x} {y}")
        file.write(
            f'{between}{{"type":"Feature","id":"{name}","geometry":{{"type":"Polygon","coordinates":'
            f"[[[{x},{y}],[{right},{y}],[{right},{bottom}],[{x},{bottom}],[{x},{y}]]]}},"
            f'"properties":{{"objectType":"detection","name":"tile {index}",{heads[kind]}"measurements":{{{told}}}}}}}'
        )
        between = ",\n"
    file.write("\n]}\n")


def _told(measurements: Mapping[str, Float[np.ndarray, " boxes"]], boxes: int) -> list[str]:
    """The measurements of each box, as the members of a JSON object."""
    complete = {name: values for name, values in measurements.items() if np.isfinite(values).all()}
    form = ",".join(f"{json.dumps(name)}:".replace("%", "%%") + "%.9g" for name in complete)
    columns = [values.tolist() for values in complete.values()]
    texts = [form % row for row in zip(*columns, strict=True)] if complete else [""] * boxes
    for name in [name for name in measurements if name not in complete]:
        values = measurements[name]
        for row in np.flatnonzero(np.isfinite(values)).tolist():
            texts[row] += f"{',' if texts[row] else ''}{json.dumps(name)}:{values[row]:.9g}"
    return texts


def _head(kind: Kind | None) -> str:
    if kind is None:
        return ""
    classification = {"name": kind.name, "color": list(kind.colour)}
    return f'"classification":{json.dumps(classification, separators=(",", ":"))},'
