"""What a model looked at, tile by tile and pair by pair, and how that is shown."""

from wsi_mil.explain.curves import (
    Asked,
    AtDistance,
    Head,
    Reliance,
    enrichment,
    enrichment_csv,
    heads_csv,
    learnt_distances,
    reliance,
)
from wsi_mil.explain.heatmap import attention_png, colours, png, require_one_slide, slide_png
from wsi_mil.explain.looking import Look, LookOptions, Pairs, look

__all__ = [
    "Asked",
    "AtDistance",
    "Head",
    "Look",
    "LookOptions",
    "Pairs",
    "Reliance",
    "attention_png",
    "colours",
    "enrichment",
    "enrichment_csv",
    "heads_csv",
    "learnt_distances",
    "look",
    "png",
    "reliance",
    "require_one_slide",
    "slide_png",
]
