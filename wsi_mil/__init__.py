"""wsi_mil: slide-level models that know where things are.

Importing the package loads nothing heavy: no torch, no OpenSlide, no network, no device.
"""

__version__ = "0.2.0.dev0"
