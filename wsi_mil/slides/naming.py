"""What slides are called, wherever they lie."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from wsi_mil.errors import SlideError
from wsi_mil.remote import RemoteSlide

log = logging.getLogger(__name__)

EXTENSIONS = (
    ".ome.tiff", ".svslide", ".ome.tif", ".tiff", ".ndpi", ".mrxs", ".jpeg",
    ".svs", ".vms", ".vmu", ".scn", ".bif", ".tif", ".dcm", ".czi", ".png", ".jpg",
)  # fmt: skip
"""Longest first, so that `a.ome.tif` is called `a`."""
Place = Path | RemoteSlide
"""Where a slide lies: on this machine, or far away."""
Found = TypeVar("Found", Path, RemoteSlide)
_OF_EXPLANATIONS = {"explanation.json", "tiles.csv"}  # what each has, whatever else; `wsi_mil.explain` writes them
_NAMED = 3


def is_ours(folders: Collection[str], files: Collection[str]) -> bool:
    """Whether a folder that holds these is one that wsimil wrote: of a stage, or the explanation of a slide."""
    return ("runs" in folders and "summary.csv" in files) or _OF_EXPLANATIONS.issubset(files)


def tell_passed_over(where: object, folders: Sequence[str]) -> None:
    """Say whose pictures are not taken for slides, if there are any: somebody may have meant them."""
    if folders:
        more = f" (and {len(folders) - _NAMED} more)" if len(folders) > _NAMED else ""
        named = ", ".join(folders[:_NAMED])
        log.info("%s: pictures in folders that wsimil writes are no slides, and passed over: %s%s", where, named, more)


def slide_ids(names: Mapping[Found, str]) -> list[tuple[str, Found]]:
    """Call each slide by its path relative to the folder, without a known extension where that tells it from others.

    Args:
        names: the slides, each with its path relative to the folder.

    Raises:
        SlideError: two cannot be told apart, if only on disks that tell no case apart.
    """
    times = Counter(without_extension(name).lower() for name in names.values())
    slides: dict[str, Found] = {}
    taken: dict[str, str] = {}
    for place, name in names.items():
        slide_id = name if times[without_extension(name).lower()] > 1 else without_extension(name)
        other = taken.setdefault(slide_id.lower(), slide_id)
        if other in slides:
            where = "" if other == slide_id else " on disks that tell no case apart"
            raise SlideError(f"{slides[other]} and {place} would both be called {slide_id}{where}: rename one of them")
        slides[slide_id] = place
    return sorted(slides.items(), key=lambda slide: slide[0])


def without_extension(name: str) -> str:
    """Take a known slide extension off a name; other dots stay, as in the barcodes of TCGA."""
    lower = name.lower()
    extension = next((extension for extension in EXTENSIONS if lower.endswith(extension)), "")
    return name[: len(name) - len(extension)]


def names_in(text: str) -> list[str]:
    """The files beside it that a VMS or VMU file, `Key=value` lines, may name."""
    named = {line.partition("=")[2].strip() for line in text.splitlines()} - {""}
    return sorted(name for name in named if "/" not in name)
