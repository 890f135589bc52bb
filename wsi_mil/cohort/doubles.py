"""One slide under two names: a patient too many, or one who is trained on and tested on."""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from wsi_mil.cohort.members import Cohort, Member
from wsi_mil.cohort.naming import some_names
from wsi_mil.errors import TableError

log = logging.getLogger(__name__)


def check_doubles(path: Path, cohort: Cohort, contents: Mapping[str, Collection[str]]) -> None:
    """Refuse slides of the same content that are of several patients; warn of those of one.

    Args:
        path: the table of labels, for the message.
        cohort: its labelled slides.
        contents: by slide_id, digests of what the slide holds; those of the same content share one.

    Raises:
        TableError: a slide is there under the names of two patients.
    """
    of_several, of_one = list[str](), list[str]()
    for found in _alike(cohort, contents):
        names = " and ".join(member.slide_id for member in found)
        patients = sorted({member.patient_id for member in found})
        if len(patients) > 1:
            of_several.append(f"{names} hold the same, and are of the patients {' and '.join(patients)}")
        else:
            of_one.append(f"{names} (patient {patients[0]})")
    if of_several:
        more = f" (and {len(of_several) - 1} more such)" if len(of_several) > 1 else ""
        raise TableError(
            f"{path}: slides {of_several[0]}{more}: whoever is trained on would be tested on, too. Take all but one of"
            " them out, or give them one patient_id"
        )
    if of_one:
        log.warning("%s: slides that hold the same count twice: %s: take one out", path, some_names(of_one))


def _alike(cohort: Cohort, contents: Mapping[str, Collection[str]]) -> list[tuple[Member, ...]]:
    """Slides of the same content, in the order of the table; each set of them once."""
    holding: dict[str, list[Member]] = defaultdict(list)
    for member in cohort.members:
        for digest in contents[member.slide_id]:
            holding[digest].append(member)
    return list(dict.fromkeys(tuple(found) for found in holding.values() if len(found) > 1))
