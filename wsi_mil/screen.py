"""What a command prints when it is done: results to stdout, the slides that failed to stderr."""

import dataclasses
import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wsi_mil.errors import one_line
from wsi_mil.guards import printable
from wsi_mil.remote import by_address, show_size

if TYPE_CHECKING:
    from rich.table import Table

    from wsi_mil.doctor import Finding
    from wsi_mil.encoders import EncoderSpec
    from wsi_mil.estimate import Estimate
    from wsi_mil.evaluation import Study
    from wsi_mil.explain import Head
    from wsi_mil.predictions import Prediction
    from wsi_mil.reasons import Answered
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
        typer.echo(
            f"failed: {printable(slide_id)}: {error if isinstance(error, str) else by_address(one_line(error))}",
            err=True,
        )


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
    """Print the AUROC of each split; of several processes that share a training, in the first alone."""
    from wsi_mil.executors import is_first_rank
    from wsi_mil.progress import print_table
    from wsi_mil.report import number

    if not is_first_rank():
        return
    if trained is None:
        typer.echo(f"{out} holds this very training already")
        return
    rows = [
        [part, str(len(trained.cohort.part(part))), number(trained.auroc(part))] for part in ("train", "val", "test")
    ]
    print_table(
        f"{out / 'checkpoint.safetensors'}", ["split", "slides", "AUROC"], [row for row in rows if row[1] != "0"]
    )


def show_study(study: "Study", out: Path) -> None:
    """Print the figures of each model, what they differ by, whether space mattered, and a plain line of AUROC."""
    from wsi_mil.progress import print_table
    from wsi_mil.report import p_value, shown

    rows = [[name, *(shown(found.figures[name]) for found in study.judged)] for name in study.judged[0].figures]
    print_table(f"{out / 'metrics.csv'}", ["figure", *(found.name for found in study.judged)], rows)
    if study.comparisons:
        pairs = [
            [f"{c.first} - {c.second}", shown(c.difference), p_value(c.holm_delong), p_value(c.holm_mcnemar)]
            for c in study.comparisons
        ]
        print_table(f"{out / 'comparison.csv'}", ["models", "difference in AUROC", "p, DeLong", "p, McNemar"], pairs)
    for note in study.notes:
        typer.echo(f"note: {note}", err=True)
    if study.spatial is not None:
        typer.echo(study.spatial.sentence)
    for found in study.judged:
        name = f"{found.name}: " if len(study.judged) > 1 else ""
        typer.echo(f"{name}AUROC {shown(found.figures['AUROC'])}")


def show_answers(answered: "Answered", path: Path, out: Path, json_to: str | None = None) -> None:
    """Print the predictions and where the reasons lie, name the slides that failed, and leave with 1 if any did.

    Args:
        answered: what was predicted and explained.
        path: the checkpoint.
        out: where the tables lie.
        json_to: a file to write all that to as JSON, or "-": stdout, where nothing else goes then.
    """
    from wsi_mil import checkpoint, publishing
    from wsi_mil.progress import print_table
    from wsi_mil.reasons import told_as_json

    rows = answered.rows
    if json_to == "-":
        typer.echo(told_as_json(path, answered), nl=False)
    else:
        if json_to is not None:
            publishing.write_bytes(Path(json_to), told_as_json(path, answered).encode())
        made = checkpoint.load(path)
        print_table(f"{out / 'predictions.csv'}", *_table(rows, made.classes))
        # Without this word a row may seem to be decided against its own probabilities.
        if made.threshold is not None and any(row.predicted for row in rows):
            typer.echo(f"{made.classes[1]} is decided for from a probability of {made.threshold:.3g} on")
        explained = sum(one.status == "done" for one in answered.explained)
        reasons = f"; {explained} explained in {out / 'explanations'}" if explained else ""
        typer.echo(f"see {out / 'report.html'}{reasons}")
    name_failures(answered.failed)
    if answered.failed:
        raise typer.Exit(1)


def show_learnt(path: Path, heads: "list[Head]", files: list[Path], json_to: str | None = None) -> None:
    """Print where the heads of a checkpoint pass from near to far, in um, or in one line that it has none.

    Args:
        path: the checkpoint.
        heads: those that it has.
        files: where they are written and drawn.
        json_to: as `show_answers` takes it.
    """
    from wsi_mil import checkpoint, publishing
    from wsi_mil.progress import print_table
    from wsi_mil.reasons import learnt_as_json

    if json_to == "-":
        typer.echo(learnt_as_json(path, heads, files), nl=False)
        return
    if json_to is not None:
        publishing.write_bytes(Path(json_to), learnt_as_json(path, heads, files).encode())
    if not heads:
        made = checkpoint.load(path).aggregator
        typer.echo(f"{path}: {made} learns no distance at which near turns to far, so there is nothing to show")
        return
    header = ["model", "head", "biases", "near to far at (um)", "at first", "10 %", "90 %"]
    rows = [
        [str(one.member), str(one.head), one.part,
         *(f"{um:.0f}" for um in (one.theta_um, one.start_um, one.near_um, one.far_um))]
        for one in heads
    ]  # fmt: skip
    print_table(", ".join(map(str, files)), header, rows)


