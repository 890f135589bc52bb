"""Encoders: frozen networks that turn a tile into a vector. The only door to timm.

    encoder = load_encoder("resnet50")
    features = encoder.encode(tiles)  # uint8 (tiles, height, width, 3) -> float32 (tiles, 2048)

`table` knows them by name, `pretrained` runs those of timm, `morphology` is built in and needs no download. Other
packages add theirs by an entry point: see `plugins`. `sources` finds weights, in the `cache` of this machine or on the
hub; `feeder` keeps a GPU fed.
"""

from wsi_mil.encoders.feeder import DeviceEncoder, Fed, Feeder, encoded
from wsi_mil.encoders.late import LateEncoder
from wsi_mil.encoders.loading import Encoder, add_weights, load_encoder
from wsi_mil.encoders.resolution import TileSize, require_resolution, tile_geometry
from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.encoders.table import find_encoder, list_encoders

__all__ = [
    "DeviceEncoder",
    "Encoder",
    "EncoderSpec",
    "Fed",
    "Feeder",
    "LateEncoder",
    "TileSize",
    "add_weights",
    "encoded",
    "find_encoder",
    "list_encoders",
    "load_encoder",
    "require_resolution",
    "tile_geometry",
]
