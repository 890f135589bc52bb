"""Encoders: frozen networks that turn a tile into a vector. The only door to timm.

    encoder = load_encoder("resnet50")
    features = encoder.encode(tiles)  # uint8 (tiles, height, width, 3) -> float32 (tiles, 2048)

`table` knows them by name, `pretrained` runs those of timm, `morphology` is built in and needs no download. Other
packages add theirs by an entry point: see `plugins`.
"""

from typing import TYPE_CHECKING, Any

from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.encoders.table import find_encoder, list_encoders

if TYPE_CHECKING:
    from wsi_mil.encoders.loading import Encoder, load_encoder

__all__ = ["Encoder", "EncoderSpec", "find_encoder", "list_encoders", "load_encoder"]


def __getattr__(name: str) -> Any:
    """`Encoder` and `load_encoder`, imported when they are asked for: they bring torch, which a list does not need."""
    if name in ("Encoder", "load_encoder"):
        from wsi_mil.encoders import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
