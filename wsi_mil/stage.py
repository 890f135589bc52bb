"""The one loop over slides: skip what is finished, isolate errors, publish, report.

A stage takes an iterator of pending items and yields ``(item, Result or Exception)`` in any order. It writes nothing:
`run` publishes each result as it comes, so a stage may be an ordinary function of one slide (`per_slide`) or one
stream over the whole cohort.

What has been done is read off the disk: an artifact that exists is complete (`store`), and its fingerprint says
whether it is the one asked for. So there are no locks and no database, and killing a run loses only work in flight.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from wsi_mil import publishing, store
from wsi_mil.errors import ArtifactCorrupt, ArtifactStale, OptionError
from wsi_mil.executors import map_unordered
from wsi_mil.guards import parse_json
from wsi_mil.progress import Progress, progress
from wsi_mil.runs import Report, Row, RunOptions, Timing, artifact_path, artifacts, write_tables

log = logging.getLogger(__name__)


class Item(NamedTuple):
    """One slide on its way through a stage."""

    slide_id: str
    source: Any
    """What the stage reads: a slide's `wsi_mil.slides.Place`, or the `Path` of the artifact of the stage before."""


@dataclass(frozen=True)
class Result:
    """What a stage made of one item. Files are published before the artifact, whose existence means complete."""

    artifact: store.Artifact
    """``attrs`` may hold ``status`` ("done" unless told, or "empty") and ``tissue_mm2``."""
    tiles: int
    """How many tiles the slide has."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Files beside the artifact, by suffix (".jpg")."""
    timing: Timing = field(default_factory=Timing)
    """How long the slide took."""


@runtime_checkable
class Stage(Protocol):
    """What the loop needs of a stage."""

    @property
    def name(self) -> str:
        """Short name, as recorded in the artifacts."""
        ...

    @property
    def version(self) -> int:
        """Raised whenever the same input starts to give another result."""
        ...

    @property
    def params(self) -> Any:
        """A frozen dataclass: everything that decides the result, nothing else."""
        ...

    def upstream(self, item: Item) -> str:
        """Fingerprint of what the artifact of this item is made from."""
        ...

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        """Yield what became of each item, in any order."""
        ...


class Output(NamedTuple):
    """A stage, and the folder that its artifacts go to."""

    stage: Stage
    folder: Path


Outcome = tuple[Item, Output, Result | Exception]
Stream = Callable[[Iterator[tuple[Item, list[Output]]], Progress], Generator[Outcome]]
"""Takes items, each with the outputs that it still has to give, and yields what became of each, in any order."""


def run(stage: Stage, items: Iterable[Item], out: Path, options: RunOptions | None = None) -> Report:
    """Put every item through a stage, publishing ``out/<slide_id>.h5`` for each.

    A slide that fails is recorded and named in the report, and never stops the others.

    Raises:
        ArtifactStale: some artifacts in ``out`` were made from other input or with other options, and overwriting was
            not asked for. Nothing has been done then.
    """
    output = Output(stage, out)

    def stream(tasks: Iterator[tuple[Item, list[Output]]], track: Progress) -> Generator[Outcome]:
        for item, outcome in stage.stream((item for item, _ in tasks), track):
            yield item, output, outcome

    return run_together([output], items, stream, options)[out]


