"""Answers about new slides: one thin function per command, as in `cli`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_mil.arguments import (
    BagEncoder,
    BagMpp,
    BagTable,
    Batch,
    Device,
    JsonTo,
    Out,
    Overwrite,
    Patients,
    Scheduler,
    TrustCheckpoint,
    Weights,
    Workers,
    peer_options,
)
from wsi_mil.errors import OptionError
from wsi_mil.screen import show_answers, show_learnt
from wsi_mil.typed import typed

if TYPE_CHECKING:
    from wsi_mil.predict import PredictOptions
    from wsi_mil.reasons import Asked

app = typer.Typer()
Slides = Annotated[list[Path] | None, typer.Argument(help="Slides, or folders of slides.")]
OtherBags = Annotated[Path | None, typer.Option("--bags", help="Features instead, of whatever program.")]
Model = Annotated[Path, typer.Option("--model", help="Checkpoint, or the folder of `wsimil train`.")]
Explain = Annotated[bool, typer.Option("--explain", help="Show what the model looked at, as `wsimil explain`.")]
SlidesOfBags = Annotated[
    Path | None,
    typer.Option(
        "--slides",
        help="Of --bags: folder of slides, for pictures if they moved, for um/px of other programs' bags.",
    ),
]
TilesOfBags = Annotated[
    Path | None,
    typer.Option(
        "--tiles",
        help="Of --bags, to explain: their tiles, which know their quality and the tissue.  [default: tiles, if there]",
    ),
]


@app.command()
def predict(
    slides: Slides = None,
    bags: OtherBags = None,
    model: Model = Path("model"),
    out: Out = Path("predictions"),
    explain: Explain = False,
    weights: Weights = None,
    slide_mpp: BagMpp = None,
    bag_slides: SlidesOfBags = None,
    table: BagTable = None,
    encoder: BagEncoder = None,
    tiles: TilesOfBags = None,
    patients: Patients = None,
    json_to: JsonTo = None,
    device: Device = "auto",
    batch: Batch = 0,
    overwrite: Overwrite = False,
    workers: Workers = 0,
    trust: TrustCheckpoint = False,
    scheduler: Scheduler = "",
) -> None:
    """Predict the class of new slides with a trained model; what is unlike its training is warned of."""
    from wsi_mil.explain import LookOptions
    from wsi_mil.reasons import answer
    from wsi_mil.workflow import checkpoint_at

    if tiles and not explain:
        raise OptionError(f"--tiles {tiles} shows what was looked at: add --explain, or leave it out")
    _require_one_source("predict", slides, bags, bool(bag_slides or table or encoder), tiles)
    options = _options(out, weights, device, batch, workers, overwrite, trust, patients, scheduler)
    _require_file(json_to)
    path = checkpoint_at(model)
    asked = _asked(slides, bags, bag_slides, table, encoder, slide_mpp, tiles)
    answered = answer(path, asked, options, LookOptions() if explain else None, typed())
    show_answers(answered, path, out, json_to)


@app.command()
def explain(
    slides: Slides = None,
    bags: OtherBags = None,
    model: Model = Path("model"),
    out: Out = Path("predictions"),
    top: Annotated[int, typer.Option("--top", help="Tiles whose strongest partners are told.")] = 12,
    partners: Annotated[int, typer.Option("--partners", help="Partners of each of them.")] = 5,
    occlusions: Annotated[
        int, typer.Option("--occlusions", help="Tiles to leave out one by one, each at the price of a prediction.")
    ] = 16,
    weights: Weights = None,
    slide_mpp: BagMpp = None,
    bag_slides: SlidesOfBags = None,
    table: BagTable = None,
    encoder: BagEncoder = None,
    tiles: TilesOfBags = None,
    patients: Patients = None,
    json_to: JsonTo = None,
    device: Device = "auto",
    batch: Batch = 0,
    overwrite: Overwrite = False,
    workers: Workers = 0,
    trust: TrustCheckpoint = False,
    scheduler: Scheduler = "",
) -> None:
    """Predict, and show what the model looked at: pictures, tables, GeoJSON for QuPath, and a page of all that.

    Without slides or --bags: what distance the model learnt, as a table and a figure.
    """
    from wsi_mil.explain import LookOptions
    from wsi_mil.reasons import answer, learnt
    from wsi_mil.workflow import checkpoint_at

    closely = LookOptions(top, partners, occlusions)
    if not slides and bags is None:
        path = checkpoint_at(model)
        show_learnt(path, *learnt(path, out, overwrite))
        return
    _require_one_source("explain", slides, bags, bool(bag_slides or table or encoder), tiles)
    options = _options(out, weights, device, batch, workers, overwrite, trust, patients, scheduler)
    _require_file(json_to)
    path = checkpoint_at(model)
    asked = _asked(slides, bags, bag_slides, table, encoder, slide_mpp, tiles)
    show_answers(answer(path, asked, options, closely, typed()), path, out, json_to)


def _require_one_source(
    command: str, slides: list[Path] | None, bags: Path | None, of_peers: bool, tiles: Path | None
) -> None:
    """Refuse to be asked about nothing or about two things, or to be told what says nothing of it."""
    if bool(slides) == bool(bags):
        raise OptionError(f"{command}: name slides, or features by --bags, and not both: `wsimil {command} slide.tif`")
    if slides and of_peers:
        raise OptionError("--slides, --slides-csv and --encoder tell of other programs' --bags: leave them out")
    if slides and tiles:
        raise OptionError(f"--tiles {tiles} tells of --bags: leave it out, slides are tiled as in training")


def _asked(
    slides: list[Path] | None,
    bags: Path | None,
    bag_slides: Path | None,
    table: Path | None,
    encoder: str | None,
    mpp: float | None,
    tiles: Path | None,
) -> "Asked":
    from wsi_mil.predict import slides_at
    from wsi_mil.reasons import Asked

    if slides:
        return Asked(slides_at(slides), mpp=mpp)
    peers = peer_options(bag_slides, table, mpp, encoder)
    return Asked(bags=bags, peers=peers, slides_at=bag_slides, tiles=tiles)


def _options(
    out: Path,
    weights: str | None,
    device: str,
    batch: int,
    workers: int,
    overwrite: bool,
    trust: bool,
    patients: Path | None,
    scheduler: str,
) -> "PredictOptions":
    from wsi_mil.devices import pick_device
    from wsi_mil.predict import PredictOptions

    where = device if scheduler else str(pick_device(device))  # a cluster has other devices than this machine
    return PredictOptions(out, weights, where, batch, workers, overwrite, trust, patients, scheduler)


def _require_file(json_to: str | None) -> None:
    if json_to is not None and json_to != "-" and Path(json_to).is_dir():
        raise OptionError(f"--json {json_to} is a folder: name a file, or - for stdout")
