"""What a model looked at, tile by tile and pair by pair, and how that is shown."""

from wsi_mil.explain.curves import (
    Asked,
    AtDistance,
    Reliance,
    enrichment,
    enrichment_csv,
    reliance,
)
from wsi_mil.explain.heads import DISTANCE_FILES, Head, heads_csv, learnt_distances
from wsi_mil.explain.heatmap import attention_png, png, require_one_slide, slide_png
from wsi_mil.explain.looking import Look, LookOptions, Pairs, look
from wsi_mil.explain.manifest import MANIFEST, Facts, read_manifest
from wsi_mil.explain.places import Places, read_places
from wsi_mil.explain.running import Explained, ExplainOptions, explain_bags
from wsi_mil.explain.slide_file import find_slide, open_again, slide_path
from wsi_mil.explain.writing import (
    explanation_fingerprint,
    explanation_folder,
    is_explained,
    write_explanation,
)

__all__ = [
    "DISTANCE_FILES",
    "MANIFEST",
    "Asked",
    "AtDistance",
    "ExplainOptions",
    "Explained",
    "Facts",
    "Head",
    "Look",
    "LookOptions",
    "Pairs",
    "Places",
    "Reliance",
    "attention_png",
    "enrichment",
    "enrichment_csv",
    "explain_bags",
    "explanation_fingerprint",
    "explanation_folder",
    "find_slide",
    "heads_csv",
    "is_explained",
    "learnt_distances",
    "look",
    "open_again",
    "png",
    "read_manifest",
    "read_places",
    "reliance",
    "require_one_slide",
    "slide_path",
    "slide_png",
    "write_explanation",
]
