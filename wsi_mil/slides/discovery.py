"""Which files of a folder are slides, what each is called, and what its content is."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from wsi_mil.errors import SlideError, SlideUnreadable
from wsi_mil.guards import is_inside
from wsi_mil.guards.folders import walked
from wsi_mil.remote import CacheParams, RemoteSlide, Url
from wsi_mil.slides import far
from wsi_mil.slides.naming import EXTENSIONS, Place, is_ours, names_in, slide_ids, tell_passed_over, without_extension
from wsi_mil.slides.openslide_reader import series_of
from wsi_mil.slides.sampling import fingerprint, spans


class SlideFile(NamedTuple):
    """One slide in a folder."""

    slide_id: str
    """Path relative to the folder, "/" between its parts, without a known extension."""
    path: Place


def find_slides(folder: Path | Url, cache: CacheParams | None = None, out: Path | None = None) -> list[SlideFile]:
    """Find every slide in a folder and the folders inside it, by slide_id; or the one slide that is named itself.

    Hidden files and folders are passed over, and so are folders that wsimil wrote, whose previews and heat maps are no
    slides; of the named folder itself, which may hold artifacts beside its slides, only previews. The files that belong
    to an MRXS or VMS slide are no slides of their own, and a DICOM series is one slide. Two files that would share a
    slide_id keep their extensions in it; so do those whose slide_ids differ only by case, since their artifacts would
    be one file on many a disk. Slides at an address are found, and called, by the same rules.

    Args:
        folder: the folder, or a slide; or the address of either.
        cache: where slides of an address are staged.
        out: where the command writes that takes these slides: previews in there are no slides either, and the log tells
            which pictures were passed over.

    Raises:
        SlideError: there is no such folder, or no slide in it, or two that cannot be told apart.
        RemoteError: the address cannot be listed.
    """
    if isinstance(folder, Url):
        return [SlideFile(*slide) for slide in far.find(folder, cache or CacheParams(), out is not None)]
    if folder.is_file():
        if folder.name.startswith("."):
            raise SlideError(f"{folder} is hidden, as files are that are being written: give it another name")
        return [SlideFile(without_extension(folder.name), folder)]
    if not folder.is_dir():
        raise SlideError(f"{folder} does not exist: name a folder of slides, or one slide")
    ours: list[str] = []
    paths = _without_companions(sorted(_candidates(folder, out, ours)))
    if out is not None:
        tell_passed_over(folder, sorted(ours))
    if not paths:
        raise SlideError(f"{folder} holds no slide: looked for files ending in {', '.join(sorted(EXTENSIONS))}")
    return [SlideFile(*slide) for slide in slide_ids({path: path.relative_to(folder).as_posix() for path in paths})]


def slide_fingerprint(path: Place) -> str:
    """Hash what a slide is: its size, 16 samples of its content, and the names and sizes of the files it belongs with.

    The time of change is left out, and so is where it lies, so that copying or moving a cohort, to a server too, makes
    nothing stale.

    Returns:
        32 hexadecimal digits.

    Raises:
        SlideUnreadable: the file cannot be read.
        RemoteError: nor can what lies far away.
    """
    if not isinstance(path, Path):
        return far.slide_fingerprint(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            samples = []
            for start, stop in spans(size):
                file.seek(start)
                samples.append(file.read(stop - start))
        companions = {one.relative_to(path.parent).as_posix(): one.stat().st_size for one in _companions(path)}
    except OSError as error:
        raise SlideUnreadable(f"{path} cannot be read: {error.strerror or error}") from error
    return fingerprint(size, samples, companions)


def slide_bytes(path: Place) -> int:
    """What a slide takes, with the files it belongs with; 0 of what is not there, as opening will say."""
    if isinstance(path, RemoteSlide):
        return path.size
    return sum(file.stat().st_size for file in (path, *_companions(path)) if file.exists())


def _candidates(folder: Path, out: Path | None, ours: list[str]) -> Iterable[Path]:
    """The files that may be slides; the folders of wsimil that hold pictures are added to ``ours``."""
    visited: set[str] = set()
    has_previews, goes_to = False, None if out is None else Path(os.path.realpath(out))
    for parent, folders, files in walked(folder, SlideError):
        place = os.path.realpath(parent)
        written = is_ours(folders, files)
        if not visited:  # the folder that was named: somebody wants its slides, whatever else lies there
            has_previews = written
        elif place in visited or written:  # a loop, or what wsimil wrote
            if place not in visited and any(_may_be_slide(name) for name in files):
                ours.append(Path(parent).relative_to(folder).as_posix())
            folders.clear()
            continue
        visited.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        # Slides may lie where the command writes, too, and previews of a run that was killed before it said so.
        some = has_previews or (goes_to is not None and Path(place).is_relative_to(goes_to))
        previews = {f"{name[:-3]}.jpg" for name in files if name.endswith(".h5")} if some else set()
        for name in files:
            if _may_be_slide(name) and name not in previews:
                yield Path(parent, name)


def _may_be_slide(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _without_companions(paths: list[Path]) -> list[Path]:
    """Drop the files that belong to an earlier slide of the list or to one with a file of its own."""
    owned: set[Path] = set()
    for path in paths:
        if path not in owned:
            owned.update(_companions(path))
    return [path for path in paths if path not in owned]


def _companions(path: Path) -> list[Path]:
    """The other files that a slide consists of."""
    match path.suffix.lower():
        case ".mrxs":
            return [file for file in path.with_suffix("").rglob("*") if file.is_file()]
        case ".vms" | ".vmu":
            return _named_inside(path)
        case ".dcm":
            series = _series(path)
            beside = sorted(path.parent.glob("*.[dD][cC][mM]"))
            return [file for file in beside if series and file != path and _series(file) == series]
    return []


def _named_inside(path: Path) -> list[Path]:
    """The files that a VMS or VMU file, `Key=value` lines, names; none where it cannot be read, as opening will say."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    beside = (path.with_name(name) for name in names_in(text) if is_inside(name))
    return [file for file in beside if file.is_file()]


def _series(path: Path) -> str | None:
    try:
        status = path.stat()
    except OSError:  # a broken link: opening it will say so
        return None
    return _series_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _series_of(path: Path, size: int, time_ns: int) -> str | None:  # size and time tell versions of a file apart
    return series_of(path)
