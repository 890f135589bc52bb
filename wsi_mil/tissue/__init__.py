"""Where the tissue is: a thumbnail becomes a mask.

tissue = find_tissue(*slide.thumbnail(mpp=16.0))
"""

from wsi_mil.tissue.masks import HOLES_MM2, WORKING_MPP, Tissue, find_tissue

__all__ = ["HOLES_MM2", "WORKING_MPP", "Tissue", "find_tissue"]
