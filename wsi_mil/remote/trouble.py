"""Servers fail in many words: here each becomes one line of ours, and what may pass is tried again.

What a server or its library says may repeat an address with its signature, also in what an error came from: so the
errors of this room stand alone (``from None``), their texts without keys and signatures.
"""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from wsi_mil.errors import RemoteError, WsiMilError
from wsi_mil.guards import redacted
from wsi_mil.remote.urls import WEB, Url

log = logging.getLogger(__name__)

TRIES = 4
"""Of each request, beside those that the protocol's own library makes."""
FIRST_WAIT_S = 0.5
"""Before the second try; each further wait is three times as long."""
Value = TypeVar("Value")

_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "abfs": "adlfs",
    "abfss": "adlfs", "az": "adlfs", "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol", "oci": "ocifs",
}  # fmt: skip
"""By protocol, what fsspec needs for it."""
_LOGINS = {
    "s3": "AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login`",
    "az": "AZURE_STORAGE_CONNECTION_STRING",
}
_NO_LOGIN = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError")
_DENIED, _GONE, _TOO_MANY, _SERVER = (401, 403), (404, 410), 429, 500


class Missing(RemoteError):
    """The server says that nothing is there."""

    is_missing = True


class Interrupted(RemoteError):
    """Nobody waits for it any more."""


class Waiting:
    """Whether somebody still waits for what is fetched; from other threads."""

    def __init__(self, also: "Waiting | None" = None) -> None:
        """Begin to wait, as long as another one does ``also``."""
        self._stopped, self._also = False, also

    @property
    def stopped(self) -> bool:
        """Whether nobody waits any more."""
        return self._stopped or (self._also is not None and self._also.stopped)

    def stop(self) -> None:
        """Wait no more."""
        self._stopped = True

    def require(self) -> None:
        """Raise `Interrupted` if not."""
        if self.stopped:
            raise Interrupted("interrupted")

    def pause(self, seconds: float) -> None:
        """Sleep, unless it ends meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.require()
            time.sleep(min(left, 0.05))
        self.require()


def patiently(url: Url, ask: Callable[[], Value], waiting: Waiting | None = None) -> Value:
    """Return what a server answers; ask again, later and later, while its trouble may pass.

    Args:
        url: what is asked about.
        ask: asks.
        waiting: whether somebody still waits for the answer.

    Raises:
        RemoteError: it is not there, forbidden, needs a package that is not installed, or the trouble did not pass.
        Interrupted: nobody waits any more.
    """
    waiting, pause = waiting or Waiting(), FIRST_WAIT_S
    for number in range(1, TRIES + 1):
        waiting.require()
        try:
            return ask()
        except WsiMilError:
            raise
        except Exception as error:  # noqa: BLE001 - libraries of servers die of anything, and are quoted with care
            cause = _cause(error)
            final = _final(url, cause)
            told = f"{type(cause).__name__}: {redacted(' '.join(str(cause).split())) or 'no message'}"
        if final:
            raise final from None
        if number < TRIES:
            log.info("%s: %s; trying again in %.1f s", url, told, pause)
            waiting.pause(pause * random.uniform(0.75, 1.25))
            pause *= 3
    raise RemoteError(
        f"{url} cannot be read, after {TRIES} tries: {told}: see to the network, then type the same command to go on"
    ) from None


def no_package(url: Url, error: Exception) -> RemoteError:
    """What to install for a protocol, or that there is none."""
    package = _PACKAGES.get(url.scheme)
    if isinstance(error, ValueError):
        return RemoteError(f"{url}: {url.scheme}:// is no protocol of fsspec: give s3://, gs://, https:// ...")
    hint = f"pip install {package}" if package else redacted(str(error))
    hint = "pip install 'wsi-mil[remote]'" if package in ("s3fs", "aiohttp") else hint
    return RemoteError(f"{url}: slides at {url.scheme}:// need a package that is not installed: {hint}")


def full(where: object, error: OSError) -> RemoteError:
    """What became of a slide that could not be written into the cache."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RemoteError(
            f"the disk of {where} is full ({error.strerror}): give a smaller --cache-size, or --cache on another disk"
        )
    return RemoteError(f"{where} cannot be written: {error.strerror or error}: give another --cache")


def _cause(error: Exception) -> Exception:
    """What really happened: fsspec takes whatever a web server fails by for a file that is not there."""
    below = error.__cause__
    return below if isinstance(error, FileNotFoundError) and isinstance(below, Exception) else error


def _final(url: Url, error: Exception) -> RemoteError | None:
    """The error that more tries would not mend; None where they may."""
    status = _status(error)
    if isinstance(error, ImportError):
        return no_package(url, error)
    if isinstance(error, FileNotFoundError | IsADirectoryError) or status in _GONE:
        return Missing(f"{url} is not there, or not any more")
    if isinstance(error, PermissionError) or status in _DENIED or type(error).__name__ in _NO_LOGIN:
        return RemoteError(_denied(url, error, status))
    if status is not None and status < _SERVER and status != _TOO_MANY:
        return RemoteError(f"{url}: the server refuses it ({status}): {redacted(str(error))}")
    if isinstance(error, ValueError | TypeError | NotImplementedError | AttributeError):
        return RemoteError(f"{url} cannot be read: {type(error).__name__}: {redacted(str(error))}")
    return None


def _denied(url: Url, error: Exception, status: int | None) -> str:
    code = f" ({status})" if status else ""
    if type(error).__name__ in _NO_LOGIN:
        return f"{url}: access is denied: no credentials were found: {_login(url)}"
    if url.scheme in WEB:
        again = "" if url.is_signed else ", or name it by its whole address, if that must be signed"
        return f"{url}: access is denied{code}: its address may have expired: ask for a new one{again}"
    return f"{url}: access is denied{code}: {_login(url)}, and see who may read and list it"


def _login(url: Url) -> str:
    return f"set {_LOGINS.get(url.scheme, 'the credentials of its protocol in the environment')}"


def _status(error: Exception) -> int | None:
    """The status of HTTP that an error tells, whoever made it."""
    response: Any = getattr(error, "response", None)
    told = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    for name in ("status", "code"):  # aiohttp has both, and warns of the second
        told = getattr(error, name, None) if told is None else told
    return told if isinstance(told, int) and 400 <= told < 600 else None
