"""Everything that came of judging models, and its tables."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_mil import metrics, store
from wsi_mil.evaluation.comparing import Comparison
from wsi_mil.evaluation.figures import Judged
from wsi_mil.evaluation.spatial import Spatial
from wsi_mil.metrics import Interval


@dataclass(frozen=True)
class Study:
    """One or several models, judged on the same patients."""

    judged: tuple[Judged, ...]
    comparisons: tuple[Comparison, ...] = ()
    spatial: Spatial | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should bear in mind, each sentence once."""
        return tuple(dict.fromkeys(note for found in self.judged for note in found.notes))


def write_study(study: Study, out: Path) -> None:
    """Publish ``metrics.csv`` and ``reliability.csv``, and ``comparison.csv`` and ``spatial.csv`` if there are such."""
    _write(
        out / "metrics.csv",
        ("model", "group", "of", "patients", "bags", "figure", *Interval._fields),
        _figures(study),
    )
    bins = ("model", "confidence", "accuracy", "count")
    _write(out / "reliability.csv", bins, _reliability(study))
    for name in ("comparison.csv", "spatial.csv"):
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
    for found in study.judged:
        curve = metrics.reliability(found.answers.labels, found.answers.scores)
        for confidence, accuracy, count in zip(*curve, strict=True):
            yield (found.name, float(confidence), float(accuracy), int(count))


def _write(path: Path, header: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> None:
    with store.replacing_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
