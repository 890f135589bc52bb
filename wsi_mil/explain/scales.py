"""Colour scales: what a value looks like over tissue. Told apart by the colour-blind, and ordered in grey."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_OUTLIERS = 4.0  # times the 99th percentile: beyond it a few tiles would leave no colour to all others


def _stops(*stops: tuple[int, int, int, float]) -> Float[np.ndarray, "stops 4"]:
    return np.array(stops, float)


_RAMP = _stops(
    (255, 240, 150, 0.18), (254, 196, 79, 0.58), (240, 120, 40, 0.70), (205, 40, 70, 0.75), (105, 5, 105, 0.78)
)
"""Pale yellow, orange, red, dark purple: the more, the darker and the less transparent."""
_DIVERGING = _stops(
    (5, 60, 130, 0.80), (33, 120, 190, 0.74), (130, 185, 220, 0.60), (240, 240, 240, 0.10),
    (250, 180, 110, 0.60), (225, 100, 10, 0.74), (150, 50, 0, 0.80),
)  # fmt: skip
"""Blue, nothing, orange."""


class Scale(NamedTuple):
    """From values to colours with opacity."""

    low: float
    high: float
    clipped: bool
    """Some values lie beyond the ends, and look like them."""
    stops: Float[np.ndarray, "stops 4"]
    """Evenly from ``low`` to ``high``: red, green, blue (0 to 255), opacity (0 to 1)."""

    def over(
        self, picture: Float[np.ndarray, "height width 3"], values: Float[np.ndarray, "height width"]
    ) -> Float[np.ndarray, "height width 3"]:
        """Lay the colours of values over a picture; where they are NaN it stays as it is."""
        known = np.isfinite(values)
        colours = rgba(self, values[known])
        result = picture.copy()
        result[known] += (colours[:, :3] - result[known]) * colours[:, 3:]
        return result


def attention_scale(values: Float[np.ndarray, " tiles"]) -> Scale:
    """From 0 to the largest value, or so far that a few outliers do not take all colours."""
    top, clipped = _top(values)
    return Scale(0.0, top, clipped, _RAMP)


def contribution_scale(values: Float[np.ndarray, " tiles"]) -> Scale:
    """As far below 0 as above it; 0 has no colour."""
    top, clipped = _top(np.abs(values))
    return Scale(-top, top, clipped, _DIVERGING)


def rgba(scale: Scale, values: Float[np.ndarray, " values"]) -> Float[np.ndarray, "values 4"]:
    """Red, green, blue (0 to 255) and opacity (0 to 1) of values."""
    at = np.linspace(scale.low, scale.high, len(scale.stops))
    return np.stack([np.interp(values, at, channel) for channel in scale.stops.T], axis=1)


def _top(values: Float[np.ndarray, " tiles"]) -> tuple[float, bool]:
    most, usual = float(values.max()), _OUTLIERS * float(np.quantile(values, 0.99))
    clipped = 0 < usual < most
    return (usual if clipped else most) or 1.0, clipped
