"""The options of the command line for slides that lie far away, and how places are told from addresses."""

from abc import ABC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_mil.remote.sizes import parse_size
from wsi_mil.remote.slide import DEFAULT_SIZE, CacheParams
from wsi_mil.remote.urls import Url, parse_place, require_local

if TYPE_CHECKING:
    Place = Path | Url
    """What the user names."""
else:

    class Place(ABC):  # noqa: B024 - typer wants one type, for both
        """What the user names."""

    Place.register(Path)
    Place.register(Url)

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
        help="Where slides from URLs are staged.  [default: slides/ in WSIMIL_HOME, else in ~/.cache/wsi_mil]",
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


__all__ = [
    "DEFAULT_SIZE",
    "Cache",
    "CacheSize",
    "LocalRoot",
    "ManySlides",
    "Place",
    "SlidesAt",
    "SlidesNow",
    "cache_params",
]
