"""Several trained models that answer as one, each at its own temperature."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsi_mil.aggregators.base import Aggregator
from wsi_mil.aggregators.explanation import Explanation, Output, PairAttention, evidence_of
from wsi_mil.bags import Batch
from wsi_mil.errors import IncompatibleError

_KNOWS = ("none", "relative", "oriented", "absolute")


class Ensemble(Aggregator):
    """The mean of the members' probabilities, each calibrated (`wsi_mil.calibration`).

    Its probabilities are multiplied by its prior, then its logits are divided by its temperature (Guo et al. 2017,
    arXiv 1706.04599).

    ``Output.logits`` are the logarithms of the mean probabilities, so that a softmax gives these; ``Output.attention``
    is the mean of the members'. It is made of trained models only, so it is in no registry.

    Args:
        members: models of the same features and classes.
        temperatures: what the logits of each are divided by.
        priors: what the probabilities of each are multiplied by, a number for each class; empty = 1.

    Raises:
        IncompatibleError: the members differ in their features or classes.
    """

    def __init__(
        self, members: Sequence[Aggregator], temperatures: Sequence[float], priors: Sequence[Sequence[float]] = ()
    ):
        first = members[0]
        if other := next((m for m in members if (m.dim, m.classes) != (first.dim, first.classes)), None):
            raise IncompatibleError(
                f"models of {first.dim} features and {first.classes} classes, and of {other.dim} and {other.classes},"
                " make no ensemble: train them on the same features and labels"
            )
        super().__init__(first.dim, first.classes, first.params)
        self.members, self.temperatures = nn.ModuleList(members), tuple(temperatures)
        self.priors = [torch.tensor(prior or [1.0] * first.classes).double() for prior in priors or [()] * len(members)]
        self.uses_position = max((member.uses_position for member in members), key=_KNOWS.index)
        self.all_pairs = any(member.all_pairs for member in members)

    def forward(self, batch: Batch) -> Output:
        """Logits and attention of each bag."""
        return self._joined([member(batch) for member in self.members])

    def explain(self, batch: Batch) -> Explanation:
        """What `forward` says, to the bit, and the evidence for it: of each member calibrated, then their mean.

        What a tile gave is known if every member tells it. Priors belong to what no tile gave.
        """
        told = [
            self._calibrated(cast(Aggregator, member).explain(batch), prior, heat)
            for member, prior, heat in zip(self.members, self.priors, self.temperatures, strict=True)
        ]
        return Explanation(
            self._joined([one.output for one in told]),
            torch.stack([one.evidence for one in told]).mean(dim=0),
            _mean_if_all([one.contribution for one in told]),
            _mean_if_all([one.base for one in told]),
        )

    def pair_attention(self, batch: Batch) -> PairAttention | None:
        """How tiles attend to each other, the mean over the members; None if a member has no such attention."""
        members = [cast(Aggregator, member).pair_attention(batch) for member in self.members]
        known = [member for member in members if member is not None]
        if len(known) < len(members):
            return None

        return PairAttention(
            lambda chosen: torch.stack([member.rows(chosen) for member in known], dim=1),
            lambda chosen: torch.stack([member.unbiased(chosen).mean(dim=1) for member in known], dim=1),
            lambda share: torch.stack([member.received(share) for member in known]).mean(dim=0),
        )

    def _joined(self, outputs: list[Output]) -> Output:
        attention = torch.stack([output.attention for output in outputs]).mean(dim=0)
        return Output(self._mean_of([output.logits for output in outputs]), attention)

    def single_models(self) -> Sequence[Aggregator]:
        """The members."""
        return cast(list[Aggregator], list(self.members))

    def _mean_of(self, logits: list[Float[Tensor, "bags classes"]]) -> Float[Tensor, "bags classes"]:
        calibration = zip(logits, self.temperatures, self.priors, strict=True)
        warm = [(own.double() + prior.log().to(own.device)) / heat for own, heat, prior in calibration]
        shares = torch.stack([one.log_softmax(dim=-1) for one in warm])
        return shares.logsumexp(dim=0) - math.log(len(logits))

    def _calibrated(self, told: Explanation, prior: Float[Tensor, " classes"], heat: float) -> Explanation:
        """A member's evidence, calibrated; its output as it was."""
        shift = evidence_of(prior.log().to(told.evidence.device))
        return told._replace(
            evidence=(told.evidence + shift) / heat,
            contribution=None if told.contribution is None else told.contribution / heat,
            base=None if told.base is None else (told.base + shift) / heat,
        )


def _mean_if_all(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.stack(known).mean(dim=0) if len(known) == len(parts) else None
