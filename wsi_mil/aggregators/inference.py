"""Applying a trained aggregator to one bag."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from wsi_mil.aggregators.base import Aggregator
from wsi_mil.bags import Bag, collate


class Answer(NamedTuple):
    """What a model says of one bag."""

    probabilities: Float[np.ndarray, " classes"]
    attention: Float[np.ndarray, " tiles"]


def infer(model: Aggregator, bag: Bag) -> Answer:
    """Apply a model, in evaluation mode and on its own device, to one bag."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.inference_mode():
        logits, attention = model(collate([bag]).to(device))
    model.train(training)
    probabilities = logits.double().softmax(dim=1)
    return Answer(probabilities[0].cpu().numpy(), attention[0].float().cpu().numpy())
