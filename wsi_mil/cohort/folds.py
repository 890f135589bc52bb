"""The rounds of a cross-validation: every patient is tested once, by a model that saw none of the patient's slides.

Within a round, the patients that are not tested are divided again, so that what stops a training, and chooses its
threshold, is never what it is judged by.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wsi_mil.cohort.balance import deal
from wsi_mil.cohort.members import Cohort, Member
from wsi_mil.cohort.naming import some_names
from wsi_mil.cohort.splitting import draw_patients, patients_with, require_classes, require_fraction, strata
from wsi_mil.errors import OptionError, TableError

log = logging.getLogger(__name__)


USUAL = 5
"""Folds where nobody says how many."""


def draw_folds(cohort: Cohort, k: int | None, seed: int, by_site: bool = False) -> Cohort:
    """Give every member the fold that tests it.

    Patients are dealt within each class (one with several labels counts for the rarest of them), so that two folds
    differ by one patient of a class at most. ``by_site``, whole sites are dealt instead, every class as evenly as the
    sites allow; then a test fold may lack a class, which is warned of: figures over all folds together are defined.
    Folds that the table names are followed.

    Args:
        cohort: the labelled slides. What it says of splits counts for nothing here, which is warned of.
        k: how many folds; 0 = as many as the table names; None = as many as the table names, else 5, or as many as
            there are sites where those are fewer and kept together.
        seed: of the draw; it decides nothing where the table names folds.
        by_site: put no site into two folds.

    Raises:
        OptionError: k is 1, or 0 without folds in the table.
        TableError: there are too few patients or sites, the table contradicts what is asked for, or a fold has a class
            missing in its test or training part.
    """
    named = cohort.folds
    if by_site and not all(member.site for member in cohort.members):
        raise TableError("--by-site needs the column site in the table of labels: add it, or leave out --by-site")
    if len(named) == 1:
        raise TableError(f"the column fold names one fold only ({named[0]}): name two or more, or take the column out")
    k = _usual(cohort, by_site) if k is None else k
    if k < 0 or k == 1 or (k == 0 and not named):
        raise OptionError(f"--folds {k}: give 2 or more, or 0 where the table of labels has a column fold")
    if named and k not in (0, len(named)):
        told = f"the column fold names {len(named)} folds ({', '.join(named)}), and --folds is {k}"
        raise TableError(f"{told}: give --folds 0 to follow the column, or take it out")
    if any(member.split for member in cohort.members):
        log.warning("cross-validation tests every patient once: what the table says in its column split is not used")
    _refuse_few_patients(cohort, len(named) or k)
    if not named:
        draw = _folds_of_sites if by_site else _folds_of_patients
        fold_of = draw(cohort, k, np.random.default_rng(seed))
        cohort = replace(cohort, members=tuple(m._replace(fold=fold_of[m.patient_id]) for m in cohort.members))
    cohort = replace(cohort, by_site=by_site)
    _check_folds(cohort)
    return cohort


def nested(cohort: Cohort, fold: str, val_fraction: float, seed: int) -> Cohort:
    """Divide a cohort for one round: ``fold`` is "test", a share of the other patients "val", the rest "train".

    Validation patients are drawn within each class, at least one and never all. Where no site is in two folds
    (``by_site``), whole sites are drawn for validation too, so that a training is stopped, and its threshold chosen, as
    it is tested: on sites it has not seen. Where the sites left do not allow that (a part would lack a class, or
    validation would be less than half or more than twice its share), patients are drawn, which is warned of.

    Args:
        cohort: one with folds.
        fold: which of ``cohort.folds`` to test.
        val_fraction: share of the other patients to validate on.
        seed: of the draw. With the fold's name it decides; how others are divided into folds does not matter.

    Raises:
        OptionError: no such fold, or no share.
        TableError: a class has too few patients to be in both parts.
    """
    require_fraction(val_fraction)
    if fold not in cohort.folds:
        raise OptionError(f"fold {fold}: there is none of that name, but {', '.join(cohort.folds) or 'none at all'}")
    rest = [member for member in cohort.members if member.fold != fold]
    rng = np.random.default_rng([seed, *fold.encode()])
    chosen = _validation_sites(rest, val_fraction, rng) if cohort.by_site else None
    if chosen is None:
        if cohort.by_site:
            log.warning("fold %s: too few sites are left to validate on sites of their own; patients are drawn", fold)
        chosen = draw_patients(rest, val_fraction, rng)

    def part(member: Member) -> str:
        return "test" if member.fold == fold else "val" if member.patient_id in chosen else "train"

    divided = replace(cohort, members=tuple(member._replace(split=part(member)) for member in cohort.members))
    require_classes(divided, f" when fold {fold} is tested")
    return divided


def _usual(cohort: Cohort, by_site: bool) -> int:
    """How many folds there are where nobody says it."""
    if cohort.folds or not by_site:
        return len(cohort.folds) or USUAL
    sites = {member.site for member in cohort.members}
    if len(sites) < 2:
        raise TableError(f"--by-site: every patient is of site {sites.pop()}, and rounds need two sites: leave it out")
    return min(USUAL, len(sites))


def _folds_of_patients(cohort: Cohort, k: int, rng: np.random.Generator) -> dict[str, str]:
    """Deal the patients of each class in turn, beginning where the class before ended, so that all folds are alike."""
    names, dealt = rng.permutation(k) + 1, 0
    fold_of = {}
    for patients in strata(cohort.members).values():
        for patient_id in rng.permutation(patients).tolist():
            fold_of[patient_id] = str(names[dealt % k])
            dealt += 1
    return fold_of


def _folds_of_sites(cohort: Cohort, k: int, rng: np.random.Generator) -> dict[str, str]:
    sites = sorted({member.site for member in cohort.members})
    if len(sites) < k:
        raise TableError(f"there are {len(sites)} sites ({some_names(sites)}), fewer than --folds {k}: ask for fewer")
    part_of = dict(zip(sites, deal(_counts(cohort.members, sites), np.full(k, 1 / k), rng).tolist(), strict=True))
    return {member.patient_id: str(part_of[member.site] + 1) for member in cohort.members}


def _validation_sites(members: Sequence[Member], fraction: float, rng: np.random.Generator) -> set[str] | None:
    """The patients of some sites, about a share of all; None where no choice of sites is good enough."""
    sites = sorted({member.site for member in members})
    if len(sites) < 2:
        return None
    counts = _counts(members, sites)
    in_val = deal(counts, np.array([fraction, 1 - fraction]), rng) == 0
    chosen = {site for site, val in zip(sites, in_val.tolist(), strict=True) if val}
    labels = [{member.label for member in members if (member.site in chosen) == val} for val in (True, False)]
    share = counts[in_val].sum() / counts.sum()
    if labels[0] != labels[1] or not fraction / 2 <= share <= fraction * 2:
        return None
    return {member.patient_id for member in members if member.site in chosen}


def _counts(members: Sequence[Member], sites: list[str]) -> np.ndarray:
    """Patients of each class (columns) at each site (rows)."""
    site_of = {member.patient_id: member.site for member in members}
    found = [Counter(site_of[patient_id] for patient_id in patients) for patients in strata(members).values()]
    return np.array([[counts[site] for counts in found] for site in sites])


def _refuse_few_patients(cohort: Cohort, k: int) -> None:
    having = patients_with(cohort.members)
    for label in cohort.classes:
        if (count := having[label]) < k:
            raise TableError(
                f"class {label} has {count} patients, fewer than {k} folds: ask for fewer by --folds, or label more"
            )


def _check_folds(cohort: Cohort) -> None:
    """Refuse, or warn of, what a round could not be learnt or judged by; the patients of a table are whole already."""
    if cohort.by_site:
        _refuse_divided_sites(cohort)
    for fold in cohort.folds:
        rest = [member for member in cohort.members if member.fold != fold]
        left = patients_with(rest)
        if few := [label for label in cohort.classes if left[label] < 2]:
            what = f"when fold {fold} is tested, fewer than two patients of class {', '.join(sorted(few))} are left"
            raise TableError(f"{what}, and training needs one to learn from and one to validate: label more patients")
    for fold in cohort.folds:
        lacking = set(cohort.classes) - {member.label for member in cohort.members if member.fold == fold}
        if not lacking:
            continue
        what = f"fold {fold} has no patient of class {', '.join(sorted(lacking))} to test"
        if not cohort.by_site:
            raise TableError(f"{what}: ask for fewer --folds, or name others (with --by-site it is allowed)")
        log.warning("%s: only figures over all folds together are defined", what)


def _refuse_divided_sites(cohort: Cohort) -> None:
    folds = defaultdict(set)
    for member in cohort.members:
        folds[member.site].add(member.fold)
    for site, found in sorted(folds.items()):
        if len(found) > 1:
            names = ", ".join(sorted(found))
            raise TableError(f"--by-site, but the column fold has site {site} in several folds ({names}): change one")
