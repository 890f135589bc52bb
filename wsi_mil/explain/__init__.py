"""What a model looked at, tile by tile and pair by pair, and how that is shown."""

from wsi_mil.explain.heatmap import attention_png, colours, png, require_one_slide, slide_png
from wsi_mil.explain.looking import Look, LookOptions, Pairs, look

__all__ = ["Look", "LookOptions", "Pairs", "attention_png", "colours", "look", "png", "require_one_slide", "slide_png"]
