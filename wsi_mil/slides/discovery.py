"""Which files of a folder are slides, what each is called, and what its content is."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from wsi_mil.errors import SlideError, SlideUnreadable
from wsi_mil.guards import is_inside
from wsi_mil.slides.openslide_reader import series_of

EXTENSIONS = (
    ".ome.tiff", ".svslide", ".ome.tif", ".tiff", ".ndpi", ".mrxs", ".jpeg",
    ".svs", ".vms", ".vmu", ".scn", ".bif", ".tif", ".dcm", ".czi", ".png", ".jpg",
)  # fmt: skip
"""Longest first, so that `a.ome.tif` is called `a`."""
_BLOCKS, _BLOCK_BYTES = 16, 1 << 16


class SlideFile(NamedTuple):
    """One slide in a folder."""

    slide_id: str
    """Path relative to the folder, "/" between its parts, without a known extension."""
    path: Path


def find_slides(folder: Path) -> list[SlideFile]:
    """Find every slide in a folder and the folders inside it, by slide_id; or the one slide that is named itself.

    Hidden files and folders are passed over, and so are folders of artifacts, whose previews are no slides; of the
    named folder itself, which may hold artifacts beside its slides, only previews. The files that belong to an MRXS or
    VMS slide are no slides of their own, and a DICOM series is one slide. Two files that would share a slide_id keep
    their extensions in it; so do those whose slide_ids differ only by case, since their artifacts would be one file on
    many a disk.

    Raises:
        SlideError: there is no such folder, or no slide in it, or two that cannot be told apart.
    """
    if folder.is_file():
        return [SlideFile(without_extension(folder.name), folder)]
    if not folder.is_dir():
        raise SlideError(f"{folder} does not exist: name a folder of slides, or one slide")
    paths = _without_companions(sorted(_candidates(folder)))
    if not paths:
        raise SlideError(f"{folder} holds no slide: looked for files ending in {', '.join(sorted(EXTENSIONS))}")
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    times = Counter(without_extension(name).lower() for name in names.values())
    slides: dict[str, Path] = {}
    taken: dict[str, str] = {}
    for path, name in names.items():
        slide_id = name if times[without_extension(name).lower()] > 1 else without_extension(name)
        other = taken.setdefault(slide_id.lower(), slide_id)
        if other in slides:
            where = "" if other == slide_id else " on disks that tell no case apart"
            raise SlideError(f"{slides[other]} and {path} would both be called {slide_id}{where}: rename one of them")
        slides[slide_id] = path
    return sorted(SlideFile(*slide) for slide in slides.items())


def slide_fingerprint(path: Path) -> str:
    """Hash what a slide is: its size, 16 samples of its content, and the names and sizes of the files it belongs with.

    The time of change is left out, so that copying or moving a cohort makes nothing stale.

    Returns:
        32 hexadecimal digits.

    Raises:
        SlideUnreadable: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(str(size).encode())
            for index in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK_BYTES) * index // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
        for companion in sorted(_companions(path)):
            name = companion.relative_to(path.parent).as_posix()
            digest.update(f"\n{name} {companion.stat().st_size}".encode())
    except OSError as error:
        raise SlideUnreadable(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()[:32]


def slide_bytes(path: Path) -> int:
    """What a slide takes on disk, with the files it belongs with; 0 of what is not there, as opening will say."""
    return sum(file.stat().st_size for file in (path, *_companions(path)) if file.exists())


def _candidates(folder: Path) -> Iterable[Path]:
    visited: set[str] = set()
    has_previews = False
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        is_stage = "runs" in folders and "summary.csv" in files
        if not visited:  # the folder that was named: somebody wants its slides, whatever else lies there
            has_previews = is_stage
        elif place in visited or is_stage:  # a loop, or a folder of artifacts
            folders.clear()
            continue
        visited.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        previews = {f"{name[:-3]}.jpg" for name in files if name.endswith(".h5")} if has_previews else set()
        for name in files:
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS) and name not in previews:
                yield Path(parent, name)


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
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    names = {line.partition("=")[2].strip() for line in lines} - {""}
    beside = (path.with_name(name) for name in names if "/" not in name and is_inside(name))
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


def without_extension(name: str) -> str:
    """Take a known slide extension off a name; other dots stay, as in the barcodes of TCGA."""
    lower = name.lower()
    extension = next((extension for extension in EXTENSIONS if lower.endswith(extension)), "")
    return name[: len(name) - len(extension)]
