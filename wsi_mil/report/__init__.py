"""Self-contained HTML pages, one per run."""

from wsi_mil.report.card import model_card, training_card
from wsi_mil.report.distances import DISTANCE_FILES, DistanceUse, distance_files, distance_section, distance_use
from wsi_mil.report.evaluation import shown, study_page
from wsi_mil.report.page import Bar, Chart, Curve, Mark, Picture, Section, Tick, figure, number, page
from wsi_mil.report.pictures import attention_pictures
from wsi_mil.report.prediction import Told, prediction_page
from wsi_mil.report.training import training_page

__all__ = [
    "DISTANCE_FILES",
    "Bar",
    "Chart",
    "Curve",
    "DistanceUse",
    "Mark",
    "Picture",
    "Section",
    "Tick",
    "Told",
    "attention_pictures",
    "distance_files",
    "distance_section",
    "distance_use",
    "figure",
    "model_card",
    "number",
    "page",
    "prediction_page",
    "shown",
    "study_page",
    "training_card",
    "training_page",
]
