"""What a worker of a Dask cluster does: make itself, once, what a job needs, and put one thing after the other through.

Everything here runs in the worker's process. What was made stays there for the next task of the same job, so a network
is loaded once per worker and never sent.
"""

import ctypes
import hashlib
import logging
import os
import pickle
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from wsi_mil import __version__
from wsi_mil.errors import ClusterError, WsiMilError, one_line
from wsi_mil.executors import grant_cores

TOPIC = "wsimil"
"""Of what workers say."""
_IDLE_S = 60.0  # after which a crew, which may hold a network, makes room when another one is made
_OF_NANNY = "65536"  # another value is the user's own
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_crews: "dict[str, _Place]" = {}
_changing = threading.Lock()


class Need(NamedTuple):
    """What a worker must be and see."""

    version: str
    """Of wsi_mil."""
    paths: tuple[str, ...] = ()
    """Files or folders that it must see, absolute."""
    mark: str = ""
    """A file that it must see, and in whose folder it must be able to write."""


class Seen(NamedTuple):
    """What a worker is and sees."""

    version: str
    """Of wsi_mil."""
    absent: tuple[str, ...]
    """What it does not see, or may not write in."""
    gpus: float
    """How many it declares, as the resource ``GPU``."""

    def fault(self, need: Need) -> str:
        """Why the worker cannot do the work; "" = it can."""
        if self.version != need.version:
            own = f"has wsimil {self.version} and {need.version} asks for work"
            return f"{own}: install the same version there"
        if self.absent:
            return (
                f"does not see {self.absent[0]}, or may not read or write there: slides and artifacts must lie on a"
                " file system that all workers share under the same path"
            )
        return ""


def look(need: Need, dask_worker: Any) -> Seen:
    """Tell what a worker is and sees of what is needed."""
    absent = [path for path in need.paths if not os.access(path, os.R_OK)]
    mark = Path(need.mark)
    if need.mark and not (os.access(mark, os.F_OK) and os.access(mark.parent, os.W_OK)):
        absent.append(str(mark.parent))
    gpus = float(dask_worker.state.total_resources.get("GPU", 0.0))
    return Seen(__version__, tuple(absent), gpus)


def work(recipe: bytes, need: Need, method: str, argument: Any) -> Any:
    """Let the crew that ``recipe`` makes do something: ``crew.<method>(argument)``.

    Raises:
        ClusterError: this worker cannot do it, whatever the argument: it ends the run.
    """
    from distributed import get_worker

    with _place(hashlib.sha256(recipe).hexdigest()) as place:
        with place.making:
            if place.crew is None:
                place.crew = _made(recipe, need, get_worker())
        return getattr(place.crew, method)(argument)


def _made(recipe: bytes, need: Need, worker: Any) -> Any:
    if fault := look(need, worker).fault(need):
        raise ClusterError(f"worker {worker.address} {fault}")
    grant_cores(worker.state.nthreads)
    keep_memory()
    _speak(worker)
    try:
        _, make = pickle.loads(recipe)
        return make()
    except (WsiMilError, OSError, ImportError) as error:
        raise ClusterError(f"worker {worker.address}: {one_line(error)}") from error


def keep_memory() -> bool:
    """Undo what Dask's nanny asks of the C library: to give memory back 64 kB by 64 kB. Says whether it did.

    Pixels come and go by the megabyte, and each would begin with new pages: a slide took twice the CPU time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is None or os.environ.get("MALLOC_TRIM_THRESHOLD_") != _OF_NANNY:
        return False
    return all([mallopt(_M_TRIM_THRESHOLD, 128 << 20), mallopt(_M_MMAP_THRESHOLD, 32 << 20)])


def keep(recipe: bytes) -> bytes:
    """The recipe itself: as a task of its own it is sent to a worker once, however many tasks need it."""
    return recipe


class _Speaker(logging.Handler):
    """Sends warnings of this worker to whoever gave it work."""

    def __init__(self, worker: Any) -> None:
        super().__init__(logging.WARNING)
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        self._worker.log_event(TOPIC, (record.levelno, record.getMessage()))


def _speak(worker: Any) -> None:
    speaker = logging.getLogger("wsi_mil")
    if not any(isinstance(handler, _Speaker) for handler in speaker.handlers):
        speaker.addHandler(_Speaker(worker))


class _Place:
    """Where a crew is, or will be when it is made."""

    def __init__(self) -> None:
        self.making, self.crew, self.busy, self.left = threading.Lock(), None, 0, 0.0


@contextmanager
def _place(key: str) -> Generator[_Place]:
    """The place of a job's crew, for one task; those that nobody has needed for a while go when another one comes."""
    with _changing:
        if key not in _crews:
            idle = [name for name, one in _crews.items() if not one.busy and time.monotonic() - one.left > _IDLE_S]
            for name in idle:
                del _crews[name]
        place = _crews.setdefault(key, _Place())
        place.busy += 1
    try:
        yield place
    finally:
        with _changing:
            place.busy, place.left = place.busy - 1, time.monotonic()
