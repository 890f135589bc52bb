"""An encoder whose weights are read when the first tile comes, for who may need none: all features may be there."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from torch import Tensor

from wsi_mil.devices import pick_device, pick_precision
from wsi_mil.encoders.loading import Encoder, load_encoder
from wsi_mil.encoders.preprocess import recipe
from wsi_mil.encoders.sources import again
from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import IncompatibleError


class LateEncoder:
    """An encoder of known weights: what it records with features is known at once, and holds of what it loads.

    So features that were made by it are told from others without it. What it would load is looked for, and its hash
    compared with the one that is wanted, when it is loaded.
    """

    def __init__(
        self, spec: EncoderSpec, weights: str, sha256: str, device: str, precision: str, trust: bool = False
    ) -> None:
        """Say what is to be loaded.

        Args:
            spec: of a network; what is built in is loaded at once by `load_encoder`.
            weights: where they came from when ``sha256`` was recorded: see `sources.again`.
            sha256: ``weights_sha256`` of the weights.
            device: as `load_encoder` takes it.
            precision: likewise, but not "auto".
            trust: likewise.

        Raises:
            OptionError: device or precision make no sense.
            EncoderError: the recipe resizes by a filter that is not known here.
        """
        self.spec, self.trust, self.device = spec, trust, pick_device(device)
        self.name, self.dim, self.tile_px, self.mpp = spec.name, spec.dim, spec.tile_px, spec.mpp
        self.precision = pick_precision(precision, spec.precision, self.device)
        self.preprocessing: Mapping[str, Any] = recipe(spec)
        self.network: Mapping[str, Any] = spec.network
        self.weights, self.weights_sha256 = weights, sha256
        self._loaded: Encoder | None = None

    def load(self) -> Encoder:
        """The encoder itself, loaded once.

        Raises:
            WeightsError: the weights cannot be had, or do not fit.
            IncompatibleError: they are not those of the hash.
        """
        if self._loaded is None:
            weights = again(self.spec, self.weights, self.weights_sha256)
            made = load_encoder(
                self.spec, weights, str(self.device), self.precision, self.trust, sha256=self.weights_sha256
            )
            if differing := [key for key in _TOLD if getattr(made, key) != getattr(self, key)]:
                raise IncompatibleError(f"{self.name} does not do what its record says of {', '.join(differing)}")
            self.weights, self._loaded = made.weights, made
        return self._loaded

    def encode(self, tiles: np.ndarray | Tensor) -> Float32[Tensor, "tiles dim"]:
        """Encode tiles, as `Encoder.encode`."""
        return self.load().encode(tiles)

    def embed(self, tiles: UInt8[Tensor, "tiles height width 3"]) -> Float32[Tensor, "tiles dim"]:
        """Encode tiles that are on the device, as `DeviceEncoder.embed`."""
        made: Any = self.load()  # a network always offers it
        return made.embed(tiles)


_TOLD = ("name", "dim", "precision", "preprocessing", "network", "weights_sha256")
