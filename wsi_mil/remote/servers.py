"""What is asked of servers: what lies there, how large it is, and parts of it. The only door to fsspec.

Whatever is asked is asked `patiently`. Credentials are fsspec's own affair: environment, profiles, ``FSSPEC_*``.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from wsi_mil.errors import RemoteError
from wsi_mil.remote.trouble import Waiting, no_package, patiently
from wsi_mil.remote.urls import WEB, Url

_MARKS = ("ETag", "etag", "generation", "md5Hash")
_TIMES = ("Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created")
"""What tells contents of one address apart, the best first; each protocol has one of them."""
_OF_S3 = ("ChecksumCRC64NVME", "ChecksumSHA256", "ChecksumSHA1", "ChecksumCRC32C", "ChecksumCRC32")
_LENGTHS = {"md5": 16, "crc64nvme": 8, "sha256": 32, "sha1": 20, "crc32c": 4, "crc32": 4}
_DIRECTORY_BUCKET = "--x-s3"
_HOSTS_WITH_RANGES: set[str] = set()


@dataclass(frozen=True)
class Facts:
    """What a server says of a file."""

    size: int
    """Bytes."""
    version: str
    """Changes with the content; empty where the server tells nothing of the kind."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """By algorithm ("md5", "sha256", ...), hexadecimal digits of the whole content."""


def list_files(url: Url) -> dict[str, Facts]:
    """The files below an address, by their path relative to it; none where nothing lies there.

    Raises:
        RemoteError: the protocol has no folders; see `patiently`.
    """
    if url.scheme in WEB:
        raise RemoteError(f"{url}: no folders are listed over {url.scheme}://: name one slide that is one file")

    def ask() -> tuple[str, dict[str, dict[str, Any]]]:
        system, path = _system(url)
        system.invalidate_cache()  # what was there when it was last asked is no answer
        return path.rstrip("/"), system.find(path, detail=True)

    root, found = patiently(url, ask)
    named = {name.removeprefix(root).lstrip("/"): info for name, info in found.items()}
    if chained := next((name for name in named if "::" in name), ""):
        raise RemoteError(f"{url} holds {chained}: its '::' would make an address of several protocols: rename it")
    # A file that is no folder is found below itself as "".
    return {name: _facts(info) for name, info in named.items() if name and _is_file(name, info)}


def facts_of(url: Url, waiting: Waiting | None = None) -> Facts:
    """What the server says now of one file, with the checksums that can be verified.

    Raises:
        RemoteError: it is not there, or the server does not tell its size; see `patiently`.
    """

    def ask() -> dict[str, Any]:
        system, path = _system(url)
        if url.scheme in ("s3", "s3a"):
            return _head_of_s3(system, path)
        system.invalidate_cache()
        info = system.info(path)
        if info.get("type") == "directory":
            raise FileNotFoundError(path)
        return info

    info = patiently(url, ask, waiting)
    if info.get("size") is None:
        raise RemoteError(f"{url}: the server does not tell its size, so it cannot be checked: download it yourself")
    return _facts(info)


def read_parts(url: Url, spans: Sequence[tuple[int, int]], waiting: Waiting | None = None) -> list[bytes]:
    """Parts of a file, each from ``start`` up to ``stop`` (bytes), at once where the protocol can.

    Raises:
        RemoteError: a part is shorter than asked for, again and again, or the server sends no parts; see `patiently`.
    """
    wanted = [span for span in spans if span[1] > span[0]]

    def ask() -> list[bytes]:
        system, path = _system(url)
        if url.scheme in WEB:
            _require_ranges(system, url, path)
        starts, stops = zip(*wanted, strict=True)
        parts = system.cat_ranges([path] * len(wanted), list(starts), list(stops), on_error="raise")
        for (start, stop), part in zip(wanted, parts, strict=True):
            if len(part) != stop - start:
                raise OSError(f"{len(part)} bytes came of {stop - start} from byte {start} on")
        return parts

    came = iter(patiently(url, ask, waiting) if wanted else ())
    return [bytes(next(came)) if stop > start else b"" for start, stop in spans]


def read_whole(url: Url, size: int) -> bytes:
    """A small file."""
    return read_parts(url, [(0, size)])[0]


def forget_hosts() -> None:
    """Ask web servers anew whether they send parts of files."""
    _HOSTS_WITH_RANGES.clear()


def _system(url: Url) -> tuple[Any, str]:
    """The file system of an address, and what it calls it."""
    import fsspec  # heavy, and not needed to show help
    from fsspec.core import url_to_fs

    try:
        fsspec.get_filesystem_class(url.scheme)
    except (ImportError, ValueError) as error:
        raise no_package(url, error) from None
    return url_to_fs(url.text)


def _require_ranges(system: Any, url: Url, path: str) -> None:
    """Refuse a web server that would send the whole file whenever a part of it is asked for."""
    host = urlsplit(path).netloc
    if host in _HOSTS_WITH_RANGES:
        return
    try:
        with system.open(path, "rb", cache_type="none") as file:
            file.seek(1)
            file.read(1)
    except ValueError:  # so fsspec says it, having stopped after the headers
        raise RemoteError(f"{url}: its server sends no parts of files (ranges): download the slide yourself") from None
    _HOSTS_WITH_RANGES.add(host)


def _is_file(name: str, info: Mapping[str, Any]) -> bool:
    return info.get("type", "file") == "file" and not name.endswith("/")


def _facts(info: Mapping[str, Any]) -> Facts:
    mark = next((str(info[key]).strip('"') for key in _MARKS if info.get(key)), "")
    moment = next((_moment(info[key]) for key in _TIMES if info.get(key)), "")
    return Facts(int(info.get("size") or 0), mark or moment, _checksums(info))


def _moment(value: Any) -> str:
    """A time as seconds since 1970: a listing and a question about one file may tell the same one in other forms."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            try:
                value = parsedate_to_datetime(value)  # as web servers say it
            except ValueError:
                return value
    return f"{value.timestamp() if isinstance(value, datetime) else value:.6f}"


