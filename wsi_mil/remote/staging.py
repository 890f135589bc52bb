"""A slide from far away becomes a local one: fetched once, verified, kept while it is used, and after that if there is
room.

What is fetched has the size that the server tells, the content that it tells by a checksum (where it tells one that can
be verified), and is still the same version when the last byte has come. The xxh3 digests of what was written lie beside
it, and are verified when it is first used again in a process; what is damaged is fetched anew.
"""

import json
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from wsi_mil.errors import RemoteError
from wsi_mil.guards import inside, parse_json
from wsi_mil.publishing import write_bytes
from wsi_mil.remote import servers
from wsi_mil.remote.marks import Mark, alone
from wsi_mil.remote.room import RECORD, admit, remove, staged
from wsi_mil.remote.sizes import show_size
from wsi_mil.remote.slide import RemoteFile, RemoteSlide
from wsi_mil.remote.trouble import Waiting, full

if TYPE_CHECKING:
    from wsi_mil.remote.sums import Digest

log = logging.getLogger(__name__)

_PART_BYTES, _PARTS = 8 << 20, 4  # so many requests at once: one alone does not fill a line
_FILES = 8  # at a time, of what consists of several
_FETCHES = 2  # of a slide whose checksum is wrong
_BLOCK = 1 << 22
_verified: set[tuple[str, int]] = set()
_verifying = threading.Lock()


class Hold:
    """A slide in the cache, which stays there until it is released."""

    def __init__(self, folder: Path, path: Path, mark: Mark) -> None:
        self.folder, self.path, self._mark = folder, path, mark
        """Where all its files lie, and the one to open."""

    def release(self) -> None:
        """It may leave the cache; a second time does nothing."""
        self._mark.release()


def hold(slide: RemoteSlide, waiting: Waiting | None = None) -> Hold:
    """Fetch a slide, unless it is there, and keep it.

    Raises:
        RemoteError: it cannot be had, or there is no room for it.
        Interrupted: nobody waits any more.
    """
    waiting = waiting or Waiting()
    return fetch(slide, admit(slide, waiting), waiting)


def fetch(slide: RemoteSlide, mark: Mark, waiting: Waiting) -> Hold:
    """`hold` for a slide that has a place already; without it after an error."""
    folder = staged(slide.cache.place)
    try:
        with alone(folder / f"{slide.key}.fetch", waiting):
            there = folder / slide.key
            if not _is_whole(there, slide):
                remove(there)
                _fetch(slide, there, waiting)
        mark.touch()
        return Hold(there / "files", inside(there / "files", slide.files[0].name), mark)
    except OSError as error:
        mark.release()
        raise full(f"--cache {slide.cache.place}", error) from error
    except BaseException:
        mark.release()
        raise


def _is_whole(there: Path, slide: RemoteSlide) -> bool:
    """Whether a slide is there as it was written; read whole only once in a process."""
    record = there / RECORD
    if not record.is_file():
        return False
    seen = (str(record), record.stat().st_mtime_ns)
    with _verifying:
        if seen in _verified:
            return True
    digests = _recorded_digests(record)
    for file in slide.files:
        path = inside(there / "files", file.name)
        if not path.is_file() or path.stat().st_size != file.size or _digest(path) != digests.get(file.name):
            log.warning("%s: what the cache has of it is damaged: it is fetched anew", slide)
            return False
    _note(seen)
    return True


def _recorded_digests(record: Path) -> Mapping[str, object]:
    """By name, the digests that were noted; none where the record itself is damaged."""
    try:
        told = parse_json(record.read_text(encoding="utf-8", errors="replace"))
    except ValueError:
        return {}
    digests = told.get("xxh3") if isinstance(told, dict) else None
    return digests if isinstance(digests, dict) else {}


def _note(seen: tuple[str, int]) -> None:
    with _verifying:
        _verified.add(seen)


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _fetch(slide: RemoteSlide, there: Path, waiting: Waiting) -> None:
    part = there.with_name(f"{there.name}.part")
    remove(part)
    log.info("%s is fetched: %s", slide, show_size(slide.size))
    try:
        digests = _fetch_files(slide, part, waiting)
        record = {"url": str(slide), "size": slide.size, "xxh3": digests}
        write_bytes(part / RECORD, json.dumps(record, indent=2).encode())
        part.rename(there)
    finally:
        remove(part)
    _note((str(there / RECORD), (there / RECORD).stat().st_mtime_ns))


def _fetch_files(slide: RemoteSlide, part: Path, waiting: Waiting) -> dict[str, str]:
    """Fetch its files, some at a time; return the digests of what was written, by name."""
    paths = [inside(part / "files", file.name) for file in slide.files]
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    if len(paths) == 1:
        return {slide.files[0].name: _fetch_file(slide.files[0], paths[0], waiting)}
    ours = Waiting(waiting)  # where one file fails the others need not come to their end
    with ThreadPoolExecutor(_FILES, thread_name_prefix="wsimil-file") as pool:
        futures = [pool.submit(_fetch_file, *pair, ours, parts=1) for pair in zip(slide.files, paths, strict=True)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            ours.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {file.name: future.result() for file, future in zip(slide.files, futures, strict=True)}


def _fetch_file(file: RemoteFile, path: Path, waiting: Waiting, parts: int = _PARTS) -> str:
    """Fetch a file, a second time if its checksum is wrong; return the digest of what was written."""
    wrong = ""
    for _ in range(_FETCHES):
        facts = _require_same(file, waiting)
        digests = _copy(file, path, facts.checksums, waiting, parts)
        _require_same(file, waiting)
        bad = [name for name, value in facts.checksums.items() if digests[name] != value]
        if not bad:
            return digests["xxh3"]
        wrong = f"{bad[0]} {digests[bad[0]]}, not {facts.checksums[bad[0]]} as its server says"
        log.warning("%s: what came has %s", file.url, wrong)
    raise RemoteError(f"{file.url}: what came, twice, has {wrong}: it was damaged on the way, or where it lies")


def _require_same(file: RemoteFile, waiting: Waiting) -> servers.Facts:
    facts = servers.facts_of(file.url, waiting)
    if facts.size != file.size:
        raise RemoteError(
            f"{file.url} has {facts.size} bytes now, and had {file.size}: it changes: type the same command again"
        )
    if file.version and facts.version != file.version:
        raise RemoteError(f"{file.url} was replaced while it was worked on: type the same command again")
    return facts


def _digests_for(names: Mapping[str, str]) -> "dict[str, Digest]":
    from wsi_mil.remote.sums import digest  # here, since NumPy is not needed to show help

    return {"xxh3": xxhash.xxh3_128(), **{name: digest(name) for name in names}}


def _copy(file: RemoteFile, path: Path, checksums: Mapping[str, str], waiting: Waiting, parts: int) -> dict[str, str]:
    """Write a file as it comes, some parts at a time; return its digests."""
    digests = _digests_for(checksums)
    with path.open("wb") as out:
        for start in range(0, file.size, _PART_BYTES * parts):
            stop = min(file.size, start + _PART_BYTES * parts)
            spans = [(at, min(stop, at + _PART_BYTES)) for at in range(start, stop, _PART_BYTES)]
            for block in servers.read_parts(file.url, spans, waiting):
                out.write(block)
                for digest in digests.values():
                    digest.update(block)
    return {name: digest.hexdigest() for name, digest in digests.items()}
