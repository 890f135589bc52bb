"""Who was looked at: patients and slides by class, split, round and site."""

from collections.abc import Mapping, Sequence

from wsi_mil.cohort import Cohort, Member
from wsi_mil.report.page import Section, Table

_SPLITS = {"train": "train", "val": "val", "test": "test", "": "all"}
_SITES = 30
_ROUND = ("round", "trained on (patients)", "validated on", "tested on", "slides tested")


def cohort_section(cohort: Cohort, rounds: Mapping[str, Cohort] | None = None, text: str = "") -> Section:
    """Tables of a cohort.

    Args:
        cohort: its labelled slides.
        rounds: of cross-validation, by name, what each learnt from, validated on and tested.
        text: what is said first.
    """
    left_out = [f"{slide_id} was left out: {reason}." for slide_id, reason in cohort.left_out.items()]
    classes = tuple(f"{name} (slides)" for name in cohort.classes)
    parts = {} if rounds else {_SPLITS[split]: cohort.part(split) for split in _SPLITS}
    sites = {site: [one for one in cohort.members if one.site == site] for site in _sites(cohort)}
    rows = {**parts, **({} if len([part for part in parts.values() if part]) == 1 else {"all": list(cohort.members)})}
    header = ("patients", "slides", *classes)
    tables = [
        Table("Splits", ("split", *header), _rows(rows, cohort.classes)),
        Table("Rounds", (*_ROUND, *classes), _rounds(rounds)),
        Table("Sites", ("site", *header), _rows(sites, cohort.classes)),
    ]
    return Section("Cohort", text, points=left_out, tables=tables)


def _rows(parts: Mapping[str, Sequence[Member]], classes: Sequence[str]) -> list[tuple[str, ...]]:
    return [(name, str(len({one.patient_id for one in part})), *_slides(part, classes)) for name, part in parts.items()
            if part]  # fmt: skip


def _slides(part: Sequence[Member], classes: Sequence[str]) -> tuple[str, ...]:
    """How many slides there are, and of each class."""
    return (str(len(part)), *(str(sum(one.label == name for one in part)) for name in classes))


def _rounds(rounds: Mapping[str, Cohort] | None) -> list[tuple[str, ...]]:
    """Patients of each part, and the slides that were tested."""
    found = []
    for name, cohort in (rounds or {}).items():
        parts = [cohort.part(split) for split in ("train", "val", "test")]
        patients = (str(len({one.patient_id for one in part})) for part in parts)
        found.append((name, *patients, *_slides(parts[-1], cohort.classes)))
    return found


def _sites(cohort: Cohort) -> list[str]:
    """Sites by name, where there are several and not too many to be looked at."""
    names = sorted({one.site for one in cohort.members})
    return names if 1 < len(names) <= _SITES else []
