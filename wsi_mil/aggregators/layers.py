"""Layers that several aggregators share."""

from torch import nn


def dense(dim: int, width: int, dropout: float = 0.0) -> nn.Module:
    """Linear, ReLU, dropout; at width 0 nothing, so that features pass as they are."""
    if width == 0:
        return nn.Identity()
    return nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(dropout))
