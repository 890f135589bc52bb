"""Chains the stages: what one command needs of several rooms."""

import logging
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi_mil import distances, publishing, store, train
from wsi_mil.bags import FEATURE_STAGES, bag_items
from wsi_mil.cohort import Cohort, CohortParams, Seen, check_doubles, read_cohort, tell_classes
from wsi_mil.cutting import tile
from wsi_mil.devices import pick_device
from wsi_mil.encoding import Encoding, extract_features
from wsi_mil.errors import ArtifactError, ArtifactMissing, ArtifactStale, OptionError, SlideError
from wsi_mil.evaluation import refuse_judged
from wsi_mil.executors import is_first_rank
from wsi_mil.interop import PeerOptions, own_bags
from wsi_mil.learning import RunParams, discard
from wsi_mil.remote import CacheParams, Url
from wsi_mil.report import (
    DISTANCE_FILES,
    SlideFiles,
    distance_files,
    distance_use,
    training_card,
    training_page,
    training_slides,
)
from wsi_mil.runs import Report, failures
from wsi_mil.slides import find_slides, require_mpp
from wsi_mil.stage import RunOptions, artifact_items, artifact_path, run
from wsi_mil.tiling import TileParams
from wsi_mil.train import CARD, CHECKPOINT, Trained
from wsi_mil.train_params import TrainParams
from wsi_mil.typed import typed

log = logging.getLogger(__name__)

_AS_FILES_SAY = PeerOptions()
_ONE_DEVICE = RunParams()
_MATCHED = {"stage", "status", "reason", "upstream"}  # what tells which slides a training can use


@dataclass(frozen=True)
class Folders:
    """Where each stage's artifacts lie: each stage's default input is the stage before's default output."""

    tiles: Path = Path("tiles")
    feats: Path = Path("feats")
    distances: Path = Path("distances")
    model: Path = Path("model")
    cache: CacheParams | None = None
    """Where slides that lie far away are staged for pictures; None = they are not fetched."""

    @classmethod
    def under(cls, folder: Path) -> "Folders":
        """The default folders, below another folder than the working one."""
        return cls(folder / cls.tiles, folder / cls.feats, folder / cls.distances, folder / cls.model)


@dataclass(frozen=True)
class LabelTable:
    """Where the labels are, and what of them counts."""

    path: Path
    """Table of labels."""
    slides: Path | None = None
    """Table of slides and their patients, where ``path`` has one row per patient."""
    params: CohortParams = field(default_factory=CohortParams)
    """What is read of it."""


def measure_distances(
    feats: Path,
    out: Path,
    params: distances.DistanceParams,
    options: RunOptions,
    peers: PeerOptions = _AS_FILES_SAY,
) -> Report:
    """Run stage 3 over a folder of features, whoever made them, and write ``summary.json``."""
    bags = own_bags(feats, peers, options.workers)
    items = bag_items(bags.folder)
    report = run(distances.DistanceStage(params, out.absolute(), options.threads), items, out, options)
    report.failed |= bags.failed
    distances.write_summary(out)
    return report


