"""Protocols of MNIST-COLLAGE: which collages, how a model learns, and what is reported.

* *paper*: as published. 300 collages to learn from and 100 to test on, both drawn from seed 1, so that every positive test
  collage has the layout of a training collage; one collage per step, 50 epochs, the last one reported; what was chosen by
  the published authors was chosen on the test collages.
* *fresh*: 300 collages to learn from and 100 for every choice, of different training digits, 2,000 to test on, of test
  digits; layouts from three seeds. The test collages are looked at once.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from collage_data import RULES, Digits, Source, draw_layouts, with_images
from collage_models import PUBLISHED, CollageModel
from torch.nn import functional

from wsi_mil import metrics
from wsi_mil.aggregators import infer
from wsi_mil.bags import collate
from wsi_mil.learning import Example
from wsi_mil.progress import progress

_PAPER_SEED, _PAPER_EPOCHS = 1, 50


class Collages(NamedTuple):
    """Collages to learn from, to choose by (none under *paper*) and to test on."""

    train: list[Example]
    val: list[Example]
    test: list[Example]


class Score(NamedTuple):
    """What a model reached on the test collages."""

    model: str
    variant: str
    protocol: str
    seed: int
    accuracy: float
    auroc: float


def paper_collages(variant: str, source: Source) -> Collages:
    """The published collages."""
    train = _collages(variant, 300, _PAPER_SEED, source.train)
    return Collages(train, [], _collages(variant, 100, _PAPER_SEED, source.test))


def _collages(variant: str, count: int, seed: int, digits: Digits) -> list[Example]:
    drawing = np.random.RandomState(seed)
    return with_images(draw_layouts(RULES[variant], count, drawing), digits, drawing)


def learn_as_published(model: CollageModel, name: str, examples: Sequence[Example], seed: int) -> None:
    """Train as published, in place: a collage per step, a constant learning rate, the last epoch kept."""
    published = PUBLISHED[name]
    optimiser = _optimiser(model, name)
    slow = Lookahead(model) if published.lookahead else None
    order, shuffler = list(range(len(examples))), random.Random(seed)
    with progress(f"{name}, seed {seed}", _PAPER_EPOCHS) as track:
        for epoch in range(_PAPER_EPOCHS):
            model.train()
            shuffler.shuffle(order)
            for index in order:
                bag, target = examples[index]
                loss = functional.cross_entropy(model(collate([bag])).logits, torch.tensor([target]))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                if slow is not None:
                    slow.step()
            track.advance(f"epoch {epoch}")
    model.eval()


def _optimiser(model: CollageModel, name: str) -> torch.optim.Optimizer:
    published = PUBLISHED[name]
    kind = torch.optim.RAdam if published.lookahead else torch.optim.AdamW
    return kind(model.parameters(), published.lr, weight_decay=published.weight_decay)


class Lookahead:
    """Slow weights that go half the way to the fast ones every six steps (Zhang et al. 2019, arXiv 1907.08610)."""

    def __init__(self, model: CollageModel, share: float = 0.5, every: int = 6):
        self.fast, self.share, self.every, self.steps = list(model.parameters()), share, every, 0
        self.slow = [weight.detach().clone() for weight in self.fast]

    @torch.no_grad()
    def step(self) -> None:
        """After each step of the optimiser."""
        self.steps += 1
        if self.steps % self.every == 0:
            for slow, fast in zip(self.slow, self.fast, strict=True):
                fast.copy_(slow.lerp_(fast, self.share))


def test(model: CollageModel, examples: Sequence[Example]) -> tuple[float, float]:
    """Accuracy and AUROC."""
    targets = np.array([example.target for example in examples])
    scores = np.stack([infer(model, example.bag).probabilities for example in examples])
    return float((scores.argmax(axis=1) == targets).mean()), metrics.auroc(targets, scores)


def run_paper(name: str, variant: str, seed: int, source: Source) -> Score:
    """Train and test one row of the published table."""
    collages = paper_collages(variant, source)
    torch.manual_seed(seed)
    model = CollageModel(name, PUBLISHED[name].options)
    learn_as_published(model, name, collages.train, seed)
    return Score(name, variant, "paper", seed, *test(model, collages.test))
