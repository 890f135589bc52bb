"""Which files of a folder are bags of another program, and what the slide of each is called."""

from collections.abc import Iterable
from pathlib import Path

from wsi_mil import store
from wsi_mil.errors import ArtifactError, ArtifactMissing
from wsi_mil.interop.detection import is_own
from wsi_mil.stage import Item, artifact_items, attempt

CACHE = "-wsimil"
"""What a folder of peers' bags is called with, once converted."""
_SAMPLE = 20


def holds_own(source: Path) -> bool:
    """Whether a folder holds artifacts of ours, or a file is one; so does what is empty or damaged all through.

    Of a large folder a few files are looked at, over all of it: one that does not belong there is told when it is read.
    """
    foreign, paths = False, [source] if source.is_file() else _files(source)
    for path in paths[:: max(1, len(paths) // _SAMPLE)]:
        survey = attempt(store.survey, path) if path.suffix == ".h5" else None
        if isinstance(survey, store.Survey) and is_own(survey):
            return True
        foreign = foreign or not isinstance(survey, Exception)
    return not foreign


def peer_items(source: Path) -> list[Item]:
    """The bags of another program, by slide_id: a file, a folder of files, or the folder around that one.

    Raises:
        ArtifactMissing: there are none.
        ArtifactError: there are those of several encoders, in a folder each.
    """
    if source.is_file():
        return [Item(source.stem, source)]
    found: dict[str, Path] = {}
    for root in peer_roots(source):
        for path in _files(root):
            slide_id = path.relative_to(root).with_suffix("").as_posix()
            if path.suffix == ".h5" or slide_id not in found:  # of the two files of CLAM, the one that has coordinates
                found[slide_id] = path
    if not found:
        raise ArtifactMissing(f"{source} holds no features: name a folder of .h5 or .pt files")
    return sorted(Item(slide_id, path) for slide_id, path in found.items())


def peer_roots(source: Path) -> list[Path]:
    """The folders in which the bags lie: ``source``, or those inside it that its program puts them in.

    CLAM has two, and either may lack slides that the other has.

    Raises:
        ArtifactError: there are those of several encoders.
    """
    if of_clam := [source / name for name in ("h5_files", "pt_files") if (source / name).is_dir()]:
        return of_clam
    inside = (path for pattern in ("features_*", "*px_overlap/features_*") for path in source.glob(pattern))
    of_trident = sorted(path for path in inside if path.is_dir() and not path.name.endswith(CACHE))
    if len(of_trident) > 1:
        raise ArtifactError(f"{source} holds features of several encoders: name one of them, such as {of_trident[0]}")
    if of_trident:
        return of_trident
    return [source / "patches" if (source / "patches").is_dir() else source]


def cache_of(source: Path) -> Path:
    """Where the converted bags of a folder, or of the folder of a file, go: beside it."""
    root = source.parent if source.is_file() else peer_roots(source)[0]
    root = root.absolute()
    return root.with_name(root.name + CACHE)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in _all(folder) if not _is_passed_over(path.relative_to(folder)))


def _all(folder: Path) -> Iterable[Path]:
    return (path for suffix in ("*.h5", "*.pt") for path in folder.rglob(suffix) if path.is_file())


def _is_passed_over(path: Path) -> bool:
    return any(part.startswith(".") or part.endswith(CACHE) for part in path.parts)


def vanished(cache: Path, items: Iterable[Item]) -> list[Path]:
    """Artifacts of a cache whose bags are not there any more."""
    known = {item.slide_id for item in items}
    return [item.source for item in artifact_items(cache) if item.slide_id not in known]
