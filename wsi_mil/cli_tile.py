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
    Pens,
    Reader,
    ReaderName,
    Refresh,
    Regions,
    Scheduler,
    Seed,
    Shard,
    SlidesCsv,
    TileMpp,
    TilePx,
    TileUm,
    Workers,
)
from wsi_mil.arguments_remote import DEFAULT_SIZE, Cache, CacheSize, SlidesAt, brought, cache_params
from wsi_mil.arguments_together import run_options, tile_params, with_regions
from wsi_mil.errors import OptionError
from wsi_mil.screen import leave, show_estimate


def tile(
    slides: SlidesAt,
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
    table: SlidesCsv = None,
    slide_mpp: Mpp = None,
    regions: Regions = None,
    include: Include = None,
    exclude: Exclude = None,
    annotations: Annotations = None,
    reader: ReaderName = Reader.AUTO,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
    overwrite: Refresh = False,
    workers: Workers = 0,
    shard: Shard = "1/1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure a few slides, and tell what all take.")] = False,
    scheduler: Scheduler = "",
) -> None:
    """Find the tissue of each slide and divide it into tiles."""
    from wsi_mil import cutting
    from wsi_mil.regions import Drawings

    params = tile_params(
        tile_px, tile_um, mpp, for_, overlap_px=overlap, min_coverage=min_coverage, holes_mm2=holes, pens=pens,
        max_tiles=max_tiles, seed=seed, min_sharpness=min_sharpness, max_pen=max_pen, max_white=max_white,
        max_black=max_black, min_saturation=min_saturation, reader=str(reader),
    )  # fmt: skip
    staged = cache_params(cache, cache_size)
    drawings = Drawings(brought(regions, staged, scheduler), brought(annotations, staged, scheduler))
    params = with_regions(params, include, exclude, drawings.regions)
    options = run_options(overwrite, workers, shard, staged, scheduler)
    asked = (slides, out, params, options, brought(table, staged, scheduler), slide_mpp, drawings)
    if dry_run and scheduler:
        raise OptionError("--dry-run --scheduler: a few slides are measured on this machine: leave --scheduler out")
    if dry_run:
        from wsi_mil.encoders import find_encoder
        from wsi_mil.estimate import USUAL_ENCODER, estimate

        stage, items = cutting.tile_plan(*asked)
        encoder = find_encoder(for_ or USUAL_ENCODER)
        show_estimate(estimate(stage, options.part(items), encoder.dim), options.threads, encoder.name)
    else:
        leave(cutting.tile(*asked), out)