def run_together(
    outputs: Sequence[Output], items: Iterable[Item], stream: Stream, options: RunOptions | None = None
) -> dict[Path, Report]:
    """Run several stages of one kind over the same items at once, for the work that they share: the loop itself.

    Each output skips, fails and reports by itself; the reports come back by folder.

    Raises:
        ArtifactStale: as `run`, for any of the outputs.
    """
    options = options or RunOptions()
    chosen = options.part(list(items))
    runs = {output.folder: _Run(output, chosen, options) for output in outputs}
    tasks = [(item, [output for output in outputs if item.slide_id in runs[output.folder].origins]) for item in chosen]
    try:
        with (
            progress(outputs[0].stage.name, sum(len(wanted) for _, wanted in tasks)) as track,
            closing(stream((task for task in tasks if task[1]), track)) as outcomes,  # so that its threads end first
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


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """Return ``function(*args)``, or the exception that it raised: the one place where any error is caught."""
    try:
        return function(*args)
    except Exception as error:  # whatever a slide does to us must not stop the others
        log.debug("%s", error, exc_info=True)
        return error


def artifact_items(folder: Path) -> list[Item]:
    """The artifacts of an earlier stage, as items for the next one, by slide_id."""
    return sorted(Item(*named) for named in artifacts(folder))


class _Origin(NamedTuple):
    """What decides an artifact's content."""

    upstream: str
    fingerprint: str


class _Run:
    """One output during a run: what it still has to make, and what became of everything."""

    def __init__(self, output: Output, items: list[Item], options: RunOptions) -> None:
        """Sort the items: some are skipped, some have failed already, the others have an origin.

        Raises:
            ArtifactStale: some were made otherwise, and overwriting was not asked for.
        """
        self.stage, self.out = output
        self.report, self.rows = Report(), list[Row]()
        self.origins: dict[str, _Origin] = {}
        _make_folder(self.out)
        stale = [found for item in items if (found := self._stale(item, options))]
        if stale and not options.refresh:
            raise ArtifactStale(_stale_message(self.stage, stale, self.out))

    def _stale(self, item: Item, options: RunOptions) -> tuple[Item, dict[str, Any]] | None:
        """Decide what to do with an item; return it, with the attributes of what is there, if that is stale."""
        path, origin = attempt(artifact_path, self.out, item.slide_id), attempt(_origin, self.stage, item)
        existing = path if isinstance(path, Exception) else attempt(_existing, self.stage, path, options)
        if error := next((value for value in (origin, existing) if isinstance(value, Exception)), None):
            self.rows.append(self.report.fail(item.slide_id, error))
            if options.overwrite and isinstance(path, Path):
                _withdraw(self.stage, path, None)
            return None
        if existing is not None and existing.get("fingerprint") == origin.fingerprint and not options.overwrite:
            self.report.skipped.append(item.slide_id)
            return None
        self.origins[item.slide_id] = origin
        return (item, existing) if existing is not None and not options.overwrite else None

    def finish(self, item: Item, outcome: Result | Exception) -> None:
        """Publish what was made of an item, or take note of its failure."""
        made = _publish(self.stage, item, outcome, self.out, self.origins[item.slide_id])
        if isinstance(made, Exception):
            self.rows.append(self.report.fail(item.slide_id, made))
        else:
            self.rows.append(self.report.finish(made.artifact.attrs, made.timing))


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--out {out}: no folder can be made there ({error.strerror}): name another") from error
    publishing.sweep(out)


def _origin(stage: Stage, item: Item) -> _Origin:
    upstream = stage.upstream(item)
    return _Origin(upstream, store.fingerprint(stage.name, stage.version, _params(stage), upstream))


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


def _params(stage: Stage) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(stage.params)))  # as it will be read back: tuples are lists


def _params_of(attrs: dict[str, Any]) -> dict[str, Any]:
    """The parameters that an artifact was made with, as far as it tells."""
    found = attempt(parse_json, attrs.get("params", "{}"))
    return found if isinstance(found, dict) else {}


def _stale_message(stage: Stage, stale: list[tuple[Item, dict[str, Any]]], out: Path) -> str:
    item, attrs = stale[0]
    before, now = _params_of(attrs), _params(stage)
    changed = [f"{key} was {before.get(key)!r}, now {now[key]!r}" for key in now if before.get(key) != now[key]]
    why = "; ".join(changed) or "its input, or the version of wsimil, has changed"
    more = f" (and {len(stale) - 1} more)" if len(stale) > 1 else ""
    path = artifact_path(out, item.slide_id)
    return f"{path}{more} was made otherwise: {why}. Add --overwrite to make it again, or --out for another folder"


def _publish(stage: Stage, item: Item, outcome: Result | Exception, out: Path, origin: _Origin) -> Result | Exception:
    path = artifact_path(out, item.slide_id)
    if isinstance(outcome, Exception):
        _withdraw(stage, path, origin)
        return outcome
    attrs = {
        "status": "done",
        **outcome.artifact.attrs,
        "stage": stage.name,
        "stage_version": stage.version,
        "params": json.dumps(_params(stage), sort_keys=True),
        "upstream": origin.upstream,
        "fingerprint": origin.fingerprint,
        "slide_id": item.slide_id,
        "tiles": outcome.tiles,
    }
    complete = dataclasses.replace(outcome, artifact=dataclasses.replace(outcome.artifact, attrs=attrs))
    return attempt(_write, path, complete) or complete


def _withdraw(stage: Stage, path: Path, origin: _Origin | None) -> None:
    """Take away what an earlier run, with other input or options, left of a slide that fails now.

    Where not even its origin is known (the slide is gone), only other options count.
    """
    before = attempt(store.read_attrs, path) if path.exists() else None
    if not isinstance(before, dict) or before.get("stage") != stage.name:
        return
    same = before.get("fingerprint") == origin.fingerprint if origin else _params_of(before) == _params(stage)
    if not same:
        path.unlink()


def _write(path: Path, made: Result) -> None:
    for suffix, data in made.files.items():
        publishing.write_bytes(path.with_name(path.name.removesuffix(".h5") + suffix), data)
    store.write(path, made.artifact)
