"""The command line: one thin function per command. It parses, builds parameters and hands over.

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_mil import __version__
from wsi_mil.errors import OptionError, WsiMilError

if TYPE_CHECKING:
    from wsi_mil.predictions import Prediction
    from wsi_mil.stage import Report, RunOptions
    from wsi_mil.tiling import TileParams
    from wsi_mil.train import Trained

app = typer.Typer(
    name="wsimil",
    help="Slide-level models that know where things are: tile, extract, distances, train, predict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_DEBUG = "--debug"


class Store(StrEnum):
    """What `wsimil distances` stores beside the histogram."""

    SPARSE = "sparse"
    DENSE = "dense"


Out = Annotated[Path, typer.Option("--out", help="Where the artifacts go.")]
Tiles = Annotated[Path, typer.Option("--tiles", help="Folder of `wsimil tile`.")]
Bags = Annotated[Path, typer.Option("--bags", help="Folder of `wsimil extract`.")]
Labels = Annotated[Path, typer.Option("--labels", help="Table slide_id,label[,patient_id][,split].")]
Distances = Annotated[Path, typer.Option("--distances", help="Folder of `wsimil distances`; what it lacks is made.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make again what is there already.")]
Workers = Annotated[int, typer.Option("--workers", help="Threads; 0 = the cores this process may use.")]
Shard = Annotated[str, typer.Option("--shard", metavar="I/N", help="Do only part I of N, for job arrays.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:I.")]
Batch = Annotated[int, typer.Option("--batch", help="Tiles per forward pass of the encoder.")]
Weights = Annotated[str | None, typer.Option("--weights", help="The encoder's weights: a file, or random:SEED.")]
Mpp = Annotated[float | None, typer.Option("--slide-mpp", help="Level-0 um/px of slides whose files do not tell it.")]
Encoder = Annotated[str, typer.Option("--model", help="The encoder: `wsimil encoders` lists them.")]
Aggregator = Annotated[str, typer.Option("--aggregator", help="The model to train.")]
Options = Annotated[list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An aggregator's option.")]
TilePx = Annotated[int, typer.Option("--tile-px", help="Side of a tile as the encoder sees it, px.")]
TileUm = Annotated[float | None, typer.Option("--tile-um", help="Side of a tile on the slide, um  [default: 256]")]
TileMpp = Annotated[float | None, typer.Option("--mpp", help="um/px that the encoder sees, instead of --tile-um.")]
Coverage = Annotated[float, typer.Option("--min-coverage", help="Keep tiles with at least this share of tissue.")]
Quick = Annotated[bool, typer.Option("--quick", help="A tiny cohort: shows the way, not the result.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides every random choice.")]


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def _wsimil(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def tile(
    slides: Annotated[Path, typer.Argument(help="Folder of slides, or one slide.")],
    out: Out = Path("tiles"),
    tile_px: TilePx = 224,
    tile_um: TileUm = None,
    mpp: TileMpp = None,
    min_coverage: Coverage = 0.5,
    table: Annotated[Path | None, typer.Option("--slides-csv", help="Table slide[,mpp]: which slides.")] = None,
    slide_mpp: Mpp = None,
    overwrite: Overwrite = False,
    workers: Workers = 0,
    shard: Shard = "1/1",
) -> None:
    """Find the tissue of each slide and divide it into tiles."""
    from wsi_mil import workflow

    params = _tile_params(tile_px, tile_um, mpp, min_coverage)
    _leave(workflow.tile(slides, out, params, _options(overwrite, workers, shard), table, slide_mpp), out)


@app.command()
def extract(
    model: Encoder,
    tiles: Tiles = Path("tiles"),
    out: Out = Path("feats"),
    weights: Weights = None,
    slides: Annotated[Path | None, typer.Option("--slides", help="Where the slides are now, if they moved.")] = None,
    device: Device = "auto",
    batch: Batch = 32,
    overwrite: Overwrite = False,
    workers: Workers = 0,
    shard: Shard = "1/1",
) -> None:
    """Describe each tile by a feature vector of a pretrained encoder."""
    from wsi_mil import workflow

    encoding = workflow.Encoding(model, weights, device, batch)
    _leave(workflow.extract_features(tiles, out, encoding, _options(overwrite, workers, shard), slides), out)


@app.command()
def distances(
    bags: Bags = Path("feats"),
    out: Out = Path("distances"),
    k: Annotated[int, typer.Option("--k", help="Nearest neighbours per tile.")] = 8,
    store: Annotated[Store, typer.Option("--store", help="dense: also the whole matrix.")] = Store.SPARSE,
    overwrite: Overwrite = False,
    workers: Workers = 0,
    shard: Shard = "1/1",
) -> None:
    """Measure how far tiles are from each other (optional: train makes what it needs)."""
    from wsi_mil import workflow
    from wsi_mil.distances import DistanceParams

    params = DistanceParams(k, dense=store == Store.DENSE)
    _leave(workflow.measure_distances(bags, out, params, _options(overwrite, workers, shard)), out)


@app.command()
def train(
    bags: Bags = Path("feats"),
    labels: Labels = Path("labels.csv"),
    out: Out = Path("model"),
    aggregator: Aggregator = "das-mil",
    option: Options = None,
    epochs: Annotated[int, typer.Option("--epochs", help="At most so many passes.")] = 60,
    patience: Annotated[int, typer.Option("--patience", help="Stop after so many without a better validation.")] = 20,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Weight decay.")] = 1e-2,
    bags_per_step: Annotated[int, typer.Option("--bags-per-step", help="Bags averaged for one step.")] = 2,
    val_fraction: Annotated[float, typer.Option("--val-fraction", help="Share of patients to validate on.")] = 0.2,
    seed: Seed = 0,
    tiles: Tiles = Path("tiles"),
    distances_: Distances = Path("distances"),
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Train a slide-level model on labelled slides."""
    from wsi_mil import workflow
    from wsi_mil.learning import LearnParams
    from wsi_mil.train import TrainParams

    learn = LearnParams(epochs, patience, lr, weight_decay, bags_per_step, seed)
    params = TrainParams(aggregator, _key_values(option), val_fraction, learn)
    folders = workflow.Folders(tiles, bags, distances_, out)
    _show_training(workflow.train_model(labels, folders, params, device, overwrite), out)


