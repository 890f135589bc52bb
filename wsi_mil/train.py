"""Stage 4: cohort + bags -> checkpoint.

`fit` reads, trains and returns; `publish` writes, the checkpoint last, so that its existence means a whole training.
Early stopping, and the choice of the epoch that is kept, look at the validation patients only; the length scales of
the distances and the statistics of the features come from the training patients only.
"""

import csv
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wsi_mil import checkpoint, distances, learning, metrics, store
from wsi_mil.aggregators import Aggregator, build, infer, params_of
from wsi_mil.aggregators.das_mil import FARTHEST_QUANTILE, length_scales
from wsi_mil.bags import Bag, read_bag
from wsi_mil.checkpoint import Checkpoint, Recipe
from wsi_mil.cohort import Cohort, Member, split
from wsi_mil.errors import ArtifactStale, IncompatibleError, OptionError, TrainingError
from wsi_mil.learning import Epoch, Example, LearnParams
from wsi_mil.predictions import Prediction, write_predictions
from wsi_mil.stage import Item, artifact_path

CHECKPOINT = "checkpoint.safetensors"
_MEMORY_FOR_BAGS = 4 << 30
_TILES_WORTH_THREADS = 1000


@dataclass(frozen=True)
class TrainParams:
    """Everything that decides a training, beside the data."""

    aggregator: str = "das-mil"
    """Name in the registry of aggregators."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the aggregator; what is left out keeps its default."""
    val_fraction: float = 0.2
    """Share of the training patients to validate on, where the table names no "val" split."""
    learn: LearnParams = field(default_factory=LearnParams)
    """How weights are learnt; its seed also decides the split and the initial weights."""

    def __post_init__(self) -> None:
        params_of(self.aggregator, self.options)
        if not 0 < self.val_fraction < 1:
            raise OptionError(f"--val-fraction {self.val_fraction}: give a share between 0 and 1")


@dataclass(frozen=True)
class Trained:
    """A finished training, in memory."""

    checkpoint: Checkpoint
    cohort: Cohort
    history: tuple[Epoch, ...]
    predictions: tuple[Prediction, ...]
    """Of every member of the cohort: train, val and test."""

    def auroc(self, part: str) -> float:
        """AUROC over one split; nan where the split is empty or has a single class."""
        rows = [row for row in self.predictions if row.split == part]
        if not rows:
            return math.nan
        targets = np.array([self.checkpoint.classes.index(row.label) for row in rows])
        return metrics.auroc(targets, np.array([row.probabilities for row in rows]))


class Bags:
    """The bags of a cohort, read when asked for, and kept while all of them fit into memory."""

    def __init__(self, folder: Path, members: Iterable[Member]) -> None:
        self.paths = {member.slide_id: artifact_path(folder, member.slide_id) for member in members}
        # float16 on disk becomes float32 in memory
        self._keep = 2 * sum(path.stat().st_size for path in self.paths.values()) < _MEMORY_FOR_BAGS
        self._kept: dict[str, Bag] = {}

    def __getitem__(self, slide_id: str) -> Bag:
        bag = self._kept.get(slide_id) or read_bag(self.paths[slide_id])
        if self._keep:
            self._kept[slide_id] = bag
        return bag


class MemberExamples:
    """Members of a cohort as examples to learn from, read one by one."""

    def __init__(self, bags: Bags, members: list[Member], classes: tuple[str, ...]) -> None:
        self.bags, self.members = bags, members
        self.targets = [classes.index(member.label) for member in members]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Example:
        return Example(self.bags[self.members[index].slide_id], self.targets[index])


def fingerprint(cohort: Cohort, folder: Path, params: TrainParams) -> str:
    """Hash of everything that decides a training: parameters, cohort and bags."""
    prints = [store.read_attrs(artifact_path(folder, member.slide_id))["fingerprint"] for member in cohort.members]
    return store.fingerprint("train", 1, dataclasses.asdict(params), " ".join([cohort.digest, *prints]))


def is_finished(out: Path, print_: str, params: TrainParams, overwrite: bool = False) -> bool:
    """Tell whether ``out`` already holds this very training.

    Raises:
        ArtifactStale: it holds another one, and overwriting was not asked for.
    """
    path = out / CHECKPOINT
    if overwrite or not path.exists():
        return False
    training = checkpoint.load(path).training
    if training["fingerprint"] == print_:
        return True
    before, now = _flat(training["params"]), _flat(dataclasses.asdict(params))
    changed = [f"{key} was {before.get(key)!r}, now {now[key]!r}" for key in now if before.get(key) != now[key]]
    why = "; ".join(changed) or "the labels, the features or the version of wsimil have changed"
    raise ArtifactStale(
        f"{path} was trained otherwise: {why}. Add --overwrite to replace it, or --out for another folder"
    )


def _flat(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key != "learn"} | params["learn"]