def train_model(
    labels: LabelTable,
    folders: Folders,
    params: TrainParams,
    device: str,
    overwrite: bool = False,
    peers: PeerOptions = _AS_FILES_SAY,
    run: RunParams = _ONE_DEVICE,
) -> Trained | None:
    """Run stage 4: read the cohort, train, write the report and the checkpoint.

    Features that another program made are converted first; those that cannot be are left out and named. A training
    that was interrupted is gone on with, also where ``overwrite`` is given: it ends as it would have.

    Args:
        labels: the table of labels.
        folders: where the artifacts lie, and where the model goes.
        params: how to train.
        device: where to train.
        overwrite: train also where another model lies, or another training was interrupted, and give it up.
        peers: what is known of features that another program made.
        run: how to go about it; its folder is ``folders.model``.

    Returns:
        The training, or None if ``folders.model`` already holds this very one.
    """
    publishing.sweep(folders.model)
    refuse_judged(folders.model)
    folders = replace(folders, feats=own_bags(folders.feats, peers, pictures=True).folder)
    cohort = labelled_once(labels, folders)
    print_ = train.fingerprint(cohort, folders.feats, params)
    if train.is_finished(folders.model, print_, params, overwrite):
        log.info("%s holds this very training already", folders.model)
        discard(folders.model)
        return None
    tell_classes(cohort)
    run = replace(run, folder=folders.model, overwrite=overwrite)
    trained = train.fit(cohort, folders.feats, params, folders.distances, pick_device(device), run)
    if is_first_rank():  # the others, if torchrun started some, have learnt the same
        used = distance_use(trained, folders.feats, pick_device(device))
        shown = training_slides(trained, SlideFiles.at(folders.feats, folders.tiles, peers.slides, folders.cache))
        report = training_page(trained, shown, used, typed())
        pages = {"report.html": report, CARD: training_card(trained)}
        for name in DISTANCE_FILES:  # those of another model that lay here
            (folders.model / name).unlink(missing_ok=True)
        train.publish(trained, folders.model, pages | distance_files(used))
    return trained


@dataclass(frozen=True)
class Plan:
    """What every stage of a whole run is told."""

    tile: TileParams
    encoding: Encoding
    train: TrainParams
    slide_mpp: float | None = None

    def __post_init__(self) -> None:
        require_mpp("--slide-mpp", self.slide_mpp)
        if len(self.encoding.models) > 1:
            several = " ".join(f"--model {name}" for name in self.encoding.models)
            raise OptionError(
                f"{several}: run trains on the features of one encoder: give one, or type `wsimil tile`,"
                f" `wsimil extract {several}`, and `wsimil train --bags feats/NAME` for each"
            )


def run_all(
    slides: Path | Url,
    labels: LabelTable,
    folders: Folders,
    plan: Plan,
    options: RunOptions,
    failed: dict[str, Exception],
) -> Trained | None:
    """Run stages 1 to 4; slides that fail are left out of what follows.

    Args:
        slides: a folder of slides, or its address.
        labels: the table of labels; checked first, as is the encoder, before hours of work.
        folders: where the artifacts go.
        plan: what the stages are told.
        options: how they run.
        failed: is told the slides that failed, each with its error, also if a later stage raises.

    Returns:
        The training, or None if it was there already.

    Raises:
        SlideError: no slide could be tiled.
        ArtifactStale: another training lies in the folder of the model, and overwriting was not asked for.
    """
    seen = Seen([slide.slide_id for slide in find_slides(slides, options.cache, folders.tiles)], {}, {})
    read_cohort(labels.path, seen, labels.params, labels.slides)
    plan.encoding.require_geometry(plan.tile, slides)
    encoders = plan.encoding.load()
    failed |= tile(slides, folders.tiles, plan.tile, options, mpp=plan.slide_mpp).failed
    if not artifact_items(folders.tiles):
        raise SlideError(f"no slide of {slides} could be tiled: see {folders.tiles / 'summary.csv'}")
    extracted = extract_features(folders.tiles, folders.feats, plan.encoding, options, slides, encoders)
    failed |= extracted[folders.feats].failed
    failed |= measure_distances(folders.feats, folders.distances, distances.DistanceParams(), options).failed
    there = replace(folders, cache=options.cache)
    try:
        return train_model(labels, there, plan.train, plan.encoding.device, options.overwrite)
    except ArtifactStale as error:
        if not (folders.model / CHECKPOINT).exists():
            raise
        command = _training_anew(labels, folders, plan.train)
        raise ArtifactStale(f"{error}. So run makes tiles and features anew, too: `{command}` trains alone") from error


def _training_anew(labels: LabelTable, folders: Folders, params: TrainParams) -> str:
    """The command that replaces a training alone: with --overwrite, run makes tiles and features anew, too."""
    given = {"bags": folders.feats, "labels": labels.path, "tiles": folders.tiles, "distances": folders.distances,
             "out": folders.model, "aggregator": params.aggregator, "seed": params.learn.seed}  # fmt: skip
    options = (word for name, value in given.items() for word in (f"--{name}", str(value)))
    return f"{shlex.join(['wsimil', 'train', *options])} --overwrite"


