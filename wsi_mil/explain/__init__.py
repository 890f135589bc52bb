"""What a model looked at, tile by tile and pair by pair, and how that is shown."""

from wsi_mil.explain.heatmap import attention_png, png, require_one_slide, slide_png
from wsi_mil.explain.looking import Look, Pairs
from wsi_mil.explain.places import Places, read_places
from wsi_mil.explain.writing import MANIFEST, Facts, explanation_fingerprint, is_explained, write_explanation

__all__ = [
    "MANIFEST",
    "Facts",
    "Look",
    "Pairs",
    "Places",
    "attention_png",
    "explanation_fingerprint",
    "is_explained",
    "png",
    "read_places",
    "require_one_slide",
    "slide_png",
    "write_explanation",
]
