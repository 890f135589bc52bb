"""Marks of use: files that are locked while somebody uses what they stand for.

The system takes a lock away with its process (``flock``), however that ends, in whatever container it ran: nothing has
to be swept up, no process number is believed. A lock that cannot be had is asked for again; nobody blocks in it.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from wsi_mil.remote.trouble import Waiting

_LOOK_S = 0.05


class Mark:
    """A lock that is held on a file."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle

    def touch(self) -> None:
        """Note that it was used now."""
        os.utime(self._handle)

    def read(self) -> str:
        """What the file says."""
        return os.pread(self._handle, 64, 0).decode(errors="replace")

    def write(self, text: str) -> None:
        """Replace what the file says."""
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)

    def release(self) -> None:
        """Let it go; a second time does nothing."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


def try_mark(path: Path, shared: bool, create: bool = False) -> Mark | None:
    """Lock a file, together with others or alone; None where others prevent it, or it is not there."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
    except FileNotFoundError:
        return None
    mark = Mark(path, handle)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.stat()):
            return mark
    except (BlockingIOError, FileNotFoundError):  # others use it, or have just removed it
        pass
    except BaseException:
        mark.release()
        raise
    mark.release()
    return None


@contextmanager
def alone(path: Path, waiting: Waiting) -> Generator[None]:
    """Be the only one, among all processes and threads, that does this at a time."""
    while (mark := try_mark(path, shared=False, create=True)) is None:
        waiting.pause(_LOOK_S)
    try:
        yield
    finally:
        mark.release()
