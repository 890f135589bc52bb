"""Divide patients: a validation part drawn from those to train on, and labels that no longer mean anything."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from wsi_mil.cohort.members import Cohort, Member
from wsi_mil.errors import OptionError, TableError

log = logging.getLogger(__name__)


def split(cohort: Cohort, val_fraction: float, seed: int) -> Cohort:
    """Give every member a split: what the table says, and a validation part drawn from the training patients.

    Patients are drawn at random within each class (a patient with several labels counts for the rarest of them), at
    least one, and never all; one that counts alone for a class that others have too is left to train on.

    Raises:
        TableError: some class has too few patients to be in both parts.
    """
    require_fraction(val_fraction)
    members = [member if member.split else member._replace(split="train") for member in cohort.members]
    if not any(member.split == "val" for member in members):
        train = [member for member in members if member.split == "train"]
        chosen = draw_patients(train, val_fraction, np.random.default_rng(seed))
        members = [member._replace(split="val") if member.patient_id in chosen else member for member in members]
    divided = replace(cohort, members=tuple(members))
    require_classes(divided)
    return divided


def shuffled_labels(cohort: Cohort, seed: int) -> Cohort:
    """Permute the labels among the patients, so that nothing is left to learn: an honest protocol finds AUROC 0.5.

    Every patient takes the labels of another one, drawn without replacement; so the number of patients with each label
    stays. Where the other's slides share a label, all slides of the patient get it. Where they do not (a bag per
    slide), its labels are dealt in random order, in turn, to the slides of the patient: then the numbers of slides
    change, but two slides of a patient are as likely to differ as before. Draw folds after this, so that they are
    stratified by the labels that are learnt. Splits and folds that a table names stay as they are, and labels are dealt
    within such a fold, so that none loses its few patients of a class.
    """
    rng = np.random.default_rng(seed)
    taken: dict[str, str] = {}
    for fold in sorted({member.fold for member in cohort.members}):
        taken |= _dealt(replace(cohort, members=tuple(m for m in cohort.members if m.fold == fold)), rng)
    members = tuple(member._replace(label=taken[member.slide_id]) for member in cohort.members)
    return replace(cohort, members=members, declared=cohort.classes, shuffled=True)


def _dealt(cohort: Cohort, rng: np.random.Generator) -> dict[str, str]:
    """By slide the label that it takes of another patient's."""
    patients = cohort.patients
    names = sorted(patients)
    taken: dict[str, str] = {}
    for patient_id, donor in zip(names, rng.permutation(len(names)).tolist(), strict=True):
        labels = [member.label for member in sorted(patients[names[donor]])]
        dealt = rng.permutation(len(labels)).tolist() if len(set(labels)) > 1 else [0]
        for index, member in enumerate(sorted(patients[patient_id])):
            taken[member.slide_id] = labels[dealt[index % len(dealt)]]
    return taken


def strata(members: Iterable[Member]) -> dict[str, list[str]]:
    """The patients that count for each label, sorted: a patient with several labels for the rarest of them."""
    labels = _labels(members)
    frequency = _frequency(labels)
    by_class = defaultdict(list)
    for patient_id in sorted(labels):
        by_class[min(labels[patient_id], key=lambda label: (frequency[label], label))].append(patient_id)
    return {label: by_class[label] for label in sorted(by_class)}


def patients_with(members: Iterable[Member]) -> Counter[str]:
    """How many patients have a slide of each label; one with several labels is counted with each."""
    return _frequency(_labels(members))


def _labels(members: Iterable[Member]) -> dict[str, set[str]]:
    labels = defaultdict(set)
    for member in members:
        labels[member.patient_id].add(member.label)
    return labels


def _frequency(labels: Mapping[str, set[str]]) -> Counter[str]:
    return Counter(label for found in labels.values() for label in found)


def tell_classes(cohort: Cohort) -> None:
    """Say what is told apart, and how many patients each class has: more classes than were meant are seen here."""
    having = patients_with(cohort.members)
    counts = ", ".join(f"{name} ({having[name]} patient{'s' * (having[name] != 1)})" for name in cohort.classes)
    positive = f"; {cohort.classes[1]} is the positive one" if len(cohort.classes) == 2 else ""
    log.info("%d classes: %s%s", len(cohort.classes), counts, positive)


def draw_patients(members: Sequence[Member], fraction: float, rng: np.random.Generator) -> set[str]:
    """Draw a share of the patients within each class: at least one, and never all.

    A patient who counts alone for a class that others have too is not drawn.

    Raises:
        TableError: a class has one patient only.
    """
    chosen, having = set[str](), patients_with(members)
    for label, patients in strata(members).items():
        if having[label] < 2:
            raise TableError(f"class {label} has one patient, and training needs one to learn from and one to validate")
        if len(patients) < 2:
            continue
        count = min(max(round(fraction * len(patients)), 1), len(patients) - 1)
        chosen.update(rng.permutation(patients)[:count].tolist())
    return chosen


def require_fraction(val_fraction: float) -> None:
    """Refuse what is no share."""
    if not 0 < val_fraction < 1:
        raise OptionError(f"--val-fraction {val_fraction}: give a share between 0 and 1")


def require_classes(cohort: Cohort, where: str = "") -> None:
    """Refuse a division whose training or validation part lacks a class.

    Raises:
        TableError: it does; ``where`` is said too.
    """
    for part in ("train", "val"):
        missing = set(cohort.classes) - {member.label for member in cohort.part(part)}
        if missing:
            names = ", ".join(sorted(missing))
            raise TableError(f"no slide of class {names} is in the {part} split{where}: label more slides")
