"""Where the time of a stream went, in figures and in words."""

import time

from wsi_mil.executors import available_cores
from wsi_mil.runs import Timing

_HELD_BACK = 0.25  # share of the time that the encoder waits, from which reading may be what to improve
_BUSY = 0.6  # share of the cores, or of the reading threads' time: below, they wait for the disk


class Told:
    """Adds up where the time went."""

    def __init__(self, threads: int) -> None:
        """Take how many threads read."""
        self.threads, self.tiles, self.spent = threads, 0, Timing()
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def add(self, tiles: int, spent: Timing) -> None:
        """Count a batch, and what it took."""
        self.tiles += tiles
        self.spent += spent

    @property
    def note(self) -> str:
        """For the line of progress."""
        waiting, busy = self.spent.shares
        return f"reading {self.spent.decode_s:,.1f} CPU s, waiting for tiles {waiting:.0%}, encoder busy {busy:.0%}"

    def __str__(self) -> str:
        wall = max(time.perf_counter() - self._began, 1e-9)
        return (
            f"{self.tiles:,} tiles in {wall:,.1f} s, {self.tiles / wall:,.1f} tiles/s, {self.threads} threads:"
            f" {self.note}: {self._verdict(wall)}"
        )

    def _verdict(self, wall: float) -> str:
        waiting, busy = self.spent.shares
        if waiting < max(_HELD_BACK, busy):
            return "the encoder holds it back" if busy >= _HELD_BACK else "neither does, but what is around them"
        cores = available_cores()
        if (time.process_time() - self._cpu_began) >= _BUSY * wall * cores:
            return "decoding holds it back (more cores would help)"
        if self.spent.decode_s >= _BUSY * wall * self.threads:
            return "decoding holds it back (more --workers would help)"
        return "the disk holds it back, or opening slides if they are small"
