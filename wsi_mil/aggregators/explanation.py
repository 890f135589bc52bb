"""What an aggregator says of a batch, and how it came to say so."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float, Float64, Int, Num
from torch import Tensor

from wsi_mil.attention import attention_rows

Rows = Callable[[Int[Tensor, " rows"]], Float[Tensor, "bags heads rows tiles"]]


class Output(NamedTuple):
    """What an aggregator says of a batch."""

    logits: Float[Tensor, "bags classes"]
    """For a softmax, with two columns for a binary label."""
    attention: Float[Tensor, "bags tiles"]
    """How much each tile counted: sums to 1 over the real tiles of a bag, 0 on padding. Each model says what it is."""


class Explanation(NamedTuple):
    """How a model came to what it says, as evidence for each class (`evidence_of`)."""

    output: Output
    """What the model says."""
    evidence: Float64[Tensor, "bags classes"]
    """Of the calibrated logits. Of an ensemble the mean over its members, which is no function of its probabilities."""
    contribution: Float64[Tensor, "bags tiles classes"] | None
    """What each tile gave: with ``base`` they sum to ``evidence`` but for rounding. None for a model that classifies
    something else than a pooling of its tiles."""
    base: Float64[Tensor, "bags classes"] | None
    """The evidence that no tile gave."""


class PairAttention(NamedTuple):
    """How the tiles of a batch attend to each other.

    One asks for a part: no answer is as large as all pairs, and nothing of it has a gradient.
    """

    heads: Rows
    """What chosen tiles, by their indices, pay to all, head by head: each row sums to 1, rows of padding are 0. Of an
    ensemble, the mean over its heads for each member."""
    unbiased: Rows
    """The same by the same queries and keys, without what distance adds to scores."""
    received: Callable[[Float[Tensor, "bags tiles"]], Float[Tensor, "bags tiles"]]
    """What each tile gets, if each pays its share of 1 in all: a mean of all rows with given weights, and of heads."""

    @classmethod
    def of(
        cls,
        rows: Callable[..., Tensor],
        received: Callable[..., Tensor],
        q: Float[Tensor, "bags heads tiles dim"],
        k: Float[Tensor, "bags heads tiles dim"],
        coords: Num[Tensor, "bags tiles 2"],
        bias: Any,
        **setting: Any,
    ) -> "PairAttention":
        """Of a form of attention.

        Args:
            rows: how it is read, such as `wsi_mil.attention.attention_rows`.
            received: such as `wsi_mil.attention.attention_received`.
            q: queries.
            k: keys.
            coords: positions.
            bias: what both take as such.
            **setting: what both are told by name.
        """
        return cls(
            lambda chosen: rows(q, k, coords, bias, chosen, **setting),
            lambda chosen: attention_rows(q, k, coords, None, chosen, **setting),
            lambda share: received(q, k, coords, bias, row_share=share, **setting).mean(dim=1),
        )

    def rows(self, chosen: Int[Tensor, " rows"]) -> Float[Tensor, "bags rows tiles"]:
        """`heads`, averaged over them."""
        return self.heads(chosen).mean(dim=1)


def evidence_of(logits: Float[Tensor, "*any classes"]) -> Float64[Tensor, "*any classes"]:
    """Each logit less the mean of those of the other classes: of two classes the log-odds. Linear in the logits.

    A single output is taken as it is.
    """
    logits = logits.double()
    classes = logits.shape[-1]
    if classes == 1:
        return logits
    return (logits - logits.mean(dim=-1, keepdim=True)) * (classes / (classes - 1))
