"""Files and folders that appear whole or not at all.

**Existence means complete.** What is written lies under a hidden temporary name beside its target, is flushed, fsynced
and closed, and only then renamed. A process killed at any moment leaves at worst a hidden temporary file, which the
next run on the same machine sweeps away.
"""

import os
import re
import secrets
import shutil
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_NAME_BYTES = 255


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary sibling of ``path``, an empty file; on success make it durable and rename it, else remove it.

    It is made for this process alone: nobody can have put a link there before, and who may read it the umask says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Generator[Path]:
    """`replacing` for a folder: yield an empty temporary sibling; on success make it durable and rename it.

    What lay at ``path`` is gone then, whatever it held. A process killed just between the two leaves no folder there,
    never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, before = _sibling(path), _sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for part in (*temporary.rglob("*"), temporary):
            _sync(part)
        if path.exists():
            path.rename(before)
        temporary.rename(path)
        _sync(path.parent)
    finally:
        _remove(temporary)
    _remove(before)


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


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders under ``folder`` that processes of this machine left, killed."""
    ours = re.compile(re.escape(f".{socket.gethostname()}-") + r"(\d+)-[0-9a-f]+\.tmp$")
    for temporary in list(folder.rglob(".*.tmp")):
        match = ours.search(temporary.name)
        if match and not _alive(int(match[1])):
            _remove(temporary)


def _sibling(path: Path) -> Path:
    """A hidden name beside a path, of this process alone; of a long name only the start, since there is no room."""
    mark = f".{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    room = _NAME_BYTES - len(mark) - 1
    start = path.name.encode(errors="surrogateescape")[:room].decode(errors="ignore")
    return path.with_name(f".{start}{mark}")


def _remove(temporary: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if temporary.is_dir() and not temporary.is_symlink():
        shutil.rmtree(temporary)
    else:
        temporary.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, under another user
        return True
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
