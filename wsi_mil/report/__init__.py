"""Self-contained HTML pages, one per run."""

from wsi_mil.report.card import model_card, training_card
from wsi_mil.report.evaluation import shown, study_page
from wsi_mil.report.page import Chart, Curve, Picture, Section, number, page
from wsi_mil.report.pictures import attention_pictures
from wsi_mil.report.prediction import Told, prediction_page
from wsi_mil.report.training import training_page

__all__ = [
    "Chart",
    "Curve",
    "Picture",
    "Section",
    "Told",
    "attention_pictures",
    "model_card",
    "number",
    "page",
    "prediction_page",
    "shown",
    "study_page",
    "training_card",
    "training_page",
]
