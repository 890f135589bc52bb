"""What a model learns to say. A task owns all that depends on it, so that another kind of label is another class here.

The loop (`wsi_mil.learning`) knows bags, steps and epochs, and asks a task for the rest: how many outputs the network
has, what a bag costs, how outputs become answers, the figures of an epoch, and the columns of a table of answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from wsi_mil import metrics
from wsi_mil.errors import TrainingError

LEAST = 1e-12
"""A probability below counts as this one, so that a loss on validation stays finite."""


@runtime_checkable
class Task(Protocol):
    """What the loop asks for. A target is whatever the task says it is: for classes, the index of one."""

    @property
    def outputs(self) -> int:
        """How many numbers the network says of a bag."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """What the numbers of an answer are called in a table."""
        ...

    def loss(self, outputs: Float[Tensor, "1 outputs"], target: Any) -> Float[Tensor, ""]:
        """What the outputs for one bag cost, weighted; the mean over the bags of a step is descended."""
        ...

    def answers(self, outputs: Float[Tensor, "bags outputs"]) -> Float[np.ndarray, "bags answers"]:
        """What the outputs say, in float64."""
        ...

    def judge(self, targets: Sequence[Any], answers: Float[np.ndarray, "bags answers"]) -> dict[str, float]:
        """The figures of an epoch over the validation bags, by name.

        ``val_loss`` is among them, is finite, and decides which epoch is kept: the lowest.
        """
        ...


@dataclass(frozen=True)
class Classification:
    """One of several classes, two or more: cross-entropy weighted by class, softmax, AUROC and balanced accuracy."""

    classes: tuple[str, ...]
    """Their names, in the order of the outputs."""
    weights: tuple[float, ...] = ()
    """What a bag of each class counts; empty = 1 each."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise TrainingError(f"{len(self.classes)} class: a model tells at least 2 classes apart")

    @classmethod
    def balanced(cls, classes: tuple[str, ...], targets: Sequence[int]) -> "Classification":
        """The task whose weights are `class_weights` of the training bags."""
        return cls(classes, tuple(class_weights(targets, len(classes)).tolist()))

    @property
    def outputs(self) -> int:
        """A logit per class, two for a binary label."""
        return len(self.classes)

    @property
    def columns(self) -> tuple[str, ...]:
        """A probability per class."""
        return tuple(f"p_{name}" for name in self.classes)

    def loss(self, outputs: Float[Tensor, "1 outputs"], target: int) -> Float[Tensor, ""]:
        """Cross-entropy in float32, times the weight of the class."""
        wanted = torch.tensor([target], device=outputs.device)
        cost = functional.cross_entropy(outputs.float(), wanted)
        return cost * torch.tensor(self.weights, device=outputs.device)[target] if self.weights else cost

    def answers(self, outputs: Float[Tensor, "bags outputs"]) -> Float[np.ndarray, "bags answers"]:
        """Probabilities of the classes."""
        return outputs.double().softmax(dim=1).cpu().numpy()

    def judge(self, targets: Sequence[int], answers: Float[np.ndarray, "bags answers"]) -> dict[str, float]:
        """``val_loss`` (cross-entropy, weighted as in training), ``val_auroc``, ``val_balanced_accuracy``."""
        truth = np.array(targets)
        share = np.array(self.weights, np.float32)[truth] if self.weights else np.ones(len(truth))
        surprise = -np.log(np.maximum(answers[np.arange(len(truth)), truth], LEAST))
        return {
            "val_loss": float((share * surprise).mean()),
            "val_auroc": metrics.auroc(truth, metrics.by_log_odds(answers)),
            "val_balanced_accuracy": metrics.balanced_accuracy(truth, answers.argmax(axis=1)),
        }


def class_weights(targets: Sequence[int], classes: int) -> Float[Tensor, " classes"]:
    """Weights inverse to the frequency of each class, so that their mean over the examples is 1.

    Raises:
        TrainingError: a class has no example.
    """
    counts = torch.bincount(torch.tensor(targets), minlength=classes)
    if (counts == 0).any():
        raise TrainingError(f"class number {int((counts == 0).nonzero()[0, 0])} has no training example")
    return len(targets) / (classes * counts.float())
