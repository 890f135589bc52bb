"""One thread gives batches to the encoders and returns rows to their slides; the caller gets those that are done."""

import queue
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, NamedTuple

from jaxtyping import Float32
from torch import Tensor

from wsi_mil.devices import within_cores
from wsi_mil.encoders import Encoder, Feeder, encoded
from wsi_mil.errors import OptionError
from wsi_mil.progress import Progress
from wsi_mil.runs import Timing
from wsi_mil.stage import attempt
from wsi_mil.streaming.reading import Batch, Part, Reader
from wsi_mil.streaming.telling import Told
from wsi_mil.streaming.works import Column, Slide, Work

_UNWRITTEN = 2  # slides whose features wait for the caller
_SECONDS = 0.05  # between looks at whether anybody still wants them


class Pace(NamedTuple):
    """How the stream goes about it."""

    batch: int
    """Tiles that an encoder takes at once: the shape of every batch."""
    threads: int
    """How many read tiles."""


def stream(
    sources: Iterator[Slide], encoders: Sequence[Encoder], pace: Pace, track: Progress, told: Told | None = None
) -> Generator[Work[Slide]]:
    """Put the tiles of all slides through all encoders; yield each slide when it is done, or has failed.

    An error costs as little as it may: one of a slide that slide, one of an encoder those slides for that encoder whose
    tiles it fails on. When the caller stops iterating, threads end and slides are closed before this returns.

    Args:
        sources: the slides, taken as there is room for them, in threads.
        encoders: those that the slides' columns name.
        pace: how.
        track: is told of tiles as they return.
        told: adds up where the time went.

    Raises:
        OptionError: an impossible batch size.
    """
    if pace.batch < 1:
        raise OptionError(f"--batch {pace.batch}: give a positive number of tiles")
    ended: queue.Queue[Work[Slide] | None] = queue.Queue(_UNWRITTEN)
    encoding = _Encoding(sources, encoders, pace, ended, track, told or Told(pace.threads))
    with ThreadPoolExecutor(1, thread_name_prefix="wsimil-encode") as pool:
        done = pool.submit(encoding.run)
        try:
            while work := ended.get():
                yield work
        finally:
            encoding.interrupt()
    done.result()


class _Encoding(Generic[Slide]):
    """What the thread that encodes does."""

    def __init__(
        self,
        sources: Iterator[Slide],
        encoders: Sequence[Encoder],
        pace: Pace,
        ended: "queue.Queue[Work[Slide] | None]",
        track: Progress,
        told: Told,
    ) -> None:
        self.encoders, self.ended, self.track, self.told = encoders, ended, track, told
        self.feeder = Feeder(encoders)
        self.reader = Reader(sources, pace.batch, pace.threads, self.feeder.allocate, self._give)
        self.stopped, self.last = False, time.perf_counter()

    def interrupt(self) -> None:
        """Come to an end soon; from another thread."""
        self.stopped = True
        self.reader.interrupt()

    def run(self) -> None:
        """Encode all batches."""
        try:
            with self.feeder, self.reader, within_cores():
                while not self.stopped and (batch := self.reader.take()):
                    self._feed(batch)
                    # A batch whose pixels are there goes to the device before anybody waits for the one that is on it.
                    while self.feeder.is_full or (len(self.feeder) and not self.reader.is_ready()):
                        self._return()
                while not self.stopped and len(self.feeder):
                    self._return()
        finally:
            self._give(None)

    def _give(self, work: Work | None) -> None:
        """Give a slide that is done to the caller, or word that there are no more, unless he has gone."""
        while not self.stopped:
            with suppress(queue.Full):
                self.ended.put(work, timeout=_SECONDS)
                return

    def _feed(self, batch: Batch) -> None:
        wanted = [one for one in self.encoders if any(part.work.wanted_by(one) for part in batch.parts)]
        self.feeder.put(batch, batch.pixels, wanted)

    def _return(self) -> None:
        """Return the rows of the oldest batch to their slides."""
        fed = self.feeder.get()
        batch: Batch = fed.label
        live = [part for part in batch.parts if not part.work.over]
        for encoder, found in zip(fed.encoders, fed.found, strict=True):
            for part in live:
                column = part.work.wanted_by(encoder)
                if column and isinstance(found, Exception):
                    _fill(column, part, _alone(encoder, batch, part, found))
                elif column:
                    _fill(column, part, found)
        now = time.perf_counter()
        spent, self.last = Timing(now - self.last, 0.0, batch.waited_s, fed.busy_s), now
        for part in live:
            self._count(part, spent * (part.count / batch.rows))
        self.reader.release(batch)
        tiles = sum(part.count for part in live)
        self.told.add(tiles, spent + Timing(decode_s=batch.decode_s))  # which slides have counted already, each its own
        self.track.step(tiles)
        self.track.tell(self.told.note)

    def _count(self, part: Part, spent: Timing) -> None:
        work = part.work
        work.timing += spent
        work.returned += part.count
        if work.returned == work.tiles.count or all(column.error for column in work.tiles.columns):
            work.over = True
            self._give(work)


def _fill(column: Column, part: Part, found: Float32[Tensor, "size dim"] | Exception) -> None:
    if isinstance(found, Exception):
        column.error = found
    else:
        column.fill(part.start, found[part.row : part.row + part.count])


def _alone(encoder: Encoder, batch: Batch, part: Part, error: Exception) -> Float32[Tensor, "size dim"] | Exception:
    """What becomes of a slide's rows without the others', after an encoder failed on a batch; in their place in it."""
    if len(batch.parts) == 1:
        return error
    pixels = batch.pixels[part.row].repeat(len(batch.pixels), 1, 1, 1)  # other rows hold a tile of the slide, too
    rows = slice(part.row, part.row + part.count)
    pixels[rows] = batch.pixels[rows]
    return attempt(encoded, encoder, pixels)
