"""`wsimil tile`, which has an option for every parameter of a tile."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_mil.arguments import (
    Annotations,
    Coverage,
    Exclude,
    For,
    Holes,
    Include,
    MaxBlack,
    MaxPen,
    MaxTiles,
    MaxWhite,
    MinSaturation,
    MinSharpness,
    Mpp,
    Out,
    Overlap,
    Overwrite,
    Pens,
    Reader,
    ReaderName,
    Regions,
    Scheduler,
    Seed,
    Shard,
    TileMpp,
    TilePx,
    TileUm,
    Workers,
    run_options,
    tile_params,
    with_regions,
)
from wsi_mil.screen import leave


def tile(
    slides: Annotated[Path, typer.Argument(help="Folder of slides, or one slide.")],
    out: Out = Path("tiles"),
    for_: For = None,
    tile_px: TilePx = None,
    tile_um: TileUm = None,
    mpp: TileMpp = None,
    overlap: Overlap = 0,
    min_coverage: Coverage = 0.5,
    holes: Holes = 0.05,
    pens: Pens = True,
    max_tiles: MaxTiles = 0,
    seed: Seed = 0,
    min_sharpness: MinSharpness = 0.0,
    max_pen: MaxPen = 0.25,
    max_white: MaxWhite = 1.0,
    max_black: MaxBlack = 0.5,
    min_saturation: MinSaturation = 0.0,
    table: Annotated[Path | None, typer.Option("--slides-csv", help="Table slide[,mpp][,min_coverage ...].")] = None,
    slide_mpp: Mpp = None,
    regions: Regions = None,
    include: Include = None,
    exclude: Exclude = None,
    annotations: Annotations = None,
    reader: ReaderName = Reader.AUTO,
    overwrite: Overwrite = False,
    workers: Workers = 0,
    shard: Shard = "1/1",
    scheduler: Scheduler = "",
) -> None:
    """Find the tissue of each slide and divide it into tiles."""
    from wsi_mil import workflow

    params = tile_params(
        tile_px, tile_um, mpp, for_, overlap_px=overlap, min_coverage=min_coverage, holes_mm2=holes, pens=pens,
        max_tiles=max_tiles, seed=seed, min_sharpness=min_sharpness, max_pen=max_pen, max_white=max_white,
        max_black=max_black, min_saturation=min_saturation, reader=str(reader),
    )  # fmt: skip
    params = with_regions(params, include, exclude, regions)
    options, drawings = run_options(overwrite, workers, shard, scheduler), workflow.Drawings(regions, annotations)
    leave(workflow.tile(slides, out, params, options, table, slide_mpp, drawings), out)
