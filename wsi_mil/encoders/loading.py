"""What every encoder can do, and how to get one by name."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from wsi_mil.devices import pick_device
from wsi_mil.encoders.table import find_encoder
from wsi_mil.errors import OptionError


@runtime_checkable
class Encoder(Protocol):
    """A frozen function from tiles to vectors."""

    name: str
    dim: int
    """Length of a vector."""
    tile_px: int
    """Side of the square that the encoder sees; it resizes tiles of another size itself."""
    mpp: float | None
    """Micrometres per pixel of what it sees, in its authors' recipe; None where there is none."""
    precision: str
    """"fp32", "bf16" or "fp16"."""
    preprocessing: Mapping[str, Any]
    """What it does to a tile before the network sees it, as recorded with features: resize_px (the shorter side),
    crop_px (cut from the middle), interpolation, antialias, mean, std."""
    weights: str
    """Where the weights came from. `load_encoder` takes it to load the same again."""
    weights_sha256: str
    """Tells two sets of weights apart, wherever they came from."""

    def encode(self, tiles: np.ndarray | Tensor) -> Float32[Tensor, "tiles dim"]:
        """Encode tiles, uint8 (tiles, height, width, 3), preprocessing included; the result is on the CPU."""
        ...


def load_encoder(name: str, weights: str | None = None, device: str = "cpu", precision: str = "fp32") -> Encoder:
    """Load an encoder by name.

    Args:
        name: of the table (`list_encoders`), or ``timm:<any model of timm>``.
        weights: a weight file, safetensors or torch pickle, loaded strictly; ``random:SEED``; or None for the
            published ones.
        device: "cpu", "cuda" or "cuda:1".
        precision: of the network: "fp32", "bf16", "fp16" (not on a CPU), or "auto", its authors' own on a GPU and
            "fp32" on a CPU. Preprocessing and result are float32.

    Raises:
        EncoderError: nobody knows the name.
        OptionError: weights, device or precision make no sense.
        WeightsError: the weights cannot be had, are not what they claim to be, or do not fit.
    """
    spec = find_encoder(name)
    target = pick_device(device)
    if not spec.arch:
        from wsi_mil.encoders.morphology import MorphologyEncoder  # here, since it brings SciPy along

        if weights not in (None, spec.source):
            raise OptionError(f"--weights {weights}: {name} is built in and takes none, leave the option out")
        if precision not in ("auto", "fp32"):
            raise OptionError(f"--precision {precision}: {name} is built in and knows only fp32, leave the option out")
        return MorphologyEncoder()
    from wsi_mil.encoders.pretrained import TimmEncoder

    return TimmEncoder(spec, weights, target, precision)
