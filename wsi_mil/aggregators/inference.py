"""Applying a trained aggregator to one bag."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from wsi_mil.aggregators.base import Aggregator, Output
from wsi_mil.bags import Bag, Batch, collate


class Answer(NamedTuple):
    """What a model says of one bag."""

    probabilities: Float[np.ndarray, " classes"]
    attention: Float[np.ndarray, " tiles"]


def apply(model: Aggregator, batch: Batch) -> Output:
    """Apply a model to a batch: in evaluation mode, without gradients, on the model's own device."""
    with evaluating(model) as device:
        return model(batch.to(device))


@contextmanager
def evaluating(model: Aggregator) -> Generator[torch.device]:
    """Within it a model is in evaluation mode, without gradients; it gives the model's own device."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def infer(model: Aggregator, bag: Bag) -> Answer:
    """What a model that tells classes apart says of one bag."""
    return answer_of(apply(model, collate([bag])))


def answer_of(output: Output) -> Answer:
    """What is said of the first bag of a batch."""
    probabilities = output.logits.double().softmax(dim=1)
    return Answer(probabilities[0].cpu().numpy(), output.attention[0].float().cpu().numpy())
