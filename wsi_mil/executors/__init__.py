"""Where the work of the loop runs: in threads of this process, or on a Dask cluster (`cluster`).

The modules here are the only doors to dask.

Threads are enough on one machine because what takes time (decoding, NumPy, torch) releases the interpreter lock, and
they need no pickling, so the same code runs on every platform.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")
_granted: list[int] = []


def grant_cores(cores: int) -> None:
    """Let this process, a worker of a cluster beside others, use so many cores at most."""
    _granted[:] = [cores]


def available_cores() -> int:
    """Cores that this process may use, not what the machine has: its affinity, the quota of its control group, and, of
    a worker of a cluster, as many threads as it was started with."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13 on; it minds PYTHON_CPU_COUNT, too
        cores = os.process_cpu_count() or 1
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _cgroup_quota() or cores, *_granted))


def map_unordered(
    function: Callable[[Item], Value], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Value]]:
    """Yield ``(item, function(item))`` as results come, at most ``2 * workers`` items being taken ahead.

    An exception of ``function`` ends the iteration; work that has not started is dropped then, and also when the
    caller stops iterating (Ctrl-C).
    """
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="wsimil")
    try:
        pending: dict[Future[Value], Item] = {}
        while True:
            for item in islice(source, 2 * workers - len(pending)):
                pending[pool.submit(function, item)] = item
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    finally:
        if isinstance(source, Generator):
            source.close()  # before waiting for threads, so that what they wait for is not done for nobody
        pool.shutdown(wait=True, cancel_futures=True)


def map_ordered(function: Callable[[Item], Value], items: Iterable[Item], workers: int) -> Generator[Value]:
    """Yield ``function(item)`` in the order of the items, at most ``2 * workers`` of them being taken ahead.

    Closing it waits for what is under way, so that whatever the function uses may be closed afterwards.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="wsimil")
    try:
        pending = [pool.submit(function, item) for item in islice(source, 2 * workers)]
        while pending:
            yield pending.pop(0).result()
            pending.extend(pool.submit(function, item) for item in islice(source, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cgroup_quota() -> int | None:
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:  # noqa: PTH123 - a path of the kernel, not a user's file
            quota, period = file.read().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def started_ranks() -> int:
    """Processes that share one training, as torchrun or whoever started them says; 1 = this one alone."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def local_rank() -> int:
    """Which of the processes that share a training on this machine this one is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if started_ranks() > 1 else 0


def is_first_rank() -> bool:
    """Whether this process, of those that share a training, is the one that writes and talks."""
    return started_ranks() == 1 or os.environ["RANK"] == "0"


def is_first_to_tell() -> bool:
    """Whether no other process of torchrun has said yet why all of them end; this one is then about to.

    Where one fails the others lose it, and all would say so.
    """
    if started_ranks() == 1:
        return True
    from torch.distributed import TCPStore

    place = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    try:
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        return store.add(f"wsimil/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except RuntimeError:  # nobody is there to ask any more: better told twice than never
        return True