def _table(rows: "list[Prediction]", classes: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of predictions; what no row has is no column."""
    spread, warned = any(row.spread is not None for row in rows), any(row.warnings for row in rows)
    header = ["slide", "predicted", *classes, *(["spread"] if spread else []), *(["warnings"] if warned else [])]
    lines = []
    for row in rows:
        scores = [f"{p:.3f}" for p in row.probabilities] or [""] * len(classes)
        own = ["" if row.spread is None else f"{row.spread:.3f}"] if spread else []
        lines.append([row.slide_id, row.predicted or row.status, *scores, *own, "; ".join(row.warnings)])
    return header, [line[: len(header)] for line in lines]


def show_estimate(found: "Estimate", threads: int, encoder: str) -> None:
    """Print what each stage of a cohort will take, and name the slides of the sample that failed."""
    from wsi_mil.estimate import STAGES
    from wsi_mil.progress import print_table

    rows = []
    for stage in STAGES:
        cost = found.total(stage)
        rows.append(
            [stage, _hours(cost.cpu_s), _hours(cost.cpu_s / threads), show_size(cost.read), show_size(cost.written)]
        )
    title = f"{found.slides:,} slides, {show_size(found.slide_bytes)}; about {found.tiles:,} tiles"
    print_table(title, ["stage", "CPU time", f"with {threads} threads here", "read", "written"], rows)
    counts = sorted(one.tiles for one in found.sample)
    typer.echo(
        f"measured on {len(counts)} slides of {counts[0]:,} to {counts[-1]:,} tiles; extract: reading tiles alone, and"
        f" the features of {encoder}. An encoder of 1,000 tiles/s takes {_hours(found.tiles / 1000)} more."
    )
    name_failures(found.failed)
    if found.failed:
        tried = len(found.failed) + len(counts)
        typer.echo(f"{len(found.failed)} of the {tried} that were tried failed: as large a share of all is expected to")
        raise typer.Exit(1)


def _hours(seconds: float) -> str:
    """A length of time as people say it."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"


def show_encoders(specs: "list[EncoderSpec]", as_json: bool) -> None:
    """Print encoders, and where on this machine their published weights lie, if they do."""
    from wsi_mil.progress import print_table

    rows = [_about(spec) for spec in specs]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    title = "Encoders; beside them timm:<name> takes any model of timm, hf-hub:<owner/repo> one on the hub"
    header = ["name", "dim", "tile um", "um/px", "licence", "gated", "weights"]
    print_table(title, header, [_cells(row) for row in rows])


def _about(spec: "EncoderSpec") -> dict[str, Any]:
    """What `wsimil encoders` tells about one: a number, a word, a flag or nothing each."""
    from wsi_mil.encoders.sources import local_file

    found = local_file(spec) if spec.arch else "built-in"
    return {
        "name": spec.name,
        "dim": spec.dim,
        "tile_um": spec.tile_um,
        "mpp": spec.mpp and round(spec.mpp, 3),
        "licence": spec.licence,
        "gated": spec.gated,
        "weights": found and str(found),
        "tile_px": spec.tile_px,
        "resize_px": spec.resize_px,
        "interpolation": spec.interpolation,
        "pooling": spec.pooling,
        "precision": spec.precision,
        "parameters_millions": spec.parameters,
        "hub_id": spec.hub_id,
        "hub_file": spec.hub_file,
        "page": spec.page,
        "sha256": spec.sha256,
        "note": spec.note,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    """A line of the table."""
    lengths = ["any" if row[key] is None else f"{row[key]:g}" for key in ("tile_um", "mpp")]
    weights = row["weights"] if row["weights"] == "built-in" else "found" if row["weights"] else "-"
    return [row["name"], str(row["dim"]), *lengths, row["licence"], "yes" if row["gated"] else "-", weights]


_COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


def show_findings(findings: "Iterable[Finding]", as_json: bool) -> None:
    """Print what the doctor finds: a table on a terminal, a line as each is done elsewhere; leave with 1 on a FAIL."""
    from rich.console import Console

    stdout, found = Console(), list["Finding"]()
    if as_json:
        found.extend(findings)
        rows = [dataclasses.asdict(one) for one in found]
        typer.echo(json.dumps({"ok": not _failed(found), "findings": rows}, indent=2))
    elif stdout.is_terminal:
        with stdout.status("looking ..."):
            found.extend(findings)
        stdout.print(_table_of(found))
    else:
        for one in findings:
            found.append(one)
            remedy = f" -> {one.remedy}" if one.remedy else ""
            typer.echo(f"{one.status:4}  {one.group}: {one.name}: {one.told}{remedy}")
    if not as_json:
        counts = ", ".join(f"{sum(one.status == status for one in found)} {status}" for status in _COLOURS)
        typer.echo(counts)
    if _failed(found):
        raise typer.Exit(1)


def _failed(found: "list[Finding]") -> bool:
    return any(one.status == "FAIL" for one in found)


def _table_of(found: "list[Finding]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for one, after in zip(found, [*found[1:], None], strict=True):
        cells = (Text(one.status, _COLOURS[one.status]), Text(f"{one.group}: {one.name}"), Text(one.told))
        table.add_row(*cells, Text(one.remedy), end_section=after is not None and after.group != one.group)
    return table
