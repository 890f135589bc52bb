"""What it takes to load an encoder and to feed it what it was trained on: one record."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wsi_mil.errors import EncoderError

Rgb = tuple[float, float, float]
IMAGENET: tuple[Rgb, Rgb] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation."""
HALF: tuple[Rgb, Rgb] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TILE_20X_256PX, TILE_20X_224PX = 128.0, 112.0  # um: what papers call 20x is 0.5 um/px
SWIGLU: Mapping[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}


@dataclass(frozen=True)
class EncoderSpec:
    """The recipe of an encoder, as its authors published it."""

    name: str
    """What people type."""
    dim: int
    """Length of a feature vector."""
    tile_px: int
    """Side of the square that the encoder sees; tiles of another size are resized to it."""
    tile_um: float | None
    """Side, on the slide, of the tiles in its authors' recipe; None where it has none (natural images)."""
    licence: str
    """Of the weights."""
    gated: bool = False
    """Whether the hub asks for a login and accepted terms."""
    arch: str = ""
    """timm's name of the architecture, or that of ``package``; empty for what is built in."""
    arch_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `timm.create_model` beside ``num_classes=0``. Classes are named (``"mlp_layer": "SwiGLUPacked"``),
    so that reading the table imports nothing, and ``norm_eps`` is the epsilon of every LayerNorm: see `building`."""
    package: str = ""
    """Its authors' package where timm cannot run it: a key of `wsi_mil.encoders.extras.PACKAGES`."""
    layout: str = "timm"
    """How its weight files name their tensors: a key of `wsi_mil.encoders.layouts.LAYOUTS`. In "timm-resampled" alone
    may the positions be of another grid than the network's."""
    pooling: str = "model"
    """What becomes the vector: "model" (what the model returns), "cls" (the class token), "cls+mean" (beside it the
    mean of the patch tokens) or "map" (the mean over the last feature map but one)."""
    mean: Rgb = IMAGENET[0]
    """Per channel, of pixels between 0 and 1."""
    std: Rgb = IMAGENET[1]
    interpolation: str = "bicubic"
    """How tiles are resized, always antialiased: "bilinear" or "bicubic"."""
    read_px: int | None = None
    """Side at which the authors cut their tiles, where that is not ``resize_px`` or ``tile_px``: they enlarged them.
    `wsimil tile --for` makes tiles of it."""
    resize_px: int | None = None
    """Side that tiles are resized to before ``tile_px`` are cut from the middle; None: to ``tile_px``, all of it."""
    precision: str = "fp32"
    """In which its authors run it on a GPU: "fp32", "bf16" or "fp16"."""
    hub_id: str = ""
    """Repository on huggingface.co; empty where there is none."""
    hub_file: str = "model.safetensors"
    """The weight file in that repository."""
    revision: str = ""
    """Branch, tag or commit there; empty: what its main branch holds. The hash of the file is recorded anyway."""
    sha256: str = ""
    """Of the file that the authors published, where it is known: the one at ``page`` if there is one, else that of
    the hub. A copy in another format has another."""
    page: str = ""
    """Where the authors published the weights, if not on the page of ``hub_id``: a link to follow by hand."""
    parameters: float | None = None
    """Published number of parameters, in millions, of what is run here; None where none was published."""
    note: str = ""
    """What a user should know, in one sentence: which of several published variants this is."""

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel as the encoder sees its tiles in that recipe."""
        return self.tile_um and self.tile_um / (self.resize_px or self.tile_px)

    @property
    def network(self) -> dict[str, Any]:
        """What computes the vector, as recorded with features: the same weights in another network are no longer the
        same encoder.

        Raises:
            EncoderError: an argument of the architecture cannot be told from others by what it says of itself.
        """
        told = {key: getattr(self, key) for key in ("arch", "package", "layout", "pooling", "dim")}
        told["arch_kwargs"] = dict(self.arch_kwargs)
        try:
            return json.loads(json.dumps(told, default=_named))
        except TypeError as error:
            raise EncoderError(f"{self.name}: an argument of {self.arch} {error}: name a class instead") from error

    @property
    def source(self) -> str:
        """Where the weights come from unless others are given, as recorded with features."""
        if self.hub_id:
            return f"hub:{self.hub_id}{'@' if self.revision else ''}{self.revision}/{self.hub_file}"
        return "by hand" if self.arch else "built-in"


def _named(value: Any) -> Any:
    """Classes and functions by their names, for JSON."""
    if isinstance(value, functools.partial):
        return {"partial": _named(value.func), "args": value.args, "keywords": value.keywords}
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"is a {type(value).__name__}")


def sees_224px(name: str, dim: int, note: str = "", **recipe: Any) -> EncoderSpec:
    """Return the record of an encoder that sees 224 px, as nearly all do."""
    return EncoderSpec(name, dim, 224, note=note, **recipe)