def fit(cohort: Cohort, folder: Path, params: TrainParams, distances_folder: Path, device: torch.device) -> Trained:
    """Train an aggregator.

    Args:
        cohort: labelled slides; where no split is given, one is drawn.
        folder: where the bags lie.
        params: how to train.
        distances_folder: where the artifacts of `wsimil distances` lie; what is absent or stale there is made.
        device: where to train.

    Raises:
        IncompatibleError: the bags were not all made in the same way.
        TrainingError: the loss is not finite.
    """
    print_ = fingerprint(cohort, folder, params)
    cohort = split(cohort, params.val_fraction, params.learn.seed)
    bags = Bags(folder, cohort.members)
    _require_one_recipe(bags)
    dim, options = bags[cohort.members[0].slide_id].features.shape[1], dict(params.options)
    if _wants_length_scales(params):
        options["length_scales_um"] = _length_scales(cohort, folder, distances_folder, params)
    train, val = (MemberExamples(bags, cohort.part(part), cohort.classes) for part in ("train", "val"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(params.learn.seed)
        model = build(params.aggregator, dim, len(cohort.classes), **options)
        statistics = _feature_statistics(example.bag for example in _each(train))
        model.fit_features(statistics.mean, statistics.std)
        model.to(device)
        with _threads_for(statistics.tiles / len(train)):
            history = learning.learn(model, train, val, params.learn)
            predictions = tuple(_predict(model, bags[member.slide_id], member) for member in cohort.members)
    training = {
        "params": dataclasses.asdict(params),
        "fingerprint": print_,
        "cohort": cohort.digest,
        "slides": dict(Counter(member.split for member in cohort.members)),
        "best": learning.best_epoch(history)._asdict(),
        "versions": checkpoint.versions(),
    }
    made = _checkpoint(model, cohort.classes, bags[cohort.members[0].slide_id].attrs, training)
    return Trained(made, cohort, tuple(history), predictions)


def publish(trained: Trained, out: Path, files: dict[str, bytes]) -> Path:
    """Write a training into a folder: tables, given files, and last of all the checkpoint; return its path."""
    (out / CHECKPOINT).unlink(missing_ok=True)  # from here on what lies here belongs to no whole training
    with store.replacing_text(out / "history.csv") as file:
        csv.writer(file).writerows([Epoch._fields, *trained.history])
    with store.replacing_text(out / "splits.csv") as file:
        csv.writer(file).writerows([Member._fields, *trained.cohort.members])
    write_predictions(out / "predictions.csv", trained.predictions, trained.checkpoint.classes, "this")
    for name, data in files.items():
        store.write_bytes(out / name, data)
    checkpoint.save(out / CHECKPOINT, trained.checkpoint)
    return out / CHECKPOINT


def _checkpoint(
    model: Aggregator, classes: tuple[str, ...], attrs: dict[str, Any], training: dict[str, Any]
) -> Checkpoint:
    return Checkpoint(
        aggregator=training["params"]["aggregator"],
        options=dataclasses.asdict(model.params),
        dim=model.dim,
        classes=classes,
        recipe=Recipe.of(attrs),
        encoder_weights=attrs["encoder_weights"],
        tile_params=json.loads(attrs["tile_params"]),
        extract_params=json.loads(attrs["params"]),
        training=training,
        state=model.state_dict(),
    )


def _require_one_recipe(bags: Bags) -> None:
    attrs = {path: store.read_attrs(path) for path in bags.paths.values()}
    first_path, first = next(iter(attrs.items()))
    for path, other in attrs.items():
        Recipe.of(first).require(Recipe.of(other), path)
        for key in ("tile_params", "params"):
            if first[key] != other[key]:
                raise IncompatibleError(
                    f"{path} was made with {other[key]}, {first_path} with {first[key]}: make one of them again"
                )


def _wants_length_scales(params: TrainParams) -> bool:
    fields = {field.name for field in dataclasses.fields(params_of(params.aggregator, params.options))}
    return "length_scales_um" in fields and "length_scales_um" not in params.options


def _length_scales(cohort: Cohort, folder: Path, distances_folder: Path, params: TrainParams) -> tuple[float, ...]:
    """From one tile step to nearly the whole section, in equal ratios, as the training patients' tiles lie."""
    items = [Item(member.slide_id, artifact_path(folder, member.slide_id)) for member in cohort.part("train")]
    counts = distances.merge(distances.histograms(items, distances_folder))
    if not counts.sum():
        raise TrainingError(
            "no training slide has two tiles, so there is no distance to learn from: make smaller tiles by `wsimil tile"
            " --tile-um`, or give --option length_scales_um"
        )
    nearest, farthest = (distances.quantile(counts, share) for share in (0.0, FARTHEST_QUANTILE))
    return length_scales(nearest, farthest, params_of(params.aggregator, params.options).heads)


class _Statistics(NamedTuple):
    mean: Float[Tensor, " dim"]
    std: Float[Tensor, " dim"]
    tiles: int


def _feature_statistics(bags: Iterable[Bag]) -> _Statistics:
    """Mean and standard deviation of each feature over all tiles of the training slides, and how many those are."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for bag in bags:
        features = bag.features.double()
        count += len(features)
        total = total + features.sum(dim=0)
        squares = squares + features.square().sum(dim=0)
    mean = total / count
    return _Statistics(mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float(), count)


@contextmanager
def _threads_for(tiles_per_bag: float) -> Generator[None]:
    """Let torch use one thread for small bags: more cost them more than they give, and tenfold on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if tiles_per_bag >= _TILES_WORTH_THREADS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _each(examples: MemberExamples) -> Iterable[Example]:
    return (examples[index] for index in range(len(examples)))


def _predict(model: Aggregator, bag: Bag, member: Member) -> Prediction:
    probabilities = tuple(infer(model, bag).probabilities.tolist())
    return Prediction(member.slide_id, "done", probabilities, len(bag.features), member.label, member.split)
