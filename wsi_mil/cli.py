"""The command line: one thin function per command. It parses, builds parameters and hands over.

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from wsi_mil import cli_demo, cli_doctor, cli_interop, cli_models, cli_predict, cli_tile, cli_weights
from wsi_mil.arguments import (
    Aggregator,
    AllowMpp,
    BagEncoder,
    BagMpp,
    Bags,
    BagSlides,
    BagTable,
    Batch,
    Device,
    Encoders,
    FastDecode,
    Labels,
    Mpp,
    Out,
    Precision,
    Reader,
    ReaderName,
    Refresh,
    Scheduler,
    Seed,
    Shard,
    Stain,
    StainMethod,
    Store,
    TileMpp,
    TilePx,
    Tiles,
    TileUm,
    TrustCheckpoint,
    Version,
    WeightsOf,
    Workers,
)
from wsi_mil.arguments_remote import (
    DEFAULT_SIZE,
    Cache,
    CacheSize,
    LocalRoot,
    SlidesAt,
    SlidesNow,
    brought,
    cache_params,
    holding,
)
from wsi_mil.arguments_together import (
    encoder_weights,
    peer_options,
    run_options,
    tile_params,
)
from wsi_mil.errors import WsiMilError, one_line
from wsi_mil.screen import leave, leave_each, naming_failures, show_encoders, show_training
from wsi_mil.typed import typing

app = typer.Typer(
    name="wsimil",
    help="Slide-level models that know where things are: tile, extract, distances, train, predict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(cli_models.app)
app.add_typer(cli_predict.app)
app.add_typer(cli_weights.app)
app.add_typer(cli_interop.app)
app.add_typer(cli_demo.app)
app.add_typer(cli_doctor.app)
_DEBUG = "--debug"
_INTERRUPTED = 130  # the code of Ctrl-C, as shells have it; typer turns it into an exit with that code


@app.callback()
def _wsimil(
    version: Version = False,
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of an error (anywhere on the line).")] = False,
) -> None:
    pass


app.command()(cli_tile.tile)


@app.command()
def extract(
    model: Encoders,
    tiles: Tiles = Path("tiles"),
    out: Out = Path("feats"),
    weights: WeightsOf = None,
    slides: SlidesNow = None,
    device: Device = "auto",
    batch: Batch = 0,
    precision: Precision = "auto",
    stain: StainMethod = Stain.NONE,
    reader: ReaderName = Reader.AUTO,
    fast_decode: FastDecode = False,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
    allow_mpp_mismatch: AllowMpp = False,
    trust: TrustCheckpoint = False,
    overwrite: Refresh = False,
    workers: Workers = 0,
    shard: Shard = "1/1",
    scheduler: Scheduler = "",
) -> None:
    """Describe each tile by a feature vector of a pretrained encoder, or of several: one folder for each in --out."""
    from wsi_mil import workflow

    models = encoder_weights(model, weights)
    encoding = workflow.Encoding(
        models, device, batch, precision, allow_mpp_mismatch, trust, stain, fast_decode, str(reader)
    )
    staged = cache_params(cache, cache_size)
    options = run_options(overwrite, workers, shard, staged, scheduler)
    leave_each(workflow.extract_features(brought(tiles, staged, scheduler), out, encoding, options, slides))


@app.command()
def distances(
    bags: Bags = Path("feats"),
    out: Out = Path("distances"),
    k: Annotated[int, typer.Option("--k", help="Nearest neighbours per tile.")] = 8,
    store: Annotated[Store, typer.Option("--store", help="dense: also the whole matrix.")] = Store.SPARSE,
    slides: BagSlides = None,
    table: BagTable = None,
    mpp: BagMpp = None,
    encoder: BagEncoder = None,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
    overwrite: Refresh = False,
    workers: Workers = 0,
    shard: Shard = "1/1",
    scheduler: Scheduler = "",
) -> None:
    """Measure how far tiles are from each other (optional: train makes what it needs)."""
    from wsi_mil import workflow
    from wsi_mil.distances import DistanceParams

    params = DistanceParams(k, dense=store == Store.DENSE)
    staged = cache_params(cache, cache_size)
    peers = peer_options(slides, brought(table, staged, scheduler), mpp, encoder)
    options = run_options(overwrite, workers, shard, staged, scheduler)
    leave(workflow.measure_distances(brought(bags, staged, scheduler), out, params, options, peers), out)


@app.command()
def run(
    slides: SlidesAt,
    model: Encoders,
    labels: Labels = Path("labels.csv"),
    out: LocalRoot = Path(),
    weights: WeightsOf = None,
    tile_px: TilePx = None,
    tile_um: TileUm = None,
    mpp: TileMpp = None,
    slide_mpp: Mpp = None,
    aggregator: Aggregator = "das-mil",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    stain: StainMethod = Stain.NONE,
    reader: ReaderName = Reader.AUTO,
    fast_decode: FastDecode = False,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
    allow_mpp_mismatch: AllowMpp = False,
    trust: TrustCheckpoint = False,
    overwrite: Refresh = False,
    workers: Workers = 0,
) -> None:
    """Do it all: tile, extract, distances, train. Slides that fail are left out and named."""
    from wsi_mil import workflow
    from wsi_mil.learning import LearnParams
    from wsi_mil.train_params import TrainParams

    params, models = tile_params(tile_px, tile_um, mpp, reader=str(reader)), encoder_weights(model, weights)
    training = TrainParams(aggregator, learn=LearnParams(seed=seed))
    encoding = workflow.Encoding(
        models, device, 0, precision, allow_mpp_mismatch, trust, stain, fast_decode, str(reader)
    )
    plan = workflow.Plan(params, encoding, training, slide_mpp)
    staged = cache_params(cache, cache_size)
    options = run_options(overwrite, workers, "1/1", staged)
    folders = workflow.Folders.under(out)
    with naming_failures() as failed:
        told = workflow.LabelTable(brought(labels, staged))
        show_training(workflow.run_all(slides, told, folders, plan, options, failed), folders.model)


@app.command()
def encoders(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON instead of a table.")] = False,
) -> None:
    """List the encoders, and whether their weights are on this machine."""
    from wsi_mil.encoders import list_encoders

    show_encoders(list_encoders(), as_json)


def _told(error: WsiMilError | OSError) -> str:
    """An error as one line, of a file that the system has trouble with its name and that trouble."""
    if isinstance(error, OSError) and not isinstance(error, PermissionError | WsiMilError) and error.filename:
        return f"{error.filename}: {error.strerror}: name another, or mend that, then type the same command again"
    return one_line(error)


def main(arguments: list[str] | None = None) -> None:
    """Run ``wsimil``: errors of ours become one red line and their exit code; ``--debug`` shows the traceback."""
    from wsi_mil.executors import is_first_to_tell
    from wsi_mil.progress import console, show_messages

    words = sys.argv[1:] if arguments is None else arguments
    debug = _DEBUG in words
    show_messages(debug)
    try:
        with typing(words), holding():
            app([word for word in words if word != _DEBUG])
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != _INTERRUPTED:
            raise
        if is_first_to_tell():
            console.print("interrupted: what is finished stays; type the same command to go on", style="bold red")
        sys.exit(_INTERRUPTED)
    except (WsiMilError, OSError) as error:  # a full disk or a forbidden folder is no bug either
        if debug:
            raise
        if is_first_to_tell():
            console.print(f"error: {_told(error)}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
