"""How a run goes about its work, and what became of each slide: one CSV per run, and the summary of a folder.

``<folder>/runs/<run-id>.csv`` is written once, atomically, by the run that it tells of. ``<folder>/summary.csv`` is
rebuilt from the artifacts that lie in the folder plus the latest failure of each slide without one. So shards and two
runs at once need no lock: whoever rebuilds it last is right.
"""

import csv
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple, TypeVar

from wsi_mil import publishing, store
from wsi_mil.errors import ArtifactError, OptionError, one_line
from wsi_mil.executors import available_cores
from wsi_mil.guards import inside, is_formula, is_inside, parse_json, printable
from wsi_mil.guards.folders import walked
from wsi_mil.remote import CacheParams, by_address, is_brought

log = logging.getLogger(__name__)

_TIMED = ("seconds", "tiles_per_s", "decode_s", "waiting_share", "busy_share")
_SUMMED = ("status", "tiles", "tissue_mm2", "reason", "excluded")
_MOMENT = "%Y%m%dT%H%M%S.%f"
_RUN_ID = re.compile(r"\d{8}T\d{6}\.\d{6}")
Named = TypeVar("Named", bound=tuple[object, ...])
"""What a run takes: sorted by its first field, a name."""


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about its work; nothing here changes a result."""

    overwrite: bool = False
    """Make again what is there but was made otherwise, instead of refusing, or is damaged. What is current and whole
    stays, so that a run that was interrupted goes on by the same words."""
    refresh: bool = False
    """As ``overwrite``, but without looking for damage: for caches, which nobody chose the options of."""
    workers: int = 0
    """Threads; 0 = the cores this process may use."""
    shard: str = "1/1"
    """``I/N``: do only the I-th of N parts of the cohort (1 <= I <= N), for job arrays."""
    scheduler: str = ""
    """Address of a Dask cluster that does the work; "" = threads of this process do."""
    device: str = "cpu"
    """Where its workers do it: "cuda" = those that declare a GPU. Here each stage knows by itself."""
    cache: CacheParams = field(default_factory=CacheParams)
    """Where slides from far away are staged."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise OptionError(f"--workers {self.workers}: give a positive number, or 0 for all cores")
        index, _, count = self.shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise OptionError(f"--shard {self.shard}: give I/N with 1 <= I <= N, such as 2/8")

    @property
    def threads(self) -> int:
        """Threads to use."""
        return self.workers or available_cores()

    def part(self, items: list[Named]) -> list[Named]:
        """Return this shard's items; the shards of one cohort share nothing and miss nothing."""
        index, count = map(int, self.shard.split("/"))
        return sorted(items)[index - 1 :: count]


@dataclass(frozen=True)
class Timing:
    """Where time went. Figures of slides add up to that of the run, whichever slides shared a batch."""

    seconds: float = 0.0
    """Wall time."""
    decode_s: float = 0.0
    """CPU time of the threads that read tiles."""
    waiting_s: float = 0.0
    """Wall time that the encoders waited for tiles."""
    busy_s: float = 0.0
    """Time that the encoders computed; 0 of a stage that does not tell where time goes."""

    def __add__(self, other: "Timing") -> "Timing":
        return Timing(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, share: float) -> "Timing":
        return Timing(*(share * value for value in astuple(self)))

    @property
    def shares(self) -> tuple[float, float]:
        """Of the wall time: waiting, and busy."""
        whole = max(self.seconds, 1e-9)
        return self.waiting_s / whole, self.busy_s / whole


