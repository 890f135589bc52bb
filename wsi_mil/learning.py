"""The learning loop: bags in memory or on disk, one model, early stopping on validation bags.

It knows neither cohort nor folder, so anything that makes bags can be learnt with it.
"""

import math
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsi_mil import metrics
from wsi_mil.aggregators import Aggregator, infer
from wsi_mil.bags import Bag, collate
from wsi_mil.errors import OptionError, TrainingError
from wsi_mil.progress import progress


@dataclass(frozen=True)
class LearnParams:
    """How weights are learnt."""

    epochs: int = 60
    """At most so many passes over the training bags."""
    patience: int = 20
    """Stop after so many epochs without a lower validation loss."""
    lr: float = 1e-3
    """Peak learning rate of AdamW: a tenth of the steps to warm up, then half a cosine down to zero."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    bags_per_step: int = 2
    """Bags whose gradients are averaged for one step."""
    seed: int = 0
    """Decides the order of the bags and dropout; the caller seeds the initial weights."""

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "bags_per_step"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name.replace('_', '-')} {getattr(self, name)}: give a positive number")
        if not self.lr > 0:
            raise OptionError(f"--lr {self.lr}: give a positive number")
        if not self.weight_decay >= 0:
            raise OptionError(f"--weight-decay {self.weight_decay}: give 0 or a positive number")
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: give 0 or a positive number")


class Example(NamedTuple):
    """A bag and the index of its class."""

    bag: Bag
    target: int


class Epoch(NamedTuple):
    """The figures of one epoch; losses are weighted by class."""

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    val_auroc: float
    val_balanced_accuracy: float


@runtime_checkable
class Examples(Protocol):
    """Examples that may come from disk: each is read when it is asked for."""

    @property
    def targets(self) -> Sequence[int]:
        """Their classes, without reading any."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def learn(model: Aggregator, train: Examples, val: Examples, params: LearnParams) -> list[Epoch]:
    """Train a model in place and leave it with the weights of the epoch of lowest validation loss, in eval mode.

    Args:
        model: on the device to train on.
        train: examples to learn from.
        val: examples for stopping and for choosing the epoch.
        params: how to learn.

    Raises:
        TrainingError: the loss is not finite.
    """
    weights = class_weights(train.targets, model.classes).to(_device(model))
    optimiser = torch.optim.AdamW(model.parameters(), params.lr, weight_decay=params.weight_decay)
    size = params.bags_per_step
    steps = math.ceil(len(train) / size) * params.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _warmup_cosine(step, steps))
    order, shuffler = list(range(len(train))), random.Random(params.seed)
    history: list[Epoch] = []
    best, best_state = math.inf, deepcopy(model.state_dict())
    with progress("train", params.epochs) as track:
        for epoch in range(params.epochs):
            shuffler.shuffle(order)
            lr = float(schedule.get_last_lr()[0])
            chunks = [order[start : start + size] for start in range(0, len(order), size)]
            loss = _one_epoch(model, train, chunks, weights, _Descent(optimiser, schedule))
            val_loss, val_auroc, val_accuracy = _validate(model, val, weights)
            history.append(Epoch(epoch, lr, loss, val_loss, val_auroc, val_accuracy))
            track.advance(f"epoch {epoch}")
            if history[-1].val_loss < best:
                best, best_state = history[-1].val_loss, deepcopy(model.state_dict())
            elif epoch - best_epoch(history).epoch >= params.patience:
                break
    model.load_state_dict(best_state)
    model.eval()
    return history


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The epoch that is kept: the first of lowest validation loss."""
    return min(history, key=lambda epoch: epoch.val_loss)


def class_weights(targets: Sequence[int], classes: int) -> Tensor:
    """Weights (classes,) inverse to the frequency of each class, so that their mean over the examples is 1."""
    counts = torch.bincount(torch.tensor(targets), minlength=classes)
    if (counts == 0).any():
        raise TrainingError(f"class number {int((counts == 0).nonzero()[0, 0])} has no training example")
    return len(targets) / (classes * counts.float())


class _Descent(NamedTuple):
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


def _one_epoch(
    model: Aggregator, examples: Examples, steps: list[list[int]], weights: Tensor, descent: _Descent
) -> float:
    """One pass; bags go through one by one, because they differ in size and padding would cost what tiles cost."""
    model.train()
    total = 0.0
    for step in steps:
        for index in step:
            loss = _loss(model, examples[index], weights)
            total += loss.item()
            (loss / len(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        descent.optimiser.step()
        descent.schedule.step()
        descent.optimiser.zero_grad(set_to_none=True)
    if not math.isfinite(total):
        raise TrainingError("the training loss is not finite: try a lower --lr, or check the features")
    return total / len(examples)


def _validate(model: Aggregator, examples: Examples, weights: Tensor) -> tuple[float, float, float]:
    scores = np.stack([infer(model, examples[index].bag).probabilities for index in range(len(examples))])
    if not np.isfinite(scores).all():
        raise TrainingError("the model's answers are not finite: try a lower --lr, or check the features")
    targets = np.array(examples.targets)
    share = weights.cpu().numpy()[targets]
    surprise = -np.log(np.maximum(scores[np.arange(len(targets)), targets], 1e-12))
    loss = float((share * surprise).mean())
    return loss, metrics.auroc(targets, scores), metrics.balanced_accuracy(targets, scores.argmax(axis=1))


def _loss(model: Aggregator, example: Example, weights: Tensor) -> Tensor:
    device = _device(model)
    logits = model(collate([example.bag]).to(device)).logits
    target = torch.tensor([example.target], device=device)
    return functional.cross_entropy(logits.float(), target) * weights[example.target]


def _warmup_cosine(step: int, steps: int) -> float:
    warmup = max(steps // 10, 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(steps - warmup, 1), 1.0)))


def _device(model: Aggregator) -> torch.device:
    return next(model.parameters()).device
