"""Polygons: the outline of a mask, files of drawn regions, and exact areas. The only door to shapely.

All of it is in level-0 pixels, x to the right, y down.
"""

from wsi_mil.geometry.areas import box_shares, cell_shares
from wsi_mil.geometry.detections import Kind, write_detections
from wsi_mil.geometry.drawings import SUFFIXES, Area, Drawing, merged, read_drawing, without
from wsi_mil.geometry.outlines import outline, rings, to_geojson

__all__ = [
    "SUFFIXES",
    "Area",
    "Drawing",
    "Kind",
    "box_shares",
    "cell_shares",
    "merged",
    "outline",
    "read_drawing",
    "rings",
    "to_geojson",
    "without",
    "write_detections",
]
