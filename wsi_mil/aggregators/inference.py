"""Applying a trained aggregator to one bag."""

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
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.inference_mode():
        output = model(batch.to(device))
    model.train(training)
    return output


def infer(model: Aggregator, bag: Bag) -> Answer:
    """What a model that tells classes apart says of one bag."""
    logits, attention = apply(model, collate([bag]))
    probabilities = logits.double().softmax(dim=1)
    return Answer(probabilities[0].cpu().numpy(), attention[0].float().cpu().numpy())
