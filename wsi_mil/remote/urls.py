"""Addresses: what is one, how its parts are named, and how it is shown."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from wsi_mil.errors import OptionError
from wsi_mil.guards import redacted

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
WEB = ("http", "https")
"""Protocols that have no folders, and whose addresses may carry a query."""


@dataclass(frozen=True)
class Url:
    """The address of a slide, or of a folder of slides, on some server."""

    text: str = field(repr=False)
    """As it was given, with the query that may sign it."""

    def __str__(self) -> str:
        """As it may be shown and recorded: without query, fragment and password."""
        bare = self._split[0] if self.scheme in WEB else self.text
        return redacted(bare)

    @property
    def scheme(self) -> str:
        """The protocol, in small letters."""
        return self.text.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The last part of the path, as a file would be called."""
        last = str(self).rstrip("/").rpartition("/")[2]
        return unquote(last) if self.scheme in WEB else last

    @property
    def parent(self) -> "Url":
        """The folder that it lies in."""
        return Url(self._split[0].rstrip("/").rpartition("/")[0])

    @property
    def is_signed(self) -> bool:
        """Whether it carries more than what may be recorded."""
        return str(self) != self.text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text.rstrip('/')}/{name}")

    @property
    def _split(self) -> tuple[str, str]:
        if self.scheme not in WEB:
            return self.text, ""
        bare = re.split(r"[?#]", self.text, maxsplit=1)[0]
        return bare, self.text[len(bare) :]


def is_url(text: str) -> bool:
    """Whether a text is an address rather than a path of this machine."""
    return bool(_SCHEME.match(text))


def parse_place(text: str | Path) -> Path | Url:
    """A path of this machine, which ``file://`` is too, or an address.

    Raises:
        OptionError: an address of several protocols, or without a host or a bucket.
    """
    if isinstance(text, Path) or not is_url(text):  # a default is a path already
        return Path(text)
    url = Url(text)
    if url.scheme == "file":
        return Path(url2pathname(urlsplit(text).path))
    if "::" in text.partition("?")[0]:
        raise OptionError(f"{url}: addresses of several protocols are not followed: name the innermost one")
    if not text.partition("://")[2].strip("/"):
        raise OptionError(f"{url} names no host or bucket: give an address such as s3://bucket/slides")
    return url


def require_local(text: str | Path) -> Path:
    """A path of this machine, for what is not written to servers.

    Raises:
        OptionError: it is an address; how to copy to what lies there is told.
    """
    return _local(
        text,
        "nothing is written to servers: name a local folder, and copy it with your provider's tool, such as"
        " `aws s3 sync FOLDER {place}` (docs/remote.md)",
    )


def require_copied(text: str | Path) -> Path:
    """A path of this machine, for what is called by its path.

    Raises:
        OptionError: it is an address; how to copy from what lies there is told.
    """
    return _local(
        text,
        "runs are called by the path of their folder: copy it with your provider's tool, such as"
        " `aws s3 cp --recursive {place} FOLDER`, and name the copy (docs/remote.md)",
    )


def require_slides_here(text: str | Path) -> Path:
    """A path of this machine, for slides that are asked for their um/px, and drawn, and not worked on.

    Raises:
        OptionError: it is an address; what is to be given instead is told.
    """
    return _local(
        text,
        "slides are not fetched whole only to be asked for their um/px, or for a picture: give a folder of this"
        " machine, um/px by --slides-csv or --mpp, or leave --slides out (docs/remote.md)",
    )


def _local(text: str | Path, remedy: str) -> Path:
    place = parse_place(text)
    if isinstance(place, Url):
        raise OptionError(f"{place}: {remedy.format(place=place)}")
    return place
