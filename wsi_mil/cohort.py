"""Slides, patients, labels, splits: the tables that a person writes.

``labels.csv`` has the columns ``slide_id,label[,patient_id][,split]``. A slide_id may be written with its file's
extension, or without its folder where that is unambiguous. Patients are the unit of every split.

``slides.csv`` (optional for `wsimil tile`) has the columns ``slide[,mpp][,setting ...]``.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from wsi_mil.errors import OptionError, TableError
from wsi_mil.slides import without_extension
from wsi_mil.tables import number_in, read_table

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


class Member(NamedTuple):
    """One labelled slide."""

    slide_id: str
    label: str
    patient_id: str
    split: str = ""
    """"train", "val", "test", or "" before splitting."""


@dataclass(frozen=True)
class Cohort:
    """Labelled slides, in the order of their table."""

    members: tuple[Member, ...]
    left_out: Mapping[str, str]
    """Labelled slides that earlier stages could make nothing of, each with the reason."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur, sorted: the order of a model's outputs."""
        return tuple(sorted({member.label for member in self.members}))

    @property
    def digest(self) -> str:
        """Hash of who is in which split with which label."""
        return hashlib.sha256(repr(sorted(self.members)).encode()).hexdigest()[:32]

    def part(self, split: str) -> list[Member]:
        """The members of one split."""
        return [member for member in self.members if member.split == split]


class Seen(NamedTuple):
    """What earlier stages made of the slides."""

    usable: Collection[str]
    """Slides with features."""
    unusable: Mapping[str, str]
    """Slides that failed or were empty, each with the reason."""
    pending: Mapping[str, str]
    """Slides that an earlier stage has seen and a later one not yet, each with the command to run."""


def read_cohort(path: Path, seen: Seen) -> Cohort:
    """Read a table of labels and match it with the slides that earlier stages have seen.

    Raises:
        TableError: the table is missing or inconsistent; the message names the rows.
    """
    table = read_table(path, required=("slide_id", "label"), optional=("patient_id", "split"))
    everything = [*seen.usable, *seen.unusable, *seen.pending]
    rows = {row: _slide_id(path, row, table.slide_id[row], everything) for row in table.index}
    _refuse_duplicates(path, rows)
    unlabelled = sorted(set(seen.usable) - set(rows.values()))
    if unlabelled:
        log.warning("%d slides have no label in %s and are left out: %s", len(unlabelled), path, some_names(unlabelled))
    members = []
    for row, slide_id in rows.items():
        if slide_id in seen.pending:
            raise TableError(f"{path} row {row}: {slide_id} has no features yet: {seen.pending[slide_id]}")
        label = _filled(path, row, "label", table.label[row])
        patient_id = _filled(path, row, "patient_id", table.patient_id[row]) if "patient_id" in table else slide_id
        split = _split(path, row, table.split[row]) if "split" in table else ""
        members.append(Member(slide_id, label, patient_id, split))
    _refuse_divided_patients(path, members)
    _refuse_half_split(path, members)
    if "patient_id" not in table:
        log.warning("%s has no column patient_id: every slide counts as a patient of its own", path)
    usable = tuple(member for member in members if member.slide_id not in seen.unusable)
    _refuse_empty_splits(path, members, usable)
    left_out = {slide_id: seen.unusable[slide_id] for slide_id in rows.values() if slide_id in seen.unusable}
    for slide_id, reason in left_out.items():
        log.warning("%s: labelled, but left out: %s", slide_id, reason)
    _refuse_empty_classes(path, members, usable)
    return Cohort(usable, left_out)


def read_slides_table(
    path: Path, slides: Collection[str], settings: tuple[str, ...] = ()
) -> dict[str, dict[str, float]]:
    """Read ``slides.csv``: which slides to use, the mpp of those whose files do not tell it, and their own settings.

    Args:
        path: the table, columns ``slide[,mpp][,setting ...]`` and any of ``settings``.
        slides: the slide_ids that were found.
        settings: what a slide may have of its own.

    Returns:
        By slide_id, the numbers in its row; an empty cell says nothing.

    Raises:
        TableError: a slide is not there, or twice; a column is unknown; a cell is no number.
    """
    columns = ("mpp", *settings)
    table = read_table(path, required=("slide",), optional=columns, strict=True)
    rows = {row: _slide_id(path, row, table.slide[row], slides) for row in table.index}
    _refuse_duplicates(path, rows)
    given = [column for column in columns if column in table]
    return {
        slide_id: {name: number_in(path, row, name, text) for name in given if (text := table[name][row])}
        for row, slide_id in rows.items()
    }


def read_resolutions(path: Path, slides: Collection[str]) -> dict[str, float]:
    """Read of ``slides.csv`` only the mpp of slides that have bags; rows without mpp say nothing, others are named."""
    table = read_table(path, required=("slide", "mpp"), optional=())
    named = {row: _filled(path, row, "slide", table.slide[row]) for row in table.index}
    rows = {row: found[0] for row, name in named.items() if (found := _matching(path, row, name, slides))}
    if idle := [name + _asked(name, slides) for row, name in named.items() if row not in rows]:
        log.warning("%s: %d of %d rows name no bag and say nothing: %s", path, len(idle), len(named), some_names(idle))
    _refuse_duplicates(path, rows)
    return {slide_id: number_in(path, row, "mpp", text) for row, slide_id in rows.items() if (text := table.mpp[row])}


