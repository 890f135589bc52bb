"""How good a model is, on patients that had no part in making it; how it compares; whether it uses where tiles lie."""

from wsi_mil.evaluation.answers import Answers
from wsi_mil.evaluation.asking import ask
from wsi_mil.evaluation.comparing import Comparison, compare
from wsi_mil.evaluation.crossval import CrossvalParams, Place, Validated, crossval, folded
from wsi_mil.evaluation.figures import FIGURES, Group, Judged, judge
from wsi_mil.evaluation.known import Known, known_to
from wsi_mil.evaluation.patients import PATIENTS, by_patient
from wsi_mil.evaluation.record import RECORD, REPORT, claim, refuse_judged, refuse_model, require_own
from wsi_mil.evaluation.runs import answers_in, matched, table_of
from wsi_mil.evaluation.spatial import Spatial, does_space_matter
from wsi_mil.evaluation.study import Study, write_study

__all__ = [
    "FIGURES",
    "PATIENTS",
    "RECORD",
    "REPORT",
    "Answers",
    "Comparison",
    "CrossvalParams",
    "Group",
    "Judged",
    "Known",
    "Place",
    "Spatial",
    "Study",
    "Validated",
    "answers_in",
    "ask",
    "by_patient",
    "claim",
    "compare",
    "crossval",
    "does_space_matter",
    "folded",
    "judge",
    "known_to",
    "matched",
    "refuse_judged",
    "refuse_model",
    "require_own",
    "table_of",
    "write_study",
]
