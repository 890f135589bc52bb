"""Runs side by side."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from wsi_mil.progress import progress

# glibc gives arrays of over 128 kB back at once: a training step would spend a third of its time getting them again.
_KEEP_MEMORY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


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
