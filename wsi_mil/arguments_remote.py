"""The options of the command line for what lies far away, and how places are told from addresses."""

import logging
from abc import ABC
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, overload

import typer

from wsi_mil.errors import OptionError, WsiMilError
from wsi_mil.remote.sizes import parse_size
from wsi_mil.remote.slide import DEFAULT_SIZE, CacheParams
from wsi_mil.remote.urls import Url, parse_place, require_local

log = logging.getLogger(__name__)
_command: ContextVar[list["Brought"]] = ContextVar("command")
"""What was brought here for the command that runs."""

if TYPE_CHECKING:
    from wsi_mil.remote import Brought

    Place = Path | Url
    """What the user names."""
else:

    class Place(ABC):  # noqa: B024 - typer wants one type, for both
        """What the user names."""

    Place.register(Path)
    Place.register(Url)

FAR: dict[str, Any] = {"metavar": "PATH", "parser": parse_place}
"""Of what is read, and may lie at an address: `brought` here, then."""
SlidesAt = Annotated[
    Place,
    typer.Argument(parser=parse_place, help="Folder of slides, or one slide; or its URL (s3://...)."),
]
SlidesNow = Annotated[
    Place | None,
    typer.Option(
        "--slides", metavar="PATH", parser=parse_place, help="Folder or URL that the slides lie in, if they moved."
    ),
]
ManySlides = Annotated[
    list[Place] | None,
    typer.Argument(parser=parse_place, help="Slides, or folders of slides; or their URLs."),
]
LocalRoot = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="PATH",
        parser=require_local,
        help="Where tiles/, feats/, distances/ and model/ go; a local folder.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        parser=require_local,
        help="Where what lies at URLs is staged.  [default: slides/ in WSIMIL_HOME, else in ~/.cache/wsi_mil]",
    ),
]
CacheSize = Annotated[
    str,
    typer.Option("--cache-size", metavar="SIZE", help="Most that --cache holds, such as 500MB, 200GB or 1.5TiB."),
]


def cache_params(folder: Path | None, size: str) -> CacheParams:
    """Where slides from far away are staged."""
    parse_size(size)
    return CacheParams(folder, size)


@contextmanager
def holding() -> Generator[None]:
    """Let go at its end of what was `brought` here within; errors name it by its address, which the user knows."""
    token = _command.set([])
    try:
        yield
    except WsiMilError as error:
        if _command.get():
            from wsi_mil.remote import by_address

            error.args = (by_address(str(error)),)
        raise
    finally:
        for held in _command.get():
            held.release()
        _command.reset(token)


@overload
def brought(place: Place, cache: CacheParams, scheduler: str = "") -> Path: ...
@overload
def brought(place: None, cache: CacheParams, scheduler: str = "") -> None: ...
def brought(place: Place | None, cache: CacheParams, scheduler: str = "") -> Path | None:
    """Return a place of this machine: a path as it is, what lies at an address once it is in the cache.

    It stays there until the command, or else the process, ends.

    Raises:
        OptionError: others than this machine are to read it.
        RemoteError: it cannot be had.
    """
    if place is None or isinstance(place, Path):
        return place
    if scheduler:
        raise OptionError(
            f"{place} with --scheduler: it would be brought to this machine, where workers do not see it: copy it to"
            " the file system that all of them see, and name the copy; slides may stay far away"
        )
    from wsi_mil.remote import bring

    held = bring(place, cache)
    _command.get([]).append(held)
    log.info("%s is read from %s", place, held.path)
    return held.path


__all__ = [
    "DEFAULT_SIZE",
    "FAR",
    "Cache",
    "CacheSize",
    "LocalRoot",
    "ManySlides",
    "Place",
    "SlidesAt",
    "SlidesNow",
    "brought",
    "cache_params",
    "holding",
]