def _head_of_s3(system: Any, path: str) -> dict[str, Any]:
    bucket, key, _ = system.split_path(path)
    head = system.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    return {**head, "size": head["ContentLength"], "bucket": bucket}


def _checksums(info: Mapping[str, Any]) -> dict[str, str]:
    """Those of the whole content: not those of S3's objects in parts, which are digests of digests."""
    coded: dict[str, Any] = {"md5": info.get("md5Hash") or info.get("Content-MD5"), "crc32c": info.get("crc32c")}
    if info.get("ChecksumType") != "COMPOSITE":
        coded |= {key.removeprefix("Checksum").lower(): info[key] for key in _OF_S3 if info.get(key)}
    found = {name: digits for name, text in coded.items() if (digits := _decoded(name, text))}
    if md5 := _md5_of_azure(info) or _md5_of_s3(info):
        found["md5"] = md5
    return found


def _decoded(name: str, text: Any) -> str:
    """Hexadecimal digits of what is told in base 64; none where it is no such checksum, as one of parts (``-3``)."""
    try:
        data = b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return ""
    return data.hex() if len(data) == _LENGTHS[name] else ""


def _md5_of_s3(info: Mapping[str, Any]) -> str:
    """The ETag where it is an MD5: not of parts, of directory buckets, or encrypted with keys of one's own.

    Only an answer to HEAD tells how an object is kept.
    """
    tag, keeps = str(info.get("ETag", "")).strip('"'), info.get("ServerSideEncryption", "AES256")
    if "ContentLength" not in info or keeps != "AES256" or info.get("SSECustomerAlgorithm"):
        return ""
    if str(info.get("bucket", "")).endswith(_DIRECTORY_BUCKET):
        return ""
    return tag if len(tag) == 32 and not tag.strip("0123456789abcdef") else ""


def _md5_of_azure(info: Mapping[str, Any]) -> str:
    """What whoever uploaded a blob said of its content, if they did: bytes, in an object of Azure's own."""
    told = getattr(info.get("content_settings"), "content_md5", None)
    return bytes(told).hex() if told else ""
