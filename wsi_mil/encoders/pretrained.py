"""Networks of timm as encoders: built, given their weights, fed as their authors fed them."""

import logging
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from wsi_mil.devices import PRECISIONS, exact_convolutions, pick_precision
from wsi_mil.encoders import extras, sources
from wsi_mil.encoders._hub import page_of
from wsi_mil.encoders.building import build_network
from wsi_mil.encoders.layouts import convert_layout
from wsi_mil.encoders.pooling import POOLINGS, require_vectors
from wsi_mil.encoders.preprocess import as_batch, normalise, recipe
from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import EncoderError, OptionError
from wsi_mil.weights import load_strictly, own_part, read_state, state_sha256

log = logging.getLogger(__name__)


class TimmEncoder:
    """A frozen network of timm, or of its authors' package."""

    def __init__(
        self,
        spec: EncoderSpec,
        weights: str | None,
        device: torch.device,
        precision: str,
        trust: bool = False,
        sha256: str | None = None,
    ) -> None:
        """Build the network and load its weights; see `load_encoder`.

        Raises:
            OptionError: weights that mean nothing, or a precision that the device does not offer.
            EncoderError: timm does not know the architecture, the package that runs it is not there, the recipe
                resizes by a filter that is not known here, or the network is too large for the device.
            WeightsError: the weights cannot be had, or do not fit.
            IncompatibleError: they are not those of ``sha256``.
        """
        self.spec, self.device = spec, device
        self.precision = pick_precision(precision, spec.precision, device)
        self.preprocessing: Mapping[str, Any] = recipe(spec)
        self.network: Mapping[str, Any] = spec.network
        self.name, self.dim, self.tile_px, self.mpp = spec.name, spec.dim, spec.tile_px, spec.mpp
        if spec.package:
            extras.require(spec)  # before any weights are fetched for it
        model, self.weights, self.weights_sha256 = _loaded(spec, weights, trust, sha256)
        if not self.weights.startswith("random:"):
            log.info("%s: its weights are under the licence %s", spec.name, spec.licence)
        with _memory(f"{spec.name} does not fit on {device}: give --device cpu, or another GPU"):
            self.model = model.eval().requires_grad_(False).to(device)

    def encode(self, tiles: np.ndarray | Tensor) -> Float32[Tensor, "tiles dim"]:
        """Encode tiles, uint8 (tiles, height, width, 3) of any size, preprocessing included.

        Returns:
            Features on the CPU, float32 whatever the precision.

        Raises:
            EncoderError: the tiles are not 8-bit RGB, they are too many for the GPU, or the network does not return
                one vector per tile.
        """
        batch = as_batch(tiles)
        if not len(batch):
            return torch.zeros(0, self.dim)
        # A copy, since no gradient may touch inference tensors.
        return self.embed(batch).to("cpu", torch.float32, copy=True)

    def embed(self, tiles: UInt8[Tensor, "tiles height width 3"]) -> Float32[Tensor, "tiles dim"]:
        """Encode tiles without waiting for the device: the result stays there, an inference tensor.

        Raises:
            EncoderError: as `encode`.
        """
        dtype = PRECISIONS[self.precision]
        much = f"{len(tiles)} tiles at once are too much for the memory of {self.device}: give a smaller --batch"
        with _memory(much), exact_convolutions(), torch.inference_mode():
            pixels = normalise(tiles.to(self.device), self.spec)  # in float32, whatever the network computes in
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                features = POOLINGS[self.spec.pooling](self.model, pixels)
            return require_vectors(features.float(), self.name, len(tiles), self.dim)


@contextmanager
def _memory(advice: str) -> Generator[None]:
    """Say what to do about a GPU without memory to spare."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EncoderError(advice) from error


def verify(spec: EncoderSpec, given: Path, trust: bool = False) -> tuple[Path, str]:
    """Try weights on without loading them twice.

    Returns:
        The weight file and its SHA-256.

    Raises:
        WeightsError: it is no weight file, or does not fit.
    """
    _, path, sha256 = _loaded(spec, str(given), trust, device="meta")
    return Path(path), sha256


def _loaded(
    spec: EncoderSpec, weights: str | None, trust: bool = False, sha256: str | None = None, device: str = "cpu"
) -> tuple[nn.Module, str, str]:
    """A model with its weights, where these came from, and their SHA-256."""
    if weights and weights.startswith("random:"):
        seed = weights.removeprefix("random:")
        if not (seed.isdecimal() and int(seed) < 1 << 63):
            raise OptionError(f"--weights {weights}: give random:SEED with a whole number, such as random:0")
        model = _build(spec, int(seed))
        log.warning("%s has random weights (%s): its features mean nothing", spec.name, weights)
        return model, weights, state_sha256(model.state_dict())
    found = sources.find(spec, weights, sha256)
    if spec.package:
        return extras.load_with_package(spec, found.path, trust), found.source, found.sha256
    with torch.device(device):
        model = build_network(spec)
    own, file = model.state_dict(), str(found.path)
    state = own_part(read_state(found.path, trust), own, lambda part: convert_layout(part, spec.layout, own, file))
    load_strictly(
        model,
        _without_classifier(model, state),
        str(found.path),
        convert=lambda state: _without_classifier(model, _from_published(model, state)),
        remedy=f"name the weights of {spec.name}" + (f", from {page_of(spec)}" if page_of(spec) else ""),
    )
    return model, found.source, found.sha256


def _build(spec: EncoderSpec, seed: int) -> nn.Module:
    """The network with random weights."""
    if spec.package:
        raise OptionError(f"--weights random:{seed}: the package that runs {spec.name} wants a weight file")
    return build_network(spec, seed)


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
