"""DAS-MIL and the models it is compared with: one paper, one file, one registry, one contract.

>>> from wsi_mil.aggregators import build
>>> model = build("das-mil", dim=768, classes=2, heads=4)
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from wsi_mil.aggregators import plugins
from wsi_mil.aggregators.abmil import AbMil, GatedAbMil
from wsi_mil.aggregators.base import Aggregator, Output
from wsi_mil.aggregators.das_mil import DasMil
from wsi_mil.aggregators.das_mil_paper import DasMilPaper
from wsi_mil.aggregators.ensemble import Ensemble
from wsi_mil.aggregators.explanation import Explanation, PairAttention
from wsi_mil.aggregators.gat import Gat
from wsi_mil.aggregators.gcn import Gcn
from wsi_mil.aggregators.inference import Answer, answer_of, apply, evaluating, infer
from wsi_mil.aggregators.max_mean import MaxMil, MeanMil
from wsi_mil.aggregators.mil_gnn import MilGnn
from wsi_mil.aggregators.relative_discrete import RelativeDiscrete
from wsi_mil.aggregators.self_attention import SelfAttention
from wsi_mil.aggregators.self_attention_axial import AxialSelfAttention
from wsi_mil.aggregators.self_attention_fourier import FourierSelfAttention
from wsi_mil.aggregators.set_transformer import InducedSetTransformer, SetTransformer
from wsi_mil.aggregators.transmil import TransMil, TransMilPaper
from wsi_mil.errors import OptionError

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "Answer",
    "Ensemble",
    "Explanation",
    "Output",
    "PairAttention",
    "aggregator_class",
    "answer_of",
    "apply",
    "build",
    "build_outputs",
    "evaluating",
    "infer",
    "known_aggregators",
    "params_of",
]

AGGREGATORS: dict[str, type[Aggregator]] = {
    "das-mil": DasMil,
    "das-mil-paper": DasMilPaper,
    "abmil": AbMil,
    "abmil-gated": GatedAbMil,
    "max": MaxMil,
    "mean": MeanMil,
    "self-attention": SelfAttention,
    "self-attention-axial": AxialSelfAttention,
    "self-attention-fourier": FourierSelfAttention,
    "relative-discrete": RelativeDiscrete,
    "set-transformer": SetTransformer,
    "iset-transformer": InducedSetTransformer,
    "gcn": Gcn,
    "gat": Gat,
    "mil-gnn": MilGnn,
    "transmil": TransMil,
    "transmil-paper": TransMilPaper,
}


def build(name: str, dim: int, classes: int, **options: Any) -> Aggregator:
    """Make an untrained aggregator; its weights draw from torch's global generator.

    Args:
        name: a key of `AGGREGATORS`, or a model that another package brings along (`plugins`).
        dim: dimension of the features.
        classes: how many classes, at least 2.
        **options: fields of the model's ``Params``.

    Raises:
        OptionError: the name, an option or its value is unknown; the message names those that are known.
    """
    if classes < 2:
        raise OptionError(f"classes {classes}: a model tells at least 2 classes apart")
    return build_outputs(name, dim, classes, **options)


def build_outputs(name: str, dim: int, outputs: int, **options: Any) -> Aggregator:
    """Make an untrained aggregator that says as many numbers of a bag as a task asks for (`Task.outputs`).

    Whether these are logits of classes is the task's affair: `build` is for those who have classes and no task.

    Raises:
        OptionError: as `build`, but one output is enough.
    """
    params = params_of(name, options)
    if outputs < 1:
        raise OptionError(f"outputs {outputs}: a model says at least one number of a bag")
    return aggregator_class(name)(dim, outputs, params)


def aggregator_class(name: str) -> type[Aggregator]:
    """The class of a model of `AGGREGATORS`, or of one that another package brings along (`plugins`).

    Raises:
        OptionError: the name is unknown, or the package that brings it is broken.
    """
    if name in AGGREGATORS:
        return AGGREGATORS[name]
    if name in plugins.names():
        return plugins.load(name)
    raise OptionError(f"--aggregator {name}: unknown, choose one of {', '.join(known_aggregators())}")


def known_aggregators() -> list[str]:
    """The models of `AGGREGATORS`, and those that other packages bring along; nothing is imported."""
    return list(dict.fromkeys([*AGGREGATORS, *plugins.names()]))


def params_of(name: str, options: Mapping[str, Any]) -> Any:
    """Make the ``Params`` of an aggregator from options as JSON gives them (whole numbers for real ones, lists).

    Raises:
        OptionError: as `build`.
    """
    params = aggregator_class(name).Params
    known = {field.name: field.default for field in fields(params)}
    if unknown := sorted(set(options) - set(known)):
        raise OptionError(f"--option {unknown[0]}: {name} has no such option; it has {', '.join(known)}")
    values = {key: _like(known[key], key, value) for key, value in options.items()}
    try:
        return params(**values)
    except OptionError as error:
        raise OptionError(f"--option {error}") from error


def _like(default: Any, key: str, value: Any) -> Any:
    """Bring a value to the type of the option's default, or refuse it by name."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_like(0.0, key, part) for part in value)
    if isinstance(default, float) and number:
        return float(value)
    if type(value) is type(default):
        return value
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "a list of numbers"}
    example = json.dumps(list(default) or [500, 2000]) if isinstance(default, tuple) else json.dumps(default)
    raise OptionError(f"--option {key}={value}: give {kinds[type(default)]}, such as {example}")
