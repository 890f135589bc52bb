"""Room in a cache: who has a place there, and who must leave it.

    <cache>/staged/<key>.mark     its size in bytes; locked by whoever uses, or fetches, what it stands for; its time is
                                  that of the last use. As long as it is there, its size counts
    <cache>/staged/<key>/         the slide: `entry.json`, and its files below `files/`. Existence means complete
    <cache>/staged/<key>.part/    the same while it is fetched
    <cache>/staged/<key>.fetch    locked by the one who fetches, or verifies
    <cache>/room                  locked for a moment by whoever makes room

A process that dies leaves marks that nobody holds: they count until their room is needed, and go first.
"""

import logging
import math
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from wsi_mil.errors import RemoteError
from wsi_mil.remote.marks import Mark, alone, try_mark
from wsi_mil.remote.sizes import show_size
from wsi_mil.remote.slide import RemoteSlide
from wsi_mil.remote.trouble import Waiting, full

log = logging.getLogger(__name__)

_LOOK_S = 0.1
_SAY_AFTER_S = 30.0
_PRIVATE = 0o700  # slides come by the user's own credentials: nobody else on the machine is to read them
RECORD = "entry.json"
_reserved: Counter[Path] = Counter()
_reserving = threading.Lock()


class _Entry(NamedTuple):
    """What has a place; in the order in which they must leave: the incomplete, then what was not used for longest."""

    is_complete: bool
    used: float
    key: str
    size: int


def staged(cache: Path) -> Path:
    """Where the slides of a cache lie."""
    return cache / "staged"


def reserve(cache: Path, size: int) -> None:
    """Note that this process keeps so many bytes of a cache until it says the negative of it."""
    with _reserving:
        _reserved[cache] += size


def reserved(cache: Path) -> int:
    """What this process keeps of a cache, bytes."""
    with _reserving:
        return _reserved[cache]


def admit(slide: RemoteSlide, waiting: Waiting, most_s: float = math.inf) -> Mark:
    """Give a slide a place in its cache, and hold it; wait, at most for so long, while what is in use leaves no room.

    Raises:
        RemoteError: it is larger than the cache, or than what this process leaves of it, which it would wait for in
            vain; nobody made room in time; its disk is full, or no folder can be made there.
    """
    cache, bound = slide.cache.place, slide.cache.bound
    kept = reserved(cache)
    if slide.size > bound - kept:
        beside = f", {show_size(kept)} of which are what this command reads from there" if kept else ""
        raise RemoteError(
            f"{slide} has {show_size(slide.size)}, more than the whole cache of {show_size(bound)}{beside}: give a"
            " larger --cache-size"
        )
    try:
        cache.mkdir(_PRIVATE, parents=True, exist_ok=True)
        staged(cache).mkdir(_PRIVATE, exist_ok=True)
        return _wait_for_room(slide, cache, waiting, most_s)
    except OSError as error:
        raise full(f"--cache {cache}", error) from error


def _wait_for_room(slide: RemoteSlide, cache: Path, waiting: Waiting, most_s: float) -> Mark:
    path, began, said = staged(cache) / f"{slide.key}.mark", time.monotonic(), False
    while True:
        with alone(cache / "room", waiting):
            if mark := try_mark(path, shared=True):
                if mark.read() == str(slide.size):
                    mark.touch()
                    return mark
                mark.release()  # whoever made it died before its size was there, so that nothing would count
                _evict(staged(cache), slide.key)
            is_new = not path.exists() and _make_room(slide, cache, slide.cache.bound)
            if is_new and (mark := try_mark(path, shared=True, create=True)):
                mark.write(str(slide.size))
                return mark
        if not said and time.monotonic() - began > _SAY_AFTER_S:
            said = True
            told = "%s waits for room in %s: all that is there is in use (--cache-size %s)"
            log.info(told, slide, cache, slide.cache.size)
        if time.monotonic() - began > most_s:
            raise RemoteError(
                f"{slide} finds no room in {cache}, all of which is in use: give a larger --cache-size, or wait until"
                " other commands have ended"
            )
        waiting.pause(_LOOK_S)


def _make_room(slide: RemoteSlide, cache: Path, bound: int) -> bool:
    """Evict until there is room; whether there is, what is in use never being touched.

    Raises:
        RemoteError: the disk has no room, and nobody uses anything that could leave later.
    """
    entries = _entries(staged(cache))
    used, in_use = sum(entry.size for entry in entries), 0
    for entry in entries:
        if used + slide.size <= bound and _free(cache) >= slide.size:
            return True
        if _evict(staged(cache), entry.key):
            used -= entry.size
        else:
            in_use += 1
    if used + slide.size <= bound and _free(cache) >= slide.size:
        return True
    if not in_use:
        raise RemoteError(
            f"{slide} has {show_size(slide.size)}, and the disk of --cache {cache} has {show_size(_free(cache))} free:"
            " make room there, or give a --cache on another disk"
        )
    return False


def _free(cache: Path) -> int:
    return shutil.disk_usage(cache).free


def _entries(folder: Path) -> list[_Entry]:
    found = []
    for path in folder.glob("*.mark"):
        key = path.name.removesuffix(".mark")
        text = path.read_text()
        size = int(text) if text.isdecimal() else 0  # whoever made it died before it could write
        found.append(_Entry((folder / key / RECORD).exists(), path.stat().st_mtime, key, size))
    return sorted(found)


def _evict(folder: Path, key: str) -> bool:
    """Remove what nobody uses; whether it is gone."""
    mark = try_mark(folder / f"{key}.mark", shared=False)
    if mark is None:
        return False
    try:
        remove(folder / f"{key}.part")
        remove(folder / key)
        (folder / f"{key}.fetch").unlink(missing_ok=True)
        mark.path.unlink()
    finally:
        mark.release()
    log.debug("cache: %s is evicted", key)
    return True


def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)