class Row(NamedTuple):
    """One slide in a table."""

    slide_id: str
    status: str
    """"done", "empty", "failed", or in a summary "damaged", or "gone": it failed, and is not there any more."""
    tiles: int | None = None
    tissue_mm2: float | None = None
    seconds: float | None = None
    error: str = ""
    """Why it failed, or why it is empty."""
    excluded: str = ""
    """How many tiles were left out, by reason: "blur 12; pen 3"."""
    tiles_per_s: float | None = None
    decode_s: float | None = None
    """CPU seconds of the threads that read its tiles. This and what follows: of extract only."""
    waiting_share: float | None = None
    """Of the seconds: how long the encoder waited for tiles."""
    busy_share: float | None = None
    """Of the seconds: how long the encoder, or its device, worked."""
    source: str = ""
    """Of one that failed: the file that was read, as an absolute path; "" where it is no file of this machine."""

    def of(self, source: object) -> "Row":
        """The row with the file that was read, where one can be found again by its name."""
        at_hand = isinstance(source, Path) and not is_brought(source)  # what was fetched leaves the cache some day
        told = str(source.absolute()) if at_hand else ""
        return self._replace(source=told if told.isprintable() else "")

    def timed(self, timing: Timing) -> "Row":
        """The row with where its time went; as it is, where nobody told."""
        if not (timing.busy_s and self.tiles):
            return self
        rate = self.tiles / max(timing.seconds, 1e-9)
        return self._replace(
            tiles_per_s=rate,
            decode_s=timing.decode_s,
            waiting_share=timing.shares[0],
            busy_share=timing.shares[1],
        )


@dataclass
class Report:
    """What became of every slide of a run."""

    done: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the slides that were made in this run, wall time."""

    def fail(self, slide_id: str, error: Exception) -> Row:
        """Take note of a slide that failed."""
        self.failed[slide_id] = error
        told = by_address(one_line(error))
        log.error("%s: %s", printable(slide_id), told)
        return Row(slide_id, "failed", error=told)

    def finish(self, attrs: Mapping[str, Any], timing: Timing) -> Row:
        """Take note of a slide by the attributes of its new artifact, and of the time that it took."""
        slide_id, status, reason = attrs["slide_id"], attrs["status"], attrs.get("reason", "")
        (self.empty if status == "empty" else self.done).append(slide_id)
        self.seconds[slide_id] = timing.seconds
        if status == "empty":
            log.warning("%s: empty: %s", slide_id, reason or "no tissue was found")
        row = Row(slide_id, status, attrs["tiles"], attrs.get("tissue_mm2"), timing.seconds, reason, _excluded(attrs))
        return row.timed(timing)

    def __str__(self) -> str:
        counts = (("done", self.done), ("empty", self.empty), ("already there", self.skipped), ("failed", self.failed))
        return ", ".join(f"{len(slides)} {word}" for word, slides in counts if slides) or "nothing to do"


def artifact_path(folder: Path, slide_id: str) -> Path:
    """Where a stage's artifact of a slide lies; the dots of a slide_id are kept.

    Raises:
        ArtifactError: the slide_id would lead out of the folder, or no file can be called that.
    """
    return inside(folder, slide_id, ".h5")


def artifacts(folder: Path) -> Iterator[tuple[str, Path]]:
    """The artifacts in a folder with their slide_ids, those that are being written left out.

    Folders that are links are followed, each place once: so parts of a cohort are put together.

    Raises:
        ArtifactError: a folder cannot be listed.
    """
    visited: set[str] = set()
    for parent, folders, files in walked(folder, ArtifactError):
        place = os.path.realpath(parent)
        if place in visited:  # a loop, or a second link
            folders.clear()
            continue
        visited.add(place)
        for name in files:
            if name.endswith(".h5") and not name.startswith("."):
                path = Path(parent, name)
                yield path.relative_to(folder).as_posix().removesuffix(".h5"), path


def write_tables(folder: Path, rows: list[Row]) -> None:
    """Write the table of one run, if it did anything, and rebuild the folder's summary.csv."""
    if formulas := [row.slide_id for row in rows if is_formula(row.slide_id)]:
        log.warning(
            "%d names, such as %s, begin like a formula and stand in the tables as they are: import these into a"
            " spreadsheet as text",
            len(formulas),
            formulas[0],
        )
    if rows:
        run_id = f"{_moment(folder):{_MOMENT}}-{os.getpid()}-{token_hex(2)}"
        _write(folder / "runs" / f"{run_id}.csv", rows)
    _write(folder / "summary.csv", _summary(folder))


