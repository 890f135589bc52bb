"""What a command prints when it is done: results to stdout, the slides that failed to stderr."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from wsi_mil.errors import one_line

if TYPE_CHECKING:
    from wsi_mil.predictions import Prediction
    from wsi_mil.runs import Report
    from wsi_mil.train import Trained


def leave(report: "Report", out: Path) -> None:
    """Say what became of the slides, those that failed by name, and leave with 1 if any did."""
    leave_each({out: report})


def leave_each(reports: "Mapping[Path, Report]") -> None:
    """Say so of several reports, each with its folder."""
    for out, report in reports.items():
        typer.echo(f"{report}: see {out / 'summary.csv'}")
    for out, report in reports.items():
        where = f" in {out}" if len(reports) > 1 else ""
        name_failures({f"{slide_id}{where}": error for slide_id, error in report.failed.items()})
    if any(report.failed for report in reports.values()):
        raise typer.Exit(1)


def name_failures(failed: "Mapping[str, Exception | str]") -> None:
    """Name on stderr each slide that failed, with its reason."""
    for slide_id, error in failed.items():
        typer.echo(f"failed: {slide_id}: {error if isinstance(error, str) else one_line(error)}", err=True)


@contextmanager
def naming_failures() -> "Generator[dict[str, Exception]]":
    """Give a table for slides that fail; name them at the end, whatever happens, and leave with 1 if any did."""
    failed: dict[str, Exception] = {}
    try:
        yield failed
    finally:
        name_failures(failed)
    if failed:
        raise typer.Exit(1)


def show_training(trained: "Trained | None", out: Path) -> None:
    """Print the AUROC of each split."""
    from wsi_mil.progress import print_table
    from wsi_mil.report import number

    if trained is None:
        typer.echo(f"{out} holds this very training already")
        return
    rows = [
        [part, str(len(trained.cohort.part(part))), number(trained.auroc(part))] for part in ("train", "val", "test")
    ]
    print_table(
        f"{out / 'checkpoint.safetensors'}", ["split", "slides", "AUROC"], [row for row in rows if row[1] != "0"]
    )


def show_predictions(rows: "list[Prediction]", path: Path, out: Path) -> None:
    """Print the predictions, name the slides that failed, and leave with 1 if any did."""
    from wsi_mil import checkpoint
    from wsi_mil.progress import print_table

    classes = checkpoint.load(path).classes
    shown = [
        [row.slide_id, row.predicted(classes) or row.status, *(f"{p:.3f}" for p in row.probabilities)] for row in rows
    ]
    print_table(f"{out / 'predictions.csv'}", ["slide", "predicted", *classes], shown)
    failed: Mapping[str, str] = {row.slide_id: row.error for row in rows if row.status == "failed"}
    name_failures(failed)
    if failed:
        raise typer.Exit(1)
