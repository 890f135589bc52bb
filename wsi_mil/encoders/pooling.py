"""How a network's output becomes one vector per tile."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wsi_mil.errors import EncoderError

Images = Float[Tensor, "tiles 3 height width"]
Vectors = Float[Tensor, "tiles dim"]


def _model(model: Any, images: Images) -> Tensor:
    """What the model returns."""
    return model(images)


def _cls(model: Any, images: Images) -> Vectors:
    """The class token, after the last norm."""
    return model.forward_features(images)[:, 0]


def _cls_mean(model: Any, images: Images) -> Vectors:
    """The class token beside the mean of the patch tokens; registers, which stand between, belong to neither.

    In float32, since a mean over hundreds of half-precision numbers would lose what distinguishes tiles.
    """
    tokens = model.forward_features(images).float()
    return torch.cat([tokens[:, 0], tokens[:, model.num_prefix_tokens :].mean(1)], dim=1)


def _map(model: Any, images: Images) -> Vectors:
    """The mean over the last feature map but one: layer3 of a ResNet."""
    (found,) = model.forward_intermediates(images, indices=[-2], stop_early=True, intermediates_only=True)
    return found.mean((2, 3))


POOLINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "model": _model,
    "cls": _cls,
    "cls+mean": _cls_mean,
    "map": _map,
}
"""By `EncoderSpec.pooling`: a model of timm and normalised images (tiles, 3, height, width) -> (tiles, dim)."""


def require_vectors(features: Tensor, name: str, tiles: int, dim: int) -> Tensor:
    """Return features, if they are one vector per tile: rows are told apart by their place alone.

    Raises:
        EncoderError: they are not.
    """
    if features.shape != (tiles, dim):
        raise EncoderError(f"{name} returned {tuple(features.shape)} for {tiles} tiles instead of {dim} numbers each")
    return features
