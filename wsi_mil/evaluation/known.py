"""Whom of a cohort a model knows: patients that are no test of it."""

import logging
from pathlib import Path
from typing import NamedTuple

from wsi_mil import store
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.cohort import Cohort, slide_names, some_names
from wsi_mil.stage import artifact_path

log = logging.getLogger(__name__)
_UNTOLD = "The model does not say whom it learnt from, so that nobody can tell whether a patient was in training"


class Known(NamedTuple):
    """Whom of a cohort a model, or the choice of its epoch, has seen."""

    patients: frozenset[str]
    """They, or slides of theirs, are named as in training, or have features of training: no test."""
    namesakes: tuple[str, ...]
    """Slides of others whose files are named as slides of training, of a longer or a shorter path: perhaps the same."""
    told: bool = True
    """Whether the model says whom it learnt from."""

    def split(self, patient_id: str, drawn: str) -> str:
        """What a patient is to this model, whatever a table says: `compare` takes "train" for no test."""
        if patient_id in self.patients:
            return "train"
        return "test" if self.told else drawn

    def sentence(self, cohort: Cohort) -> str:
        """A word on them, for a page."""
        told = "No patient took part in training."
        if not self.told:
            told = f"{_UNTOLD}."
        elif self.patients:
            told = (
                f"{len(self.patients)} of {len(cohort.patients)} patients took part in training, so that the figures"
                " flatter the model."
            )
        elif self.namesakes:
            told = "No patient of these names took part in training."
        if self.namesakes:
            told += f" {self._alike()}: where they are the same, the figures flatter the model."
        return told

    def warn(self, cohort: Cohort) -> None:
        """Say it in the log."""
        if not self.told:
            log.warning(_UNTOLD)
        if self.patients:
            log.warning(
                "%d of %d patients took part in training, so that the figures flatter the model: %s. Give --split test,"
                " or labels of other patients",
                len(self.patients),
                len(cohort.patients),
                some_names(sorted(self.patients)),
            )
        if self.namesakes:
            log.warning("%s: if they are the same, take them out of the labels", self._alike())

    def _alike(self) -> str:
        verb, names = "slide is" if len(self.namesakes) == 1 else "slides are", some_names([*self.namesakes])
        return f"{len(self.namesakes)} {verb} named like slides of training, but for folders ({names})"


def known_to(made: Checkpoint, cohort: Cohort, feats: Path) -> Known:
    """Whom a model knows of a cohort, whose features lie in a folder."""
    said = {
        m.slide_id: store.read_attrs(artifact_path(feats, m.slide_id), {"slide_path", "fingerprint"})
        for m in cohort.members
    }
    patients = frozenset(
        m.patient_id
        for m in cohort.members
        if made.trained_on(m.patient_id, m.slide_id, said[m.slide_id]["fingerprint"])  # perhaps under another name
    )
    namesakes = []
    for member in cohort.members:
        if member.patient_id not in patients:
            recorded = said[member.slide_id].get("slide_path", "")
            if made.trained_on(*slide_names(member.slide_id, str(recorded))):
                namesakes.append(member.slide_id)
    return Known(patients, tuple(namesakes), {"patients", "trained_slides"} <= made.training.keys())
