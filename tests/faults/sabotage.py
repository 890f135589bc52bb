"""What goes wrong inside a command: the child does it to itself, before it begins.

Whatever is published passes through a few functions of ``os``; they are counted, so that a fault can be placed at the
k-th of them, just before it or just after.
"""

import atexit
import ctypes
import datetime
import errno
import functools
import itertools
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PUBLISHING = ("open", "fsync", "replace", "rename", "unlink", "mkdir")
"""Functions of ``os`` that are steps on the way of a file into its folder."""


def apply(wanted: dict[str, Any]) -> None:
    """Do to this process what is wanted: names of functions of this module, each with its arguments."""
    for name, arguments in wanted.items():
        globals()[name](**arguments)


def count(to: str) -> None:
    """Write down at the end how many steps there were."""
    steps = _steps(lambda _, act: act())
    atexit.register(lambda: Path(to).write_text(str(next(steps)), encoding="utf-8"))


def die(at: int, after: bool) -> None:
    """SIGKILL at a step: nothing is flushed, nobody says goodbye."""

    def dying(step: int, act: Callable[[], Any]) -> Any:
        if step == at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return act()
        finally:
            if step == at:
                os.kill(os.getpid(), signal.SIGKILL)

    _steps(dying)


def fill_disk(at: int) -> None:
    """From a step on there is no room, as a disk shared with others has it: what is removed helps nobody."""

    def full(step: int, act: Callable[[], Any]) -> Any:
        if step >= at and act.func.__name__ in ("open", "fsync", "mkdir"):  # ty: ignore[unresolved-attribute]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return act()

    _steps(full)


def fail_once(at: int, names: tuple[str, ...] = ("replace", "rename")) -> None:
    """An input/output error at the k-th of these calls, as network file systems have them."""

    def failing(step: int, act: Callable[[], Any]) -> Any:
        if step == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return act()

    _steps(failing, tuple(names))


def limit_files(most: int) -> None:
    """No file may be longer than that, bytes: a quota. Bytecode is not written: Python publishes what was cut off."""
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def obey_permissions() -> None:
    """Go on without root's leave to open whatever it likes; everybody else goes on as he is."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # linux/capability.h: version 3, of this process
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for place in range(3):  # effective, permitted, inheritable
        sets[place] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def shift_clock(days: float) -> None:
    """The clock of this process is wrong by so many days."""
    _set_clock(lambda now: now + 86400 * days)


def swing_clock(seconds: float) -> None:
    """The clock jumps forth and back each time that somebody looks."""
    turn = [1]

    def jump(now: float) -> float:
        turn[0] = -turn[0]
        return now + turn[0] * seconds

    _set_clock(jump)


def harm_while_read(path: str, after_reads: int, keep: int | None) -> None:
    """After so many reads of a slide, cut it to ``keep`` bytes, or remove it (None)."""
    original, lock, left = os.pread, threading.Lock(), [after_reads]

    def pread(handle: int, size: int, offset: int) -> bytes:
        if str(Path(f"/proc/self/fd/{handle}").readlink()).startswith(path):
            with lock:
                left[0] -= 1
                if left[0] == 0:
                    Path(path).unlink() if keep is None else os.truncate(path, keep)
        return original(handle, size, offset)

    os.pread = pread


def _set_clock(change: Callable[[float], float]) -> None:
    original = time.time

    class Clock(datetime.datetime):
        """As the class that it replaces, by another clock."""

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "datetime.datetime":
            return datetime.datetime.fromtimestamp(change(original()), tz)

    from wsi_mil import runs

    time.time = lambda: change(original())
    runs.datetime = Clock  # ty: ignore[invalid-assignment]


def _steps(around: Callable[[int, Callable[[], Any]], Any], names: tuple[str, ...] = PUBLISHING) -> Any:
    """Put something around each step that writes; return the counter, whose next is how many there were."""
    counter, lock = itertools.count(), threading.Lock()
    for name in names:
        original = getattr(os, name)

        def stepping(*args: Any, original: Any = original, **options: Any) -> Any:
            act = functools.partial(original, *args, **options)
            if original.__name__ == "open" and not args[1] & os.O_CREAT:
                return act()  # only looks
            with lock:
                step = next(counter)
            return around(step, act)

        setattr(os, name, stepping)
    return counter