def split(cohort: Cohort, val_fraction: float, seed: int) -> Cohort:
    """Give every member a split: what the table says, and a validation part drawn from the training patients.

    Patients are drawn at random within each class (a patient with several labels counts for the rarest of them), at
    least one per class, and never all of a class.

    Raises:
        TableError: some class has too few patients to be in both parts.
    """
    if not 0 < val_fraction < 1:
        raise OptionError(f"--val-fraction {val_fraction}: give a share between 0 and 1")
    members = [member if member.split else member._replace(split="train") for member in cohort.members]
    if not any(member.split == "val" for member in members):
        chosen = _draw_patients([member for member in members if member.split == "train"], val_fraction, seed)
        members = [member._replace(split="val") if member.patient_id in chosen else member for member in members]
    for part in ("train", "val"):
        missing = set(cohort.classes) - {member.label for member in members if member.split == part}
        if missing:
            raise TableError(
                f"no slide of class {', '.join(sorted(missing))} is in the {part} split: label more slides"
            )
    return replace(cohort, members=tuple(members))


def _draw_patients(members: Iterable[Member], fraction: float, seed: int) -> set[str]:
    labels = defaultdict(set)
    for member in members:
        labels[member.patient_id].add(member.label)
    frequency = Counter(label for found in labels.values() for label in found)
    by_class = defaultdict(list)
    for patient_id in sorted(labels):
        by_class[min(labels[patient_id], key=lambda label: (frequency[label], label))].append(patient_id)
    rng = np.random.default_rng(seed)
    chosen: set[str] = set()
    for label in sorted(by_class):
        patients = by_class[label]
        if len(patients) < 2:
            raise TableError(f"class {label} has one patient, and training needs one to learn from and one to validate")
        count = min(max(round(fraction * len(patients)), 1), len(patients) - 1)
        chosen.update(rng.permutation(patients)[:count].tolist())
    return chosen


def _slide_id(path: Path, row: int, text: str, slides: Collection[str]) -> str:
    """Match what the table calls a slide with the slides there are."""
    name = _filled(path, row, "slide", text)
    found = _matching(path, row, name, slides)
    if not found:
        what = f"no stage has seen a slide {name}{_asked(name, slides)}"
        raise TableError(f"{path} row {row}: {what}: add it and tile it, or take the row out")
    return found[0]


def _matching(path: Path, row: int, name: str, slides: Collection[str]) -> list[str]:
    """The slide that goes by a name, which may leave out its folder where that is unambiguous; none, if none does."""
    for candidate in (name, without_extension(name)):
        if candidate in slides:
            return [candidate]
    stem = without_extension(name)
    found = sorted(slide for slide in slides if PurePosixPath(slide).name == stem) if "/" not in stem else []
    if len(found) > 1:
        raise TableError(f"{path} row {row}: {name} may be any of {', '.join(found)}: write it with its folder")
    return found


def _asked(name: str, slides: Collection[str]) -> str:
    """The question which slide a name may stand for, where any is near."""
    near = " or ".join(sorted(slide for slide in slides if _is_near(name, slide)))
    return f" (did you mean {near}?)" if near else ""


def _is_near(name: str, slide_id: str) -> bool:
    """Whether a name is that of a slide but for case, extension or folder."""
    wanted, found = (without_extension(text).lower() for text in (name, slide_id))
    return wanted in (found, PurePosixPath(found).name)


def some_names(names: list[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _filled(path: Path, row: int, column: str, text: str) -> str:
    if not text:
        raise TableError(f"{path} row {row}: {column} is empty")
    return text


def _split(path: Path, row: int, text: str) -> str:
    if text and text not in SPLITS:
        raise TableError(f"{path} row {row}: split {text!r} is none of {', '.join(SPLITS)}")
    return text


def _refuse_duplicates(path: Path, rows: Mapping[int, str]) -> None:
    for slide_id, count in Counter(rows.values()).items():
        if count > 1:
            where = ", ".join(str(row) for row, found in rows.items() if found == slide_id)
            raise TableError(f"{path} rows {where}: {slide_id} is there {count} times")


def _refuse_divided_patients(path: Path, members: list[Member]) -> None:
    splits = defaultdict(set)
    for member in members:
        splits[member.patient_id].add(member.split)
    for patient_id, found in splits.items():
        if len(found) > 1:
            raise TableError(
                f"{path}: patient {patient_id} is in several splits ({', '.join(sorted(found))}): choose one"
            )


def _refuse_half_split(path: Path, members: list[Member]) -> None:
    without = [member.slide_id for member in members if not member.split]
    if without and len(without) < len(members):
        raise TableError(
            f"{path}: split is empty for {without[0]} (and {len(without) - 1} more): fill it in, or take the column out"
        )


def _refuse_empty_classes(path: Path, members: list[Member], usable: tuple[Member, ...]) -> None:
    declared = {member.label for member in members}
    if len(declared) < 2:
        raise TableError(f"{path}: every label is {declared.pop()}: a model needs two classes to tell apart")
    gone = declared - {member.label for member in usable}
    if gone:
        names = ", ".join(sorted(gone))
        raise TableError(f"{path}: class {names} is empty, all its slides failed or were empty: see summary.csv")


def _refuse_empty_splits(path: Path, members: list[Member], usable: tuple[Member, ...]) -> None:
    gone = {member.split for member in members} - {member.split for member in usable}
    if gone and usable:
        names = ", ".join(sorted(gone))
        raise TableError(f"{path}: split {names} is empty, all its slides failed or were empty: name others")
