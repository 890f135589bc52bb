"""What distance did it learn? Where each head tells near from far, and from where it started."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from wsi_mil.aggregators import Aggregator
from wsi_mil.attention import DistanceBias

DISTANCE_FILES = ("learnt_distances.csv", "attention_by_distance.csv", "learnt_distances.svg")
"""What lies beside a model that learnt distances: `heads_csv`, `enrichment_csv`, and both as a figure."""
_TO_TENTHS = math.log(9)  # sigmoid(-log 9) is a tenth, sigmoid(log 9) nine


class Head(NamedTuple):
    """Where a head passes from near to far: ``phi = sigmoid(beta_per_um * (distance - theta_um))``."""

    member: int
    """Which model of an ensemble, counted from 1."""
    head: int
    """Counted from 1."""
    part: str
    """What it biases: keys, queries or values, or, joined by ``+``, those that share it."""
    theta_um: float
    """Distance at which phi is one half."""
    beta_per_um: float
    """Slope of phi. A negative one takes near for far."""
    start_um: float
    """``theta_um`` before training, as the model's options have it: what is still there was given, not learnt."""

    @property
    def near_um(self) -> float:
        """Where phi is a tenth. Below 0: no two tiles are as near as that."""
        return self.theta_um - _TO_TENTHS / self.beta_per_um if self.beta_per_um else -math.inf

    @property
    def far_um(self) -> float:
        """Where phi is nine tenths."""
        return self.theta_um + _TO_TENTHS / self.beta_per_um if self.beta_per_um else math.inf

    @property
    def span_um(self) -> float:
        """From a tenth to nine tenths."""
        return abs(self.far_um - self.near_um)

    def phi(self, distance_um: Float64[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
        """From 0, near, to 1, far."""
        return (1 + np.tanh(self.beta_per_um * (distance_um - self.theta_um) / 2)) / 2


def learnt_distances(model: Aggregator) -> list[Head]:
    """Where the heads of a model, or of each member of an ensemble, pass from near to far; none of a model without.

    With a phi of their own, keys, queries and values are told apart; what is not biased is left out.
    """
    return [
        head
        for member, single in enumerate(model.single_models(), 1)
        if (bias := single.distance_bias()) is not None
        for head in _heads_of(bias, _untrained_theta(single), member)
    ]


def heads_csv(heads: Sequence[Head]) -> bytes:
    """A table of `learnt_distances`: member, head, part, theta_um, near_um, far_um, beta_per_um, start_um."""
    rows = [
        (one.member, one.head, one.part, *(f"{um:.1f}" for um in (one.theta_um, one.near_um, one.far_um)),
         f"{one.beta_per_um:.6g}", f"{one.start_um:.1f}")
        for one in heads
    ]  # fmt: skip
    return as_table(("member", "head", "part", "theta_um", "near_um", "far_um", "beta_per_um", "start_um"), rows)


def as_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table as the bytes of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def _untrained_theta(single: Aggregator) -> Tensor:
    """Lengths that its options give, which no chance has a part in."""
    with torch.random.fork_rng(devices=[]):
        bias = type(single)(single.dim, single.classes, single.params).distance_bias()
    if bias is None:
        raise TypeError(f"{type(single).__name__} biases attention by distance only once it is trained")
    return bias.theta


def _heads_of(bias: DistanceBias, start: Tensor, member: int) -> Iterator[Head]:
    tables = {"key": bias.key, "query": bias.query, "value": bias.value}
    biased = [name for name, table in tables.items() if table is not None]
    theta, beta, first = (torch.atleast_2d(each.detach()).double().cpu() for each in (bias.theta, bias.beta, start))
    # one phi for all, or rows in the order of the tables
    rows = {"+".join(biased): 0} if len(theta) == 1 else {name: list(tables).index(name) for name in biased}
    for head in range(theta.shape[1]):
        for part, row in rows.items():
            yield Head(member, head + 1, part, *(float(each[row, head]) for each in (theta, beta, first)))
