"""Networks of timm, built from a record of the table."""

from functools import partial
from typing import Any

import torch
from torch import nn

from wsi_mil.encoders._timm import import_timm
from wsi_mil.encoders.ctranspath import ConvStem
from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import EncoderError


def build_network(spec: EncoderSpec, seed: int = 0) -> nn.Module:
    """Build the network of an encoder, with random weights.

    On torch's meta device (``with torch.device("meta")``) it takes no memory and no time.

    Args:
        spec: whose ``arch`` timm knows.
        seed: of the weights; what others draw afterwards does not depend on it.

    Raises:
        EncoderError: timm knows no such architecture, or cannot build it with these arguments.
    """
    timm = import_timm()
    if not timm.is_model(spec.arch):
        raise EncoderError(f"{spec.name}: timm has no architecture {spec.arch!r}: see timm.list_models()")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            return timm.create_model(spec.arch, num_classes=0, **_resolved(spec))
        except (TypeError, ValueError, RuntimeError) as error:
            raise EncoderError(
                f"{spec.name}: timm cannot build {spec.arch} with {dict(spec.arch_kwargs)}: correct these ({error})"
            ) from error


def _resolved(spec: EncoderSpec) -> dict[str, Any]:
    """The arguments of a record, classes in place of their names; those that timm knows by name it resolves itself."""
    from timm import layers  # after import_timm, which cures its imports

    classes = {"ConvStem": ConvStem, "SiLU": nn.SiLU, "SwiGLUPacked": layers.SwiGLUPacked}
    arguments = dict(spec.arch_kwargs)
    if (eps := arguments.pop("norm_eps", None)) is not None:
        arguments["norm_layer"] = partial(nn.LayerNorm, eps=eps)
    return {
        key: classes.get(value, value) if key.endswith("_layer") and isinstance(value, str) else value
        for key, value in arguments.items()
    }
