"""What a checkpoint says of new slides, and what it warns of: rows of the table of predictions."""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsi_mil import __version__, checkpoint
from wsi_mil.aggregators import Aggregator, Ensemble, infer
from wsi_mil.bags import Bag, as_one, read_bag
from wsi_mil.calibration import doubts
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.cohort import SEVERAL, slide_names
from wsi_mil.devices import use_cores
from wsi_mil.dispatch import each
from wsi_mil.domain import slide_facts
from wsi_mil.errors import IncompatibleError, one_line
from wsi_mil.predictions import Prediction
from wsi_mil.progress import progress
from wsi_mil.stage import Item, attempt

log = logging.getLogger(__name__)

JSON = "predictions.json"
"""What the table of predictions is called where it is written for other programs."""


class Question(NamedTuple):
    """What becomes one bag, and is answered as one."""

    slides: tuple[Item, ...]
    """Artifacts of features: of one slide, or of several slides of one patient."""
    patient_id: str = ""
    """The owner, where that is known."""
    missing: tuple[str, ...] = ()
    """Slides of the patient that have no features, as they failed."""
    seconds: Mapping[str, float] = {}
    """By slide_id, the time that was spent on a slide before."""

    def absolute(self) -> "Question":
        """The same, for whoever works in another folder."""
        return self._replace(slides=tuple(Item(name, path.absolute()) for name, path in self.slides))


class OnCluster(NamedTuple):
    """The cluster that answers."""

    scheduler: str
    """Its address."""
    path: Path
    """The checkpoint."""

    def each(self, questions: Sequence[Question], device: str) -> Iterator[tuple[Question, Any]]:
        """Questions with what workers answer, as they do."""
        path = self.path.absolute()
        make = partial(answerer, path, checkpoint.digest(path))
        seen = [path, *(item.source for question in questions[:1] for item in question.slides)]
        return each(self.scheduler, device, make, seen, questions)


class Answerer:
    """A model on the device where it answers."""

    def __init__(self, model: Checkpoint, device: str) -> None:
        """Put the network on its device."""
        self.model, self.network = model, model.model().to(device)
        self._turn = threading.Lock()  # whoever asks a network listens to its parts

    def work(self, question: Question) -> list[Prediction]:
        """The answer, and a row for each slide that had no part in it; from any thread, one after the other."""
        with self._turn:
            return _rows(self.model, self.network, question)


def answerer(path: Path, digest: str, device: str) -> Answerer:
    """What a worker of a cluster answers with.

    Raises:
        IncompatibleError: it sees another checkpoint.
    """
    use_cores()
    if (found := checkpoint.digest(path)) != digest:
        raise IncompatibleError(f"{path} is another checkpoint here, {found} and not {digest}: share one folder")
    return Answerer(checkpoint.load(path), device)


def answers(
    model: Checkpoint,
    questions: Iterable[Question],
    device: str,
    seconds: Mapping[str, float] | None = None,
    cluster: OnCluster | None = None,
) -> list[Prediction]:
    """Answer questions; a slide that fails, or is empty, has a row of its own.

    Args:
        model: what answers.
        questions: about bags of the model's unit.
        device: where it runs.
        seconds: by slide_id, the time that was spent on a slide before.
        cluster: the cluster whose workers answer; None = this process does.

    Returns:
        The rows, in the order of the questions.
    """
    spent, asked = seconds or {}, list[Question]()
    for question in questions:
        before = {item.slide_id: spent[item.slide_id] for item in question.slides if item.slide_id in spent}
        asked.append(question._replace(seconds=before))
    if cluster is None:
        here = Answerer(model, device)
        told: Iterable[tuple[Question, Any]] = ((question, here.work(question)) for question in asked)
    else:
        told = cluster.each([question.absolute() for question in asked], device)
    found: dict[str, list[Prediction]] = {}
    with progress("predict", len(asked)) as track:
        for question, answer in told:
            rows = _failed(question, answer) if isinstance(answer, Exception) else answer
            found[question.slides[0].slide_id] = rows
            for row in rows:
                _tell(row)
            track.advance(rows[-1].slide_id)
    return [row for question in asked for row in found[question.slides[0].slide_id]]


def _tell(row: Prediction) -> None:
    if row.status == "failed":
        log.error("%s: %s", row.slide_id, row.error)
    for warning in row.warnings:
        log.warning("%s: %s", row.slide_id, warning)


def _failed(question: Question, error: Exception) -> list[Prediction]:
    """The rows of slides whose answer was lost."""
    owner = question.patient_id
    return [Prediction(item.slide_id, "failed", error=one_line(error), patient_id=owner) for item in question.slides]


def doubts_of(made: Checkpoint) -> list[str]:
    """Why temperature and threshold are not to be relied on, of models of an ensemble with the same reason together."""
    trainings = made.training.get("rounds") or [made.training] * len(made.parts)
    pairs = zip(made.parts, trainings, strict=True)
    told = [doubts(part.temperature, training.get("val_patients", {})) for part, training in pairs]
    of = "In {} of {} models " if len(told) > 1 else ""
    return [of.format(count, len(told)) + doubt for doubt, count in Counter(filter(None, told)).items()]


