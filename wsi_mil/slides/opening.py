"""`open_slide`: OpenSlide first, then straight from its tiles if it can be proved, else Pillow, then one clear line."""

from pathlib import Path

from wsi_mil.errors import OptionError, SlideDamaged, SlideError, SlideUnreadable
from wsi_mil.remote import hold
from wsi_mil.slides.base import Slide
from wsi_mil.slides.direct import NotDirect, open_directly
from wsi_mil.slides.frames import require_credible_frames
from wsi_mil.slides.headers import require_credible
from wsi_mil.slides.image_reader import ImageSlide
from wsi_mil.slides.naming import Place
from wsi_mil.slides.openslide_reader import OpenSlideSlide

READERS = ("auto", "direct", "openslide")


def open_slide(path: Place, mpp: float | None = None, reader: str = "auto", fast: bool = False) -> Slide:
    """Open a slide, as a context manager.

    Args:
        path: any format of OpenSlide, or an 8-bit PNG, JPEG or TIFF; what lies far away is staged until it is closed.
        mpp: micrometres per level-0 pixel, both axes; taken before what the file says. PNG and JPEG need it.
        reader: who reads pixels: "direct" decodes the file's tiles here, "openslide" leaves them to OpenSlide, and
            "auto" is direct where a comparison with OpenSlide shows no difference, and Pillow for plain images.
        fast: let libjpeg decode at a half, a quarter or an eighth where that is fine enough. Fewer pixels are made so,
            but not quite the same. Only for a direct reader of JPEGs, others take no notice.

    Raises:
        SlideUnreadable: there is no such file, nothing here reads it, or the reader that was named does not.
        ResolutionError: its micrometres per pixel are unknown, or outside 0.05 to 10.
        RemoteError: it lies far away, and cannot be had.
        OptionError: there is no such reader.

    Example:
        with open_slide(Path("a.svs")) as slide:
            image = slide.thumbnail(mpp=8.0).image
    """
    require_reader(reader, fast)
    if isinstance(path, Path):
        return _open(path, mpp, reader, fast)
    staged = hold(path)
    try:
        slide = _open(staged.path, mpp, reader, fast)
    except SlideError as error:
        staged.release()
        error.args = (str(error).replace(str(staged.path), str(path)),)  # the user knows it by its address
        raise
    except BaseException:
        staged.release()
        raise
    slide.place = path
    slide.held.callback(staged.release)
    return slide


def _open(path: Path, mpp: float | None, reader: str, fast: bool) -> Slide:
    """Open what lies here."""
    start = _start(path)
    require_credible(path)
    require_credible_frames(path)
    try:
        slide = OpenSlideSlide(path, mpp)
    except SlideDamaged:
        raise
    except SlideUnreadable as first:
        if hint := _hint(start):
            raise SlideUnreadable(f"{path} {hint}") from first
        return _plain(path, mpp, reader, first)
    return slide if reader == "openslide" else _directly(slide, reader == "direct", fast)


def _plain(path: Path, mpp: float | None, reader: str, error: SlideUnreadable) -> Slide:
    """What OpenSlide does not read, as a plain image, unless another reader was asked for."""
    try:
        slide = ImageSlide(path, mpp)
    except SlideUnreadable as second:
        raise SlideUnreadable(f"{error}; as a plain image: {_reason(second, path)}") from error
    if reader != "auto":
        slide.close()
        raise SlideUnreadable(
            f"{error}; only as a plain image, which --reader {reader} does not read: leave out --reader"
        ) from error
    return slide


def require_reader(name: str, fast: bool = False) -> None:
    """Refuse what is no reader, and one that cannot do what it is told.

    Raises:
        OptionError: there is none of this name, or it does not decode ``fast``.
    """
    if name not in READERS:
        raise OptionError(f"--reader {name}: give one of {', '.join(READERS)}")
    if fast and name == "openslide":
        raise OptionError("--reader openslide --fast-decode: OpenSlide decodes whole tiles: leave out one of the two")


def _directly(slide: OpenSlideSlide, must: bool, fast: bool) -> Slide:
    """The slide read from its tiles, if that is proved to be the same; else, unless it must be, as it is."""
    try:
        direct = open_directly(slide, fast)
    except NotDirect as error:
        if must:
            slide.close()
            raise SlideUnreadable(f"{slide.path} cannot be read directly: {error}: leave out --reader") from error
        slide.why = str(error)
        return slide
    except BaseException:
        slide.close()
        raise
    slide.close()
    return direct


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
