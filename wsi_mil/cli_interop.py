"""Files of other programs, and what a file is: one thin function per command, as in `cli`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from wsi_mil.arguments import (
    BagEncoder,
    BagMpp,
    BagSlides,
    BagTable,
    Out,
    Refresh,
    Shard,
    Workers,
)
from wsi_mil.arguments_remote import DEFAULT_SIZE, FAR, Cache, CacheSize, Place, brought, cache_params
from wsi_mil.arguments_together import peer_options, run_options
from wsi_mil.remote.urls import parse_place
from wsi_mil.screen import leave

app = typer.Typer()


@app.command("import")
def import_(
    source: Annotated[
        Place,
        typer.Argument(
            parser=parse_place, help="Features of TRIDENT, CLAM, STAMP or AtlasPatch: a folder or a file, or its URL."
        ),
    ],
    out: Out = Path("feats"),
    slides: BagSlides = None,
    table: BagTable = None,
    mpp: BagMpp = None,
    encoder: BagEncoder = None,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
    overwrite: Refresh = False,
    workers: Workers = 0,
    shard: Shard = "1/1",
) -> None:
    """Write features that another program made as our own (optional: --bags takes them as they are)."""
    from wsi_mil import interop

    staged = cache_params(cache, cache_size)
    peers, options = peer_options(slides, brought(table, staged), mpp, encoder), run_options(overwrite, workers, shard)
    leave(interop.import_bags(brought(source, staged), out, peers, options), out)


@app.command()
def export(
    format_: Annotated[str, typer.Option("--format", help="stamp; TRIDENT, CLAM and torchmil read feats/ as it is.")],
    bags: Annotated[
        Place,
        typer.Option("--bags", help="Folder of `wsimil extract` or `wsimil import`; or its URL.", **FAR),
    ] = Path("feats"),
    out: Out = Path("export"),
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
    overwrite: Refresh = False,
    workers: Workers = 0,
    shard: Shard = "1/1",
) -> None:
    """Write features for a program that cannot read them as they are."""
    from wsi_mil import interop

    options = run_options(overwrite, workers, shard)
    bags_here = brought(bags, cache_params(cache, cache_size))
    leave(interop.export_bags(bags_here, out, interop.ExportParams(format_), options), out)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A slide, an artifact, a checkpoint, or a peer's file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Print what a file is, whoever wrote it."""
    from wsi_mil import inspection

    found = inspection.inspect(file)
    typer.echo(
        json.dumps(found, indent=2, default=str, allow_nan=False) if as_json else "\n".join(inspection.lines(found))
    )
