"""Slides are opened ahead of their turn: headers, hashes and the fit of a stain would leave the encoder idle."""

import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic

from wsi_mil.runs import Timing
from wsi_mil.stage import attempt
from wsi_mil.streaming.works import Slide, Tiles, Work

_THREADS = 2
_SLIDES = 32  # open at most, ahead of the one that is being read: each holds a file and what its reader keeps


class Opener(Generic[Slide]):
    """Opens slides in threads and gives them out in their order: as many as it takes to have enough tiles ahead."""

    def __init__(self, sources: Iterator[Slide], tiles: int) -> None:
        """Begin at once.

        Args:
            sources: the slides; taken by one thread at a time.
            tiles: how many are enough.
        """
        self._sources, self._numbered, self._enough = sources, enumerate(sources), tiles
        self._opened: dict[int, Work[Slide]] = {}
        self._next, self._running, self._stopped = 0, _THREADS, False
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="wsimil-open")
        self._loops = [self._pool.submit(self._open_all) for _ in range(_THREADS)]

    def take(self, wait: bool) -> Work[Slide] | None:
        """Take the next slide; None if it is not open yet, and with ``wait`` if there is none any more."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._next in self._opened or self._stopped or not self._running)
            work = self._opened.pop(self._next, None)
            if work:
                self._next += 1
                self._changed.notify_all()
        if work is None and self.ended and not self._stopped:
            for loop in self._loops:
                loop.result()  # raises what ended it, if something did
        return work

    @property
    def ended(self) -> bool:
        """Whether `take` will never again give one."""
        with self._changed:
            return self._stopped or not (self._running or self._next in self._opened)

    def interrupt(self) -> None:
        """Open no more, from any thread; whoever waits in `take` goes on with nothing."""
        with self._changed:
            self._stopped = True
            if isinstance(self._sources, Generator):
                self._sources.close()  # so that what slides are waited for is not done for nobody
            self._changed.notify_all()

    def stop(self) -> list[Work[Slide]]:
        """End the threads; return what is open and was not taken."""
        self.interrupt()
        self._pool.shutdown(wait=True)
        return list(self._opened.values())

    def _open_all(self) -> None:
        try:
            while numbered := self._claim():
                index, source = numbered
                work = _opened(source)
                with self._changed:
                    self._opened[index] = work
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _claim(self) -> tuple[int, Slide] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room())
            return None if self._stopped else next(self._numbered, None)

    def _has_room(self) -> bool:
        ahead = sum(work.tiles.count for work in self._opened.values())
        return len(self._opened) < _SLIDES and ahead < self._enough


def _opened(source: Slide) -> Work[Slide]:
    began = time.perf_counter()
    found: Tiles | Exception = attempt(source.open)
    if isinstance(found, Exception):
        return Work(source, error=found)
    # A slide without tiles is done now; the time of others is counted as their batches return.
    seconds = 0.0 if found.count else time.perf_counter() - began
    return Work(source, found, timing=Timing(seconds=seconds))
