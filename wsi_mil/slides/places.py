"""Where slides lie, as artifacts record it and find them again."""

from pathlib import Path

from wsi_mil.remote import CacheParams, Url, parse_place
from wsi_mil.slides import far
from wsi_mil.slides.naming import Place


def recorded(place: Place) -> str:
    """What an artifact records of where a slide lies: its absolute path, or its address without what signs it."""
    return str(place.absolute()) if isinstance(place, Path) else str(place)


def find_again(text: str, cache: CacheParams) -> Place | None:
    """The slide at a place that was `recorded`; None where none is there any more.

    Raises:
        RemoteError: a server does not say.
    """
    place = parse_place(text)
    if isinstance(place, Url):
        return far.slide_at(place, cache)
    return place if place.exists() else None


def folder_of(place: Place) -> str:
    """The folder of a slide, as `recorded`."""
    return str(place.parent.absolute()) if isinstance(place, Path) else str(place.url.parent)
