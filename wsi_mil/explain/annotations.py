"""What a model looked at, for QuPath: tiles as detections with measurements, the tissue as annotations."""

from collections.abc import Sequence
from pathlib import Path

from wsi_mil.explain.looking import Look
from wsi_mil.explain.places import Places
from wsi_mil.explain.tables import Figures
from wsi_mil.geometry import Kind, to_geojson, write_detections
from wsi_mil.publishing import replacing_text, write_bytes

_COLOURS = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167),
    (230, 159, 0), (86, 180, 233), (240, 228, 66), (0, 0, 0),
)  # fmt: skip
"""Of classes, told apart by the colour-blind (Okabe and Ito 2008); from the start again after eight."""


def class_colour(index: int) -> tuple[int, int, int]:
    """The colour of a class (red, green, blue), in every picture and file."""
    return _COLOURS[index % len(_COLOURS)]


def write_tile_detections(
    path: Path, slide_id: str, places: Places, look: Look, classes: Sequence[str], columns: Figures
) -> None:
    """Publish the tiles as QuPath's detections, each of the class that it speaks for most, with ``columns`` as
    measurements. A tile that speaks for none, or of a model that does not tell, is unclassified."""
    kinds: list[Kind | None] = [None] * len(places.coords)
    if look.contribution is not None:
        known = [Kind(name, class_colour(index)) for index, name in enumerate(classes)]
        best, most = look.contribution.argmax(1), look.contribution.max(1)
        kinds = [known[kind] if value > 0 else None for kind, value in zip(best.tolist(), most.tolist(), strict=True)]
    with replacing_text(path) as file:
        write_detections(file, slide_id, places.coords, places.l0_tile, kinds, columns)


def write_tissue(path: Path, places: Places) -> None:
    """Publish the outline of the tissue as QuPath's annotations of class ``Tissue``."""
    if places.tissue is None:
        raise ValueError("nobody recorded the outline of the tissue")
    write_bytes(path, to_geojson(places.tissue, "Tissue"))
