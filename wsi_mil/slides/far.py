"""Slides at an address: found and called by the rules of `discovery`, and told apart by the same fingerprints."""

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import PurePosixPath

from wsi_mil.errors import OptionError, RemoteError, SlideError, StorageError, one_line
from wsi_mil.guards import is_inside
from wsi_mil.publishing import write_bytes
from wsi_mil.remote import (
    WEB,
    CacheParams,
    Facts,
    RemoteFile,
    RemoteSlide,
    Url,
    facts_of,
    list_files,
    read_parts,
    read_whole,
)
from wsi_mil.slides.naming import EXTENSIONS, is_ours, names_in, slide_ids, tell_passed_over, without_extension
from wsi_mil.slides.sampling import fingerprint, spans

log = logging.getLogger(__name__)

_SEVERAL = (".mrxs", ".vms", ".vmu", ".dcm")
"""Slides that may consist of several files."""
_MOST_TEXT, _HEADER_BYTES = 1 << 20, 1 << 18
_SERIES = 0x0020000E


def find(url: Url, cache: CacheParams, tells: bool = False) -> list[tuple[str, RemoteSlide]]:
    """Find every slide below an address, by slide_id; or the one slide that it names itself.

    Args:
        url: the address.
        cache: where the slides are staged.
        tells: whether the log says which pictures of wsimil's own were passed over.

    Raises:
        SlideError: no slide is there, or two cannot be told apart.
        RemoteError: the address cannot be listed.
    """
    if url.name.lower().endswith(EXTENSIONS) and (slide := slide_at(url, cache)):
        return [(without_extension(url.name), slide)]
    tree = _Tree(url, list_files(url))
    if not tree.files:
        raise SlideError(f"{url} does not exist, or is empty: name a folder of slides, or one slide")
    names = tree.slides()
    if tells:
        tell_passed_over(url, tree.passed_over())
    if not names:
        raise SlideError(f"{url} holds no slide: looked for files ending in {', '.join(sorted(EXTENSIONS))}")
    return slide_ids({tree.slide(name, cache): name for name in names})


def slide_at(url: Url, cache: CacheParams) -> RemoteSlide | None:
    """The one slide at an address, with the files that it belongs with; None where none is there.

    Raises:
        RemoteError: the server does not say.
    """
    suffix = PurePosixPath(url.name).suffix.lower()
    if suffix not in _SEVERAL:
        try:
            facts = facts_of(url)
        except RemoteError as error:
            if error.is_missing:
                return None
            raise
        return RemoteSlide((RemoteFile(url, url.name, facts.size, facts.version),), cache)
    if url.scheme in WEB:
        raise OptionError(
            f"{url}: a {suffix} slide may be several files, and no folders are listed over {url.scheme}://: give a"
            " protocol that lists them, such as s3://, or download the slide"
        )
    tree = _Tree(url.parent, list_files(url.parent))
    return tree.slide(url.name, cache) if url.name in tree.files else None


def slide_fingerprint(slide: RemoteSlide) -> str:
    """`wsi_mil.slides.slide_fingerprint` from samples that the server sends; once for each version of a slide.

    Raises:
        RemoteError: they cannot be had.
    """
    kept = slide.cache.place / "fingerprints" / slide.key
    if slide.has_versions and kept.is_file() and len(text := kept.read_text()) == 32:
        return text
    first, *others = slide.files
    samples = read_parts(first.url, spans(first.size))
    made = fingerprint(first.size, samples, {file.name: file.size for file in others})
    if slide.has_versions:
        try:
            write_bytes(kept, made.encode())
        except (StorageError, OSError) as error:
            log.warning("%s: the next run will read samples of it again (%s)", slide, one_line(error))
    return made


