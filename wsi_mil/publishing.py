"""Files and folders that appear whole or not at all.

**Existence means complete.** What is written lies under a hidden temporary name beside its target, is flushed, fsynced
and closed, and only then renamed. A process killed at any moment leaves at worst a hidden temporary file, which the
next run on the same machine sweeps away.
"""

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from wsi_mil.errors import StorageError

log = logging.getLogger(__name__)

_NAME_BYTES = 255
_TRIES = 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP)  # of fsync: shares of VirtualBox and some of CIFS know it of files only
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary sibling of ``path``, an empty file; on success make it durable and rename it, else remove it.

    It is made for this process alone: nobody can have put a link there before, and who may read it the umask says.

    Raises:
        StorageError: there is no room, or the folder may not be written to.
    """
    temporary = _sibling(path)
    with _telling(path, _FORBIDDEN):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with _telling(path):
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Generator[Path]:
    """`replacing` for a folder: yield an empty temporary sibling; on success make it durable and rename it.

    What lay at ``path`` is gone then, whatever it held; it comes back where the new folder cannot take its place. A
    process killed between the two leaves no folder there, and the next `sweep` puts the old one back.

    Raises:
        StorageError: as `replacing`.
    """
    temporary = _sibling(path)
    with _telling(path, _FORBIDDEN):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        with _telling(path):
            yield temporary
            for part in (*temporary.rglob("*"), temporary):
                _sync(part)
            _take_place(temporary, path)
            _sync(path.parent)
    finally:
        remove(temporary)


@contextmanager
def replacing_text(path: Path) -> Generator[IO[str]]:
    """`replacing` for text: yield an open UTF-8 file that appears at ``path`` only when complete."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_bytes(path: Path, data: bytes) -> None:
    """Publish ``data`` at ``path``."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def marked(folder: Path) -> Generator[Path]:
    """Yield a hidden file in a folder, there for the time being: who sees it sees this very folder."""
    mark = _sibling(folder / "seen")
    mark.touch(exist_ok=False)
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Be the only one, of all processes and threads, that changes several files of a folder together.

    The system takes the lock away with its process, however that ends; on a disk that knows no locks there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s: this disk knows no locks (%s): let no two commands write there", folder, error.strerror)
        yield


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; another process may be removing it, too."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders under ``folder`` that processes of this machine left, killed.

    A folder that one of them had moved aside, and put nothing in its place, goes back there.
    """
    ours = re.compile(re.escape(f".{_here()}-") + r"(\d+)-[0-9a-f]+\.(tmp|old\.tmp)$")
    # not rglob, which fails where another process removes a folder meanwhile
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            match = ours.search(name)
            if match and not _alive(int(match[1])):
                target = Path(parent, name[1 : match.start()])
                whole = len(os.fsencode(name)) < _NAME_BYTES - 3  # else the target's name may have been cut
                if match[2] == "old.tmp" and whole and not target.exists():
                    Path(parent, name).rename(target)
                else:
                    remove(Path(parent, name))
        folders[:] = [name for name in folders if not ours.search(name)]


def _take_place(temporary: Path, path: Path) -> None:
    """Rename a folder to its place, where another one may lie, and another process may be doing the same."""
    for _ in range(_TRIES):
        aside = _moved_aside(path)
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                continue
            if aside is not None:
                aside.rename(path)
            raise
        finally:
            if aside is not None and path.exists():
                remove(aside)
        return
    raise StorageError(f"{path} is written by other processes all the time: end them, then type the same command again")


def _moved_aside(path: Path) -> Path | None:
    """Where a folder lies now that was moved aside; None where there was none."""
    aside = _sibling(path, ".old.tmp")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return None
    return aside


@contextmanager
def _telling(path: Path, errors: Collection[int] = ()) -> Generator[None]:
    """Turn what the system says of a full disk into an error of ours: it names neither the file nor what to do.

    Args:
        path: what was to be written.
        errors: other numbers than those of a full disk that can mean nothing but this path.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in {*_NO_ROOM, *errors}:
            raise
        why = os.strerror(error.errno or 0)
        remedy = "allow it" if error.errno in _FORBIDDEN else "make room there"
        raise StorageError(
            f"{path} cannot be written ({why}): {remedy}, or give another --out, then type the same command again:"
            " what is finished stays"
        ) from error


def _here() -> str:
    """Where process numbers mean something: this machine, and the container that its processes see."""
    with suppress(OSError):
        return f"{socket.gethostname()}.{Path('/proc/self/ns/pid').stat().st_ino}"
    return socket.gethostname()


def _sibling(path: Path, suffix: str = ".tmp") -> Path:
    """A hidden name beside a path, of this process alone; of a long name only the start, since there is no room."""
    mark = f".{_here()}-{os.getpid()}-{secrets.token_hex(8)}{suffix}"
    room = _NAME_BYTES - len(mark) - 1
    start = path.name.encode(errors="surrogateescape")[:room].decode(errors="ignore")
    return path.with_name(f".{start}{mark}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, under another user
        return True
    return True


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable; the latter as far as the disk can: the files are in place."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_OF_FOLDERS or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
    finally:
        os.close(handle)


def existing(path: Path) -> Path:
    """The path, or the nearest folder around it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())
