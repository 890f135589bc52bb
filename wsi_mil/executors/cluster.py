"""A Dask cluster as the place where work runs.

A `Job` is sent to each worker once, as a recipe; what follows is one small task for each thing to be done. The
scheduler deals them out, gives those of a worker that died to others, and says so when one has killed several.
"""

import logging
import pickle
import time
from asyncio import CancelledError
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from wsi_mil import __version__
from wsi_mil.errors import ClusterError, OptionError, one_line
from wsi_mil.executors import worker

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)
Argument = TypeVar("Argument")

_SMALL_RECIPE = 1 << 16  # bytes
_PAUSE_S = 0.02  # between looks at what is done
_LOOK_S = 1.0  # between looks at which workers there are
_TELL_S = 60.0  # between words about there being none
_AHEAD = 2  # tasks for each thread of the cluster: one that runs, one that waits beside it
_DECLARES = '--nthreads 8 --resources "GPU=1"'
_GPU_SHARE = 0.25  # of a GPU that a slide asks for: while one is encoded, the next ones are opened and read


class Job(NamedTuple):
    """What workers are to do."""

    make: Callable[[], Any]
    """Makes, on a worker, an object whose methods do the work. It is pickled, so it names files and holds none."""
    device: str = "cpu"
    """Where a worker does it; "cuda" goes to workers that declare a GPU only."""
    paths: tuple[Path, ...] = ()
    """What a worker must see, absolute."""
    mark: Path | None = None
    """A file that was just made in the folder that a worker must be able to write in."""
    token: str = ""
    """Of one run, where what is made on a worker must be made anew for each: a file that it reads may have changed."""


