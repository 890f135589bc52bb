"""What a stage makes of one item, and how it is published: by the loop (`wsi_mil.stage`), or by a worker for it.

Nothing else publishes artifacts of stages. Whoever does it, the bytes are the same.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from wsi_mil import publishing, store
from wsi_mil.changes import changes
from wsi_mil.guards import parse_json
from wsi_mil.progress import Progress
from wsi_mil.runs import Timing, artifact_path

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

    @property
    def beside(self) -> tuple[str, ...]:
        """Suffixes of the files that it gives beside the artifact: they go where that goes."""
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


class Origin(NamedTuple):
    """What decides an artifact's content."""

    upstream: str
    fingerprint: str
    again: bool = False
    """Whether what lies there says that it is the very same, and is damaged: it is replaced."""


@dataclass(frozen=True)
class Published:
    """What is known of an artifact that lies in its folder."""

    attrs: Mapping[str, Any]
    """Of its root."""
    timing: Timing = field(default_factory=Timing)
    """How long the slide took."""
    meanwhile: str = ""
    """Where another run made the very same while this one was at work: what that means."""


Outcome = tuple[Item, Output, Result | Exception]
Stream = Callable[[Iterator[tuple[Item, list[Output]]], Progress], Generator[Outcome]]
"""Takes items, each with the outputs that it still has to give, and yields what became of each, in any order."""
Became = tuple[Item, Output, Result | Published | Exception]
"""An outcome as the loop takes it: a worker has published already."""


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """Return ``function(*args)``, or the exception that it raised: the one place where any error is caught."""
    try:
        return function(*args)
    except Exception as error:  # whatever a slide does to us must not stop the others
        log.debug("%s", error, exc_info=True)
        return error


def origin_of(stage: Stage, item: Item) -> Origin:
    """What decides the artifact that a stage makes of an item."""
    upstream = stage.upstream(item)
    return Origin(upstream, fingerprint_of(stage, upstream))


def fingerprint_of(stage: Stage, upstream: str) -> str:
    """The fingerprint of what a stage makes of something."""
    return store.fingerprint(stage.name, stage.version, params_of(stage), upstream)


def params_of(stage: Stage) -> dict[str, Any]:
    """The parameters of a stage as artifacts record them."""
    return json.loads(json.dumps(dataclasses.asdict(stage.params)))  # as it will be read back: tuples are lists


def recorded_params(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that an artifact was made with, as far as it tells."""
    found = attempt(parse_json, attrs.get("params", "{}"))
    return found if isinstance(found, dict) else {}


def what_changed(stage: Stage, attrs: Mapping[str, Any], upstream: str) -> str:
    """In words, why an artifact with these attributes is not what a stage would make of ``upstream`` now."""
    now = params_of(stage)
    before = recorded_params(attrs)
    changed = list(changes(before, now).values())
    (content, told), (content_now, told_now) = _words(str(attrs.get("upstream", ""))), _words(upstream)
    if content != content_now:
        changed.append("its input has changed")
    pairs = {key: (told.get(key), told_now.get(key)) for key in [*told, *told_now]}
    changed += [f"{key} was {_shown(one)}, now {_shown(other)}" for key, (one, other) in pairs.items() if one != other]
    if attrs.get("stage_version") != stage.version:
        changed.append("it is of another version of wsimil")
    return "; ".join(changed) or "its input, or the version of wsimil, has changed"


def _words(upstream: str) -> tuple[list[str], dict[str, str]]:
    """The fingerprints in what a stage says of its input, and by name what the user told of it."""
    content, told, name = list[str](), dict[str, str](), ""
    for word in upstream.split(" "):
        if "=" in word:
            name, _, told[name] = word.partition("=")
        elif name:
            told[name] += f" {word}"
        else:
            content.append(word)
    return content, told


def _shown(told: str | None) -> str:
    """What was told of an input; of the fingerprint of a file its beginning, and of nothing that."""
    if told is None:
        return "not given"
    return f"a file of fingerprint {told[:8]}" if store.FINGERPRINT.fullmatch(told) else told


def publish(stage: Stage, item: Item, outcome: Result | Exception, out: Path, origin: Origin) -> Published | Exception:
    """Publish what was made of an item; of a failure, take away what is stale.

    What another run published meanwhile is the same to the byte, and stays.
    """
    path = artifact_path(out, item.slide_id)
    if isinstance(outcome, Exception):
        withdraw(stage, path, origin)
        return outcome
    if attrs := appeared(path, origin):
        return Published(attrs, outcome.timing, "another run made the same meanwhile, so this was done twice")
    attrs = {
        "status": "done",
        **outcome.artifact.attrs,
        "stage": stage.name,
        "stage_version": stage.version,
        "params": json.dumps(params_of(stage), sort_keys=True),
        "upstream": origin.upstream,
        "fingerprint": origin.fingerprint,
        "slide_id": item.slide_id,
        "tiles": outcome.tiles,
    }
    complete = dataclasses.replace(outcome, artifact=dataclasses.replace(outcome.artifact, attrs=attrs))
    return attempt(_write, path, complete) or Published(attrs, outcome.timing)


def appeared(path: Path, origin: Origin) -> dict[str, Any] | None:
    """The attributes of an artifact of this origin that lies there now, though the loop found none when it began."""
    if origin.again or not path.exists():
        return None
    attrs = attempt(store.read_attrs, path)
    return attrs if isinstance(attrs, dict) and attrs.get("fingerprint") == origin.fingerprint else None


def withdraw(stage: Stage, path: Path, origin: Origin | None) -> None:
    """Take away what an earlier run, with other input or options, left of a slide that fails now: all its files.

    Where not even its origin is known (the slide is gone), only other options count.
    """
    before = attempt(store.read_attrs, path) if path.exists() else None
    if not isinstance(before, dict) or before.get("stage") != stage.name:
        return
    same = before.get("fingerprint") == origin.fingerprint if origin else recorded_params(before) == params_of(stage)
    if not same:
        path.unlink()
        for suffix in stage.beside:
            _beside(path, suffix).unlink(missing_ok=True)


def _write(path: Path, made: Result) -> None:
    for suffix, data in made.files.items():
        publishing.write_bytes(_beside(path, suffix), data)
    store.write(path, made.artifact)


def _beside(path: Path, suffix: str) -> Path:
    """Where a file beside an artifact lies; the dots of a slide_id are kept."""
    return path.with_name(path.name.removesuffix(".h5") + suffix)
