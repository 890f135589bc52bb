"""`open_slide`: OpenSlide first, then Pillow, then one clear line."""

from pathlib import Path

from wsi_mil.errors import SlideUnreadable
from wsi_mil.slides.base import Slide
from wsi_mil.slides.image_reader import ImageSlide
from wsi_mil.slides.openslide_reader import OpenSlideSlide


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Open a slide, as a context manager.

    Args:
        path: any format of OpenSlide, or an 8-bit PNG, JPEG or TIFF.
        mpp: micrometres per level-0 pixel, both axes; taken before what the file says. PNG and JPEG need it.

    Raises:
        SlideUnreadable: there is no such file, or nothing here reads it.
        ResolutionError: its micrometres per pixel are unknown, or outside 0.05 to 10.

    Example:
        with open_slide(Path("a.svs")) as slide:
            image = slide.thumbnail(mpp=8.0).image
    """
    start = _start(path)
    try:
        return OpenSlideSlide(path, mpp)
    except SlideUnreadable as first:
        if hint := _hint(start):
            raise SlideUnreadable(f"{path} {hint}") from first
        try:
            return ImageSlide(path, mpp)
        except SlideUnreadable as second:
            raise SlideUnreadable(f"{first}; as a plain image: {_reason(second, path)}") from first


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise SlideUnreadable(f"{path} cannot be opened: {error.strerror or error}") from error


def _hint(start: bytes) -> str:
    """What a file is that is often mistaken for a slide; nothing if it is not one of these."""
    if not start:
        return "is an empty file: copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the slide itself: run `git lfs pull` where it comes from"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not a slide (a failed download?): download it again"
    return ""


def _reason(error: SlideUnreadable, path: Path) -> str:
    return str(error).removeprefix(str(path)).removeprefix(":").strip()
