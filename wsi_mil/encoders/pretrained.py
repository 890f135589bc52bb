"""Networks of timm as encoders: built, given their weights, fed as their authors fed them."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from wsi_mil.devices import PRECISIONS, pick_precision
from wsi_mil.encoders._hub import hub_file
from wsi_mil.encoders._timm import import_timm
from wsi_mil.encoders.preprocess import as_batch, normalise, recipe
from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import EncoderError, OptionError
from wsi_mil.weights import file_sha256, load_strictly, read_state, state_sha256

log = logging.getLogger(__name__)


class TimmEncoder:
    """A frozen network of timm."""

    def __init__(self, spec: EncoderSpec, weights: str | None, device: torch.device, precision: str) -> None:
        """Build the network and load its weights.

        Raises:
            OptionError: weights that mean nothing, or a precision that the device does not offer.
            EncoderError: the recipe resizes by a filter that is not known here.
            WeightsError: the weights cannot be had, or do not fit.
        """
        self.spec, self.device = spec, device
        self.precision = pick_precision(precision, spec.precision, device)
        self.preprocessing: Mapping[str, Any] = recipe(spec)
        self.name, self.dim, self.tile_px, self.mpp = spec.name, spec.dim, spec.tile_px, spec.mpp
        model, self.weights, self.weights_sha256 = _loaded(spec, weights)
        self.model = model.eval().requires_grad_(False).to(device)

    def encode(self, tiles: np.ndarray | Tensor) -> Float32[Tensor, "tiles dim"]:
        """Encode tiles, uint8 (tiles, height, width, 3) of any size, preprocessing included.

        Returns:
            Features on the CPU, float32 whatever the precision.

        Raises:
            EncoderError: the tiles are not 8-bit RGB, or the network does not return one vector per tile.
        """
        batch = as_batch(tiles)
        if not len(batch):
            return torch.zeros(0, self.dim)
        dtype = PRECISIONS[self.precision]
        with torch.inference_mode():
            pixels = normalise(batch.to(self.device), self.spec)  # in float32, whatever the network computes in
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                features = self.model(pixels)
        if features.shape != (len(batch), self.dim):
            shape = tuple(features.shape)
            raise EncoderError(
                f"{self.name} returned {shape} for {len(batch)} tiles instead of {self.dim} numbers each"
            )
        return features.to("cpu", torch.float32, copy=True)  # a copy, since no gradient may touch inference tensors


def _loaded(spec: EncoderSpec, weights: str | None) -> tuple[nn.Module, str, str]:
    """A model with its weights, where these came from, and their SHA-256."""
    if weights and weights.startswith("random:"):
        seed = weights.removeprefix("random:")
        if not seed.isdecimal():
            raise OptionError(f"--weights {weights}: give random:SEED with a whole number, such as random:0")
        model = _build(spec, int(seed))
        log.warning("%s has random weights (%s): its features mean nothing", spec.name, weights)
        return model, weights, state_sha256(model.state_dict())
    path = hub_file(spec) if weights in (None, spec.source) else Path(weights).resolve()
    state = read_state(path)
    model = _build(spec, 0)
    load_strictly(
        model,
        _without_classifier(model, state),
        str(path),
        convert=lambda state: _without_classifier(model, _from_published(model, state)),
    )
    return model, spec.source if weights in (None, spec.source) else str(path), file_sha256(path)


def _build(spec: EncoderSpec, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # what others draw afterwards must not depend on what we built
        torch.default_generator.manual_seed(seed)
        return import_timm().create_model(spec.arch, num_classes=0, **spec.arch_kwargs)


def _without_classifier(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the classifier that published files bring along and that an encoder does not have."""
    config: Any = model.pretrained_cfg
    names = config.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    own = model.state_dict().keys()
    return {name: value for name, value in state.items() if name in own or not name.startswith(prefixes)}


def _from_published(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let timm put an author's layout, or another grid of position embeddings, into its own."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return convert(state, model) if convert else state
