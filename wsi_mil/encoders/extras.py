"""Encoders that timm cannot run, each by its authors' own package: optional, and refused by name where that is absent.

Weights come from the same places as all others; nothing here fetches anything or runs code from a hub.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsi_mil.encoders._timm import import_timm
from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import EncoderError, WeightsError, one_line
from wsi_mil.weights import UNREADABLE, load_strictly, own_part, read_state, sniff

_CONCH = ("visual.trunk.", "visual.attn_pool_contrast.", "visual.ln_contrast.")
_NO_IMAGE = (".B.", "text_embed", "mask_token", "relative_position_index")
"""Of the two towers in one that musk is: the other one, what only training needs, and what is derived."""
_POSITIONS = (".pos_embed", ".embed_positions.A.weight")


class Package(NamedTuple):
    """How to get a package, and how to get a network out of it."""

    modules: tuple[str, ...]
    """What is imported, in this order: the very modules that hold what is used, as packages import these lazily."""
    install: str
    """What to type to have it."""
    load: Callable[..., nn.Module]
    """Takes those modules, the record and the weight file."""


class _Calling(nn.Module):
    """A network, called in another way than by its own ``forward``."""

    def __init__(self, network: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, images: Tensor) -> Tensor:
        return self.call(self.network, images)


def require(spec: EncoderSpec) -> tuple[Any, ...]:
    """Import the package of an encoder.

    Raises:
        EncoderError: it is not there, or does not import; names the line that installs it.
    """
    package = PACKAGES[spec.package]
    import_timm()  # it, or torchvision, is imported by all of them, without the cure
    try:
        return tuple(import_module(name) for name in package.modules)
    except (ImportError, RuntimeError) as error:
        raise EncoderError(
            f"{spec.name} is run by the package of its authors, which cannot be imported ({one_line(error)}): "
            f"type `{package.install}`"
        ) from error


def load_with_package(spec: EncoderSpec, path: Path, trust: bool = False) -> nn.Module:
    """Load an encoder by its authors' package: from normalised images (tiles, 3, height, width) to (tiles, dim).

    The package opens the file, but for plip, which only the network is taken from. Packages that pass over what does
    not fit (conch, musk) are held to the file: what makes the features must be what it holds.

    Raises:
        EncoderError: the package is not there.
        WeightsError: the file is no weight file, cannot be opened by the package, or holds other weights.
    """
    sniff(path)  # a web page under that name is told better here than there
    modules = require(spec)
    try:
        return PACKAGES[spec.package].load(*modules, spec, path, trust)
    except UNREADABLE as error:
        raise WeightsError(
            f"{path} cannot be opened by the package of the authors of {spec.name} ({one_line(error)}): give the"
            f" published {spec.hub_file} of {spec.hub_id}, or install it anew, `{PACKAGES[spec.package].install}`"
        ) from error


def _require_taken(spec: EncoderSpec, model: nn.Module, path: Path, trust: bool, used: Callable[[str], bool]) -> None:
    """Refuse a file that a package took only part of: it passes over the rest, which stays random.

    Args:
        spec: of the encoder, for messages.
        model: as loaded.
        path: of the file.
        trust: whether its pickle may hold more than tensors.
        used: tells from its name whether a tensor has a part in the features. Positions may be resampled.
    """
    wanted = {name: tensor for name, tensor in model.state_dict().items() if used(name)}
    state = own_part(read_state(path, trust), wanted)
    other = [name for name, tensor in wanted.items() if name not in state or not _is(name, tensor, state[name])]
    if other or not wanted:
        raise WeightsError(
            f"{path} does not hold the weights of {spec.name}: {len(other)} of {len(wanted)} tensors are missing or"
            f" others ({', '.join(other[:3])}): give the published {spec.hub_file} of {spec.hub_id}"
        )


def _is(name: str, ours: Tensor, published: Tensor) -> bool:
    if ours.shape != published.shape:
        return name.endswith(_POSITIONS) and ours.shape[-1:] == published.shape[-1:]
    return torch.equal(ours.cpu(), published.to(ours.dtype))


def _conch(conch: Any, spec: EncoderSpec, path: Path, trust: bool) -> nn.Module:
    """The image tower before the projection that training contrasts with text, not normalised."""
    model, _ = conch.create_model_from_pretrained(spec.arch, str(path))
    _require_taken(spec, model, path, trust, lambda name: name.startswith(_CONCH))
    return _Calling(model, lambda model, images: model.encode_image(images, proj_contrast=False, normalize=False))


def _conch_v1_5(trident: Any, spec: EncoderSpec, path: Path, _trust: bool) -> nn.Module:
    model, _ = trident.create_model_from_pretrained(checkpoint_path=str(path), img_size=spec.tile_px)
    return model


def _musk(modeling: Any, utils: Any, spec: EncoderSpec, path: Path, trust: bool) -> nn.Module:
    """The image tower at two scales, as its authors recommend for multiple instance learning."""
    del modeling  # importing it told timm about the architecture
    model = import_timm().create_model(spec.arch)
    utils.load_model_and_may_interpolate(str(path), model, "model|module", "")
    _require_taken(
        spec, model, path, trust, lambda name: name.startswith("beit3.") and not any(part in name for part in _NO_IMAGE)
    )
    options = {"with_head": False, "out_norm": False, "ms_aug": True, "return_global": True}
    return _Calling(model, lambda model, images: model(image=images, **options)[0])


def _plip(clip: Any, spec: EncoderSpec, path: Path, trust: bool) -> nn.Module:
    """The image tower of CLIP ViT-B/32 with its projection, not normalised; the text tower is left out."""
    model = clip.CLIPVisionModelWithProjection(clip.CLIPVisionConfig(projection_dim=spec.dim))
    state = {
        name: tensor
        for name, tensor in read_state(path, trust).items()
        if name.startswith(("vision_model.", "visual_projection.")) and not name.endswith(".position_ids")
    }
    load_strictly(model, state, str(path))
    return _Calling(model, lambda model, images: model(pixel_values=images).image_embeds)


PACKAGES: Mapping[str, Package] = {
    "conch": Package(
        ("conch.open_clip_custom",), "pip install git+https://github.com/mahmoodlab/CONCH.git", _conch
    ),
    "trident": Package(
        ("trident.patch_encoder_models.model_zoo.conchv1_5.conchv1_5",),
        "pip install git+https://github.com/mahmoodlab/TRIDENT.git",
        _conch_v1_5,
    ),
    "musk": Package(
        ("musk.modeling", "musk.utils"),
        "pip install fairscale git+https://github.com/lilab-stanford/MUSK",
        _musk,
    ),
    "transformers": Package(("transformers.models.clip.modeling_clip",), "pip install transformers", _plip),
}  # fmt: skip
"""By `EncoderSpec.package`."""
