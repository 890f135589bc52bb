"""Protocols of MNIST-COLLAGE: which collages, how a model learns, and what is reported.

* *paper*: as published. 300 collages to learn from and 100 to test on, both drawn from seed 1, so that every positive
  test collage has the layout of a training collage; one collage per step, 50 epochs, the last one reported. What was
  chosen (learning rates, widths) had been chosen on the test collages.
* *fresh*: 300 collages to learn from and 100 to choose by, of different training digits, 2,000 to test on, of test
  digits; layouts from three seeds. The learning rate of a model is that whose trials do best on the 100: four rates are
  tried, and further halves or doubles of them while the best is the lowest or the highest. So are the network that
  reads digits (`collage_models.READERS_TRIED`) and its options, where `collage_models.CHOICES` has others: at the two
  rates in the middle, before all rates are.

docs/results.md tells how it came about, and what of it was seen on test digits before.
As in the published code, models have one logit under *paper*; under *fresh* one for each class, as on slides.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import numpy as np
import torch
from collage_data import CANVAS_PX, RULES, Digits, Source, draw_layouts, with_images
from collage_models import PUBLISHED, READERS, READERS_TRIED, CollageModel, fresh_options, published_reader
from fitting import lengths
from torch import Tensor
from torch.nn import functional

from wsi_mil import metrics
from wsi_mil.aggregators import AGGREGATORS
from wsi_mil.bags import collate
from wsi_mil.errors import WsiMilError
from wsi_mil.learning import Example, parameter_groups

_PAPER_SEED, PAPER_EPOCHS = 1, 50
_FRESH_SEEDS, FRESH_EPOCHS = (2101, 2102), 120
FRESH_BATCH, FRESH_DECAY, FRESH_CLIP = 10, 0.01, 1.0
"""Collages per step, weight decay, and the largest norm of a gradient."""
TEST_SEED = 2103
"""Decides the test collages under *fresh*, unless another is given."""
_TEST_BATCH = 100
LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TRIAL_SEEDS = (0, 1)
"""Trials under *fresh*: each learning rate from each seed. Results of these seeds are the same trainings."""


class Collages(NamedTuple):
    """Collages to learn from, to choose by (none under *paper*) and to test on."""

    train: list[Example]
    val: list[Example]
    test: list[Example]


class Recipe(NamedTuple):
    """How a model learns under *fresh*."""

    lr: float
    epochs: int = FRESH_EPOCHS
    reader: str = READERS_TRIED[0]
    choice: str = ""
    """One of the model's `collage_models.CHOICES`."""


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


