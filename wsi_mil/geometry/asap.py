"""ASAP's XML, as CAMELYON16 and CAMELYON17 publish their outlines."""

from xml.etree import ElementTree

import shapely

from wsi_mil.geometry.marks import UNCLASSIFIED, Mark, Marks, polygon
from wsi_mil.guards import require_plain_xml

_TUMOUR = "Tumor"
_NAMES = {"_0": _TUMOUR, "_1": _TUMOUR, "None": UNCLASSIFIED, "": UNCLASSIFIED}
"""What groups are called here. CAMELYON16 has tumour in `Tumor`, `_0` and `_1`, depending on the slide."""
_HOLES = ("Exclusion", "_2")
"""Groups that CAMELYON16 cuts out of the others: holes, which ASAP's polygons cannot have."""
_FLAT = ("Dot", "PointSet", "Measurement", "None")
"""Types of annotation without an area."""


def parse(data: bytes) -> Marks:
    """Read ASAP's XML. The class of a polygon is its group.

    Raises:
        ValueError: it is something else.
    """
    try:
        require_plain_xml(data)
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"is damaged or no XML ({error})") from error
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"is XML of another program (<{root.tag}>), not of ASAP")
    found = [(_group(annotation), _polygon(annotation)) for annotation in root.iter("Annotation")]
    groups = {group for group, _ in found}
    polygons = [_mark(group, drawn, groups) for group, drawn in found if drawn is not None]
    return Marks(polygons, len(found) - len(polygons))


def _group(annotation: ElementTree.Element) -> str:
    return annotation.get("PartOfGroup", "").strip()


def _polygon(annotation: ElementTree.Element) -> shapely.Polygon | None:
    if annotation.get("Type") in _FLAT:
        return None
    return polygon([[(point.get("X"), point.get("Y")) for point in annotation.iter("Coordinate")]])


def _mark(group: str, drawn: shapely.Polygon, groups: set[str]) -> Mark:
    if group in _HOLES:
        return Mark("", drawn, cuts=True)
    # CAMELYON17 paints its group `normal` over its `metastases`.
    return Mark(_NAMES.get(group, group), drawn, cuts=group == "normal" and "metastases" in groups)
