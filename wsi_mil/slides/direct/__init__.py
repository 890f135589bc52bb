"""Slides read straight from their compressed tiles: each is decoded once, and only where OpenSlide agrees.

A TIFF slide is a table of small JPEGs (or JPEG 2000s, ...). OpenSlide reads through it tile by tile for each request;
here the tables are read once (`tiff`), neighbouring tiles are fetched together (`file`), decoded by libjpeg-turbo
(`codecs`), and kept while a tile that is still to be read needs them (`keeper`). `slide` puts it together, and `proof`
compares it with OpenSlide on every slide before anything else is read from it.
"""

from wsi_mil.slides.direct.layout import NotDirect
from wsi_mil.slides.direct.opening import open_directly

__all__ = ["NotDirect", "open_directly"]