def notes(model: Checkpoint) -> list[str]:
    """What a checkpoint cannot tell about any slide, or what of its answers to any is not to be relied on."""
    told = [doubt[:1].lower() + doubt[1:] for doubt in doubts_of(model)]
    if model.domain is None:
        told.append("the model does not say what slides it learnt from, so it cannot tell whether a slide is like them")
    elif model.domain.cannot_tell:
        told.append(model.domain.cannot_tell)
    if not {"patients", "trained_slides"} <= model.training.keys():
        told.append("the model does not say whom it learnt from, so it cannot tell whether a slide was in training")
    return told


def as_object(rows: Iterable[Prediction], made: Checkpoint, model: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Predictions as one object of JSON: who made them, and a list of slides.

    Args:
        rows: what the model says of each bag.
        made: the model.
        model: its digest.
        notes: what to bear in mind of its answers to any slide.
    """
    return {
        "made_by": f"wsi_mil {__version__}",
        "model": model,
        "aggregator": made.aggregator,
        "classes": made.classes,
        "threshold": made.threshold,
        "unit": made.unit,
        "notes": list(notes),
        "slides": [_object(row, made.classes) for row in rows],
    }


def as_json(told: Mapping[str, Any]) -> str:
    """An object of JSON as text."""
    return json.dumps(told, indent=2) + "\n"


def _object(row: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    """A row under the names of its columns, its probabilities by class; none is null."""
    scores = dict(zip(classes, row.probabilities, strict=True)) if row.probabilities else None
    return row._asdict() | {"probabilities": scores}


def _rows(model: Checkpoint, network: Aggregator, question: Question) -> list[Prediction]:
    """The answer, and a row for each slide that had no part in it."""
    started, rows, bags, missing = time.monotonic(), list[Prediction](), list[Bag](), list(question.missing)
    for item in question.slides:
        bag, patient = attempt(_read, model, item), question.patient_id
        if isinstance(bag, Exception):
            rows.append(Prediction(item.slide_id, "failed", error=one_line(bag), patient_id=patient))
        elif not len(bag.features):
            reason, spent = bag.attrs.get("reason", ""), question.seconds.get(item.slide_id, 0.0)
            rows.append(Prediction(item.slide_id, "empty", error=reason, patient_id=patient, seconds=round(spent, 3)))
        else:
            bags.append(bag._replace(slide_id=item.slide_id))
            continue
        missing.append(item.slide_id)
    if not bags:
        return rows
    bag_id = SEVERAL.join(bag.slide_id for bag in bags)
    row = attempt(_answer, model, network, bags, question._replace(missing=tuple(missing)))
    if isinstance(row, Exception):
        return [*rows, Prediction(bag_id, "failed", error=one_line(row), patient_id=question.patient_id)]
    spent = time.monotonic() - started + sum(question.seconds.get(bag.slide_id, 0.0) for bag in bags)
    return [*rows, row._replace(seconds=round(spent, 3))]


def _read(model: Checkpoint, item: Item) -> Bag:
    bag = read_bag(item.source)
    model.require(bag, item.source)
    return bag


def _answer(model: Checkpoint, network: Aggregator, bags: list[Bag], question: Question) -> Prediction:
    bag = as_one(bags, SEVERAL.join(bag.slide_id for bag in bags))
    scores, members = _ask(network, bag)
    predicted = model.decide(scores)
    spread = float(np.std(members[:, model.classes.index(predicted)])) if len(members) > 1 else None
    return Prediction(
        bag.slide_id,
        "done",
        scores,
        len(bag.features),
        predicted=predicted,
        patient_id=question.patient_id,
        spread=spread,
        warnings=tuple(_warnings(model, bags, question)),
    )


def _ask(network: Aggregator, bag: Bag) -> tuple[tuple[float, ...], np.ndarray]:
    """The probabilities of `infer`, and those of each member of an ensemble, calibrated: (members, classes)."""
    if not isinstance(network, Ensemble):
        return tuple(infer(network, bag).probabilities.tolist()), np.zeros((0, network.classes))
    heard: list[Tensor] = []  # what the members say on the way, so that none is asked twice
    listening = [
        member.register_forward_hook(lambda _module, _given, output: heard.append(output.logits))
        for member in network.members
    ]
    try:
        scores = tuple(infer(network, bag).probabilities.tolist())
    finally:
        for one in listening:
            one.remove()
    calibration = zip(heard, network.temperatures, network.priors, strict=True)
    shares = [((own.double().cpu() + prior.log()) / heat).softmax(dim=-1) for own, heat, prior in calibration]
    return scores, torch.cat(shares).numpy()


def _warnings(model: Checkpoint, bags: list[Bag], question: Question) -> list[str]:
    """In what the slides are unlike those of training, whether they were part of it, and which are missing."""
    told = []
    for bag in bags:
        about = f"{bag.slide_id}: " if len(bags) > 1 else ""
        if model.domain is not None:
            facts = slide_facts(bag.attrs["mpp_x"], bag.features)
            told += [about + warning for warning in model.domain.warnings(facts)]
        if model.trained_on(*slide_names(bag.slide_id, str(bag.attrs.get("slide_path", "")))):
            told.append(f"{about}a slide of this name was in training, so this is no test of the model")
        elif model.trained_on(str(bag.attrs.get("fingerprint", ""))):
            told.append(f"{about}this slide was in training under another name, so this is no test of the model")
    if question.patient_id and model.trained_on(question.patient_id):
        told.append(f"patient {question.patient_id} was in training, so this is no test of the model")
    if question.missing:
        told.append(f"without {', '.join(question.missing)} of the same patient, failed or empty")
    return told
