"""What slides are called, wherever they lie."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from wsi_mil.errors import SlideError
from wsi_mil.remote import RemoteSlide

EXTENSIONS = (
    ".ome.tiff", ".svslide", ".ome.tif", ".tiff", ".ndpi", ".mrxs", ".jpeg",
    ".svs", ".vms", ".vmu", ".scn", ".bif", ".tif", ".dcm", ".czi", ".png", ".jpg",
)  # fmt: skip
"""Longest first, so that `a.ome.tif` is called `a`."""
Place = Path | RemoteSlide
"""Where a slide lies: on this machine, or far away."""
Found = TypeVar("Found", Path, RemoteSlide)


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
