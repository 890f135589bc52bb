"""An encoder of your own: as a record of a network that timm can build, or, from Python alone, any class that encodes.

    python examples/custom_encoder.py [FOLDER]

A record lies in a package of yours, whose pyproject.toml names it; then `wsimil extract --model tiny-vit` knows it:

    [project.entry-points."wsi_mil.encoders"]
    tiny-vit = "my_package:TINY_VIT"
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsi_mil import store
from wsi_mil.encoders import EncoderSpec, load_encoder
from wsi_mil.extract import ExtractParams, ExtractStage
from wsi_mil.slides import write_pyramid
from wsi_mil.stage import Item, artifact_items, run
from wsi_mil.tiling import TileParams, TileStage

# The recipe is all of it: how the network is built, which tiles it sees, how they are resized and normalised.
TINY_VIT = EncoderSpec("tiny-vit", dim=64, tile_px=160, tile_um=160.0, licence="MIT", arch="test_vit")


class MeanColour:
    """Anything is an encoder that has these names: this one gives three numbers per tile."""

    name, dim, tile_px, mpp, precision = "mean-colour", 3, 160, None, "fp32"
    weights, weights_sha256 = "built-in", "1".zfill(64)  # another whenever `encode` gives other numbers
    preprocessing: Mapping[str, Any] = {}  # of what is done to tiles before, recorded with the features,
    network: Mapping[str, Any] = {}  # and what of the network the hash of its weights does not tell

    def encode(self, tiles: np.ndarray) -> torch.Tensor:
        """Turn tiles, uint8 (tiles, height, width, 3), into float32 (tiles, 3)."""
        return torch.from_numpy(tiles).float().mean((1, 2)) / 255


# A slide: a square of something pink on glass.
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
slide, image = folder / "slide.tif", np.full((1024, 1024, 3), 245, np.uint8)
image[200:800, 200:800] = np.random.default_rng(0).normal((200, 110, 160), 20, (600, 600, 3)).clip(0, 255)
write_pyramid(slide, image, 1.0)
run(TileStage(TileParams(tile_px=160, tile_um=160.0)), [Item("slide", slide)], folder / "tiles")

# A record needs weights: those of its hub_id, a file of yours, or, to try it out, random ones.
for encoder in (load_encoder(TINY_VIT, weights="random:0"), MeanColour()):
    feats = folder / "feats" / encoder.name
    run(ExtractStage(ExtractParams.of(encoder), encoder), artifact_items(folder / "tiles"), feats)
    tiles, dim = store.read(feats / "slide.h5").arrays["features"].shape
    print(f"{feats}: {tiles} tiles by {encoder.name}: {dim} numbers each")