@app.command()
def predict(
    slides: Annotated[list[Path] | None, typer.Argument(help="Slides, or folders of slides.")] = None,
    bags: Annotated[Path | None, typer.Option("--bags", help="Features instead of slides.")] = None,
    model: Annotated[Path, typer.Option("--model", help="Checkpoint, or the folder of `wsimil train`.")] = Path(
        "model"
    ),
    out: Out = Path("predictions"),
    weights: Weights = None,
    slide_mpp: Mpp = None,
    device: Device = "auto",
    batch: Batch = 32,
    overwrite: Overwrite = False,
    workers: Workers = 0,
) -> None:
    """Predict the class of new slides with a trained model."""
    from wsi_mil import predict as predictor
    from wsi_mil.workflow import checkpoint_at, pick_device

    if bool(slides) == bool(bags):
        raise OptionError("predict: name slides, or features by --bags, and not both: `wsimil predict slide.tif`")
    options = predictor.PredictOptions(out, weights, str(pick_device(device)), batch, workers, overwrite)
    path = checkpoint_at(model)
    if bags:
        rows = predictor.predict_bags(path, predictor.find_bags(bags), options)
    else:
        rows = predictor.predict_slides(path, predictor.slides_at(slides or []), options, slide_mpp)
    _show_predictions(rows, path, out)