@dataclass(frozen=True)
class _Tree:
    """What lies below an address."""

    root: Url
    files: Mapping[str, Facts]
    """By their path relative to the root."""

    def slides(self) -> list[str]:
        """The first file of each slide."""
        owned: set[str] = set()
        found = sorted(self._candidates(), key=PurePosixPath)
        for name in found:
            if name not in owned:
                owned.update(self._companions(name))
        return [name for name in found if name not in owned]

    def slide(self, name: str, cache: CacheParams) -> RemoteSlide:
        """The slide whose first file is called so."""
        folder = PurePosixPath(name).parent
        files = [name, *sorted(set(self._companions(name)) - {name}, key=PurePosixPath)]
        return RemoteSlide(
            tuple(
                RemoteFile(
                    self.root / one,
                    PurePosixPath(one).relative_to(folder).as_posix(),
                    self.files[one].size,
                    self.files[one].version,
                )
                for one in files
            ),
            cache,
        )

    @cached_property
    def _below(self) -> dict[str, list[str]]:
        """The files below each folder, "." being the root."""
        found: dict[str, list[str]] = {}
        for name in self.files:
            for parent in PurePosixPath(name).parents:
                found.setdefault(str(parent), []).append(name)
        return found

    def passed_over(self) -> list[str]:
        """The folders that wsimil wrote and that hold pictures, which are no slides."""
        parents = {str(PurePosixPath(name).parent) for name in self.files if _may_be_slide(name)}
        return sorted(parents & self._ours - {"."})

    @cached_property
    def _ours(self) -> set[str]:
        """The folders that wsimil wrote."""
        return {folder for folder in self._below if self._is_ours(folder)}

    def _candidates(self) -> Iterator[str]:
        for name in self.files:
            parents = {str(parent) for parent in PurePosixPath(name).parents}
            if not _may_be_slide(name) or self._ours & (parents - {"."}):
                continue
            is_preview = "." in self._ours and f"{name[:-4]}.h5" in self.files and name.endswith(".jpg")
            if not is_preview:
                yield name

    def _is_ours(self, folder: str) -> bool:
        start = 0 if folder == "." else len(folder) + 1
        parts = [name[start:].partition("/") for name in self._below[folder]]
        return is_ours(
            {first for first, deeper, _ in parts if deeper}, {first for first, deeper, _ in parts if not deeper}
        )

    def _companions(self, name: str) -> list[str]:
        """The other files that a slide consists of."""
        path = PurePosixPath(name)
        match path.suffix.lower():
            case ".mrxs":
                return [one for one in self._below.get(str(path.with_suffix("")), []) if is_inside(one)]
            case ".vms" | ".vmu":
                size = min(self.files[name].size, _MOST_TEXT)
                text = read_whole(self.root / name, size).decode("utf-8", errors="replace")
                return [str(path.with_name(one)) for one in names_in(text) if str(path.with_name(one)) in self.files]
            case ".dcm":
                return self._of_series(path)
        return []

    def _of_series(self, path: PurePosixPath) -> list[str]:
        beside = [one for one in self._below[str(path.parent)] if PurePosixPath(one).parent == path.parent]
        series = {one: self._series(one) for one in beside if one.lower().endswith(".dcm")}
        mine = series[str(path)]
        return [one for one, its in series.items() if mine and its == mine and one != str(path)]

    def _series(self, name: str) -> str:
        """The series that a DICOM file belongs to, from the first of its bytes; empty where they do not tell."""
        if name not in self._known:
            self._known[name] = _series_in(self.root / name, self.files[name].size)
        return self._known[name]

    @cached_property
    def _known(self) -> dict[str, str]:
        return {}


def _may_be_slide(name: str) -> bool:
    hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
    return not hidden and is_inside(name) and name.lower().endswith(EXTENSIONS)


def _series_in(url: Url, size: int) -> str:
    if importlib.util.find_spec("pydicom") is None:
        raise RemoteError(f"{url}: to tell DICOM slides apart far away: pip install 'wsi-mil[dicom]'")
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.filereader import read_partial

    start = BytesIO(read_whole(url, min(size, _HEADER_BYTES)))
    try:
        header = read_partial(start, stop_when=lambda tag, vr, length: tag > _SERIES)
        return str(header.get("SeriesInstanceUID", ""))
    except (InvalidDicomError, BytesLengthException, EOFError, OSError, ValueError):  # opening it will say so
        return ""
