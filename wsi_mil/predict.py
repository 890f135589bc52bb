"""Stage 5: checkpoint + slide, or bags -> predictions.

A raw slide goes through the same tile and extract stages as the training cohort, with the parameters that the
checkpoint recorded; their artifacts stay in a cache folder, so a second call finds them there.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from wsi_mil import checkpoint, publishing, tiling
from wsi_mil.answering import JSON, OnCluster, Question, answers, as_json, as_object, notes
from wsi_mil.asked import nameable, refuse_namesake
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.cohort import some_names
from wsi_mil.cohort.owners import read_patients
from wsi_mil.devices import pick_device, precision_like
from wsi_mil.encoders import Encoder, LateEncoder, find_encoder, load_encoder
from wsi_mil.errors import ArtifactCorrupt, ArtifactStale, IncompatibleError, one_line
from wsi_mil.extraction import Extraction
from wsi_mil.predictions import TABLE, Prediction, entered, read_predictions, write_predictions
from wsi_mil.remote import CacheParams
from wsi_mil.runs import Report, failures
from wsi_mil.slides import SlideFile, require_mpp
from wsi_mil.stage import Item, RunOptions, artifact_path, run
from wsi_mil.stain import stain_recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictOptions:
    """How predictions are made: by the same weights, on the same tiles, whatever is said here."""

    out: Path = Path("predictions")
    """Where the table and the cache of tiles and features lie."""
    weights: str | None = None
    """Where the encoder's weights are; None = where they were in training."""
    device: str = "cpu"
    """Where encoder and model run; on a cluster as ``--device`` says it."""
    batch: int = 0
    """Tiles per forward pass of the encoder; 0 = what suits the device."""
    workers: int = 0
    """Threads; 0 = the cores this process may use."""
    overwrite: bool = False
    """Make cached artifacts again, and start the table of another model anew."""
    trust: bool = False
    """Open a pickle of weights that holds more than tensors, which runs whatever code is in it."""
    patients: Path | None = None
    """Table slide_id,patient_id: whose the slides are. A model that learnt from patients answers for each then."""
    cache: CacheParams = field(default_factory=CacheParams)
    """Where slides from far away are staged."""
    scheduler: str = ""
    """Address of a Dask cluster whose workers do it; "" = this process does."""


def predict_slides(
    path: Path, slides: Sequence[SlideFile], options: PredictOptions, mpp: float | None = None
) -> list[Prediction]:
    """Predict from raw slides, and enter the results in ``predictions.csv``.

    Args:
        path: the checkpoint.
        slides: slides to predict.
        options: how to go about it.
        mpp: level-0 um/px of all the slides, whatever their files say; None = as they say.

    Raises:
        IncompatibleError: the encoder's weights are not those of training.
        ArtifactStale: the table holds predictions of another model.
        OptionError: ``mpp`` makes no sense.
    """
    require_mpp("--mpp", mpp)
    model = checkpoint.load(path)
    _table_so_far(options, model, path)
    slides, unnamed = nameable(slides)
    for slide in slides:
        refuse_namesake(slide, artifact_path(options.out / "cache" / "tiles", slide.slide_id), options.cache)
    loaded = None if options.scheduler else _encoders(path, options, options.device)
    for encoder in loaded or []:
        if isinstance(encoder, LateEncoder) and _must_encode(slides, options):
            encoder.load()  # before hours of tiling
    tiled, extracted = _features(model, path, slides, loaded, options, mpp)
    feats, failed = options.out / "cache" / "feats", unnamed | tiled.failed | extracted.failed
    bags = [Item(slide.slide_id, artifact_path(feats, slide.slide_id)) for slide in slides]
    seconds = {
        slide.slide_id: sum(report.seconds.get(slide.slide_id, 0.0) for report in (tiled, extracted))
        for slide in slides
    }
    return _answered(path, model, [bag for bag in bags if bag.slide_id not in failed], failed, options, seconds)


