"""`wsimil demo` and `wsimil synthetic`: slides to try everything on. One thin function per command, as in `cli`."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_mil.arguments import Quick, Seed, Workers
from wsi_mil.remote.urls import require_local

app = typer.Typer()


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="PATH", parser=require_local, help="Where everything goes.")
    ] = Path("demo"),
    seeds: Annotated[int, typer.Option("--seeds", help="Trainings per model.")] = 3,
    quick: Quick = False,
    workers: Workers = 0,
) -> None:
    """Make a cohort of synthetic slides, run every stage on it, and write a report."""
    from wsi_mil import demo as demonstration

    demonstration.show(out, seeds, quick, workers)


@app.command()
def synthetic(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", parser=require_local, help="Where slides/ and labels.csv go.")
    ],
    seed: Seed = 0,
    quick: Quick = False,
    workers: Workers = 0,
) -> None:
    """Paint a small cohort of slides whose label is a distance."""
    from wsi_mil.synthetic import SyntheticParams, make_cohort

    params = SyntheticParams.quick(seed) if quick else SyntheticParams(seed=seed)
    make_cohort(folder, params, workers)
    typer.echo(f"{params.slides} slides in {folder / 'slides'}, labels in {folder / 'labels.csv'}")
