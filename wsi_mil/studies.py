"""Judging models: what `wsimil crossval`, `wsimil evaluate` and `wsimil compare` need of several rooms."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wsi_mil import checkpoint, publishing, store
from wsi_mil.aggregators import Aggregator
from wsi_mil.bags import Bag
from wsi_mil.cohort import Cohort, tell_classes
from wsi_mil.devices import pick_device
from wsi_mil.errors import OptionError, TableError
from wsi_mil.evaluation import (
    PATIENTS,
    REPORT,
    Answers,
    CrossvalParams,
    Judged,
    Place,
    Study,
    Validated,
    answers_in,
    ask,
    by_patient,
    claim,
    compare,
    crossval,
    does_space_matter,
    folded,
    judge,
    known_to,
    matched,
    refuse_judged,
    refuse_model,
    require_own,
    table_of,
    write_study,
)
from wsi_mil.interop import PeerOptions, own_bags
from wsi_mil.learning import RunParams
from wsi_mil.metrics import Resampling
from wsi_mil.predictions import TABLE, write_predictions
from wsi_mil.report import (
    DISTANCE_FILES,
    Beside,
    Section,
    SlideFiles,
    cohort_section,
    crossval_facts,
    distance_files,
    distance_section,
    distances_of,
    drawn,
    judged_facts,
    model_card,
    model_facts,
    notable,
    rounds_of,
    shown,
    slides_section,
    study_page,
    tested_slides,
)
from wsi_mil.stage import artifact_path
from wsi_mil.train import CARD
from wsi_mil.typed import typed
from wsi_mil.weights import file_sha256
from wsi_mil.workflow import Folders, LabelTable, labelled, labelled_once

log = logging.getLogger(__name__)

_PER_PATIENT = (
    "Per patient: the mean of the calibrated probabilities of a patient's slides, decided at the model's threshold."
)
_SHUFFLED = "Labels were dealt anew among the patients first: nothing but chance is to be found."


def cross_validate(
    labels: LabelTable,
    folders: Folders,
    params: CrossvalParams,
    how: Resampling,
    device: str,
    run: RunParams,
    peers: PeerOptions,
) -> Study:
    """Judge models by cross-validation; ``folders.model`` is where everything goes, whatever ``run`` says."""
    publishing.sweep(folders.model)
    refuse_model(folders.model)
    refuse_judged(folders.model, rounds=True)
    folders = replace(folders, feats=own_bags(folders.feats, peers, pictures=True).folder)
    cohort = folded(labelled_once(labels, folders), params)
    tell_classes(cohort)
    params = replace(params, folds=len(cohort.folds))
    place = Place(folders.feats, folders.distances, folders.model, run.overwrite)
    made = list(crossval(cohort, place, params, pick_device(device), run))
    judged = [judge(one.aggregator, Answers.of(one.rows, one.ensemble.classes, _groups(cohort)), how) for one in made]
    owners = [(one, Answers.of(one.patients, one.ensemble.classes)) for one in made if one.patients]
    each = [judge(f"{one.aggregator} per patient", answers, how) for one, answers in owners]
    study = Study((*judged, *each), compare(judged, how))
    learnt = list[Section]()
    if not params.label_shuffle:
        _write_cards(judged, made, folders.model)
        learnt = [_learnt(one, cohort, folders, pick_device(device)) for one in made]
    lead = (
        f"{' and '.join(params.aggregators)} on {len(cohort.units)} bags of {len(cohort.patients)} patients. Each was"
        " tested by a model that had learnt, and chosen its epoch, temperature and threshold, on other patients only."
    )
    lead += f" {_PER_PATIENT}" if each else ""
    beside = Beside(
        cohort_section(cohort, rounds_of(cohort, folders.model, params.aggregators[0])),
        learnt,
        tested_slides(made, cohort, folders.model, SlideFiles.at(folders.feats, folders.tiles, peers.slides)),
        [*judged_facts(cohort, labels.path, how), *crossval_facts(made)],
        typed(),
    )
    _publish(study, folders.model, "Cross-validation", f"{_SHUFFLED} {lead}" if params.label_shuffle else lead, beside)
    return study


@dataclass(frozen=True)
class Asked:
    """What of a trained model is judged."""

    part: str = ""
    """Only slides of this split."""
    spatial: bool = False
    """Whether the model is asked again with its slides laid out otherwise."""
    device: str = "auto"
    """Where it runs."""
    overwrite: bool = False
    """Replace what was judged otherwise."""


def evaluate_model(
    model: Path,
    labels: LabelTable,
    folders: Folders,
    asked: Asked,
    how: Resampling,
    peers: PeerOptions,
) -> Study:
    """Judge a trained model on labelled slides; ``folders.model`` is where everything goes."""
    publishing.sweep(folders.model)
    folders = replace(folders, feats=own_bags(folders.feats, peers, pictures=True).folder)
    made = checkpoint.load(model)
    as_trained = replace(labels.params, unit=made.unit, classes=made.classes)
    cohort = _chosen(labelled(replace(labels, params=as_trained), folders), asked.part)
    refuse_model(folders.model)
    digest = checkpoint.digest(model)
    inputs = _inputs(digest, cohort, folders.feats, asked, how)
    require_own(folders.model, inputs, asked.overwrite)
    known = known_to(made, cohort, folders.feats)
    known.warn(cohort)
    network = made.model().to(pick_device(asked.device))
    rows = [
        row._replace(split=known.split(row.patient_id, row.split)) for row in ask(made, network, cohort, folders.feats)
    ]
    claim(folders.model, inputs)
    write_predictions(folders.model / TABLE, rows, made.classes, digest)

    def again(other: Aggregator, change: Callable[[Bag], Bag]) -> Answers:
        return Answers.of(ask(made, other, cohort, folders.feats, change), made.classes)

    judged = [judge(made.aggregator, Answers.of(rows, made.classes, _groups(cohort)), how)]
    lead = f"{made.aggregator}, {len(cohort.units)} bags of {len(cohort.patients)} patients."
    if patients := by_patient(rows, lambda row: made.decide(row.probabilities)):
        write_predictions(folders.model / PATIENTS, patients, made.classes, digest)
        judged.append(judge(f"{made.aggregator} per patient", Answers.of(patients, made.classes), how))
        lead += f" {_PER_PATIENT}"
    study = Study(tuple(judged), spatial=does_space_matter(again, network, how) if asked.spatial else None)
    files = SlideFiles.at(folders.feats, folders.tiles, peers.slides)
    best = {made.aggregator: notable(rows, made.classes)}
    beside = Beside(
        cohort_section(cohort, text=known.sentence(cohort)),
        slides=slides_section(best, lambda *_: network, cohort, files),
        facts=[
            ("checkpoint", f"{model}, digest {digest}"),
            *judged_facts(cohort, labels.path, how),
            *model_facts(made),
        ],
        commands=typed(),
    )
    _publish(study, folders.model, "Evaluation", lead, beside)
    return study


def _inputs(model: str, cohort: Cohort, feats: Path, asked: Asked, how: Resampling) -> dict[str, str]:
    """Everything that decides an evaluation."""
    prints = [store.read_fingerprint(artifact_path(feats, member.slide_id)) for member in cohort.members]
    groups = {column: dict(values) for column, values in cohort.groups.items()}
    return {
        "command": "evaluate",
        "model": model,
        "split": asked.part,
        "cohort": cohort.digest,
        "features": store.fingerprint("evaluate", 1, {}, " ".join(prints)),
        "by": f"{', '.join(groups)} ({store.fingerprint('groups', 1, groups, '')})" if groups else "",
        "spatial": "yes" if asked.spatial else "",
        "resampling": str(how),
    }


def compare_runs(runs: Sequence[Path], out: Path, how: Resampling, overwrite: bool = False) -> Study:
    """Compare runs, folders of `wsimil crossval`, `evaluate` or `train`, on the bags that all of them have."""
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise OptionError("compare: name two different runs or more, such as crossval/das-mil crossval/abmil")
    refuse_model(out)
    publishing.sweep(out)
    tables = matched({str(run): answers_in(run) for run in runs})
    hashes = {f"run {run}": file_sha256(table_of(run))[:16] for run in runs}
    inputs = {"command": "compare", **hashes, "resampling": str(how)}
    require_own(out, inputs, overwrite)
    claim(out, inputs)
    judged = [judge(name, answers, how) for name, answers in tables.items()]
    study = Study(tuple(judged), compare(judged, how))
    lead = f"{len(judged)} runs on the {len(judged[0].answers)} bags that all of them judged."
    facts = [(run, f"sha256 of its table {digest}") for run, digest in hashes.items()]
    beside = Beside(facts=[*facts, ("intervals", drawn(how))], commands=typed())
    _publish(study, out, "Comparison", lead, beside)
    return study


def _write_cards(judged: Sequence[Judged], made: Sequence[Validated], out: Path) -> None:
    """Beside each ensemble its model card, with the figures of the rounds, which are not quite its own."""
    judged_on = (
        "Each patient was judged by the one model that had not seen the patient; the ensemble of all has none left"
        " to be judged on, and is expected to do a little better."
    )
    for found, one in zip(judged, made, strict=True):
        figures = {name: shown(interval) for name, interval in found.figures.items()}
        publishing.write_bytes(out / one.aggregator / CARD, model_card(one.ensemble, figures, judged_on))


def _learnt(one: Validated, cohort: Cohort, folders: Folders, device: torch.device) -> Section:
    """What distance a model learnt, as a section and as files beside the ensemble; those of a run before go."""
    out, use = folders.model / one.aggregator, distances_of(one, cohort, folders.feats, device)
    for name in DISTANCE_FILES:
        (out / name).unlink(missing_ok=True)
    for name, data in distance_files(use).items():
        publishing.write_bytes(out / name, data)
    return distance_section(use, one.aggregator)


def _publish(study: Study, out: Path, title: str, lead: str, beside: Beside) -> None:
    write_study(study, out)
    publishing.write_bytes(out / REPORT, study_page(title, lead, study, beside))


def _chosen(cohort: Cohort, part: str) -> Cohort:
    """The members of one split, or all."""
    if not part:
        return cohort
    members = tuple(cohort.part(part))
    if not members:
        there = (
            ", ".join(sorted({member.split for member in cohort.members} - {""})) or "none: there is no column split"
        )
        raise TableError(f"--split {part}: no labelled slide is in it; the splits are {there}")
    return replace(cohort, members=members)


def _groups(cohort: Cohort) -> dict[str, dict[str, str]]:
    """By column of subgroups the value of each bag; a patient's slides share it."""
    return {
        column: {unit.bag_id: values[unit.members[0].slide_id] for unit in cohort.units}
        for column, values in cohort.groups.items()
    }
