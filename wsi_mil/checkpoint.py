"""A trained model in one safetensors file: weights, and everything needed to rebuild it and to refuse what it does
not fit. No pickle is ever loaded.

The JSON header holds the aggregator and its options, class names, the encoder with its weights' source and hash, the
tile geometry, how it was trained and on which cohort, and versions.
"""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from wsi_mil import __version__, metrics
from wsi_mil.aggregators import Aggregator, Ensemble, build, known_aggregators
from wsi_mil.bags import FEATURE_STAGES, UNKNOWN, Bag
from wsi_mil.domain import Domain
from wsi_mil.errors import ArtifactError, IncompatibleError, WeightsError
from wsi_mil.guards import parse_json
from wsi_mil.guards.kinds import COUNT, LENGTH, VALUES, WORD, require_kinds
from wsi_mil.stain import stain_recipe
from wsi_mil.weights import file_sha256, load_strictly, load_tensors, save_tensors

_KEY = "wsi_mil"
_DOMAIN = "wsi_mil.domain."  # before the names of its tensors
_HEADER = {
    "aggregator": WORD, "dim": COUNT, "encoder_weights": WORD, "tile_params": VALUES, "extract_params": VALUES,
    "training": VALUES, "unit": WORD, "version": WORD, "recipe": VALUES,
}  # fmt: skip
_RECIPE = {"encoder": WORD, "encoder_weights_sha256": WORD, "tile_um": LENGTH, "tile_px": LENGTH, "stain": VALUES}
_NOMINAL = 1.5  # other programs tile by nominal magnification, so that scanners differ by so much, but not by 2


@dataclass(frozen=True)
class Recipe:
    """How the features that a model was trained on were made. Two bags belong together when their recipes are equal."""

    encoder: str
    """Name of the encoder."""
    encoder_weights_sha256: str
    """Hash of its weights."""
    tile_um: float
    """Side of a tile on the slide, um."""
    tile_px: int
    """Side of a tile as the encoder saw it, px."""
    preprocessing: Mapping[str, Any] | None = None
    """`Encoder.preprocessing`; None: unknown, as wsimil 0.1 recorded none."""
    network: Mapping[str, Any] | None = None
    """`Encoder.network`; None: unknown."""
    stain: Mapping[str, Any] = field(default_factory=stain_recipe)
    """`stain_recipe`. What was made before there was a choice was not normalised."""
    fast_decode: bool = False
    """Whether JPEGs were decoded at a fraction of their size."""

    @classmethod
    def of(cls, attrs: dict[str, Any]) -> "Recipe":
        """Read the recipe off the attributes of a features artifact.

        Raises:
            ArtifactError: they are those of something else.
        """
        if attrs.get("stage") not in FEATURE_STAGES:
            raise ArtifactError("these are no features: name a folder that `wsimil extract` made, by --bags")
        said = ("encoder", "encoder_weights_sha256", "tile_um", "tile_px")
        if lacking := [key for key in (*said, "params") if key not in attrs]:
            raise ArtifactError(f"features that do not say their {lacking[0]}: make them with `wsimil extract` again")
        params, own = parse_json(attrs["params"]), {key: attrs[key] for key in said}
        made = {key: params.get(key) for key in ("preprocessing", "network")}
        decoded = params.get("fast_decode", False)
        return cls(**own, **made, stain=params.get("stain", stain_recipe()), fast_decode=decoded)

    def require(self, other: "Recipe", where: object) -> None:
        """Refuse features that were made otherwise than ``self``, as far as is known.

        Raises:
            IncompatibleError: names what differs, on both sides.
        """
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        known = [pair for pair in pairs if None not in pair and not self._is_nominal(*pair)]
        told = [(name, *_briefly(ours, theirs)) for name, ours, theirs in known if ours != theirs]
        differing = [f"{name} is {theirs} and not {ours}" for name, ours, theirs in told]
        if differing:
            raise IncompatibleError(
                f"{where} was made otherwise than what the model learns from: {'; '.join(differing)}"
            )

    @property
    def is_foreign(self) -> bool:
        """Whether another program made the features, so that nobody knows the encoder's weights."""
        return self.encoder_weights_sha256 == UNKNOWN

    def _is_nominal(self, name: str, ours: Any, theirs: Any) -> bool:
        """Whether it is the size of tiles that another program made, and as near as its magnifications come."""
        return name == "tile_um" and self.is_foreign and 1 / _NOMINAL < ours / theirs < _NOMINAL


