"""The one loop over slides: skip what is finished, isolate errors, publish, report.

A stage takes an iterator of pending items and yields ``(item, Result or Exception)`` in any order. It writes nothing:
`run` publishes each result as it comes, so a stage may be an ordinary function of one slide (`per_slide`) or one
stream over the whole cohort.

What has been done is read off the disk: an artifact that exists is complete (`store`), and its fingerprint says
whether it is the one asked for. So there are no locks and no database, and killing a run loses only work in flight.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from wsi_mil import dispatch, publishing, store
from wsi_mil.crew import Crew, crew_of, stream_of
from wsi_mil.errors import ArtifactCorrupt, ArtifactStale, OptionError
from wsi_mil.executors import map_unordered
from wsi_mil.guards import printable
from wsi_mil.items import (
    Item,
    Origin,
    Outcome,
    Output,
    Published,
    Result,
    Stage,
    Stream,
    appeared,
    attempt,
    origin_of,
    publish,
    what_changed,
    withdraw,
)
from wsi_mil.progress import Progress, progress
from wsi_mil.runs import Report, Row, RunOptions, Timing, artifact_path, artifacts, write_tables

__all__ = [
    "Item", "Outcome", "Output", "Result", "RunOptions", "Stage", "Stream", "artifact_items", "artifact_path",
    "attempt", "per_slide", "run", "run_together",
]  # fmt: skip
log = logging.getLogger(__name__)


def run(stage: Stage, items: Iterable[Item], out: Path, options: RunOptions | None = None) -> Report:
    """Put every item through a stage, publishing ``out/<slide_id>.h5`` for each.

    A slide that fails is recorded and named in the report, and never stops the others.

    Raises:
        ArtifactStale: some artifacts in ``out`` were made from other input or with other options, and overwriting was
            not asked for. Nothing has been done then.
    """
    output, crew = Output(stage, out), partial(crew_of, stage, out.absolute())
    return run_together([output], items, stream_of(output), options, crew)[out]


def run_together(
    outputs: Sequence[Output],
    items: Iterable[Item],
    stream: Stream,
    options: RunOptions | None = None,
    crew: Callable[[], Crew] | None = None,
) -> dict[Path, Report]:
    """Run several stages of one kind over the same items at once, for the work that they share: the loop itself.

    Each output skips, fails and reports by itself; the reports come back by folder. On a cluster, which the options
    name, workers do what ``stream`` does here: each makes itself a ``crew``, and publishes for the loop.

    Raises:
        ArtifactStale: as `run`, for any of the outputs.
        ClusterError: the cluster cannot be reached, or a worker cannot do the work.
    """
    options = options or RunOptions()
    chosen = options.part(list(items))
    with dispatch.executing(options, crew, outputs, chosen) as elsewhere:
        runs = {output.folder: _Run(output, chosen, options) for output in outputs}
        tasks = [(item, [one for one in outputs if item.slide_id in runs[one.folder].origins]) for item in chosen]
        origins = {folder: one.origins for folder, one in runs.items()}
        run_all = elsewhere.stream(origins) if elsewhere else stream
        try:
            with (
                progress(outputs[0].stage.name, sum(len(wanted) for _, wanted in tasks)) as track,
                closing(run_all(_wanted(tasks, runs, track), track)) as outcomes,  # so that its threads end first
            ):
                for item, output, outcome in outcomes:
                    runs[output.folder].finish(item, outcome)
                    track.advance(item.slide_id)
        finally:
            for folder, one in runs.items():
                write_tables(folder, one.rows)
    return {folder: one.report for folder, one in runs.items()}


def per_slide(
    function: Callable[[Item], Result], items: Iterator[Item], workers: int, track: Progress
) -> Generator[tuple[Item, Result | Exception]]:
    """Lift a function of one item to a stream: run it in threads, an error costing only its own item."""

    def timed(item: Item) -> Result:
        started = time.monotonic()
        return dataclasses.replace(function(item), timing=Timing(time.monotonic() - started))

    for item, outcome in map_unordered(lambda item: attempt(timed, item), items, workers):
        track.step(outcome.tiles if isinstance(outcome, Result) else 0)
        yield item, outcome


def artifact_items(folder: Path) -> list[Item]:
    """The artifacts of an earlier stage, as items for the next one, by slide_id."""
    return sorted(Item(*named) for named in artifacts(folder))


def _wanted(
    tasks: list[tuple[Item, list[Output]]], runs: dict[Path, "_Run"], track: Progress
) -> Iterator[tuple[Item, list[Output]]]:
    """What is left to do as its turn comes: another run over the same folder may have done some of it."""
    for item, outputs in tasks:
        left = [output for output in outputs if not runs[output.folder].was_made_meanwhile(item)]
        for _ in range(len(outputs) - len(left)):
            track.advance(item.slide_id)
        if left:
            yield item, left


class _Run:
    """One output during a run: what it still has to make, and what became of everything."""

    def __init__(self, output: Output, items: list[Item], options: RunOptions) -> None:
        """Sort the items: some are skipped, some have failed already, the others have an origin.

        Raises:
            ArtifactStale: some were made otherwise, and overwriting was not asked for.
        """
        self.stage, self.out = output
        self.report, self.rows = Report(), list[Row]()
        self.origins: dict[str, Origin] = {}
        _make_folder(self.out)
        stale = [found for item in items if (found := self._stale(item, options))]
        if stale and not options.refresh:
            upstream = self.origins[stale[0][0].slide_id].upstream
            raise ArtifactStale(_stale_message(self.stage, stale, upstream, self.out))

    def _stale(self, item: Item, options: RunOptions) -> tuple[Item, dict[str, Any]] | None:
        """Decide what to do with an item; return it, with the attributes of what is there, if that is stale."""
        path, origin = attempt(artifact_path, self.out, item.slide_id), attempt(origin_of, self.stage, item)
        existing = path if isinstance(path, Exception) else attempt(_existing, self.stage, path, options)
        if error := next((value for value in (origin, existing) if isinstance(value, Exception)), None):
            self.rows.append(self.report.fail(item.slide_id, error).of(item.source))
            if options.overwrite and isinstance(path, Path):
                withdraw(self.stage, path, None)
            return None
        current = existing is not None and existing.get("fingerprint") == origin.fingerprint
        damaged = current and options.overwrite and isinstance(attempt(store.read, path), Exception)
        if current and not damaged:
            self.report.skipped.append(item.slide_id)
            return None
        self.origins[item.slide_id] = origin._replace(again=damaged)
        return (item, existing) if existing is not None and not options.overwrite else None

    def was_made_meanwhile(self, item: Item) -> bool:
        """Whether another run has published the artifact of an item since this one began."""
        if not appeared(artifact_path(self.out, item.slide_id), self.origins[item.slide_id]):
            return False
        log.info("%s: another run made it meanwhile: left as it is", printable(item.slide_id))
        self.report.skipped.append(item.slide_id)
        return True

    def finish(self, item: Item, outcome: Result | Published | Exception) -> None:
        """Publish what was made of an item, unless a worker did, or take note of its failure."""
        made = outcome
        if not isinstance(made, Published):
            made = publish(self.stage, item, made, self.out, self.origins[item.slide_id])
        if isinstance(made, Exception):
            self.rows.append(self.report.fail(item.slide_id, made).of(item.source))
            return
        if made.meanwhile:
            log.warning("%s: %s", printable(item.slide_id), made.meanwhile)
        self.rows.append(self.report.finish(made.attrs, made.timing))


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--out {out}: no folder can be made there ({error.strerror}): name another") from error
    publishing.sweep(out)


def _existing(stage: Stage, path: Path, options: RunOptions) -> dict[str, Any] | None:
    """The attributes of the artifact that lies there; a damaged one that will be made again counts as absent.

    Raises:
        ArtifactStale: another stage's artifact, or somebody else's file, lies there: not even overwriting replaces it.
    """
    if not path.exists():
        return None
    try:
        attrs = store.read_attrs(path)
    except ArtifactCorrupt:
        if options.refresh or options.overwrite:
            return None
        raise
    if attrs.get("stage") != stage.name:
        made_by = f"`{attrs['stage']}`" if "stage" in attrs else "another program"
        raise ArtifactStale(f"{path} was made by {made_by}, not by `{stage.name}`: give another --out")
    return attrs


def _stale_message(stage: Stage, stale: list[tuple[Item, dict[str, Any]]], upstream: str, out: Path) -> str:
    item, attrs = stale[0]
    more = f" (and {len(stale) - 1} more)" if len(stale) > 1 else ""
    path, why = artifact_path(out, item.slide_id), what_changed(stage, attrs, upstream)
    return f"{path}{more} was made otherwise: {why}. Add --overwrite to make it again, or --out for another folder"
