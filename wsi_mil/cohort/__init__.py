"""Slides, patients, labels, splits: the tables that a person writes, and how their patients are divided.

``labels.csv`` has the columns ``slide_id,label[,patient_id][,split][,site][,fold]``; `read_cohort` reads it. Patients
are the unit of every split: `split` draws a validation part, `draw_folds` and `nested` the rounds of a
cross-validation, `shuffled_labels` the control that no model can learn.

    cohort = draw_folds(read_cohort(Path("labels.csv"), seen), k=5, seed=0)
    for fold in cohort.folds:
        divided = nested(cohort, fold, val_fraction=0.2, seed=0)   # train, val and test, no patient in two of them

``slides.csv`` (optional for `wsimil tile`) has the columns ``slide[,mpp][,setting ...]``; `read_slides_table` reads it.
"""

from wsi_mil.cohort.doubles import check_doubles
from wsi_mil.cohort.folds import draw_folds, nested
from wsi_mil.cohort.members import SEVERAL, SPLITS, UNITS, Cohort, CohortParams, Member, Seen, Unit
from wsi_mil.cohort.naming import read_resolutions, read_slides_table, slide_names, some_names
from wsi_mil.cohort.reading import read_cohort
from wsi_mil.cohort.splitting import shuffled_labels, split, tell_classes

__all__ = [
    "SEVERAL",
    "SPLITS",
    "UNITS",
    "Cohort",
    "CohortParams",
    "Member",
    "Seen",
    "Unit",
    "check_doubles",
    "draw_folds",
    "nested",
    "read_cohort",
    "read_resolutions",
    "read_slides_table",
    "shuffled_labels",
    "slide_names",
    "some_names",
    "split",
    "tell_classes",
]
