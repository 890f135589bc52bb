"""Slides: open them, find them, tell one from another, write them. The only door to openslide, tifffile,
simplejpeg, imagecodecs and pydicom.

with open_slide(Path("slides/a.svs")) as slide:
    pixels = slide.read(0, 0, l0_size=(512, 512), size_px=(256, 256))
    small = slide.thumbnail(mpp=8.0).image
"""

from wsi_mil.slides.base import Slide, Thumbnail
from wsi_mil.slides.discovery import SlideFile, find_slides, slide_bytes, slide_fingerprint
from wsi_mil.slides.naming import Place, without_extension
from wsi_mil.slides.ome import write_ome_pyramid
from wsi_mil.slides.opening import open_slide, require_reader
from wsi_mil.slides.places import find_again, folder_of, recorded
from wsi_mil.slides.pyramid import write_pyramid
from wsi_mil.slides.resolution import require_mpp

__all__ = [
    "Place",
    "Slide",
    "SlideFile",
    "Thumbnail",
    "find_again",
    "find_slides",
    "folder_of",
    "open_slide",
    "recorded",
    "require_mpp",
    "require_reader",
    "slide_bytes",
    "slide_fingerprint",
    "without_extension",
    "write_ome_pyramid",
    "write_pyramid",
]
