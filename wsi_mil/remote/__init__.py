"""Slides far away, at any address that fsspec knows: listed, sampled, and staged through a bounded local cache.

The only door to fsspec. `hold` makes a local file of a slide for as long as it is used, `Ahead` does so before its turn
comes, `bring` for folders of artifacts and tables; `docs/remote.md` says what is promised.
"""

from wsi_mil.remote.ahead import Ahead
from wsi_mil.remote.bringing import Brought, bring, by_address, is_brought, origin
from wsi_mil.remote.servers import Facts, facts_of, list_files, read_parts, read_whole
from wsi_mil.remote.sizes import parse_size, show_size
from wsi_mil.remote.slide import DEFAULT_SIZE, CacheParams, RemoteFile, RemoteSlide
from wsi_mil.remote.staging import Hold, hold
from wsi_mil.remote.urls import WEB, Url, is_url, parse_place, require_local

__all__ = [
    "DEFAULT_SIZE",
    "WEB",
    "Ahead",
    "Brought",
    "CacheParams",
    "Facts",
    "Hold",
    "RemoteFile",
    "RemoteSlide",
    "Url",
    "bring",
    "by_address",
    "facts_of",
    "hold",
    "is_brought",
    "is_url",
    "list_files",
    "origin",
    "parse_place",
    "parse_size",
    "read_parts",
    "read_whole",
    "require_local",
    "show_size",
]
