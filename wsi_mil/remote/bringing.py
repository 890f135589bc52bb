"""Folders of artifacts, models and tables far away: brought here whole, since they are read at random places."""

import hashlib
import math
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_mil.remote.room import admit, reserve, reserved
from wsi_mil.remote.servers import facts_of, list_files
from wsi_mil.remote.slide import CacheParams, RemoteFile, RemoteSlide
from wsi_mil.remote.staging import Hold, fetch
from wsi_mil.remote.trouble import Waiting
from wsi_mil.remote.urls import WEB, Url

_WAITS_S = 60.0
"""For room, while it keeps something itself: two commands would wait for each other."""


@dataclass(frozen=True, kw_only=True)
class _Bundle(RemoteSlide):
    """What lies at an address and below it."""

    root: Url
    asked: str = ""
    """When, where a server tells no versions: what was fetched before is then not taken for what is there now."""

    def __str__(self) -> str:
        return str(self.root)

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{super().key} {self.asked}".encode()).hexdigest()[:32] if self.asked else super().key


class Brought:
    """What was brought here, which stays until it is released."""

    def __init__(self, url: Url, path: Path, cache: Path, size: int, held: Hold) -> None:
        self.url, self.path, self._cache, self._size, self._held = url, path, cache, size, held
        """Where it lies, and the local folder or file."""

    def release(self) -> None:
        """It may leave the cache; a second time does nothing."""
        with _lock:
            if self not in _here:
                return
            _here.remove(self)
        reserve(self._cache, -self._size)
        self._held.release()


_here: list[Brought] = []
_lock = threading.Lock()


def bring(url: Url, cache: CacheParams, waiting: Waiting | None = None) -> Brought:
    """Fetch a folder with all that lies below it, or a file, as a slide is fetched: bounded, verified, kept while used.

    Where anything in the folder changed since, or the server does not tell, all of it is fetched anew.

    Raises:
        RemoteError: nothing is there, it cannot be had, or the cache has no room beside what was brought before.
        Interrupted: nobody waits any more.
    """
    waiting = waiting or Waiting()
    bundle = _bundle(url, cache, waiting)
    place = cache.place
    held = fetch(bundle, admit(bundle, waiting, _WAITS_S if reserved(place) else math.inf), waiting)
    reserve(place, bundle.size)
    brought = Brought(url, held.folder / bundle.files[0].name.partition("/")[0], place, bundle.size, held)
    with _lock:
        _here.append(brought)
    return brought


def _bundle(url: Url, cache: CacheParams, waiting: Waiting) -> _Bundle:
    found = {} if url.scheme in WEB else list_files(url)
    if found:  # below the folder's own name, which may tell something
        files = [
            RemoteFile(url / name, f"{url.name}/{name}", facts.size, facts.version)
            for name, facts in sorted(found.items())
        ]
    else:
        facts = facts_of(url, waiting)
        files = [RemoteFile(url, url.name, facts.size, facts.version)]
    bundle = _Bundle(tuple(files), cache, root=url)
    return bundle if bundle.has_versions else replace(bundle, asked=str(time.time_ns()))


def origin(path: Path) -> str:
    """A path for people: the address where it was brought here from, else the path itself."""
    found = _brought_with(path)
    if found is None:
        return str(path)
    below = path.relative_to(found.path)
    return str(found.url if below == Path() else found.url / below.as_posix())


def is_brought(path: Path) -> bool:
    """Whether it lies in what was brought here, and so in the cache."""
    return _brought_with(path) is not None


def by_address(text: str) -> str:
    """A text for people, in which what was brought here is named by its address."""
    with _lock:
        here = list(_here)
    for brought in here:
        text = text.replace(str(brought.path), str(brought.url))
    return text


def _brought_with(path: Path) -> Brought | None:
    with _lock:
        return next((brought for brought in _here if path.is_relative_to(brought.path)), None)