def _moment(folder: Path) -> datetime:
    """Now, or just after the latest run in a folder, if that is later: a clock that went back reorders nothing."""
    now = datetime.now(UTC)
    found = (_RUN_ID.match(path.name) for path in (folder / "runs").glob("*.csv"))
    latest = max((match[0] for match in found if match), default="")
    if latest < f"{now:{_MOMENT}}":
        return now
    return datetime.strptime(latest, _MOMENT).replace(tzinfo=UTC) + timedelta(microseconds=1)


def failures(folder: Path, gone: bool = False) -> dict[str, str]:
    """Slides without an artifact in a stage's folder because they failed there, each with its latest reason.

    Args:
        folder: of a stage.
        gone: whether those are among them that are not there any more.
    """
    rows = [_as_it_is(row) for row in _latest(folder).values() if _has_failed(folder, row)]
    return {row.slide_id: row.error for row in rows if gone or row.status != "gone"}


def _excluded(attrs: Mapping[str, Any]) -> str:
    return "; ".join(f"{reason} {count}" for reason, count in parse_json(attrs.get("excluded", "{}")).items())


def _summary(folder: Path) -> list[Row]:
    latest = _latest(folder)
    rows = [_as_it_is(row) for row in latest.values() if _has_failed(folder, row)]
    for slide_id, path in artifacts(folder):
        timed: dict[str, Any] = {name: getattr(latest[slide_id], name) for name in _TIMED if slide_id in latest}
        try:
            attrs = store.read_attrs(path, _SUMMED)
            area, reason = attrs.get("tissue_mm2"), attrs.get("reason", "")
            made = Row(slide_id, attrs["status"], attrs["tiles"], area, error=reason, excluded=_excluded(attrs))
            rows.append(made._replace(**timed))
        except (ArtifactError, KeyError, ValueError, TypeError, AttributeError) as error:
            rows.append(Row(slide_id, "damaged", error=str(error)))
    return sorted(rows)


def _has_failed(folder: Path, row: Row) -> bool:
    there = is_inside(row.slide_id) and artifact_path(folder, row.slide_id).exists()
    return row.status == "failed" and not there


def _as_it_is(row: Row) -> Row:
    """A failure as it is to be told now.

    A file counts as gone only where others still lie beside it: of a disk that is not mounted, and of a folder that was
    moved as a whole, nobody knows.
    """
    path = Path(row.source)
    try:
        beside = row.source and any(not one.name.startswith(".") for one in path.parent.iterdir())
        is_gone = bool(beside) and not os.path.lexists(path)  # a link into what is not mounted is there
    except OSError:
        is_gone = False
    return row._replace(status="gone", error=f"{path} is gone; before: {row.error}") if is_gone else row


def _latest(folder: Path) -> dict[str, Row]:
    """The latest row of each slide over all run tables (their names sort by time)."""
    latest: dict[str, Row] = {}
    for path in sorted((folder / "runs").glob("*.csv")):
        try:
            latest |= {row.slide_id: row for row in _read(path)}
        except (ValueError, TypeError, csv.Error) as error:
            log.warning("%s is damaged and says nothing any more (%s): delete it", path, one_line(error))
    return latest


def _read(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not set(Row._fields) - {*_TIMED[1:], "source"} <= set(reader.fieldnames or ()):
            return  # somebody else's table
        for row in reader:
            # Older tables have seconds only, and no source.
            timed: dict[str, Any] = {name: float(row[name]) for name in _TIMED if row.get(name)}
            yield Row(row["slide_id"], row["status"], error=row["error"], source=row.get("source") or "", **timed)


def _write(path: Path, rows: list[Row]) -> None:
    with publishing.replacing_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for row in rows:
            writer.writerow([_cell(value) for value in row])


def _cell(value: object) -> object:
    """A value as it is written; of a file name in another encoding, what UTF-8 cannot hold as ``\\udce9``."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return f"{value:.3f}" if isinstance(value, float) else value
