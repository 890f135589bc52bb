"""Stage 5: checkpoint + slide, or bags -> predictions.

A raw slide goes through the same tile and extract stages as the training cohort, with the parameters that the
checkpoint recorded; their artifacts stay in a cache folder, so a second call finds them there.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_mil import checkpoint, extract, store, tiling
from wsi_mil.aggregators import Aggregator, infer
from wsi_mil.bags import bag_items, read_bag
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.devices import default_batch, pick_device, precision_like
from wsi_mil.encoders import Encoder, find_encoder, load_encoder, sources
from wsi_mil.errors import ArtifactCorrupt, ArtifactMissing, ArtifactStale, IncompatibleError, OptionError, one_line
from wsi_mil.interop import PeerOptions, own_bags
from wsi_mil.predictions import TABLE, Prediction, read_predictions, write_predictions
from wsi_mil.slides import SlideFile, find_slides, require_mpp, slide_fingerprint
from wsi_mil.stage import Item, RunOptions, artifact_items, artifact_path, attempt, run
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
    """Where encoder and model run."""
    batch: int = 0
    """Tiles per forward pass of the encoder; 0 = what suits the device."""
    workers: int = 0
    """Threads; 0 = the cores this process may use."""
    overwrite: bool = False
    """Make cached artifacts again, and start the table of another model anew."""
    trust: bool = False
    """Open a pickle of weights that holds more than tensors, which runs whatever code is in it."""


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
    encoder = _encoder(model, path, options)
    cache, loop = options.out / "cache", RunOptions(options.overwrite, refresh=True, workers=options.workers)
    resolutions = {slide.slide_id: mpp for slide in slides} if mpp is not None else {}
    tile = tiling.TileStage(tiling.TileParams(**model.tile_params), loop.threads, resolutions)
    for slide in slides:
        _refuse_namesake(slide, artifact_path(cache / "tiles", slide.slide_id))
    report = run(tile, [Item(*slide) for slide in slides], cache / "tiles", loop)
    tiled = [slide.slide_id for slide in slides if slide.slide_id not in report.failed]
    params = extract.ExtractParams.of(encoder, model.recipe.stain["method"], fast_decode=model.recipe.fast_decode)
    batch = options.batch or default_batch(pick_device(options.device))
    stage = extract.ExtractStage(params, encoder, loop.threads, batch, moved=dict(slides))
    items = [Item(slide_id, artifact_path(cache / "tiles", slide_id)) for slide_id in tiled]
    extracted = run(stage, items, cache / "feats", loop)
    failed = report.failed | extracted.failed
    bags = [Item(slide_id, artifact_path(cache / "feats", slide_id)) for slide_id in tiled if slide_id not in failed]
    rows = [Prediction(slide_id, "failed", error=one_line(error)) for slide_id, error in failed.items()]
    return _enter(options, model, path, rows + _answers(model, bags, options))


def predict_bags(
    path: Path, bags: Iterable[Item], options: PredictOptions, failed: Mapping[str, Exception] | None = None
) -> list[Prediction]:
    """Predict from artifacts of features, and enter the results in ``predictions.csv``; ``failed`` has no features."""
    model = checkpoint.load(path)
    _table_so_far(options, model, path)
    rows = [Prediction(slide_id, "failed", error=one_line(error)) for slide_id, error in (failed or {}).items()]
    return _enter(options, model, path, rows + _answers(model, bags, options))


def predict_source(path: Path, source: Path, options: PredictOptions, peers: PeerOptions) -> list[Prediction]:
    """Predict from one bag or a folder of bags, whoever made them: `predict_bags` of `interop.own_bags`."""
    made = own_bags(source, peers, options.workers)
    return predict_bags(path, find_bags(source) if made.items is None else made.items, options, made.failed)


def find_bags(source: Path) -> list[Item]:
    """One bag, or all bags of a folder."""
    if source.is_file():
        return [Item(store.read_attrs(source).get("slide_id", source.stem), source)]
    if not artifact_items(source):
        raise OptionError(f"--bags {source}: no .h5 file is there: make features with `wsimil extract`")
    return bag_items(source)


def slides_at(sources: Sequence[Path]) -> list[SlideFile]:
    """The slides that some paths, each a slide or a folder of slides, name.

    Raises:
        OptionError: two of them would share a slide_id.
    """
    known: dict[str, Path] = {}
    for slide_id, path in (slide for source in sources for slide in find_slides(source)):
        if known.setdefault(slide_id, path).resolve() != path.resolve():
            raise OptionError(f"{known[slide_id]} and {path} are both called {slide_id}: give each its own --out")
    return [SlideFile(*slide) for slide in known.items()]


def _refuse_namesake(slide: SlideFile, cached: Path) -> None:
    """Refuse a slide that another one, still there, has entered its name before: its row would be lost."""
    try:
        before = Path(store.read_attrs(cached)["slide_path"])
    except (ArtifactMissing, ArtifactCorrupt):  # nothing to be mistaken for; the cache makes it anew
        return
    if (
        before != slide.path.absolute()
        and before.exists()
        and slide_fingerprint(before) != slide_fingerprint(slide.path)
    ):
        raise ArtifactStale(f"{before} was predicted as {slide.slide_id} before: give another --out for {slide.path}")


def _encoder(model: Checkpoint, path: Path, options: PredictOptions) -> Encoder:
    """The encoder of training, by the weights that the user names, or else by those that were recorded."""
    if model.recipe.is_foreign:
        raise IncompatibleError(
            f"{path} was trained on features of {model.recipe.encoder} that another program made: nobody knows its"
            " weights, so slides cannot be encoded alike here. Make their features as before, and name them by --bags"
        )
    name, wanted = model.recipe.encoder, model.recipe.encoder_weights_sha256
    weights = options.weights or sources.again(find_encoder(name), model.encoder_weights, wanted)
    trained = model.extract_params["precision"]
    precision = precision_like(trained, pick_device(options.device))
    if precision != trained:
        log.info("the model was trained on features in %s, which this device is not made for: fp32 instead", trained)
    encoder = load_encoder(name, weights, options.device, precision, options.trust, wanted)
    now = {"preprocessing": dict(encoder.preprocessing), "network": dict(encoder.network)}
    now["stain"] = stain_recipe(model.recipe.stain["method"])
    try:
        model.recipe.require(dataclasses.replace(model.recipe, **now), f"what {name} gives now")
    except IncompatibleError as error:
        raise IncompatibleError(f"{path}: {error}: extract and train again") from error
    return encoder


def _answers(model: Checkpoint, bags: Iterable[Item], options: PredictOptions) -> list[Prediction]:
    network = model.model().to(options.device)
    if model.unit == "patient":
        log.warning("the model learnt from all slides of a patient together, and is asked about each slide alone here")
    rows = []
    for item in bags:
        answer = attempt(_answer, model, network, item)
        if isinstance(answer, Exception):
            log.error("%s: %s", item.slide_id, one_line(answer))
            answer = Prediction(item.slide_id, "failed", error=one_line(answer))
        rows.append(answer)
    return rows


def _answer(model: Checkpoint, network: Aggregator, item: Item) -> Prediction:
    bag = read_bag(item.source)
    model.require(bag, item.source)
    if not len(bag.features):
        return Prediction(item.slide_id, "empty", error=bag.attrs.get("reason", ""))
    probabilities = tuple(infer(network, bag).probabilities.tolist())
    return Prediction(item.slide_id, "done", probabilities, len(bag.features), predicted=model.decide(probabilities))


def _table_so_far(options: PredictOptions, model: Checkpoint, path: Path) -> list[Prediction]:
    """Rows that this very model has entered before."""
    table = options.out / TABLE
    if not table.exists():
        return []
    rows, classes, made_by = read_predictions(table)
    if made_by == checkpoint.digest(path) and classes == model.classes:
        return rows
    if options.overwrite:
        return []
    raise ArtifactStale(f"{table} was made by another model: add --overwrite to replace it, or give another --out")


def _enter(options: PredictOptions, model: Checkpoint, path: Path, rows: list[Prediction]) -> list[Prediction]:
    """Enter rows in the table, keeping those of other slides; return the new ones, by slide_id."""
    table = {row.slide_id: row for row in _table_so_far(options, model, path)}
    for row in rows:
        if row.status != "failed" or row.slide_id not in table:  # a failure takes no answer away
            table[row.slide_id] = row
    write_predictions(options.out / TABLE, sorted(table.values()), model.classes, checkpoint.digest(path))
    return sorted(rows)
