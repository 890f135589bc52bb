"""Self-contained HTML pages, one per run."""

from wsi_mil.report.card import model_card, training_card
from wsi_mil.report.chart import Bar, Chart, Curve, Mark, Tick
from wsi_mil.report.cohort import cohort_section
from wsi_mil.report.crossval import crossval_facts, distances_of, rounds_of, tested_slides
from wsi_mil.report.distance_use import DistanceUse, distance_use, predicted_distances, some_bags
from wsi_mil.report.distances import DISTANCE_FILES, distance_files, distance_section
from wsi_mil.report.evaluation import Beside, p_value, study_page
from wsi_mil.report.judged import shown
from wsi_mil.report.page import Picture, Section, Table, figure, number, page
from wsi_mil.report.pictures import Notable, SlideFiles, notable, slides_section
from wsi_mil.report.prediction import Reasons, Told, prediction_page
from wsi_mil.report.provenance import drawn, judged_facts, model_facts, provenance
from wsi_mil.report.training import training_page, training_slides

__all__ = [
    "DISTANCE_FILES",
    "Bar",
    "Beside",
    "Chart",
    "Curve",
    "DistanceUse",
    "Mark",
    "Notable",
    "Picture",
    "Reasons",
    "Section",
    "SlideFiles",
    "Table",
    "Tick",
    "Told",
    "cohort_section",
    "crossval_facts",
    "distance_files",
    "distance_section",
    "distance_use",
    "distances_of",
    "drawn",
    "figure",
    "judged_facts",
    "model_card",
    "model_facts",
    "notable",
    "number",
    "p_value",
    "page",
    "predicted_distances",
    "prediction_page",
    "provenance",
    "rounds_of",
    "shown",
    "slides_section",
    "some_bags",
    "study_page",
    "tested_slides",
    "training_card",
    "training_page",
    "training_slides",
]
