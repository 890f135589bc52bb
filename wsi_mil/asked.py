"""What a model is asked about: slides and bags as a user names them, and which of them cannot be answered for."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from wsi_mil import store
from wsi_mil.bags import bag_items
from wsi_mil.errors import ArtifactCorrupt, ArtifactMissing, ArtifactStale, OptionError
from wsi_mil.guards import printable
from wsi_mil.remote import CacheParams, Url
from wsi_mil.slides import Place, SlideFile, find_again, find_slides, recorded, slide_fingerprint
from wsi_mil.stage import Item, artifact_items, artifact_path, attempt

_Named = TypeVar("_Named", SlideFile, Item)


def find_bags(source: Path) -> list[Item]:
    """One bag, or all bags of a folder."""
    if source.is_file():
        return [Item(store.read_attrs(source).get("slide_id", source.stem), source)]
    if not artifact_items(source):
        raise OptionError(f"--bags {source}: no .h5 file is there: make features with `wsimil extract`")
    return bag_items(source)


def slides_at(
    sources: Sequence[Path | Url], cache: CacheParams | None = None, out: Path | None = None
) -> list[SlideFile]:
    """The slides that some paths or addresses, each of a slide or of a folder of slides, name.

    Args:
        sources: the paths or addresses.
        cache: where slides of an address are staged.
        out: where answers about them go, which holds no slides.

    Raises:
        OptionError: two of them would share a slide_id.
    """
    known: dict[str, Place] = {}
    for slide_id, path in (slide for source in sources for slide in find_slides(source, cache, out)):
        if not _is_same(known.setdefault(slide_id, path), path):
            raise OptionError(f"{known[slide_id]} and {path} are both called {slide_id}: give each its own --out")
    return [SlideFile(*slide) for slide in known.items()]


def nameable(slides: Sequence[_Named]) -> tuple[list[_Named], dict[str, Exception]]:
    """The slides, or bags, whose names files can have, and why the others cannot be answered for.

    The latter go by what can be shown of their names. They are those that `wsimil tile` names as failed, too.
    """
    found = [(slide, attempt(artifact_path, Path(), slide.slide_id)) for slide in slides]
    unnamed = {printable(slide.slide_id): error for slide, error in found if isinstance(error, Exception)}
    return [slide for slide, path in found if not isinstance(path, Exception)], unnamed


def refuse_namesake(slide: SlideFile, cached: Path, cache: CacheParams) -> None:
    """Refuse a slide that another one, still there, has entered its name before: its row would be lost."""
    try:
        before = store.read_attrs(cached, {"slide_path"}).get("slide_path")
    except (ArtifactMissing, ArtifactCorrupt):  # nothing to be mistaken for; the cache makes it anew
        return
    if not isinstance(before, str) or before == recorded(slide.path) or (there := find_again(before, cache)) is None:
        return
    if slide_fingerprint(there) != slide_fingerprint(slide.path):
        raise ArtifactStale(f"{before} was predicted as {slide.slide_id} before: give another --out for {slide.path}")


def _is_same(one: Place, other: Place) -> bool:
    """Whether two places are one."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return recorded(one) == recorded(other)
