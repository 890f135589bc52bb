"""The commands that make models and judge them: train, crossval, evaluate, compare."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_mil.arguments import (
    Aggregator,
    Aggregators,
    BagEncoder,
    BagMpp,
    Bags,
    BagSlides,
    BagsPerStep,
    BagTable,
    By,
    Clip,
    Device,
    Devices,
    Distances,
    Epochs,
    Folds,
    Labels,
    LearningRate,
    Model,
    Numbers,
    Options,
    Out,
    Overwrite,
    Patience,
    Positive,
    Resamples,
    SaveEvery,
    Seed,
    SlidesTable,
    Target,
    Tiles,
    TrainTiles,
    Unit,
    UnitName,
    ValFraction,
    WeightDecay,
)
from wsi_mil.arguments_remote import DEFAULT_SIZE, Cache, CacheSize, brought, cache_params
from wsi_mil.arguments_together import key_values, label_table, peer_options
from wsi_mil.remote.urls import require_copied
from wsi_mil.screen import show_study, show_training

app = typer.Typer(rich_markup_mode=None)


@app.command()
def train(
    bags: Bags = Path("feats"),
    labels: Labels = Path("labels.csv"),
    out: Out = Path("model"),
    aggregator: Aggregator = "das-mil",
    option: Options = None,
    epochs: Epochs = 60,
    patience: Patience = 20,
    lr: LearningRate = 1e-3,
    weight_decay: WeightDecay = 1e-2,
    bags_per_step: BagsPerStep = 2,
    clip: Clip = 1.0,
    precision: Numbers = "auto",
    max_tiles: TrainTiles = 0,
    val_fraction: ValFraction = 0.2,
    target: Target = "label",
    positive: Positive = None,
    unit: UnitName = Unit.SLIDE,
    slides_table: SlidesTable = None,
    seed: Seed = 0,
    tiles: Tiles = Path("tiles"),
    distances_: Distances = Path("distances"),
    slides: BagSlides = None,
    table: BagTable = None,
    mpp: BagMpp = None,
    encoder: BagEncoder = None,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
    device: Device = "auto",
    devices: Devices = 1,
    save_every_minutes: SaveEvery = 10.0,
    overwrite: Overwrite = False,
) -> None:
    """Train a slide-level model on labelled slides; what was interrupted is gone on with."""
    from wsi_mil import workflow
    from wsi_mil.learning import LearnParams, RunParams
    from wsi_mil.train_params import TrainParams

    learn = LearnParams(epochs, patience, lr, weight_decay, bags_per_step, seed, clip, precision, max_tiles)
    how = RunParams(devices, save_every_minutes=save_every_minutes)
    params = TrainParams(aggregator, key_values(option), val_fraction, learn)
    staged = cache_params(cache, cache_size)
    told = label_table(brought(labels, staged), brought(slides_table, staged), target, positive, unit, None)
    peers = peer_options(slides, brought(table, staged), mpp, encoder)
    folders = workflow.Folders(brought(tiles, staged), brought(bags, staged), distances_, out)
    show_training(workflow.train_model(told, folders, params, device, overwrite, peers, how), out)


@app.command()
def crossval(
    bags: Bags = Path("feats"),
    labels: Labels = Path("labels.csv"),
    out: Out = Path("crossval"),
    aggregator: Aggregators = None,
    option: Options = None,
    folds: Folds = None,
    by_site: Annotated[
        bool, typer.Option("--by-site", help="Test all patients of a site (column site) in one round.")
    ] = False,
    trials: Annotated[
        int, typer.Option("--search", metavar="N", help="Hyper-parameters to try in each round, on its validation.")
    ] = 0,
    label_shuffle: Annotated[
        bool, typer.Option("--label-shuffle", help="Deal the labels anew first: AUROC must then be about 0.5.")
    ] = False,
    epochs: Epochs = 60,
    patience: Patience = 20,
    lr: LearningRate = 1e-3,
    weight_decay: WeightDecay = 1e-2,
    bags_per_step: BagsPerStep = 2,
    clip: Clip = 1.0,
    precision: Numbers = "auto",
    max_tiles: TrainTiles = 0,
    val_fraction: ValFraction = 0.2,
    target: Target = "label",
    positive: Positive = None,
    unit: UnitName = Unit.SLIDE,
    slides_table: SlidesTable = None,
    by: By = None,
    seed: Seed = 0,
    resamples: Resamples = 2000,
    tiles: Tiles = Path("tiles"),
    distances: Distances = Path("distances"),
    slides: BagSlides = None,
    table: BagTable = None,
    mpp: BagMpp = None,
    encoder: BagEncoder = None,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
    device: Device = "auto",
    devices: Devices = 1,
    overwrite: Overwrite = False,
) -> None:
    """Judge models on every patient, by rounds that knew nothing of them: weights and choices come from the others."""
    from wsi_mil import studies, workflow
    from wsi_mil.evaluation import CrossvalParams
    from wsi_mil.learning import LearnParams, RunParams
    from wsi_mil.metrics import Resampling
    from wsi_mil.train_params import TrainParams

    models = tuple(aggregator or ["das-mil"])
    learn = LearnParams(epochs, patience, lr, weight_decay, bags_per_step, seed, clip, precision, max_tiles)
    base = TrainParams(models[0], key_values(option), val_fraction, learn)
    params = CrossvalParams(base, models, folds, by_site, label_shuffle, trials)
    staged = cache_params(cache, cache_size)
    told = label_table(brought(labels, staged), brought(slides_table, staged), target, positive, unit, by)
    peers, run = peer_options(slides, brought(table, staged), mpp, encoder), RunParams(devices, overwrite=overwrite)
    folders = workflow.Folders(brought(tiles, staged), brought(bags, staged), distances, out)
    show_study(studies.cross_validate(told, folders, params, Resampling(seed, resamples), device, run, peers), out)


@app.command()
def evaluate(
    model: Model = Path("model"),
    bags: Bags = Path("feats"),
    labels: Labels = Path("labels.csv"),
    out: Out = Path("evaluation"),
    part: Annotated[str, typer.Option("--split", help="Judge only slides of this split, such as test.")] = "",
    spatial: Annotated[
        bool, typer.Option("--spatial", help="Ask the model again with tiles moved: does it use where they are?")
    ] = False,
    target: Target = "label",
    slides_table: SlidesTable = None,
    by: By = None,
    seed: Seed = 0,
    resamples: Resamples = 2000,
    tiles: Tiles = Path("tiles"),
    slides: BagSlides = None,
    table: BagTable = None,
    mpp: BagMpp = None,
    encoder: BagEncoder = None,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_SIZE,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Judge a trained model on labelled slides: figures with intervals, by site and other groups."""
    from wsi_mil import studies
    from wsi_mil.metrics import Resampling
    from wsi_mil.workflow import Folders, checkpoint_at

    staged = cache_params(cache, cache_size)
    told = label_table(brought(labels, staged), brought(slides_table, staged), target, None, Unit.SLIDE, by)
    peers, path = peer_options(slides, brought(table, staged), mpp, encoder), checkpoint_at(brought(model, staged))
    folders = Folders(brought(tiles, staged), brought(bags, staged), model=out)
    asked, how = studies.Asked(part, spatial, device, overwrite), Resampling(seed, resamples)
    show_study(studies.evaluate_model(path, told, folders, asked, how, peers), out)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", parser=require_copied, help="Folders of crossval (one per model), evaluate or train."
        ),
    ],
    out: Out = Path("comparison"),
    seed: Seed = 0,
    resamples: Resamples = 2000,
    overwrite: Overwrite = False,
) -> None:
    """Compare runs on the patients that all of them have: difference in AUROC, its interval, DeLong, McNemar, Holm."""
    from wsi_mil import studies
    from wsi_mil.metrics import Resampling

    show_study(studies.compare_runs(runs, out, Resampling(seed, resamples), overwrite), out)
