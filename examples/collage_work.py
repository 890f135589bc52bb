"""Runs side by side, and tables of them that are whole at any moment."""

import csv
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from wsi_mil.errors import WsiMilError
from wsi_mil.progress import progress
from wsi_mil.publishing import replacing_text

# glibc gives arrays of over 128 kB back at once: a training step would spend a third of its time getting them again.
_KEEP_MEMORY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def read_rows(path: Path, kind: type[Any]) -> list[Any]:
    """The rows of an earlier run; none if there was none.

    Raises:
        WsiMilError: the file is not such a table, or was cut off or changed by hand.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = csv.DictReader(file)
        try:
            if tuple(lines.fieldnames or ()) != kind._fields:
                raise WsiMilError(f"{path} is no table of {','.join(kind._fields)}: give another --out")
            return [_row(line, kind) for line in lines]
        except ValueError as error:
            raise WsiMilError(f"{path}, line {lines.line_num}: {error}: mend or delete the line") from None


def _row(line: dict[str, str], kind: type[Any]) -> Any:
    """A row of the kind.

    Raises:
        ValueError: cells are missing, or are no numbers where these are due.
    """
    if None in line or None in line.values():
        raise ValueError("it has more or fewer cells than the first line")
    return kind(**{name: of(line[name]) for name, of in kind.__annotations__.items()})


def write_rows(path: Path, rows: list[Any]) -> None:
    """Write a table anew; it is whole at any moment."""
    with replacing_text(path) as file:
        csv.writer(file).writerows([rows[0]._fields, *sorted(rows)])


def in_processes(
    function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], workers: int, what: str
) -> Iterator[Any]:
    """Results as they come. Each process computes on one thread: bags are small."""
    jobs = list(jobs)
    if not jobs:
        return
    for name in _KEEP_MEMORY:  # read when a process starts, so these are told by its environment
        os.environ.setdefault(name, str(2**30))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wsi_mil.aggregators", "wsi_mil.learning"])
    pool = ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,))
    try:
        with progress(what, len(jobs)) as track:
            for future in as_completed([pool.submit(function, *job) for job in jobs]):
                yield future.result()
                track.advance(what)
    finally:
        pool.shutdown(cancel_futures=True)  # who stops early does not wait for what has not begun
