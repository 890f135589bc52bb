"""Tiles are read in threads into batches of one shape, a few batches ahead of the encoder."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from wsi_mil.runs import Timing
from wsi_mil.stage import attempt
from wsi_mil.streaming.opening import Opener
from wsi_mil.streaming.works import Slide, Work

_CHUNK = 8  # tiles that a thread reads at once: long beside handing them out, short beside a batch
_AHEAD_BYTES = 1 << 28  # of pixels that wait for the encoder, or one batch if that is more


class Part(NamedTuple):
    """Neighbouring rows of a batch, all of one slide."""

    work: Work
    start: int
    """Which tile of the slide the first of them is."""
    row: int
    count: int


@dataclass(eq=False)
class Batch:
    """Tiles on their way to the encoder."""

    memory: UInt8[Tensor, "bytes"]
    pixels: UInt8[Tensor, "size side side 3"]
    """A view of it. Rows that are no tile's hold the first one once more."""
    parts: list[Part] = field(default_factory=list)
    rows: int = 0
    """How many are some tile's."""
    pieces: list[tuple[Work, Future]] = field(default_factory=list)
    """What threads read."""
    waited_s: float = 0.0
    """Wall time that the encoder waited for it."""
    decode_s: float = 0.0
    """CPU time of the threads that read it."""


class Reader(Generic[Slide]):
    """Gives one full batch after the other; used by one thread."""

    def __init__(
        self,
        sources: Iterator[Slide],
        size: int,
        threads: int,
        allocate: Callable[[int], UInt8[Tensor, "bytes"]],
        on_end: Callable[[Work[Slide]], None],
    ) -> None:
        """Begin to open slides.

        Args:
            sources: the slides of the cohort.
            size: rows of a batch.
            threads: how many read.
            allocate: makes memory that pixels go to the encoder from.
            on_end: is told of each slide that ends here: those that fail, and those without tiles.
        """
        self.size, self._allocate, self._on_end = size, allocate, on_end
        self._chunk = min(size, _CHUNK)
        self._batches = 1 + -(-2 * threads * self._chunk // size)  # ahead: two pieces for each thread, and one batch
        self._opener = Opener(sources, self._batches * size)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="wsimil-read")
        self._current: Work[Slide] | None = None
        self._filling: Batch | None = None
        self._planned: deque[Batch] = deque()
        self._free: list[Tensor] = []
        self._open: set[Work[Slide]] = set()
        self._stopped = False

    def __enter__(self) -> "Reader[Slide]":
        return self

    def __exit__(self, *_: object) -> None:
        self.interrupt()
        self._open.update(self._opener.stop())
        self._pool.shutdown(wait=True, cancel_futures=True)  # slides are closed when nobody reads them any more
        for work in self._open:
            work.tiles.close()

    def interrupt(self) -> None:
        """Read no more, from any thread; `take` ends soon, with nothing or with a batch of no use."""
        self._stopped = True
        self._opener.interrupt()

    def is_ready(self) -> bool:
        """Whether `take` would give a batch without waiting for its pixels."""
        self._plan(wait=False)
        return bool(self._planned) and all(future.done() for _, future in self._planned[0].pieces)

    def take(self) -> Batch | None:
        """Take the next batch, with its pixels; None after the last. Give it back by `release`."""
        began = time.perf_counter()
        self._plan(wait=True)
        if not self._planned or self._stopped:
            return None
        batch = self._planned.popleft()
        self._plan(wait=False)
        for work, future in batch.pieces:
            batch.decode_s += self._collect(work, future.result())
        batch.pixels[batch.rows :] = batch.pixels[0]  # not what lay there before: an encoder might fail on it
        batch.waited_s = time.perf_counter() - began
        return batch

    def release(self, batch: Batch) -> None:
        """Let the memory of a batch be used again."""
        self._free.append(batch.memory)

    def _plan(self, wait: bool) -> None:
        """Hand out tiles to be read while there is room ahead; ``wait`` for a slide to be open if there is no batch."""
        while not self._planned or len(self._planned) < self._room(self._planned[0]):
            work = self._slide(wait and not self._planned)
            if work is None:
                if self._filling and self._opener.ended:
                    self._seal()  # nothing will ever fill it up
                return
            self._add(work)

    def _room(self, batch: Batch) -> int:
        return min(self._batches, max(1, _AHEAD_BYTES // batch.pixels.numel()))

    def _slide(self, wait: bool) -> Work[Slide] | None:
        """The slide whose tiles come next; None if there is none, or none yet."""
        while (work := self._current) is None or work.over or work.planned == work.tiles.count:
            if work:
                self._close_if_read(work)
            self._current = work = self._opener.take(wait)
            if work is None:
                return None
            self._open.add(work)
            if not work.tiles.count:
                self._end(work)
        return work

    def _add(self, work: Work[Slide]) -> None:
        """Let as many tiles of a slide be read as the batch that is being filled has rows for."""
        tiles = work.tiles
        if self._filling and self._filling.pixels.shape[1] != tiles.side_px:
            self._seal()
            return
        batch = self._filling = self._filling or self._new_batch(tiles.side_px)
        part = Part(work, work.planned, batch.rows, min(self.size - batch.rows, tiles.count - work.planned))
        batch.parts.append(part)
        for offset in range(0, part.count, self._chunk):
            count = min(self._chunk, part.count - offset)
            place = batch.pixels[part.row + offset : part.row + offset + count]
            batch.pieces.append((work, self._pool.submit(attempt, self._read, work, part.start + offset, place)))
            work.reading += 1
        work.planned += part.count
        batch.rows += part.count
        if batch.rows == self.size:
            self._seal()

    def _new_batch(self, side_px: int) -> Batch:
        needed = self.size * side_px * side_px * 3
        memory = self._free.pop() if self._free else self._allocate(needed)
        if memory.numel() < needed:  # of smaller tiles
            memory = self._allocate(needed)
        return Batch(memory, memory[:needed].view(self.size, side_px, side_px, 3))

    def _seal(self) -> None:
        if self._filling:
            self._planned.append(self._filling)
        self._filling = None

    def _read(self, work: Work[Slide], start: int, place: UInt8[Tensor, "tiles side side 3"]) -> float:
        """Read tiles to their place in a batch, in a thread; return the CPU seconds that it took."""
        if work.over or self._stopped:
            return 0.0
        began = time.thread_time()
        place.numpy()[:] = work.tiles.read(start, start + len(place))
        return time.thread_time() - began

    def _collect(self, work: Work[Slide], found: float | Exception) -> float:
        """Take note of what became of a piece; return the CPU seconds that it took, if that is known."""
        work.reading -= 1
        if not isinstance(found, Exception):
            work.timing += Timing(decode_s=found)
        elif not work.over:
            work.error = found
            self._end(work)
        self._close_if_read(work)
        return 0.0 if isinstance(found, Exception) else found

    def _close_if_read(self, work: Work[Slide]) -> None:
        """Close a slide when nobody will read it any more; its tiles may still be on their way to the encoder."""
        if work in self._open and not work.reading and (work.over or work.planned == work.tiles.count):
            self._open.remove(work)
            work.tiles.close()

    def _end(self, work: Work[Slide]) -> None:
        work.over = True
        self._close_if_read(work)
        self._on_end(work)
