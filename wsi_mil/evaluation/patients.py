"""From answers about slides to one about each patient: the mean of the calibrated probabilities of the slides."""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from wsi_mil.cohort import SEVERAL, some_names
from wsi_mil.predictions import Prediction

log = logging.getLogger(__name__)

PATIENTS = "patients.csv"
"""What the table of patients is called."""


def by_patient(rows: Iterable[Prediction], decide: Callable[[Prediction], str]) -> list[Prediction]:
    """One prediction per patient, in the order in which patients come; none where no patient has several slides.

    A slide counts as much as another one, whatever its tiles. Patients whose slides have several labels have none of
    their own and are left out, which is said.

    Args:
        rows: predictions of labelled slides; those without probabilities do not count.
        decide: the class that a patient's probabilities lead to, such as `Checkpoint.decide` of the round that tested
            the patient.
    """
    owned: dict[str, list[Prediction]] = {}
    for row in rows:
        if row.status == "done":
            owned.setdefault(row.patient_id or row.slide_id, []).append(row)
    if all(len(slides) == 1 for slides in owned.values()):
        return []
    torn = [patient for patient, slides in owned.items() if len({row.label for row in slides}) > 1]
    if torn:
        log.warning("%s: of patients with several labels among their slides there is no answer", some_names(torn))
    return [_joined(slides, decide) for patient, slides in owned.items() if patient not in set(torn)]


def _joined(slides: Sequence[Prediction], decide: Callable[[Prediction], str]) -> Prediction:
    """The answer about one patient; whoever has a slide that was trained on was trained on."""
    shares = np.mean([row.probabilities for row in slides], axis=0).tolist()
    trained = any(row.split == "train" for row in slides)
    found = slides[0]._replace(
        slide_id=SEVERAL.join(row.slide_id for row in slides),
        probabilities=tuple(shares),
        tiles=sum(row.tiles for row in slides),
        split="train" if trained else slides[0].split,
    )
    return found._replace(predicted=decide(found))
