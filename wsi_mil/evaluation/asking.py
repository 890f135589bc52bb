"""Asking a trained model about labelled bags."""

from collections.abc import Callable
from pathlib import Path

from wsi_mil.aggregators import Aggregator, infer
from wsi_mil.bags import Bag, as_one, read_bag
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.cohort import Cohort, Unit
from wsi_mil.learning import require_memory_to_ask
from wsi_mil.predictions import Prediction
from wsi_mil.stage import artifact_path
from wsi_mil.training_bags import facts_of


def as_it_lies(bag: Bag) -> Bag:
    """The bag itself."""
    return bag


def ask(
    made: Checkpoint,
    network: Aggregator,
    cohort: Cohort,
    feats: Path,
    change: Callable[[Bag], Bag] = as_it_lies,
) -> list[Prediction]:
    """Predict every bag of a cohort, one at a time.

    Args:
        made: what answers.
        network: its `Checkpoint.model`, on the device to use.
        cohort: labelled slides, of the model's unit.
        feats: where the features lie.
        change: what is done to each bag first.

    Raises:
        IncompatibleError: some features were made otherwise than those of training.
        TrainingError: the largest bag will not fit into memory.
    """
    tiles, bag_id = max((_tiles(unit, feats), unit.bag_id) for unit in cohort.units)
    require_memory_to_ask(network, bag_id, tiles)
    return [_answer(made, network, unit, change(_bag(made, unit, feats))) for unit in cohort.units]


def _tiles(unit: Unit, feats: Path) -> int:
    """How many tiles a bag has, without reading their features."""
    return sum(facts_of(artifact_path(feats, member.slide_id)).tiles for member in unit.members)


def _bag(made: Checkpoint, unit: Unit, feats: Path) -> Bag:
    bags = []
    for member in unit.members:
        path = artifact_path(feats, member.slide_id)
        bag = read_bag(path)
        made.require(bag, path)
        bags.append(bag)
    return as_one(bags, unit.bag_id)


def _answer(made: Checkpoint, network: Aggregator, unit: Unit, bag: Bag) -> Prediction:
    probabilities = tuple(infer(network, bag).probabilities.tolist())
    return Prediction(
        unit.bag_id,
        "done",
        probabilities,
        len(bag.features),
        label=unit.label,
        split=unit.split,
        predicted=made.decide(probabilities),
        patient_id=unit.patient_id,
    )
