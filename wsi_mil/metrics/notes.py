"""What a small sample cannot tell, in words."""

import math
from collections.abc import Sequence

import numpy as np

from wsi_mil.metrics.arrays import Labels

FEW_PATIENTS = 10
"""Patients of a class from which on intervals hold about what they promise."""
_FEW_BAGS = 400  # from which on that is at most 0.05


def small_sample_notes(labels: Labels, patients: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Sentences on what there is too little of, for whoever reads the figures.

    Args:
        labels: index of each bag's true class.
        patients: owner of each bag; a patient counts for each class that one of the bags has.
        classes: names of all declared classes.

    Returns:
        One sentence for each class with fewer than 10 patients, and one if there are fewer than 400 bags.
    """
    owners = np.asarray(patients)
    notes = []
    for index, name in enumerate(classes):
        count = len(np.unique(owners[labels == index]))
        if count < FEW_PATIENTS:
            notes.append(f"class {name}: {_consequence(count)}")
    if 0 < len(labels) < _FEW_BAGS:
        notes.append(
            f"{len(labels)} bags: even perfectly calibrated probabilities would show an expected calibration error of"
            f" about {chance_ece(len(labels)):.2f}"
        )
    return notes


def chance_ece(bags: int) -> float:
    """The expected calibration error, in 10 bins, of probabilities that are right, roughly, as simulation gives it."""
    return 1 / math.sqrt(bags)


def _consequence(count: int) -> str:
    if count == 0:
        return "no patient: figures that need every class, such as AUROC, are not defined"
    if count == 1:
        return "1 patient: figures rest on that one, and no interval can be given"
    return f"{count} patients: intervals are wide, and those by bootstrap still too narrow"