def predict_bags(
    path: Path, bags: Iterable[Item], options: PredictOptions, failed: Mapping[str, Exception] | None = None
) -> list[Prediction]:
    """Predict from artifacts of features, and enter the results in ``predictions.csv``; ``failed`` has no features."""
    model = checkpoint.load(path)
    _table_so_far(options, model, path)
    bags, unnamed = nameable(list(bags))
    return _answered(path, model, bags, {**unnamed, **(failed or {})}, options, {})


def _encoder(model: Checkpoint, path: Path, options: PredictOptions) -> Encoder:
    """The encoder of training, by the weights that the user names, or else by those that were recorded."""
    if model.recipe.is_foreign:
        raise IncompatibleError(
            f"{path} was trained on features of {model.recipe.encoder} that another program made: nobody knows its"
            " weights, so slides cannot be encoded alike here. Make their features as before, and name them by --bags"
        )
    name, wanted = model.recipe.encoder, model.recipe.encoder_weights_sha256
    trained, spec = model.extract_params["precision"], find_encoder(name)
    precision = precision_like(trained, pick_device(options.device))
    if precision != trained:
        log.info("the model was trained on features in %s, which this device is not made for: fp32 instead", trained)
    encoder: Encoder
    if options.weights or not spec.arch:  # what the user names is looked at, needed or not; what is built in is free
        weights = options.weights or model.encoder_weights
        encoder = load_encoder(name, weights, options.device, precision, options.trust, wanted)
    else:
        encoder = LateEncoder(spec, model.encoder_weights, wanted, options.device, precision, options.trust)
    now = {"preprocessing": dict(encoder.preprocessing), "network": dict(encoder.network)}
    now["stain"] = stain_recipe(model.recipe.stain["method"])
    try:
        model.recipe.require(dataclasses.replace(model.recipe, **now), f"what {name} gives now")
    except IncompatibleError as error:
        raise IncompatibleError(f"{path}: {error}: extract and train again") from error
    return encoder


def _encoders(path: Path, options: PredictOptions, device: str) -> list[Encoder]:
    """The encoder of training on a device, by whoever is to run it: here, or a worker of a cluster."""
    return [_encoder(checkpoint.load(path), path, dataclasses.replace(options, device=device))]


def _must_encode(slides: Sequence[SlideFile], options: PredictOptions) -> bool:
    """Whether the encoder will surely be needed: a slide has no features, and did not fail before it got so far."""
    cache = options.out / "cache"
    hopeless = failures(cache / "tiles")
    feats = {slide.slide_id: artifact_path(cache / "feats", slide.slide_id) for slide in slides}
    return options.overwrite or any(not path.exists() and name not in hopeless for name, path in feats.items())


def _features(
    model: Checkpoint,
    path: Path,
    slides: Sequence[SlideFile],
    loaded: list[Encoder] | None,
    options: PredictOptions,
    mpp: float | None,
) -> tuple[Report, Report]:
    """Tile and encode slides as in training, what the cache does not hold yet."""
    cache, threads = options.out / "cache", options.workers
    loop = RunOptions(options.overwrite, True, threads, scheduler=options.scheduler, cache=options.cache)
    resolutions = {slide.slide_id: mpp for slide in slides} if mpp is not None else {}
    # Whoever reads them, pixels are the same; a new slide may be of a format that one reader does not know.
    params = dataclasses.replace(tiling.TileParams(**model.tile_params), reader="auto")
    tile = tiling.TileStage(params, loop.threads, resolutions)
    tiled = run(tile, [Item(*slide) for slide in slides], cache / "tiles", loop)
    reading = {"stain": model.recipe.stain["method"], "fast_decode": model.recipe.fast_decode}
    load, feats = partial(_encoders, path.absolute(), _for_workers(options)), cache / "feats"
    extraction = Extraction(
        load, (feats,), reading, options.device, options.batch, options.workers, dict(slides), options.cache
    )
    names = [slide.slide_id for slide in slides if slide.slide_id not in tiled.failed]
    items = [Item(name, artifact_path(cache / "tiles", name)) for name in names]
    return tiled, extraction.run(items, loop, loaded)[feats]


