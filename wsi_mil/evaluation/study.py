"""Everything that came of judging models, and its tables."""

import csv
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_mil import metrics, publishing
from wsi_mil.evaluation.comparing import Comparison, comparison_notes
from wsi_mil.evaluation.figures import Judged
from wsi_mil.evaluation.spatial import Spatial
from wsi_mil.metrics import Interval

log = logging.getLogger(__name__)

TABLES = ("metrics.csv", "reliability.csv", "comparison.csv", "spatial.csv")
"""What `write_study` may write."""


@dataclass(frozen=True)
class Study:
    """One or several models, judged on the same patients."""

    judged: tuple[Judged, ...]
    comparisons: tuple[Comparison, ...] = ()
    spatial: Spatial | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should bear in mind, each sentence once."""
        notes = [note for found in self.judged for note in found.notes]
        return tuple(dict.fromkeys([*notes, *(comparison_notes(self.judged) if self.comparisons else ())]))


def write_study(study: Study, out: Path) -> None:
    """Publish ``metrics.csv`` and ``reliability.csv``, and ``comparison.csv`` and ``spatial.csv`` if there are such.

    Whose figures lay there before, and are none of this study, is said.
    """
    if gone := _models(out / "metrics.csv") - {found.name for found in study.judged}:
        log.warning(
            "%s: the tables and the report are of this study now, and no more of %s: `wsimil compare` sets runs beside"
            " each other",
            out,
            ", ".join(sorted(gone)),
        )
    _write(
        out / "metrics.csv",
        ("model", "group", "of", "patients", "bags", "figure", *Interval._fields),
        _figures(study),
    )
    bins = ("model", "of", "probability", "share", "count")
    _write(out / "reliability.csv", bins, _reliability(study))
    for name in TABLES[2:]:
        (out / name).unlink(missing_ok=True)  # of a study before, which had such
    if study.comparisons:
        header = (
            "first",
            "second",
            "difference",
            "low",
            "high",
            "delong_p",
            "delong_holm",
            "mcnemar_p",
            "mcnemar_holm",
        )
        rows = (
            (c.first, c.second, *c.difference, c.delong, c.holm_delong, c.mcnemar, c.holm_mcnemar)
            for c in study.comparisons
        )
        _write(out / "comparison.csv", header, rows)
    if study.spatial is not None:
        rows = ((row.name, row.auroc, *row.lost, row.moved) for row in study.spatial.rows)
        _write(out / "spatial.csv", ("tiles", "auroc", "lost", "low", "high", "moved"), rows)


def _models(table: Path) -> set[str]:
    """Whose figures a table holds."""
    if not table.exists():
        return set()
    with table.open(encoding="utf-8", errors="replace", newline="") as file:
        return {row.get("model") or "" for row in csv.DictReader(file)} - {""}


def _figures(study: Study) -> Iterator[tuple[object, ...]]:
    for found in study.judged:
        size = (len(set(found.answers.patients)), len(found.answers))
        for name, interval in found.figures.items():
            yield (found.name, "", "", *size, name, *interval)
        for name, value in found.rounds.items():
            yield (found.name, "round", name, "", "", "AUROC", value, "", "")
        for group in found.groups:
            for name, interval in (("AUROC", group.auroc), ("balanced accuracy", group.accuracy)):
                yield (found.name, group.column, group.value, group.patients, group.bags, name, *interval)


def _reliability(study: Study) -> Iterator[tuple[object, ...]]:
    """The curve of the likeliest class, and of two classes that of the positive one."""
    for found in study.judged:
        labels, scores, classes = found.answers.labels, found.answers.scores, found.answers.classes
        curves = {"likeliest class": metrics.reliability(labels, scores)}
        if len(classes) == 2:
            curves[classes[1]] = metrics.reliability(labels, scores, of=1)
        for name, curve in curves.items():
            for probability, share, count in zip(*curve, strict=True):
                yield (found.name, name, float(probability), float(share), int(count))


def _write(path: Path, header: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> None:
    with publishing.replacing_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([_cell(cell) for cell in row] for row in rows)


def _cell(value: object) -> object:
    """A number in six digits; what is not defined is an empty cell, whatever the reason."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