@app.command()
def run(
    slides: Annotated[Path, typer.Argument(help="Folder of slides.")],
    model: Encoder,
    labels: Labels = Path("labels.csv"),
    out: Annotated[Path, typer.Option("--out", help="Where tiles/, feats/, distances/ and model/ go.")] = Path(),
    weights: Weights = None,
    tile_px: TilePx = 224,
    tile_um: TileUm = None,
    mpp: TileMpp = None,
    slide_mpp: Mpp = None,
    aggregator: Aggregator = "das-mil",
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    workers: Workers = 0,
) -> None:
    """Do it all: tile, extract, distances, train. Slides that fail are left out and named."""
    from wsi_mil import workflow
    from wsi_mil.learning import LearnParams
    from wsi_mil.train import TrainParams

    params = _tile_params(tile_px, tile_um, mpp, 0.5)
    training = TrainParams(aggregator, learn=LearnParams(seed=seed))
    recipe = workflow.Recipe(params, workflow.Encoding(model, weights, device), training, slide_mpp)
    folders = workflow.Folders.under(out)
    report, trained = workflow.run_all(slides, labels, folders, recipe, _options(overwrite, workers, "1/1"))
    _show_training(trained, folders.model)
    _leave(report, folders.tiles)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where everything goes.")] = Path("demo"),
    seeds: Annotated[int, typer.Option("--seeds", help="Trainings per model.")] = 3,
    quick: Quick = False,
    workers: Workers = 0,
) -> None:
    """Make a cohort of synthetic slides, run every stage on it, and write a report."""
    from wsi_mil import demo as demonstration

    demonstration.show(out, seeds, quick, workers)


@app.command()
def synthetic(
    folder: Annotated[Path, typer.Argument(help="Where slides/ and labels.csv go.")],
    seed: Seed = 0,
    quick: Quick = False,
    workers: Workers = 0,
) -> None:
    """Paint a small cohort of slides whose label is a distance."""
    from wsi_mil.synthetic import SyntheticParams, make_cohort

    make_cohort(folder, SyntheticParams.quick(seed) if quick else SyntheticParams(seed=seed), workers)


@app.command()
def encoders() -> None:
    """List the encoders."""
    from wsi_mil.encoders import list_encoders
    from wsi_mil.progress import print_table

    rows = [
        [
            spec.name,
            str(spec.dim),
            str(spec.tile_px),
            f"{spec.mpp:.3g}" if spec.mpp else "any",
            spec.licence,
            spec.source,
        ]
        for spec in list_encoders()
    ]
    print_table("Encoders, and timm:<any name> beside them", ["name", "dim", "px", "um/px", "licence", "weights"], rows)


def _tile_params(tile_px: int, tile_um: float | None, mpp: float | None, min_coverage: float) -> "TileParams":
    from wsi_mil.tiling import TileParams

    if tile_um and mpp:
        raise OptionError(f"--tile-um {tile_um:g} --mpp {mpp:g}: give one of them, --tile-px decides the other")
    return TileParams(tile_px, mpp * tile_px if mpp else tile_um or 256.0, min_coverage)


def _options(overwrite: bool, workers: int, shard: str) -> "RunOptions":
    from wsi_mil.stage import RunOptions

    return RunOptions(overwrite, workers=workers, shard=shard)


def _key_values(words: list[str] | None) -> dict[str, Any]:
    """Aggregator options: values are JSON where they can be (8, 0.1, true, [1, 2]), else text."""
    options = {}
    for word in words or []:
        key, equals, value = word.partition("=")
        if not equals:
            raise OptionError(f"--option {word}: give KEY=VALUE, such as --option heads=8")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def _leave(report: "Report", out: Path) -> None:
    """Say what became of the slides, those that failed by name, and leave with 1 if any did."""
    from wsi_mil.errors import one_line

    typer.echo(f"{report}: see {out / 'summary.csv'}")
    for slide_id, error in report.failed.items():
        typer.echo(f"failed: {slide_id}: {one_line(error)}", err=True)
    if report.failed:
        raise typer.Exit(1)


def _show_training(trained: "Trained | None", out: Path) -> None:
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


def _show_predictions(rows: "list[Prediction]", path: Path, out: Path) -> None:
    from wsi_mil import checkpoint
    from wsi_mil.progress import print_table

    classes = checkpoint.load(path).classes
    shown = [
        [row.slide_id, row.predicted(classes) or row.status, *(f"{p:.3f}" for p in row.probabilities)] for row in rows
    ]
    print_table(f"{out / 'predictions.csv'}", ["slide", "predicted", *classes], shown)
    if any(row.status == "failed" for row in rows):
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run ``wsimil``: errors of ours become one red line and their exit code; ``--debug`` shows the traceback."""
    from wsi_mil.progress import console, show_messages

    words = sys.argv[1:] if arguments is None else arguments
    debug = _DEBUG in words
    show_messages(debug)
    try:
        app([word for word in words if word != _DEBUG])
    except WsiMilError as error:
        if debug:
            raise
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
