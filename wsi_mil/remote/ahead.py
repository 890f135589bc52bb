"""The next slides are fetched while the present ones are worked on.

Slides get their places in the cache in their order, each before any later one, and those are worked on in their order,
too. So whoever waits for room waits for slides that are being worked on, and gets it when they are done, also where
several processes share a cache that holds only a few slides.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, TypeVar

from wsi_mil.remote.marks import Mark
from wsi_mil.remote.room import admit
from wsi_mil.remote.slide import RemoteSlide
from wsi_mil.remote.staging import Hold, fetch
from wsi_mil.remote.trouble import Waiting

AHEAD = 4
"""Slides that are taken before their turn."""
_FETCHING = 2  # at once, each by several requests
Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Takes items ahead of their turn and fetches their slides. A context manager, which lets go of all at its end."""

    def __init__(
        self,
        source: Iterator[Item],
        name_of: Callable[[Item], str],
        place_of: Callable[[Item], object],
        count: int = AHEAD,
    ) -> None:
        """Begin when the first item is asked for.

        Args:
            source: the items.
            name_of: an item's name, no two being called alike.
            place_of: where an item's slide lies; what is no `RemoteSlide` is not fetched. Called in a thread, in the
                order of the items; what it raises, `use` raises.
            count: how many items are taken ahead.
        """
        self._source, self._name_of, self._place_of, self._count = source, name_of, place_of, count
        self._waiting = Waiting()
        self._ready: dict[str, Future[Hold | None]] = {}
        self._placing = ThreadPoolExecutor(1, thread_name_prefix="wsimil-place")
        self._fetching = ThreadPoolExecutor(_FETCHING, thread_name_prefix="wsimil-fetch")

    def __enter__(self) -> "Ahead[Item]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.interrupt()
        self._placing.shutdown()
        self._fetching.shutdown()
        for future in self._ready.values():
            if not future.exception() and (held := future.result()):
                held.release()

    def interrupt(self) -> None:
        """Fetch no more; whoever waits in `use` goes on with an error."""
        self._waiting.stop()

    def items(self) -> Generator[Item]:
        """The items, in their order. Closing it before its end interrupts."""
        taken: deque[Item] = deque()
        try:
            while True:
                while len(taken) <= self._count and (item := next(self._source, None)) is not None:
                    self._begin(item)
                    taken.append(item)
                if not taken:
                    return
                yield taken.popleft()
        except GeneratorExit:
            self.interrupt()
            raise

    @contextmanager
    def use(self, item: Item) -> Generator[None]:
        """Wait for the slide of an item, whose files are in the cache then and stay there meanwhile.

        Raises:
            RemoteError: it cannot be had.
        """
        held = self._ready.pop(self._name_of(item)).result()
        try:
            yield
        finally:
            if held:
                held.release()

    def _begin(self, item: Item) -> None:
        placed = self._placing.submit(self._place, item)
        self._ready[self._name_of(item)] = self._fetching.submit(self._fetch, placed)

    def _place(self, item: Item) -> tuple[RemoteSlide, Mark] | None:
        self._waiting.require()
        slide = self._place_of(item)
        return (slide, admit(slide, self._waiting)) if isinstance(slide, RemoteSlide) else None

    def _fetch(self, placed: "Future[tuple[RemoteSlide, Mark] | None]") -> Hold | None:
        found = placed.result()
        return fetch(*found, self._waiting) if found else None
