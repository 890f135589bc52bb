"""An aggregator of your own: a class with options, then one line in a package of yours.

    python examples/custom_aggregator.py

Trains the model below on bags that are made here. To train it on slides, put it into a package, whose pyproject.toml
names it; then `wsimil train --aggregator top-mean --option top=5` knows it, and so do `crossval` and `predict`:

    [project.entry-points."wsi_mil.aggregators"]
    top-mean = "my_package:TopMean"
"""

from dataclasses import dataclass

import torch
from fitting import InMemory, auroc, fit
from torch import nn

from wsi_mil.aggregators import Aggregator, Output
from wsi_mil.bags import Bag, Batch
from wsi_mil.errors import OptionError
from wsi_mil.learning import Example, LearnParams


@dataclass(frozen=True)
class TopMeanParams:
    """Options of `TopMean`: every one has a default, and `--option` sets it."""

    top: int = 10
    """How many tiles of a bag decide."""
    hidden: int = 32
    """Width of the network that scores a tile."""

    def __post_init__(self) -> None:
        if self.top < 1 or self.hidden < 1:
            raise OptionError(f"top {self.top}, hidden {self.hidden}: give positive numbers")


class TopMean(Aggregator):
    """A score per tile and class; those of the highest count, and the others do not.

    ``Output.attention``: the share of the scores that count that a tile gave, averaged over classes.
    """

    uses_position = "none"  # coordinates are ignored; see `Aggregator` for what else there is
    Params = TopMeanParams

    def __init__(self, dim: int, classes: int, params: TopMeanParams):
        super().__init__(dim, classes, params)
        self.score = nn.Sequential(nn.Linear(dim, params.hidden), nn.ReLU(), nn.Linear(params.hidden, classes))

    def forward(self, batch: Batch) -> Output:
        """Logits and attention of each bag. Bags are padded to one length: the mask tells what is real."""
        scores = self.score(self.standardise(batch)).masked_fill(~batch.mask.unsqueeze(-1), -torch.inf)
        highest, tiles = scores.topk(min(self.params.top, scores.shape[1]), dim=1)
        real = highest.isfinite()  # a bag may have fewer tiles than that
        weights = real.to(scores.dtype) / real.sum(dim=1, keepdim=True)
        attention = torch.zeros_like(scores).scatter(1, tiles, weights).mean(dim=-1)
        return Output((weights * highest.where(real, 0.0)).sum(dim=1), attention)


def bags(count: int, seed: int) -> InMemory:
    """Bags of 20 to 60 tiles of 16 features; in every second bag three tiles have a feature that is larger."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for index in range(count):
        tiles = int(torch.randint(20, 61, (1,), generator=generator))
        features = torch.randn(tiles, 16, generator=generator)
        features[:3, 0] += 4.0 * (index % 2)
        coords_um = torch.rand(tiles, 2, generator=generator) * 5000
        examples.append(Example(Bag(f"bag-{index}", features, coords_um, {}), index % 2))
    return InMemory(examples)


if __name__ == "__main__":
    train, val, test = (bags(count, seed) for seed, count in enumerate((100, 40, 200)))
    model = fit(TopMean, train, val, LearnParams(epochs=10, patience=10, lr=3e-3), top=3)
    print(f"AUROC on {len(test)} bags that it never saw: {auroc(model, test):.3f}")
