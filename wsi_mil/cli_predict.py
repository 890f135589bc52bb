"""Answers about new slides: one thin function per command, as in `cli`."""

import os
from collections.abc import Mapping
from functools import partial
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
)
from wsi_mil.arguments_remote import DEFAULT_SIZE, FAR, Cache, CacheSize, ManySlides, Place, brought, cache_params
from wsi_mil.arguments_together import peer_options
from wsi_mil.errors import OptionError
from wsi_mil.remote.urls import parse_place, require_local
from wsi_mil.screen import show_answers, show_learnt
from wsi_mil.typed import typed

if TYPE_CHECKING:
    from wsi_mil.predict import PredictOptions
    from wsi_mil.reasons import Asked
    from wsi_mil.remote import CacheParams

app = typer.Typer()
OtherBags = Annotated[
    Place | None,
    typer.Option("--bags", help="Features instead, of whatever program.", **FAR),
]
Model = Annotated[
    Place,
    typer.Option("--model", help="Checkpoint, or the folder of `wsimil train`; or its URL.", **FAR),
]
Explain = Annotated[bool, typer.Option("--explain", help="Show what the model looked at, as `wsimil explain`.")]
SlidesOfBags = Annotated[
    Place | None,
    typer.Option(
        "--slides",
        metavar="PATH",
        parser=parse_place,
        help="Of --bags: folder or URL of slides, for pictures if they moved; a folder, for um/px of other bags.",
    ),
]
TilesOfBags = Annotated[
    Place | None,
    typer.Option(
        "--tiles",
        help="Of --bags, to explain: their tiles, which know their quality and the tissue.  [default: tiles, if there]",
        **FAR,
    ),
]


@app.command()
def predict(
    slides: ManySlides = None,
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
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
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
    told = {"--weights": weights, "--trust-checkpoint": trust, "--batch": batch}
    _require_one_source("predict", slides, bags, bool(bag_slides or table or encoder), tiles, told)
    staged = cache_params(cache, cache_size)
    options = _options(out, weights, device, batch, workers, overwrite, trust, patients, staged, scheduler)
    _require_file(json_to)
    path = checkpoint_at(brought(model, staged, scheduler))
    asked = _asked(slides, bags, bag_slides, table, encoder, slide_mpp, tiles, options)
    answered = answer(path, asked, options, LookOptions() if explain else None, typed())
    show_answers(answered, path, out, json_to)


@app.command()
def explain(
    slides: ManySlides = None,
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
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
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
    _require_file(json_to)
    staged = cache_params(cache, cache_size)
    if not slides and bags is None:
        _require_no_more({"--slides": bag_slides, "--slides-csv": table, "--encoder": encoder, "--tiles": tiles,
                          "--patients": patients, "--mpp": slide_mpp, "--weights": weights, "--batch": batch or None,
                          "--trust-checkpoint": trust or None, "--scheduler": scheduler or None})  # fmt: skip
        path = checkpoint_at(brought(model, staged))
        show_learnt(path, *learnt(path, out, overwrite), json_to)
        return
    told = {"--weights": weights, "--trust-checkpoint": trust, "--batch": batch}
    _require_one_source("explain", slides, bags, bool(bag_slides or table or encoder), tiles, told)
    options = _options(out, weights, device, batch, workers, overwrite, trust, patients, staged, scheduler)
    path = checkpoint_at(brought(model, staged, scheduler))
    asked = _asked(slides, bags, bag_slides, table, encoder, slide_mpp, tiles, options)
    show_answers(answer(path, asked, options, closely, typed()), path, out, json_to)


def _require_one_source(
    command: str,
    slides: list[Place] | None,
    bags: Place | None,
    of_peers: bool,
    tiles: Place | None,
    of_encoder: Mapping[str, object],
) -> None:
    """Refuse to be asked about nothing or about two things, or to be told what says nothing of it."""
    given = [option for option, value in of_encoder.items() if value]
    if bool(slides) == bool(bags):
        either = "name slides or --bags, and not both" if slides else "name slides, or features by --bags"
        raise OptionError(f"{command}: {either}: `wsimil {command} slide.tif`")
    if slides and of_peers:
        raise OptionError(
            "--slides, --slides-csv and --encoder tell of other programs' --bags: leave them out; um/px of slides go by"
            " --mpp, for all of the call"
        )
    if slides and tiles:
        raise OptionError(f"--tiles {tiles} tells of --bags: leave it out, slides are tiled as in training")
    if bags and given:
        raise OptionError(f"{given[0]} tells of the encoder, which --bags do not need any more: leave it out")


def _require_no_more(told: Mapping[str, object]) -> None:
    """Refuse, without slides, what tells of slides only: whoever gave it meant to name some."""
    if given := [option for option, value in told.items() if value is not None]:
        raise OptionError(f"{given[0]} tells of slides: name some, or features by --bags: `wsimil explain slide.tif`")


def _asked(
    slides: list[Place] | None,
    bags: Place | None,
    bag_slides: Place | None,
    table: Place | None,
    encoder: str | None,
    mpp: float | None,
    tiles: Place | None,
    options: "PredictOptions",
) -> "Asked":
    from wsi_mil.asked import slides_at
    from wsi_mil.reasons import Asked

    if slides:
        return Asked(slides_at(slides, options.cache, options.out), mpp=mpp)
    # What lies far away is fetched for pictures, not to ask each slide for its um/px.
    local = bag_slides if isinstance(bag_slides, Path) else None
    here = partial(brought, cache=options.cache, scheduler=options.scheduler)
    peers = peer_options(local, here(table), mpp, encoder)
    return Asked(bags=here(bags), peers=peers, slides_at=bag_slides, tiles=here(tiles))


def _options(
    out: Path,
    weights: str | None,
    device: str,
    batch: int,
    workers: int,
    overwrite: bool,
    trust: bool,
    patients: Place | None,
    cache: "CacheParams",
    scheduler: str,
) -> "PredictOptions":
    from wsi_mil.devices import pick_device
    from wsi_mil.predict import PredictOptions

    where = device if scheduler else str(pick_device(device))  # a cluster has other devices than this machine
    table = brought(patients, cache, scheduler)
    return PredictOptions(out, weights, where, batch, workers, overwrite, trust, table, cache, scheduler)


def _require_file(json_to: str | None) -> None:
    if json_to is None or json_to == "-":
        return
    path = require_local(json_to)
    if path.is_dir():
        raise OptionError(f"--json {json_to} is a folder: name a file, or - for stdout")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(path if path.exists() else there, os.W_OK):
        raise OptionError(f"--json {json_to} is not yours to write: name another file")
