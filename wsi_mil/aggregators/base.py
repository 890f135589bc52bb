"""What every aggregator is: a `Batch` in, an `Output` out, features standardised first unless a paper does not."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsi_mil.aggregators.explanation import Explanation, Output, PairAttention, evidence_of
from wsi_mil.attention import DistanceBias
from wsi_mil.bags import Batch

__all__ = ["ROUNDING", "Aggregator", "Explanation", "Output", "PairAttention"]

# Features are stored as float16: below this share of its mean, a feature's spread is rounding and not information.
ROUNDING = 1e-3


class Aggregator(nn.Module):
    """A trained network from bags to logits.

    A subclass sets the class variables and implements `forward`; `wsi_mil.aggregators.AGGREGATORS` names it.
    Its contract (``tests/test_aggregators.py``): padding and the order of tiles do not matter, a batch gives what its
    bags give alone, and positions matter as ``uses_position`` declares. Tiles of different slides of a bag have no
    distance and are no neighbours, and how slides are numbered or sorted does not matter. ``ordered`` declares the one
    exception: to what is said of order.

    Args:
        dim: dimension of the features.
        classes: how many classes, at least 2.
        params: an instance of ``Params``.
    """

    uses_position: Literal["none", "relative", "oriented", "absolute"]
    """none: coordinates are ignored. relative: only distances count. oriented: directions count too, so that turning
    or mirroring the slide matters. absolute: a shift of the slide counts too. An instance says so itself where an
    option decides."""
    ordered: ClassVar[bool] = False
    """Whether the order of tiles in the array counts, which it should not; True for a model published that way."""
    all_pairs: bool = False
    """Whether every tile meets every other, so that time grows with tiles squared; else with tiles. An instance says
    so itself where an option decides. Ranks of a training are dealt bags by it."""
    standardises: ClassVar[bool] = True
    """Whether the units of features are irrelevant; False for a model that was published without."""
    Params: ClassVar[type[Any]]
    """Frozen dataclass of the model's options, validated in ``__post_init__``."""

    feature_mean: Float[Tensor, " dim"]
    feature_std: Float[Tensor, " dim"]

    def __init__(self, dim: int, classes: int, params: Any):
        super().__init__()
        self.dim, self.classes, self.params = dim, classes, params
        self.register_buffer("feature_mean", torch.zeros(dim))
        self.register_buffer("feature_std", torch.ones(dim))

    def fit_features(self, mean: Float[Tensor, " dim"], std: Float[Tensor, " dim"]) -> None:
        """Set what `standardise` takes off and divides by: moments over the tiles of the training bags.

        A feature that does not vary in training is only centred: dividing by its spread would blow up its rounding. A
        model that does not standardise ignores both.
        """
        if not self.standardises:
            return
        floor = (ROUNDING * mean.abs()).clamp_min(1e-6)
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > floor, std, 1.0))

    def standardise(self, batch: Batch) -> Float[Tensor, "bags tiles dim"]:
        """Features with mean 0 and spread 1 over the training tiles, or as they are; padding is 0, whatever it held."""
        features = (batch.features - self.feature_mean) / self.feature_std
        return features.masked_fill(~batch.mask.unsqueeze(-1), 0.0)

    def cost(self, tiles: int) -> int:
        """How long a bag of so many tiles takes, beside other bags; of no unit."""
        return tiles**2 if self.all_pairs else tiles

    def undecayed(self) -> Sequence[nn.Parameter]:
        """Weights that weight decay must leave alone, since 0 is no rest for them: lengths, and how steep near becomes
        far. It would pull what was not learnt towards some unit of length.
        """
        return ()

    def forward(self, batch: Batch) -> Output:
        """Logits and attention of each bag."""
        raise NotImplementedError

    def explain(self, batch: Batch) -> Explanation:
        """What `forward` says, to the bit, and what of it each tile gave, where the model's form tells.

        A model that classifies a pooling of its tiles linearly is a `PoolingAggregator`, which tells; others do not.
        """
        output = self(batch)
        return Explanation(output, evidence_of(output.logits), None, None)

    def pair_attention(self, batch: Batch) -> PairAttention | None:
        """How tiles attend to each other, of a model with one layer of attention among all tiles; None of others.

        Ask it in evaluation mode.
        """
        return None

    def single_models(self) -> Sequence["Aggregator"]:
        """The models that answer: itself, unless it is several."""
        return (self,)

    def distance_bias(self) -> DistanceBias | None:
        """Near and far of each head, in micrometres; None of a model that tells them apart in no such way."""
        return None

    def distance_tables(self) -> Sequence[Float[Tensor, "heads places dim"]]:
        """What distance adds to keys, queries and values, such as far and near; none of a model without."""
        return ()
