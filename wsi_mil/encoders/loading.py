"""What every encoder can do, and how to get one by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from wsi_mil.devices import pick_device
from wsi_mil.encoders.cache import Kept, keep
from wsi_mil.encoders.sources import require
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
    preprocessing: Mapping[str, Any]
    """What it does to a tile before the network sees it, as recorded with features: resize_px (the shorter side),
    crop_px (cut from the middle), interpolation, antialias, mean, std."""
    network: Mapping[str, Any]
    """What computes the vector from that, as recorded with features: `EncoderSpec.network`; empty where the hash of
    the weights says it all."""
    weights: str
    """Where the weights came from. `load_encoder` takes it to load the same again."""
    weights_sha256: str
    """Tells two sets of weights apart, wherever they came from."""

    def encode(self, tiles: np.ndarray | Tensor) -> Float32[Tensor, "tiles dim"]:
        """Encode tiles, uint8 (tiles, height, width, 3), preprocessing included; the result is on the CPU."""
        ...


def load_encoder(
    name: str | EncoderSpec,
    weights: str | Path | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    trust: bool = False,
    sha256: str | None = None,
) -> Encoder:
    """Load an encoder by name, or by a record of your own.

    Args:
        name: of the table (`list_encoders`), ``timm:<any model of timm>`` or ``hf-hub:<owner/repo of a timm model>``.
            A record that no package brings along serves this process alone: `predict` will not find it again.
        weights: a weight file, safetensors or torch pickle, loaded strictly, or a folder with one in it;
            ``random:SEED``; or None: those of `wsimil weights add`, else the published ones from the hub.
        device: "cpu", "cuda" or "cuda:1".
        precision: of the network: "fp32", "bf16", "fp16" (not on a CPU), or "auto", its authors' own on a GPU and
            "fp32" on a CPU. Preprocessing and result are float32.
        trust: also open pickles that hold more than tensors, which runs whatever code is in them.
        sha256: ``weights_sha256`` of the weights that are wanted; a file of others is refused before it is opened.

    Raises:
        EncoderError: nobody knows the name, or it needs a package that is not there.
        OptionError: weights, device or precision make no sense.
        WeightsError: the weights cannot be had, are not what they claim to be, or do not fit.
        IncompatibleError: they are not those of ``sha256``.
    """
    spec = name if isinstance(name, EncoderSpec) else find_encoder(name)
    weights = str(weights) if isinstance(weights, Path) else weights
    target = pick_device(device)
    if not spec.arch:
        from wsi_mil.encoders.morphology import MorphologyEncoder  # here, since it brings SciPy along

        if weights not in (None, spec.source):
            raise OptionError(f"--weights {weights}: {spec.name} is built in and takes none, leave the option out")
        if precision not in ("auto", "fp32"):
            raise OptionError(
                f"--precision {precision}: {spec.name} is built in and knows only fp32, leave the option out"
            )
        encoder: Encoder = MorphologyEncoder()
    else:
        from wsi_mil.encoders.pretrained import TimmEncoder

        encoder = TimmEncoder(spec, weights, target, precision, trust, sha256)
    if sha256:
        require(sha256, encoder.weights_sha256, encoder.weights)
    return encoder


def add_weights(name: str, file: Path, trust: bool = False) -> Kept:
    """Copy a weight file into the cache of this machine, where `load_encoder` finds it, once it is sure to fit.

    Args:
        name: of the encoder.
        file: the weight file, or a folder with one in it.
        trust: as in `load_encoder`.

    Raises:
        EncoderError: nobody knows the name.
        OptionError: the encoder takes no weights.
        WeightsError: the file is not what it claims to be, does not fit, or cannot be copied.
    """
    spec = find_encoder(name)
    if not spec.arch:
        raise OptionError(f"{name} is built in and takes no weights: `wsimil extract --model {name}` just works")
    from wsi_mil.encoders.pretrained import verify

    return keep(spec, *verify(spec, file.absolute(), trust))