class Cluster:
    """The workers behind one scheduler."""

    def __init__(self, client: "Client", address: str) -> None:
        """Take a connection, and what the user called it."""
        self._client, self._address = client, address
        self._threads, self._looked, self._told = 0, 0.0, time.monotonic()
        self._there = set[str]()

    def device(self, name: str) -> str:
        """Turn what ``--device`` says into what workers shall use; ``auto`` prefers GPUs, where some declare one.

        Raises:
            OptionError: a GPU by its number.
            ClusterError: no worker declares a GPU.
        """
        if name == "cpu":
            return name
        if name not in ("auto", "cuda"):
            raise OptionError(f"--device {name}: with --scheduler give auto, cpu or cuda: each worker has its own GPU")
        has_gpu = any(seen.gpus > 0 for seen in self._look(worker.Need(__version__)).values())
        if name == "cuda" and not has_gpu:
            raise ClusterError(
                f"--device cuda: no worker of {self._address} declares a GPU: start one with `dask worker"
                f" {self._address} {_DECLARES}`, or give --device cpu"
            )
        return "cuda" if has_gpu else "cpu"

    def check(self, job: Job) -> None:
        """Refuse a cluster of which a worker could not do its work.

        Raises:
            ClusterError: names the worker, and what it lacks.
        """
        need = _need(job)
        for address, seen in self._look(need).items():
            if fault := seen.fault(need):
                raise ClusterError(f"worker {address} {fault}")

    def ask(self, job: Job, method: str, argument: Any = None) -> Any:
        """Let one worker do something.

        Raises:
            ClusterError: it cannot.
        """
        ((_, answer),) = self.map_unordered(job, method, [argument])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def map_unordered(
        self, job: Job, method: str, arguments: Iterable[Argument]
    ) -> Generator[tuple[Argument, Any | ClusterError]]:
        """Yield each argument with what the method of the job's object makes of it, as results come.

        Two tasks for each thread that the cluster has at the moment are under way. When the caller stops iterating,
        those that have not started are dropped; those that have come to their end, and nobody hears of it.

        Yields:
            A ``ClusterError`` for an argument that has cost several workers their life.

        Raises:
            ClusterError: a worker cannot do its work, whatever the argument, or the scheduler went away.
        """
        from distributed import as_completed

        send, source = self._sender(job, method), iter(arguments)
        pending: dict[Future, Argument] = {}
        ready = as_completed(loop=self._client.loop)
        try:
            while True:
                for argument in islice(source, self._room(job.device, len(pending))):
                    future = send(argument)
                    pending[future] = argument
                    ready.add(future)
                if not pending:
                    return
                if not ready.has_ready():
                    time.sleep(_PAUSE_S)
                    continue
                for future in ready.next_batch(block=False):
                    yield pending.pop(future), self._outcome(future)
        finally:
            if self._client.status == "running":
                self._client.cancel(list(pending), force=True)

    def _sender(self, job: Job, method: str) -> "Callable[[Any], Future]":
        """What sends a task, with its recipe."""
        recipe = self._recipe(pickle.dumps((job.token, job.make)))
        need = _need(job)
        resources = {"GPU": _GPU_SHARE} if job.device.startswith("cuda") else None

        def send(argument: Any) -> "Future":
            with self._reached():
                return self._client.submit(worker.work, recipe, need, method, argument, pure=False, resources=resources)

        return send

    def _recipe(self, data: bytes) -> "bytes | Future":
        """What every task brings along: Dask gives tasks to workers that hold what they need, and to no others.

        So a small one goes with each task. A large one (of the paths of many slides) is a task of its own, which is
        done again if its workers die, and lies on all workers that there are; those that join later steal.
        """
        if len(data) <= _SMALL_RECIPE:
            return data
        with self._reached():
            made = self._client.submit(worker.keep, data, pure=False)
            self._client.replicate([made])
        return made

    def _outcome(self, future: "Future") -> Any:
        """What became of a task.

        Raises:
            ClusterError: as `map_unordered`.
        """
        from distributed import KilledWorker

        if future.status == "finished":
            with self._reached():  # what a worker said lies with the scheduler until it is asked for
                return future.result()
        if future.status != "error":
            raise self._gone()
        error = future.exception()
        if isinstance(error, KilledWorker):
            return ClusterError(
                f"{error.allowed_failures + 1} workers died at work on it, the last at {error.last_worker.address}:"
                " see their logs; for want of memory, start workers with fewer --nthreads or a higher --memory-limit"
            )
        if isinstance(error, ClusterError):
            raise error
        raise ClusterError(f"a worker of {self._address} failed: {one_line(error)}") from error

    def _gone(self) -> ClusterError:
        return ClusterError(
            f"the scheduler at {self._address} went away, or dropped the work: see its log, and type the same command"
            " again, which goes on from what is finished"
        )

    @contextmanager
    def _reached(self) -> Generator[None]:
        """Whoever asks the scheduler within it learns that it is gone.

        Raises:
            ClusterError: it is.
        """
        from distributed.client import CancelledError as Dropped
        from distributed.client import ClosedClientError

        try:
            yield
        except (OSError, ClosedClientError, CancelledError, Dropped) as error:  # what lost connections turn into
            raise self._gone() from error

    def _room(self, device: str, pending: int) -> int:
        """How many more tasks may be sent."""
        now = time.monotonic()
        if now - self._looked > _LOOK_S:
            with self._reached():
                self._looked, self._threads = now, self._threads_for(device)
            if not self._threads and now - self._told > _TELL_S:
                self._tell_none(device)
        return max(0, _AHEAD * max(self._threads, 1) - pending)

    def _threads_for(self, device: str) -> int:
        """Threads of the workers that may take a task: for GPUs, of those that declare one."""
        threads = self._client.nthreads()
        for address in sorted(self._there - threads.keys()):
            log.warning("worker %s left: what it was at goes to others", address)
        self._there = set(threads)
        if device == "cpu":
            return sum(threads.values())
        told = self._client.scheduler_info(n_workers=-1)["workers"]
        return sum(count for address, count in threads.items() if told.get(address, {}).get("resources", {}).get("GPU"))

    def _tell_none(self, device: str) -> None:
        self._told = time.monotonic()
        kind, words = ("worker", "") if device == "cpu" else ("worker that declares a GPU", f" {_DECLARES}")
        told = "no %s is at %s: waiting for one, as `dask worker %s%s` starts"
        log.warning(told, kind, self._address, self._address, words)

    def _look(self, need: worker.Need) -> dict[str, worker.Seen]:
        """What each worker is and sees, by address; waits for the first one."""
        while True:
            with self._reached():
                if not self._client.nthreads():
                    self._wait_for_one()
                found = self._client.run(worker.look, need, on_error="return")
                if lost := {address for address, seen in found.items() if isinstance(seen, OSError)}:
                    time.sleep(_LOOK_S)  # until the scheduler knows, too, who has left while being asked
                    lost -= self._client.nthreads().keys()
            here = {address: seen for address, seen in found.items() if address not in lost}
            for address, seen in here.items():
                if isinstance(seen, BaseException):
                    raise ClusterError(
                        f"worker {address} cannot run wsimil ({one_line(seen)}): pip install"
                        f" 'wsi-mil[cluster]=={__version__}' there"
                    )
            if here:
                return here

    def _wait_for_one(self) -> None:
        """Wait for a worker; a cluster that grows with its work starts one for what is asked."""
        self._tell_none("cpu")
        first = self._client.submit(int, pure=False)
        while not first.done():
            time.sleep(_PAUSE_S)
        self._outcome(first)


def _need(job: Job) -> worker.Need:
    return worker.Need(__version__, tuple(map(str, job.paths)), str(job.mark or ""))