def fresh_collages(variant: str, source: Source, test_seed: int = TEST_SEED) -> Collages:
    """The same collages for every model and seed; a sixth of the training digits is there to choose by.

    2,000 collages need nearly twice the digits that there are to test on: images come again, in other company.
    """
    order = np.random.RandomState(_FRESH_SEEDS[0]).permutation(len(source.train.labels))
    images, labels = source.train
    val, train = (Digits(images[part], labels[part]) for part in np.split(order, [len(order) // 6]))
    splits = zip((300, 100, 2000), (*_FRESH_SEEDS, test_seed), (train, val, source.test), strict=True)
    return Collages(*(_collages(variant, count, seed, digits) for count, seed, digits in splits))


def learn_as_published(
    model: CollageModel, name: str, examples: Sequence[Example], seed: int, epochs: int = PAPER_EPOCHS
) -> None:
    """Train as published, in place: a collage per step, a constant learning rate, the last epoch kept."""
    optimiser, slow = _published_optimiser(model, name)
    published = PUBLISHED[name]
    besides = published.besides(model.aggregator) if published.besides else None
    for epoch in range(epochs):
        for batch in _shuffled(examples, 1, epoch, seed):
            _step(model, optimiser, batch, besides=besides)
            if slow is not None:
                slow.step()
    model.eval()


def _published_optimiser(model: CollageModel, name: str) -> tuple[torch.optim.Optimizer, "Lookahead | None"]:
    published, weights = PUBLISHED[name], model.parameters()
    if not published.lookahead:
        return torch.optim.AdamW(weights, published.lr, weight_decay=published.weight_decay, fused=True), None
    decay = {"weight_decay": published.weight_decay, "decoupled_weight_decay": True}
    return torch.optim.RAdam(weights, published.lr, **decay), Lookahead(model)


def learn_fresh(model: CollageModel, examples: Sequence[Example], recipe: Recipe, seed: int) -> None:
    """Train in place: ten collages per step, turned at random, a warm-up and a cosine, the last epoch kept."""
    optimiser = torch.optim.AdamW(parameter_groups(model, FRESH_DECAY), recipe.lr, fused=True)
    steps = recipe.epochs * math.ceil(len(examples) / FRESH_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, steps, pct_start=0.1, cycle_momentum=False)
    for epoch in range(recipe.epochs):
        for batch in _shuffled(examples, FRESH_BATCH, epoch, seed):
            _step(model, optimiser, [turned(example) for example in batch], clip=FRESH_CLIP)
            schedule.step()
    model.eval()


def turned(example: Example) -> Example:
    """The collage turned or mirrored as a whole, by one of the eight symmetries of its canvas, so that models that see
    where on the canvas a digit lies can learn that it does not matter. Digits stay upright.
    """
    mirrored, upside_down, swapped = torch.rand(3) < 0.5
    xy = example.bag.coords_um - CANVAS_PX / 2
    xy = xy * torch.where(torch.stack((mirrored, upside_down)), -1, 1)
    return example._replace(bag=example.bag._replace(coords_um=(xy.flip(1) if swapped else xy) + CANVAS_PX / 2))


def _shuffled(examples: Sequence[Example], size: int, epoch: int, seed: int) -> Iterator[list[Example]]:
    order = np.random.RandomState([seed, epoch]).permutation(len(examples))
    for start in range(0, len(order), size):
        yield [examples[index] for index in order[start : start + size]]


def _step(
    model: CollageModel,
    optimiser: torch.optim.Optimizer,
    batch: list[Example],
    clip: float = math.inf,
    besides: Callable[[], Tensor] | None = None,
) -> None:
    model.train()
    logits = model(collate([example.bag for example in batch])).logits
    loss = functional.cross_entropy(logits, torch.tensor([example.target for example in batch]))
    if besides is not None:
        loss = loss + besides()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if clip < math.inf:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()


class Lookahead:
    """Slow weights that go half the way to the fast ones every six steps (Zhang et al. 2019, arXiv 1907.08610).

    They start from the first weights; in the code of arXiv 2305.10552 from the fast ones after six steps.
    """

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


def evaluate(model: CollageModel, examples: Sequence[Example]) -> tuple[float, float, float]:
    """Accuracy, AUROC and cross-entropy; of a model that diverged there are none, and its cross-entropy is infinite."""
    targets = np.array([example.target for example in examples])
    batches = (examples[start : start + _TEST_BATCH] for start in range(0, len(examples), _TEST_BATCH))
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(collate([example.bag for example in batch])).logits for batch in batches])
    scores = logits.double().softmax(dim=1).numpy()
    if not np.isfinite(scores).all():
        return math.nan, math.nan, math.inf
    surprise = -np.log(np.maximum(scores[np.arange(len(targets)), targets], 1e-12)).mean()
    return float((scores.argmax(axis=1) == targets).mean()), metrics.auroc(targets, scores), float(surprise)


def run_paper(
    name: str, variant: str, seed: int, source: Source, epochs: int = PAPER_EPOCHS
) -> tuple[Score, CollageModel]:
    """Train and test one row of the published table."""
    collages = paper_collages(variant, source)
    torch.manual_seed(seed)
    published = PUBLISHED[name]
    model = CollageModel(name, published.options, published_reader(), published.logits)
    published.start(model.aggregator)
    learn_as_published(model, name, collages.train, seed, epochs)
    accuracy, auroc, _ = evaluate(model, collages.test)
    return Score(name, variant, "paper", seed, accuracy, auroc), model


def try_recipe(name: str, variant: str, recipe: Recipe, seed: int, source: Source, weights: Path) -> float:
    """Validation loss; the mean over `TRIAL_SEEDS` is a recipe's."""
    collages = fresh_collages(variant, source)
    return evaluate(_trained(name, variant, collages, recipe, seed, weights), collages.val)[2]


def run_fresh(
    name: str, variant: str, seed: int, recipe: Recipe, source: Source, weights: Path, test_seed: int = TEST_SEED
) -> tuple[Score, CollageModel]:
    """Train a model, and look at the test collages, once."""
    collages = fresh_collages(variant, source, test_seed)
    model = _trained(name, variant, collages, recipe, seed, weights)
    accuracy, auroc, _ = evaluate(model, collages.test)
    return Score(name, variant, "fresh", seed, accuracy, auroc), model


def _trained(name: str, variant: str, collages: Collages, recipe: Recipe, seed: int, weights: Path) -> CollageModel:
    """A model with its weights of before, if they are in the folder; else it learns, and they are kept there."""
    path = weights / f"{name}-{variant}-{'-'.join(map(str, recipe))}-{seed}.pt".replace(" ", "_")
    if path.exists():
        model = _beginner(name, collages, recipe, seed)
        try:
            model.load_state_dict(torch.load(path))
        except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise WsiMilError(f"{path} is damaged ({reason}): delete it, and it is trained again") from None
        return model.eval()
    model = fresh_model(name, collages, recipe, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(model.state_dict(), part)
    part.replace(path)
    return model


def fresh_model(name: str, collages: Collages, recipe: Recipe, seed: int) -> CollageModel:
    """A model that has learnt from the training collages."""
    model = _beginner(name, collages, recipe, seed)
    learn_fresh(model, collages.train, recipe, seed)
    return model


def _beginner(name: str, collages: Collages, recipe: Recipe, seed: int) -> CollageModel:
    torch.manual_seed(seed)
    options = fresh_options(name, recipe.choice)
    options = lengths(AGGREGATORS[name], collages.train, options) | options
    return CollageModel(name, options, READERS[recipe.reader]())
