"""Folders of artifacts, models and tables far away: brought here whole, since they are read at random places."""

from dataclasses import dataclass

from wsi_mil.remote.servers import facts_of, list_files
from wsi_mil.remote.slide import CacheParams, RemoteFile, RemoteSlide
from wsi_mil.remote.staging import Hold, hold
from wsi_mil.remote.trouble import Waiting
from wsi_mil.remote.urls import WEB, Url


@dataclass(frozen=True, kw_only=True)
class _Bundle(RemoteSlide):
    """What lies below an address. It has one place in the cache, so that two who need much never wait for another."""

    root: Url

    def __str__(self) -> str:
        return str(self.root)


def bring(url: Url, cache: CacheParams, waiting: Waiting | None = None) -> Hold:
    """Fetch a folder with all that lies below it, or a file, as a slide is fetched: bounded, verified, kept while used.

    Where anything in the folder changed since, all of it is fetched anew.

    Returns:
        Whose path is that of the local folder, or file.

    Raises:
        RemoteError: nothing is there, or it cannot be had, or it is larger than the cache.
        Interrupted: nobody waits any more.
    """
    found = {} if url.scheme in WEB else list_files(url)
    if not found:
        facts = facts_of(url, waiting)
        return hold(RemoteSlide((RemoteFile(url, url.name, facts.size, facts.version),), cache), waiting)
    files = (RemoteFile(url / name, name, facts.size, facts.version) for name, facts in sorted(found.items()))
    held = hold(_Bundle(tuple(files), cache, root=url), waiting)
    held.path = held.folder
    return held
