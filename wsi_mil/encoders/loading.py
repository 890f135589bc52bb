"""What every encoder can do, and how to get one by name."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from wsi_mil.devices import pick_device
from wsi_mil.encoders.spec import EncoderSpec
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
    weights: str
    """Where the weights came from. `load_encoder` takes it to load the same again."""
    weights_sha256: str
    """Tells two sets of weights apart, wherever they came from."""

    def encode(self, tiles: np.ndarray | Tensor) -> Float32[Tensor, "tiles dim"]:
        """Encode tiles, uint8 (tiles, height, width, 3), preprocessing included; the result is on the CPU."""
        ...


def load_encoder(
    name: str | EncoderSpec, weights: str | None = None, device: str = "cpu", precision: str = "fp32"
) -> Encoder:
    """Load an encoder by name, or by a record of your own.

    Args:
        name: of the table (`list_encoders`), ``timm:<any model of timm>`` or ``hf-hub:<owner/repo of a timm model>``.
            A record that no package brings along serves this process alone: `predict` will not find it again.
        weights: a weight file, safetensors or torch pickle, loaded strictly; ``random:SEED``; or None for the
            published ones.
        device: "cpu", "cuda" or "cuda:1".
        precision: "fp32", "bf16" or "fp16", of the network; preprocessing and result are float32.

    Raises:
        EncoderError: nobody knows the name, or it needs a package that is not there.
        OptionError: weights, device or precision make no sense.
        WeightsError: the weights cannot be had, are not what they claim to be, or do not fit.
    """
    spec = name if isinstance(name, EncoderSpec) else find_encoder(name)
    target = pick_device(device)
    if not spec.arch:
        from wsi_mil.encoders.morphology import MorphologyEncoder  # here, since it brings SciPy along

        if weights not in (None, spec.source):
            raise OptionError(f"--weights {weights}: {spec.name} is built in and takes none, leave the option out")
        return MorphologyEncoder()
    from wsi_mil.encoders.pretrained import TimmEncoder

    return TimmEncoder(spec, weights, target, precision)
