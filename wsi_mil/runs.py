"""What became of each slide, as tables: one CSV per run, and the summary of a stage's folder.

``<folder>/runs/<run-id>.csv`` is written once, atomically, by the run that it tells of. ``<folder>/summary.csv`` is
rebuilt from the artifacts that lie in the folder plus the latest failure of each slide without one. So shards and two
runs at once need no lock: whoever rebuilds it last is right.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from wsi_mil import store
from wsi_mil.errors import ArtifactCorrupt


class Row(NamedTuple):
    """One slide in a table."""

    slide_id: str
    status: str
    """"done", "empty", "failed", or in a summary "damaged"."""
    tiles: int | None = None
    tissue_mm2: float | None = None
    seconds: float | None = None
    error: str = ""
    """Why it failed, or why it is empty."""


@dataclass
class Report:
    """What became of every slide of a run."""

    done: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = (("done", self.done), ("empty", self.empty), ("already there", self.skipped), ("failed", self.failed))
        return ", ".join(f"{len(slides)} {word}" for word, slides in counts if slides) or "nothing to do"


def write_tables(folder: Path, rows: list[Row]) -> None:
    """Write the table of one run, if it did anything, and rebuild the folder's summary.csv."""
    if rows:
        run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}-{token_hex(2)}"
        _write(folder / "runs" / f"{run_id}.csv", rows)
    _write(folder / "summary.csv", _summary(folder))


def failures(folder: Path) -> dict[str, str]:
    """Slides without an artifact in a stage's folder because they failed there, each with its latest reason."""
    return {row.slide_id: row.error for row in _latest(folder).values() if _has_failed(folder, row)}


def _summary(folder: Path) -> list[Row]:
    latest = _latest(folder)
    rows = [row for row in latest.values() if _has_failed(folder, row)]
    for path in folder.rglob("*.h5"):
        if path.name.startswith("."):
            continue
        slide_id = path.relative_to(folder).as_posix().removesuffix(".h5")
        seconds = latest[slide_id].seconds if slide_id in latest else None
        try:
            attrs = store.read_attrs(path)
            area, reason = attrs.get("tissue_mm2"), attrs.get("reason", "")
            rows.append(Row(slide_id, attrs["status"], attrs["tiles"], area, seconds, reason))
        except (ArtifactCorrupt, KeyError) as error:
            rows.append(Row(slide_id, "damaged", error=str(error)))
    return sorted(rows)


def _has_failed(folder: Path, row: Row) -> bool:
    return row.status == "failed" and not (folder / f"{row.slide_id}.h5").exists()


def _latest(folder: Path) -> dict[str, Row]:
    """The latest row of each slide over all run tables (their names sort by time)."""
    return {row.slide_id: row for path in sorted((folder / "runs").glob("*.csv")) for row in _read(path)}


def _read(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not set(Row._fields) <= set(reader.fieldnames or ()):
            return  # somebody else's table
        for row in reader:
            seconds = float(row["seconds"]) if row["seconds"] else None
            yield Row(row["slide_id"], row["status"], seconds=seconds, error=row["error"])


def _write(path: Path, rows: list[Row]) -> None:
    with store.replacing_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for row in rows:
            writer.writerow([f"{value:.3f}" if isinstance(value, float) else value for value in row])