def _for_workers(options: PredictOptions) -> PredictOptions:
    """The options by which a worker, in another folder, finds the same weights."""
    if not options.weights or not Path(options.weights).exists():  # random:SEED, or missing, as they will say
        return options
    return dataclasses.replace(options, weights=str(Path(options.weights).absolute()))


def _answered(
    path: Path,
    model: Checkpoint,
    bags: list[Item],
    failed: Mapping[str, Exception],
    options: PredictOptions,
    seconds: Mapping[str, float],
) -> list[Prediction]:
    """Answer for all slides, those that failed too, and enter the rows in the tables."""
    owners = _owners([*(bag.slide_id for bag in bags), *failed], options)
    rows = [
        Prediction(name, "failed", error=one_line(error), patient_id=owners.get(name, ""))
        for name, error in failed.items()
    ]
    for note in notes(model):
        log.warning("%s", note)
    questions = _questions(model, bags, list(failed), owners)
    cluster = OnCluster(options.scheduler, path) if options.scheduler else None
    told = answers(model, questions, options.device, seconds, cluster)
    return _enter(options, model, path, rows + told)


def _owners(slides: list[str], options: PredictOptions) -> dict[str, str]:
    """The patients of slides, as far as they are known."""
    if options.patients is None:
        return {}
    owners = read_patients(options.patients, slides)
    if unknown := [name for name in slides if name not in owners]:
        log.warning("%s does not say whose these are: %s", options.patients, some_names(unknown))
    return owners


def _questions(model: Checkpoint, bags: list[Item], failed: list[str], owners: Mapping[str, str]) -> list[Question]:
    """One for each slide, or for each patient, where the model learnt from patients and it is known who they are."""
    if model.unit != "patient":
        return [Question((bag,), owners.get(bag.slide_id, "")) for bag in bags]
    if alone := [bag.slide_id for bag in bags if bag.slide_id not in owners]:
        log.warning(
            "the model learnt from all slides of a patient together, and is asked about each slide alone here: %s. Say"
            " whose they are by --patients TABLE",
            some_names(alone),
        )
    together: dict[str, list[Item]] = {}
    for bag in bags:
        together.setdefault(owners.get(bag.slide_id, ""), []).append(bag)
    questions = [Question((bag,)) for bag in together.pop("", [])]
    for patient, slides in together.items():
        missing = tuple(name for name in failed if owners.get(name) == patient)
        questions.append(Question(tuple(slides), patient, missing))
    return questions


def _table_so_far(options: PredictOptions, model: Checkpoint, path: Path) -> list[Prediction]:
    """Rows that this very model has entered before."""
    table = options.out / TABLE
    if not table.exists():
        return []
    try:
        rows, classes, made_by = read_predictions(table)
    except ArtifactCorrupt:
        if options.overwrite:
            return []
        raise
    if made_by == checkpoint.digest(path) and classes == model.classes:
        return rows
    if options.overwrite:
        return []
    raise ArtifactStale(f"{table} was made by another model: add --overwrite to replace it, or give another --out")


def _enter(options: PredictOptions, model: Checkpoint, path: Path, rows: list[Prediction]) -> list[Prediction]:
    """Enter rows in the tables, keeping those of other slides; return the new ones, by slide_id."""
    digest = checkpoint.digest(path)
    with publishing.alone(options.out):  # another process may enter other slides
        table = entered(_table_so_far(options, model, path), rows, model.unit == "patient")
        write_predictions(options.out / TABLE, table, model.classes, digest)
        publishing.write_bytes(options.out / JSON, as_json(as_object(table, model, digest, notes(model))).encode())
    return sorted(rows, key=lambda row: row.slide_id)


def told_as_object(path: Path, rows: Sequence[Prediction]) -> dict[str, Any]:
    """Predictions of a checkpoint as one object of JSON: what ``predictions.json`` holds, of these rows alone."""
    model = checkpoint.load(path)
    return as_object(rows, model, checkpoint.digest(path), notes(model))