def labelled(labels: LabelTable, folders: Folders) -> Cohort:
    """Read the labels and match them with what the stages have seen."""
    features = {item.slide_id: store.read_attrs(item.source, _MATCHED) for item in bag_items(folders.feats)}
    _refuse_other_features(folders, features)
    if all(attrs["stage"] == "import" for attrs in features.values()):
        folders = replace(folders, tiles=folders.feats)  # what tiles of ours there are says nothing of these
    untiled = failures(folders.tiles, gone=True)  # nobody is told that no stage has seen them
    gone = {slide_id for slide_id, attrs in features.items() if attrs["stage"] == "extract" and slide_id in untiled}
    usable = {slide_id for slide_id, attrs in features.items() if attrs["status"] == "done"} - gone
    unusable = untiled | failures(folders.feats, gone=True)
    unusable = {slide_id: reason for slide_id, reason in unusable.items() if slide_id not in usable}
    unusable |= {slide_id: f"its features are of tiles that are gone: {untiled[slide_id]}" for slide_id in gone}
    for slide_id in features.keys() - usable - gone:
        unusable[slide_id] = f"it is empty: {features[slide_id].get('reason', 'no tissue')}"
    tiled = {item.slide_id for item in artifact_items(folders.tiles)} if folders.tiles.exists() else set()
    waiting = tiled - usable - unusable.keys()
    seen = Seen(usable, unusable, dict.fromkeys(waiting, "run `wsimil extract`"))
    return read_cohort(labels.path, seen, labels.params, labels.slides)


def labelled_once(labels: LabelTable, folders: Folders) -> Cohort:
    """The same, to learn from: no slide may be there under the names of two patients."""
    cohort = labelled(labels, folders)
    contents = {member.slide_id: _contents(folders, member.slide_id) for member in cohort.members}
    check_doubles(labels.path, cohort, contents)
    return cohort


def _contents(folders: Folders, slide_id: str) -> set[str]:
    """Digests of what a slide holds: of all that its features were made from and, where its tiles are at hand, its own.

    The former is another where a slide was given another resolution or other settings, the latter is not.
    """
    features = store.read_attrs(artifact_path(folders.feats, slide_id), {"stage", "fingerprint"})
    tiles = artifact_path(folders.tiles, slide_id)
    own = ""
    if features["stage"] == "extract" and tiles.exists():
        own = str(store.read_attrs(tiles, {"upstream"}).get("upstream", "")).partition(" ")[0]
    return {features["fingerprint"], *([own] if store.FINGERPRINT.fullmatch(own) else [])}


def _refuse_other_features(folders: Folders, features: dict[str, dict[str, Any]]) -> None:
    """Refuse what holds no features, and features of other tiles than those that lie in the folder of tiles now."""
    for slide_id, attrs in features.items():
        if attrs.get("stage") not in FEATURE_STAGES:
            path = artifact_path(folders.feats, slide_id)
            raise ArtifactError(
                f"{path} holds no features of wsimil: name a folder that `wsimil extract` made, by --bags"
            )
        tiles = artifact_path(folders.tiles, slide_id)
        if attrs["stage"] == "extract" and tiles.exists() and store.read_fingerprint(tiles) != attrs["upstream"]:
            path = artifact_path(folders.feats, slide_id)
            raise ArtifactStale(
                f"{path} was made from other tiles than {tiles}: run `wsimil extract --overwrite`, or name the right"
                " folder by --tiles"
            )


def checkpoint_at(path: Path) -> Path:
    """The checkpoint that a path, a file or a model folder, names."""
    file = path / CHECKPOINT if path.is_dir() else path
    if not file.is_file():
        if inside := [str(found.parent) for found in sorted(path.glob(f"*/{CHECKPOINT}"))]:
            raise ArtifactMissing(f"{path} holds runs and is none itself: name one with --model: {', '.join(inside)}")
        raise ArtifactMissing(f"{file} does not exist: train a model with `wsimil train`, or name one with --model")
    return file
