"""A slide that lies far away: its files, and where they are staged."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsi_mil.home import home
from wsi_mil.remote.sizes import parse_size
from wsi_mil.remote.urls import Url

DEFAULT_SIZE = "200GB"


@dataclass(frozen=True)
class CacheParams:
    """Where slides from far away are kept while they are worked on, and for the next time; decides no result."""

    folder: Path | None = None
    """The cache; None = ``slides`` in `home`."""
    size: str = DEFAULT_SIZE
    """It never holds more than this, what is being fetched counted: ``200GB``, ``1.5TiB``."""

    def __post_init__(self) -> None:
        parse_size(self.size)

    @property
    def bound(self) -> int:
        """The size in bytes."""
        return parse_size(self.size)

    def absolute(self) -> "CacheParams":
        """The same, for whoever works in another folder, and may have another home."""
        return replace(self, folder=self.folder and self.folder.absolute())

    @property
    def place(self) -> Path:
        """The folder.

        Raises:
            OptionError: none was named, and the user has no home folder.
        """
        return (self.folder or home() / "slides").absolute()


@dataclass(frozen=True)
class RemoteFile:
    """One file of a slide."""

    url: Url
    name: str
    """Relative to the folder of the slide's first file."""
    size: int
    """Bytes."""
    version: str = ""
    """As the server tells it, see `Facts`."""


@dataclass(frozen=True)
class RemoteSlide:
    """A slide at an address. Small, frozen and picklable: it travels to wherever it is worked on."""

    files: tuple[RemoteFile, ...]
    """The one that is opened first, then what belongs to it, by name."""
    cache: CacheParams = field(default_factory=CacheParams)
    """Where it is staged."""

    def __str__(self) -> str:
        return str(self.url)

    def absolute(self) -> "RemoteSlide":
        """The same, for whoever works in another folder."""
        return replace(self, cache=self.cache.absolute())

    @property
    def url(self) -> Url:
        """Of the file that is opened."""
        return self.files[0].url

    @property
    def size(self) -> int:
        """Of all its files, bytes."""
        return sum(file.size for file in self.files)

    @property
    def key(self) -> str:
        """What it is called in a cache: another one for other content, as far as servers tell."""
        told = "\n".join(f"{file.url} {file.name} {file.size} {file.version}" for file in self.files)
        return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()[:32]

    @property
    def has_versions(self) -> bool:
        """Whether another content would have another key, surely."""
        return all(file.version for file in self.files)
