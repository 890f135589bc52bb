"""A small stage for tests of the loop: it turns the bytes of a file into an array."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsi_mil import store
from wsi_mil.errors import SlideUnreadable
from wsi_mil.progress import Progress
from wsi_mil.stage import Item, Result, RunOptions, per_slide, run

log = logging.getLogger("wsi_mil.toy")


@dataclass(frozen=True)
class ToyParams:
    factor: int = 1
    words: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class ToyStage:
    params: ToyParams = field(default_factory=ToyParams)
    pause: float = 0.0
    name: str = "toy"
    version: int = 1
    beside: tuple[str, ...] = (".txt",)

    def upstream(self, item: Item) -> str:
        return item.source.read_bytes().hex()[:64]

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        return per_slide(self.work, items, 2, track)

    def work(self, item: Item) -> Result:
        time.sleep(self.pause)
        data = np.frombuffer(item.source.read_bytes(), np.uint8).astype(np.int64)
        if b"bad" in item.source.read_bytes():
            raise SlideUnreadable(f"{item.source} cannot be read")
        if b"kill" in item.source.read_bytes():
            os.kill(os.getpid(), signal.SIGKILL)
        if b"bug" in item.source.read_bytes():
            raise ZeroDivisionError("two\nlines")
        if b"odd" in item.source.read_bytes():
            log.warning("%s is odd", item.slide_id)
        attrs = {"status": "empty" if data.size == 0 else "done", "tissue_mm2": float(data.size)}
        big = np.resize(data if data.size else np.zeros(1, np.int64), 200_000) * self.params.factor
        return Result(store.Artifact({"coords": data, "big": big}, attrs), data.size, {".txt": b"beside"})


class ToyCrew:
    """Notes on disk that it was made, and counts how many of its tasks are at work at once."""

    def __init__(self, folder: Path) -> None:
        (folder / f"made-{os.getpid()}-{time.monotonic_ns()}").touch()
        self.changing, self.busy = threading.Lock(), 0

    def work(self, _: object) -> tuple[int, int]:
        with self.changing:
            self.busy += 1
        time.sleep(0.1)
        with self.changing:
            seen, self.busy = self.busy, self.busy - 1
        return os.getpid(), seen


def items(folder: Path) -> list[Item]:
    return [Item(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]


if __name__ == "__main__":  # a run to be killed
    source, out = map(Path, sys.argv[1:])
    run(ToyStage(pause=0.01), items(source), out, RunOptions(workers=2))
