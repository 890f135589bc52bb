"""DAS-MIL and the models it is compared with: one paper, one file, one registry, one contract.

>>> from wsi_mil.aggregators import build
>>> model = build("das-mil", dim=768, classes=2, heads=4)
"""

from dataclasses import fields
from typing import Any

from wsi_mil.aggregators.abmil import AbMil, GatedAbMil
from wsi_mil.aggregators.base import Aggregator, Output
from wsi_mil.aggregators.das_mil import DasMil
from wsi_mil.aggregators.inference import Answer, infer
from wsi_mil.aggregators.self_attention import SelfAttention
from wsi_mil.errors import OptionError

__all__ = ["AGGREGATORS", "Aggregator", "Answer", "Output", "build", "infer"]

AGGREGATORS: dict[str, type[Aggregator]] = {
    "das-mil": DasMil,
    "abmil": AbMil,
    "abmil-gated": GatedAbMil,
    "self-attention": SelfAttention,
}


def build(name: str, dim: int, classes: int, **options: Any) -> Aggregator:
    """Make an untrained aggregator; its weights draw from torch's global generator.

    Args:
        name: a key of `AGGREGATORS`.
        dim: dimension of the features.
        classes: how many classes, at least 2.
        **options: fields of the model's ``Params``.

    Raises:
        OptionError: the name, an option or its value is unknown; the message names those that are known.
    """
    if name not in AGGREGATORS:
        raise OptionError(f"--aggregator {name}: unknown, choose one of {', '.join(AGGREGATORS)}")
    if classes < 2:
        raise OptionError(f"classes {classes}: a model tells at least 2 classes apart")
    model = AGGREGATORS[name]
    known = [field.name for field in fields(model.Params)]
    if unknown := sorted(set(options) - set(known)):
        raise OptionError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return model(dim, classes, model.Params(**options))
