"""The loop's work on a cluster: what is sent there, and how what comes back becomes outcomes."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

from wsi_mil import publishing
from wsi_mil.crew import Crew, Task, Told
from wsi_mil.errors import ClusterError
from wsi_mil.items import Became, Item, Origin, Output, Published
from wsi_mil.progress import Progress
from wsi_mil.runs import RunOptions

if TYPE_CHECKING:
    from wsi_mil.executors.cluster import Cluster, Job

Question = TypeVar("Question")


class Elsewhere:
    """Does on a cluster what a stream does here."""

    def __init__(self, cluster: "Cluster", job: "Job", outputs: Sequence[Output]) -> None:
        """Take where, what, and the outputs in the order of the crew's."""
        self._cluster, self._job, self._outputs = cluster, job, outputs

    def stream(
        self, origins: Mapping[Path, Mapping[str, Origin]]
    ) -> Callable[[Iterator[tuple[Item, list[Output]]], Progress], Generator[Became]]:
        """The stream, given what decides each artifact, by folder and slide_id."""

        def outcomes(tasks: Iterator[tuple[Item, list[Output]]], track: Progress) -> Generator[Became]:
            with publishing.marked(self._outputs[0].folder.absolute()) as mark:
                job = self._job._replace(mark=mark)
                self._cluster.check(job)
                sent = (self._task(item, wanted, origins) for item, wanted in tasks)
                with closing(self._cluster.map_unordered(job, "work", sent)) as answers:
                    for task, told in answers:
                        yield from self._told(task, told, track)

        return outcomes

    def _task(self, item: Item, wanted: list[Output], origins: Mapping[Path, Mapping[str, Origin]]) -> Task:
        own = [origins[one.folder][item.slide_id] if one in wanted else None for one in self._outputs]
        return Task(item._replace(source=item.source.absolute()), tuple(own))

    def _told(self, task: Task, told: tuple[Told | None, ...] | Exception, track: Progress) -> Iterator[Became]:
        for place, output in enumerate(self._outputs):
            if task.origins[place] is None:
                continue
            one = told if isinstance(told, Exception) else told[place]
            if one is None:
                one = ClusterError("its worker did not say what became of it: type the same command again")
            if isinstance(one, Published):
                track.step(one.attrs["tiles"])
            yield task.item, output, one


@contextmanager
def executing(
    options: RunOptions, crew: Callable[[], Crew] | None, outputs: Sequence[Output], items: Sequence[Item]
) -> Generator[Elsewhere | None]:
    """Connect to the cluster that the options name; None where they name none.

    Raises:
        ClusterError: it cannot be reached.
    """
    if not options.scheduler:
        yield None
        return
    if crew is None:
        raise ValueError(f"nothing says how a worker of {options.scheduler} makes itself what the stages need")
    from wsi_mil.executors.cluster import Job  # here, since dask takes a while to load
    from wsi_mil.executors.connection import connected

    with connected(options.scheduler) as cluster:
        first = next((item.source for item in items if isinstance(item.source, Path)), None)
        seen = (first.absolute().parent,) if first else ()  # the slide itself may have vanished
        yield Elsewhere(cluster, Job(crew, options.device, seen), outputs)


@contextmanager
def asking(scheduler: str, device: str) -> Generator[tuple[str, Callable[[Callable[[], Any], str], Any]]]:
    """Connect to a cluster for a question before the work.

    Args:
        scheduler: its address.
        device: as ``--device`` says it.

    Yields:
        What workers shall use, cpu or cuda; and what asks one of them: given what makes a crew there, and the name of
        the crew's method that answers.

    Raises:
        ClusterError: the cluster cannot be reached, a worker cannot do the work, or none has such a device.
    """
    from wsi_mil.executors.cluster import Job
    from wsi_mil.executors.connection import connected

    with connected(scheduler) as cluster:
        found = cluster.device(device)

        def ask(make: Callable[[], Any], method: str) -> Any:
            job = Job(make, found)
            cluster.check(job)
            return cluster.ask(job, method)

        yield found, ask


def each(
    scheduler: str,
    device: str,
    make: Callable[[str], Any],
    seen: Sequence[Path],
    questions: Iterable[Question],
    mark: Path | None = None,
) -> Generator[tuple[Question, Any | ClusterError]]:
    """Yield questions with what workers say to them, as they are answered: what is no stage goes this way.

    Args:
        scheduler: address of the cluster.
        device: as ``--device`` says it.
        make: makes, on a worker and given its device, an object whose method ``work`` answers.
        seen: files and folders that a worker must see, absolute.
        questions: whatever ``work`` takes.
        mark: as in `Job`.

    Raises:
        ClusterError: as `asking`.
    """
    from wsi_mil.executors.cluster import Job
    from wsi_mil.executors.connection import connected

    with connected(scheduler) as cluster:
        found = cluster.device(device)
        job = Job(partial(make, found), found, tuple(seen), mark, token_hex(8))
        cluster.check(job)
        yield from cluster.map_unordered(job, "work", questions)