def _briefly(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """What two different values are called: by the method, where they name different ones."""
    if isinstance(ours, Mapping) and ours.get("method") != theirs.get("method"):
        return ours.get("method"), theirs.get("method")
    return ours, theirs


class Part(NamedTuple):
    """One of the models that answer together."""

    options: dict[str, Any]
    """Options of the aggregator."""
    temperature: float = 1.0
    """What its logits are divided by, so that its probabilities are calibrated on its validation patients."""
    prior: tuple[float, ...] = ()
    """What its probabilities are multiplied by before that: the share of each class in training; none = 1 each."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained aggregator, or an ensemble of several of one kind, and where it came from."""

    aggregator: str
    """Registry name."""
    parts: tuple[Part, ...]
    """The models: one, or as many as there were rounds of cross-validation."""
    dim: int
    """Length of a feature vector."""
    classes: tuple[str, ...]
    """Class names, in the order of the logits."""
    recipe: Recipe
    """How its features were made."""
    encoder_weights: str
    """Where the encoder's weights came from: a file, "random:SEED", "hub:...", or "built-in"."""
    tile_params: dict[str, Any]
    """Parameters of the tile stage."""
    extract_params: dict[str, Any]
    """Parameters of the extract stage."""
    training: dict[str, Any]
    """Training parameters, cohort hash and figures."""
    state: dict[str, Tensor] = field(repr=False)
    """Weights by name; where there are several parts, ``0.`` and so on comes before."""
    threshold: float | None = None
    """Of two classes, the least probability of the last at which the model decides for it; None: the most probable."""
    unit: str = "slide"
    """What a bag was in training: a slide, or all slides of a patient."""
    version: str = __version__
    """The wsi_mil that wrote it."""
    domain: Domain | None = field(default=None, repr=False, compare=False)
    """What the slides of training and validation were like; None: unknown, as wsimil 0.1 recorded nothing."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the first model."""
        return self.parts[0].options

    def members(self) -> list[Aggregator]:
        """Rebuild the trained models, in evaluation mode."""
        several = len(self.parts) > 1
        states = [_below(self.state, f"{index}.") if several else self.state for index in range(len(self.parts))]
        return [self._member(part, state).eval() for part, state in zip(self.parts, states, strict=True)]

    def _member(self, part: Part, state: dict[str, Tensor]) -> Aggregator:
        source = "the checkpoint (of another version of wsimil?)"
        if self.aggregator not in known_aggregators():
            raise IncompatibleError(
                f"the model is of the aggregator {self.aggregator}, which no package here brings along: install the one"
                " that it was trained with"
            )
        with torch.device("meta"):  # first without memory: the sizes may be a lie
            sketch = build(self.aggregator, self.dim, len(self.classes), **part.options)
        load_strictly(sketch, state, source)
        model = build(self.aggregator, self.dim, len(self.classes), **part.options)
        load_strictly(model, state, source)
        return model

    def model(self) -> Aggregator:
        """Rebuild what answers, in evaluation mode: its softmax gives calibrated probabilities."""
        models = self.members()
        if self.parts == (Part(self.options),):
            return models[0]
        return Ensemble(models, [part.temperature for part in self.parts], [part.prior for part in self.parts]).eval()

    def require(self, bag: Bag, where: object) -> None:
        """Refuse features that are not those of training.

        Raises:
            IncompatibleError: they were made otherwise, or are of another length; ``where`` names them.
        """
        self.recipe.require(Recipe.of(bag.attrs), where)
        if len(bag.features) and bag.features.shape[1] != self.dim:
            raise IncompatibleError(
                f"{where} has {bag.features.shape[1]} features per tile, the model was trained on {self.dim}: name"
                " features of the same encoder"
            )

    def trained_on(self, *names: str) -> bool:
        """Whether a slide or patient of one of these names, or features of one of these fingerprints, took part in
        training or validation, as far as is known."""
        spelt = (form(name) for name in names for form in (str, partial(normalize, "NFC"), partial(normalize, "NFD")))
        return any(_hash(name) in self._seen for name in spelt)  # older ones hashed names as they came

    @cached_property
    def _seen(self) -> frozenset[str]:
        recorded = ("patients", "trained_slides", "trained_features")
        return frozenset(one for what in recorded for one in self.training.get(what, ()))

    def decide(self, probabilities: Sequence[float]) -> str:
        """The class that calibrated probabilities, one per class, lead to; none of none."""
        if not probabilities:
            return ""
        threshold = metrics.NEUTRAL if self.threshold is None else self.threshold
        return self.classes[int(metrics.predict_at(np.array([probabilities]), threshold)[0])]


def ensemble(checkpoints: Sequence[Checkpoint], training: dict[str, Any]) -> Checkpoint:
    """Put trained models of one kind together into one checkpoint; the threshold is the mean of theirs.

    Args:
        checkpoints: models of the same features and classes, one part each.
        training: how the ensemble came about.

    Raises:
        IncompatibleError: they do not belong together.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        first.recipe.require(other.recipe, "a model of the ensemble")
        if (first.aggregator, first.classes, first.dim) != (other.aggregator, other.classes, other.dim):
            raise IncompatibleError("models of other kinds, classes or features make no ensemble: train them alike")
    several = len(checkpoints) > 1
    thresholds = [made.threshold for made in checkpoints if made.threshold is not None]
    domains = [made.domain for made in checkpoints if made.domain is not None]
    return dataclasses.replace(
        first,
        parts=tuple(part for made in checkpoints for part in made.parts),
        training=training,
        state={
            f"{index}.{name}" if several else name: tensor
            for index, made in enumerate(checkpoints)
            for name, tensor in made.state.items()
        },
        threshold=sum(thresholds) / len(thresholds) if thresholds else None,
        domain=Domain.merged(domains) if len(domains) == len(checkpoints) else None,
    )


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start so, without that."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Publish a checkpoint."""
    header = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name != "state"}
    header["recipe"] = dataclasses.asdict(checkpoint.recipe)
    tensors, domain = dict(checkpoint.state), header.pop("domain")
    if domain is not None:
        header["domain"] = domain.header()
        tensors |= {_DOMAIN + name: tensor for name, tensor in domain.tensors().items()}
    save_tensors(path, tensors, {_KEY: json.dumps(header, sort_keys=True)})


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        WeightsError: no such file, or not a checkpoint of wsi_mil.
    """
    if not path.exists():
        raise WeightsError(f"{path} does not exist: train a model with `wsimil train`, or name one with --model")
    state, metadata = load_tensors(path)
    if _KEY not in metadata:
        raise WeightsError(f"{path} is a safetensors file, but no checkpoint of wsimil: name one with --model")
    try:
        header = parse_json(metadata[_KEY])
        require_kinds(header, _HEADER)
        require_kinds(header["recipe"], _RECIPE)
        header["recipe"] = Recipe(**header["recipe"])
        header["classes"] = tuple(header["classes"])
        if "options" in header:  # wsimil 0.1 wrote one model, and no temperature
            header["parts"] = [[header.pop("options")]]
        header["parts"] = tuple(Part(part[0], *part[1:2], *map(tuple, part[2:])) for part in header["parts"])
        if not header["parts"]:
            raise ValueError("it holds no model")
        for part in header["parts"]:
            require_kinds(part._asdict(), {"options": VALUES, "temperature": LENGTH})
        if "domain" in header:
            header["domain"] = Domain.restored(header["domain"], _below(state, _DOMAIN))
        weights = {name: tensor for name, tensor in state.items() if not name.startswith(_DOMAIN)}
        return Checkpoint(**header, state=weights)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is a checkpoint of another version of wsimil ({error}): train it again") from error


def patient_hash(patient_id: str) -> str:
    """What a checkpoint knows a patient, or a slide, by: no name, though who has a list of names can look it up."""
    return _hash(normalize("NFC", patient_id))


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def digest(path: Path) -> str:
    """Name a checkpoint by its content: the first 16 hexadecimal digits of its sha256."""
    return file_sha256(path)[:16]


def versions() -> dict[str, str]:
    """Versions that training depends on."""
    return {"wsi_mil": __version__, "torch": torch.__version__, "python": platform.python_version()}
