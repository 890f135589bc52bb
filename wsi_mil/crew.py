"""What a worker of a cluster does for the loop.

A worker writes artifacts where the loop would have written them, by the same function (`wsi_mil.items.publish`), and
tells the loop only what it would have learnt: features of a slide may be hundreds of megabytes, which neither the
scheduler nor the machine that the command was typed on need ever see.
"""

import pickle
import queue
import socket
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from wsi_mil import publishing
from wsi_mil.errors import ClusterError, one_line
from wsi_mil.items import (
    Item,
    Origin,
    Outcome,
    Output,
    Published,
    Stage,
    Stream,
    appeared,
    attempt,
    fingerprint_of,
    publish,
)
from wsi_mil.progress import Progress
from wsi_mil.runs import artifact_path

_IDLE_S = 60.0
Told = Published | Exception


class Task(NamedTuple):
    """One item on its way to a worker."""

    item: Item
    origins: tuple[Origin | None, ...]
    """For each output of the crew; None = that one is there already."""


class Crew:
    """What does a worker's share of a stage, or of several that share their work."""

    def __init__(self, outputs: Sequence[Output], stream: Stream, in_turn: bool = False) -> None:
        """Take what workers need.

        Args:
            outputs: the stages, each with its folder, in the order of `Task.origins`.
            stream: what puts items through them.
            in_turn: whether one stream must serve all threads of the worker: it holds what there is only one of.
        """
        self.outputs = list(outputs)
        for output in self.outputs:
            publishing.sweep(output.folder)  # what workers on this machine left that were killed
        self._do = (
            _Shared(stream).do if in_turn else lambda item, wanted: list(stream(iter([(item, wanted)]), Progress()))
        )

    def params(self, _: None = None) -> list[Any]:
        """The parameters of the stages, which decide what they make."""
        return [output.stage.params for output in self.outputs]

    def work(self, task: Task) -> tuple[Told | None, ...]:
        """Make and publish what is wanted of an item; what became of it, for each output.

        Raises:
            ClusterError: this worker would make something else than the loop asked for.
        """
        told: dict[Path, Told] = {}
        wanted: dict[Output, Origin] = {}
        for output, origin in zip(self.outputs, task.origins, strict=True):
            if origin is None:
                continue
            _require_same(output.stage, origin)
            # By another run, or by a worker that was lost before it could tell.
            if attrs := appeared(artifact_path(output.folder, task.item.slide_id), origin):
                told[output.folder] = Published(attrs)
            else:
                wanted[output] = origin
        for item, output, outcome in self._do(task.item, list(wanted)) if wanted else ():
            made = attempt(publish, output.stage, item, outcome, output.folder, wanted[output])
            told[output.folder] = made if isinstance(made, Published) else portable(made)
        return tuple(told.get(output.folder) for output in self.outputs)


class _Shared:
    """One stream for all threads of a process: it takes what they bring, and ends whenever nothing waits.

    So a batch that is not full never waits for a slide that may not come, and while slides do come it goes on.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting: queue.Queue[_Order] = queue.Queue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def do(self, item: Item, wanted: list[Output]) -> list[Outcome]:
        """Put an item through the stream, and wait for what becomes of it; from any thread."""
        order = _Order(item, wanted)
        with self._starting:
            self._waiting.put(order)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="wsimil-stream", daemon=True)
                self._thread.start()
        return order.done.result()

    def _serve(self) -> None:
        """Run the stream again and again, until nothing has come for a while: then its crew may be let go."""
        while True:
            try:
                first = self._waiting.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._starting:
                    if self._waiting.empty():
                        self._thread = None
                        return
                continue
            taken = [first]
            failure = attempt(self._run, taken)
            for order in taken:
                if not order.done.done():
                    order.done.set_exception(failure or RuntimeError("the stream ended before the slide was done"))

    def _run(self, taken: "list[_Order]") -> None:
        def tasks() -> Iterator[tuple[Item, list[Output]]]:
            yield taken[0].item, taken[0].wanted
            while True:
                try:
                    order = self._waiting.get_nowait()
                except queue.Empty:
                    return
                taken.append(order)
                yield order.item, order.wanted

        with closing(self._stream(tasks(), Progress())) as outcomes:
            for outcome in outcomes:
                next(order for order in taken if order.item is outcome[0]).add(outcome)


class _Order:
    """An item that somebody waits for."""

    def __init__(self, item: Item, wanted: list[Output]) -> None:
        self.item, self.wanted = item, wanted
        self.outcomes: list[Outcome] = []
        self.done: Future[list[Outcome]] = Future()

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if len(self.outcomes) == len(self.wanted):
            self.done.set_result(self.outcomes)


def stream_of(output: Output) -> Stream:
    """The stream of one stage alone."""

    def stream(tasks: Iterator[tuple[Item, list[Output]]], track: Progress) -> Generator[Outcome]:
        for item, outcome in output.stage.stream((item for item, _ in tasks), track):
            yield item, output, outcome

    return stream


def crew_of(stage: Stage, folder: Path) -> Crew:
    """The crew of a stage that was sent as it is."""
    output = Output(stage, folder)
    return Crew([output], stream_of(output), getattr(stage, "in_turn", False))


def portable(error: Exception) -> Exception:
    """What of an error can be sent: itself, or what it says."""
    copied = attempt(lambda: pickle.loads(pickle.dumps(error)))
    return error if type(copied) is type(error) else ClusterError(one_line(error))


def _require_same(stage: Stage, origin: Origin) -> None:
    if fingerprint_of(stage, origin.upstream) != origin.fingerprint:
        raise ClusterError(
            f"a worker on {socket.gethostname()} would not make what was asked for: it has other weights of the encoder"
            " under the same name, or another version of wsimil; see `wsimil doctor` there"
        )
