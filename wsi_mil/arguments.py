"""The options of the command line: each is declared once, and means the same in every command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wsi_mil import __version__
from wsi_mil.arguments_remote import FAR, Place
from wsi_mil.remote.urls import require_local, require_slides_here


class Stain(StrEnum):
    """How `wsimil extract` normalises the stain of tiles: `wsi_mil.stain.METHODS`."""

    NONE = "none"
    MACENKO = "macenko"
    REINHARD = "reinhard"


class Reader(StrEnum):
    """Who reads the pixels of slides: `wsi_mil.slides.opening.READERS`."""

    AUTO = "auto"
    DIRECT = "direct"
    OPENSLIDE = "openslide"


class Unit(StrEnum):
    """What a bag is: `wsi_mil.cohort.UNITS`."""

    SLIDE = "slide"
    PATIENT = "patient"


class Store(StrEnum):
    """What `wsimil distances` stores beside the histogram."""

    SPARSE = "sparse"
    DENSE = "dense"


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit
    return wanted


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
]
Out = Annotated[Path, typer.Option("--out", metavar="PATH", parser=require_local, help="Where the artifacts go.")]
Tiles = Annotated[Place, typer.Option("--tiles", help="Folder of `wsimil tile`; or its URL.", **FAR)]
Bags = Annotated[
    Place,
    typer.Option(
        "--bags", help="Features: folder, or URL, of `wsimil extract`, TRIDENT, CLAM, STAMP or AtlasPatch.", **FAR
    ),
]
BagSlides = Annotated[
    Path | None,
    typer.Option(
        "--slides",
        metavar="PATH",
        parser=require_slides_here,
        help="Folder of the slides: for um/px where other programs' bags tell none, and for pictures if they moved.",
    ),
]
BagTable = Annotated[
    Place | None,
    typer.Option("--slides-csv", help="Table slide,mpp: um/px of slides where other programs' bags tell none.", **FAR),
]
SlidesCsv = Annotated[Place | None, typer.Option("--slides-csv", help="Table slide[,mpp][,min_coverage ...].", **FAR)]
BagMpp = Annotated[
    float | None,
    typer.Option(
        "--mpp", "--slide-mpp", help="Level-0 um/px of ALL slides, whatever files say; the table goes before."
    ),
]
BagEncoder = Annotated[
    str | None, typer.Option("--encoder", help="The encoder of other programs' bags: its name, or which of several.")
]
Labels = Annotated[Place, typer.Option("--labels", help="Table slide_id,label[,patient_id][,split].", **FAR)]
Distances = Annotated[
    Path,
    typer.Option(
        "--distances",
        metavar="PATH",
        parser=require_local,
        help="Folder of `wsimil distances`; what it lacks is made.",
    ),
]
Patients = Annotated[
    Place | None,
    typer.Option("--patients", help="Table slide_id,patient_id: whose the slides are, where it matters.", **FAR),
]
JsonTo = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the answers there as JSON; -: to stdout, and no table."),
]
Refresh = Annotated[
    bool, typer.Option("--overwrite", help="Make again what is there but was made otherwise, or is damaged.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make again what is there already.")]
Workers = Annotated[int, typer.Option("--workers", help="Threads; 0 = the cores this process may use.")]
Shard = Annotated[str, typer.Option("--shard", metavar="I/N", help="Do only part I of N, for job arrays.")]
Scheduler = Annotated[
    str, typer.Option("--scheduler", metavar="ADDRESS", help="Let a Dask cluster do it: tcp://HOST:PORT.")
]
ReaderName = Annotated[
    Reader, typer.Option("--reader", help="Who reads pixels; auto: direct where it shows what OpenSlide shows.")
]
FastDecode = Annotated[
    bool, typer.Option("--fast-decode", help="Decode JPEGs at a fraction of their size: faster, not quite identical.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:I.")]
Batch = Annotated[
    int, typer.Option("--batch", help="Tiles per forward pass of the encoder; 0: 8 on a CPU, 32 on a GPU.")
]
WeightsOf = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="The encoder's weights: file, folder or random:SEED; of several encoders, NAME=FILE for each.",
    ),
]
Weights = Annotated[str | None, typer.Option("--weights", help="The encoder's weights: file, folder or random:SEED.")]
TrustCheckpoint = Annotated[
    bool, typer.Option("--trust-checkpoint", help="Open weights that hold code, and run it: only of whom you trust.")
]
Mpp = Annotated[
    float | None, typer.Option("--slide-mpp", help="Level-0 um/px of ALL slides, whatever their files say.")
]
Encoders = Annotated[
    list[str],
    typer.Option("--model", metavar="NAME", help="The encoder: `wsimil encoders` lists them. May be repeated."),
]
Precision = Annotated[
    str,
    typer.Option("--precision", help="Of the encoder: auto (its authors' on a GPU, else fp32), fp32, bf16 or fp16."),
]
Numbers = Annotated[
    str, typer.Option("--precision", help="Of the forward pass: auto (fp32), fp32, bf16, or fp16 on a GPU.")
]
Devices = Annotated[int, typer.Option("--devices", help="GPUs, or processes on a CPU, that share each step.")]
BagsPerStep = Annotated[int, typer.Option("--bags-per-step", help="Bags averaged for one step.")]
Clip = Annotated[float, typer.Option("--clip", help="Shorten gradients to this length; 0: never.")]
TrainTiles = Annotated[
    int, typer.Option("--max-tiles", help="Train on so many tiles of a slide, drawn anew each epoch; 0: all.")
]
SaveEvery = Annotated[
    float,
    typer.Option("--save-every-minutes", help="How often to save, beside each epoch's end, where to go on from."),
]
AllowMpp = Annotated[
    bool, typer.Option("--allow-mpp-mismatch", help="Take tiles of any um/px, whatever the encoder was trained on.")
]
StainMethod = Annotated[
    Stain, typer.Option("--stain", help="Bring each slide's colours to a reference before the encoder.")
]
For = Annotated[str | None, typer.Option("--for", metavar="ENCODER", help="Tiles as that encoder's authors made them.")]
Model = Annotated[Place, typer.Option("--model", help="Checkpoint, or the folder that holds it.", **FAR)]
Target = Annotated[str, typer.Option("--target", metavar="COLUMN", help="The column of --labels to learn.")]
Positive = Annotated[
    str | None,
    typer.Option("--positive", metavar="CLASS", help="Of two classes the one to find; else the last by name."),
]
UnitName = Annotated[
    Unit, typer.Option("--unit", help="A bag is a slide, or all slides of a patient (no distance between slides).")
]
SlidesTable = Annotated[
    Place | None,
    typer.Option("--slides-table", help="Table patient_id,slide_id, where --labels has a row per patient.", **FAR),
]
By = Annotated[
    list[str] | None,
    typer.Option("--by", metavar="COLUMN", help="Figures for each value of this column, too. May be repeated."),
]
Folds = Annotated[
    int | None,
    typer.Option(
        "--folds",
        help="Rounds; 0 = as the column fold says.  [default: as it says, else 5; by site all sites if fewer]",
    ),
]
Resamples = Annotated[int, typer.Option("--resamples", help="Resamples of the bootstrap, for intervals.")]
Epochs = Annotated[int, typer.Option("--epochs", help="At most so many passes over the training bags.")]
Patience = Annotated[int, typer.Option("--patience", help="Stop after so many without a better validation.")]
LearningRate = Annotated[float, typer.Option("--lr", help="Peak learning rate.")]
WeightDecay = Annotated[float, typer.Option("--weight-decay", help="Weight decay.")]
ValFraction = Annotated[float, typer.Option("--val-fraction", help="Share of patients to validate on.")]
Aggregators = Annotated[
    list[str] | None,
    typer.Option("--aggregator", metavar="NAME", help="A model to judge; may be repeated.  [default: das-mil]"),
]
Aggregator = Annotated[str, typer.Option("--aggregator", help="The model to train.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An aggregator's option. May be repeated.")
]
TilePx = Annotated[
    int | None, typer.Option("--tile-px", help="Side of a tile as the encoder sees it, px.  [default: 224]")
]
TileUm = Annotated[float | None, typer.Option("--tile-um", help="Side of a tile on the slide, um.  [default: 256]")]
TileMpp = Annotated[float | None, typer.Option("--mpp", help="um/px that the encoder sees, instead of --tile-um.")]
Coverage = Annotated[float, typer.Option("--min-coverage", help="Keep tiles with at least this share of tissue.")]
Overlap = Annotated[int, typer.Option("--overlap", help="Overlap of neighbouring tiles, px as the encoder sees them.")]
Holes = Annotated[
    float, typer.Option("--holes", metavar="MM2", help="Holes up to this area are tissue: 0: none, 1e6: all.")
]
Pens = Annotated[bool, typer.Option("--pens/--no-pens", help="Look for strokes of pens, and take them for no tissue.")]
MaxTiles = Annotated[int, typer.Option("--max-tiles", help="At most so many, drawn evenly over the tissue; 0 = all.")]
MinSharpness = Annotated[float, typer.Option("--min-sharpness", help="Least variance of the Laplacian at 2 um/px.")]
MaxPen = Annotated[float, typer.Option("--max-pen", help="Largest share of a tile that is ink.")]
MaxWhite = Annotated[float, typer.Option("--max-white", help="Largest share of a tile that is white.")]
MaxBlack = Annotated[float, typer.Option("--max-black", help="Largest share of a tile that is black.")]
MinSaturation = Annotated[float, typer.Option("--min-saturation", help="Least share of a tile that has colour.")]
Regions = Annotated[
    Place | None,
    typer.Option(
        "--regions", help="Folder of polygons, a .geojson, .json or .xml for each slide_id: where to tile.", **FAR
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="CLASS", help="Tile only regions of this class. May be repeated."),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="CLASS", help="Cut out regions of this class. May be repeated.")
]
Annotations = Annotated[
    Place | None,
    typer.Option(
        "--annotations",
        help="Folder of polygons, likewise: what share of each tile each class covers is kept.",
        **FAR,
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="A tiny cohort: shows the way, not the result.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides every random choice.")]
