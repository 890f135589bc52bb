"""Pictures of MNIST-COLLAGE: a collage with what its model looks at, and how the model tells near from far."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from collage_data import CANVAS_PX, DIGIT_PX, RULES, Collage
from collage_models import CollageModel
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsi_mil.aggregators.das_mil import DasMil
from wsi_mil.aggregators.das_mil_paper import DasMilPaper
from wsi_mil.bags import collate
from wsi_mil.learning import Example

_LINES = 12  # of a collage: the pairs of most attention
_ATTENTION, _TRUE = "#cc6677", "#228833"


def distance_aware(model: CollageModel) -> DasMil | DasMilPaper | None:
    """The aggregator of a model whose heads each learn one distance; of others there is none."""
    return model.aggregator if isinstance(model.aggregator, DasMil | DasMilPaper) else None


def pair_attention(model: CollageModel, example: Example) -> Float[np.ndarray, "digits digits"]:
    """Attention that each digit (row) pays to each, the mean over heads.

    Raises:
        TypeError: the model is not `distance_aware`.
    """
    aggregator = distance_aware(model)
    if aggregator is None:
        raise TypeError(f"{type(model.aggregator).__name__} has no attention between pairs to draw")
    batch = collate([example.bag])
    with torch.inference_mode():
        pairs = aggregator.pair_attention(batch._replace(features=model.features(batch)))
        return pairs.rows(torch.arange(len(example.bag.features)))[0].numpy()


def telling(examples: Sequence[Example]) -> list[Example]:
    """Two positive collages and a negative one that is so by distance alone: it holds both digits, too."""
    holding = [example for example in examples if {0, 1} <= set(example.bag.attrs["digits"].tolist())]
    positive = [example for example in holding if example.target]
    negative = [example for example in holding if not example.target]
    return positive[:2] + negative[:1]


def draw_collages(model: CollageModel, examples: list[Example], variant: str, path: Path) -> None:
    """Collages side by side: green lines join the pairs that make them positive, red ones those of most attention."""
    figure = Figure(figsize=(4.2 * len(examples), 4.9), layout="constrained")
    axes = figure.subplots(1, len(examples), squeeze=False)[0]
    for axis, example in zip(axes, examples, strict=True):
        with torch.inference_mode():
            score = float(model(collate([example.bag])).logits.softmax(dim=1)[0, 1])
        _draw_collage(axis, example, pair_attention(model, example), variant)
        truth = "positive" if example.target else "negative"
        axis.set_title(f"{truth}, probability {score:.3f}", loc="left", fontsize=10)
    figure.supxlabel(
        f"green: the pairs that decide; red: the {_LINES} strongest attentions of one digit to another", fontsize=10
    )
    figure.savefig(path, dpi=150)


def _draw_collage(axis: Axes, example: Example, attention: Float[np.ndarray, "digits digits"], variant: str) -> None:
    xy, pixels = example.bag.coords_um.numpy(), example.bag.features.unflatten(1, (DIGIT_PX, DIGIT_PX)).numpy()
    canvas, half = np.zeros((CANVAS_PX, CANVAS_PX)), DIGIT_PX // 2
    for (x, y), digit in zip(xy.round().astype(int), pixels, strict=True):
        here = canvas[y - half : y + half, x - half : x + half]
        np.maximum(here, digit - digit.min(), out=here)
    axis.imshow(canvas, cmap=colormaps["gray_r"], extent=(0, CANVAS_PX, CANVAS_PX, 0))
    collage = Collage(example.bag.attrs["digits"], xy, bool(example.target))
    for pair in np.argwhere(RULES[variant].pairs(collage)):
        axis.plot(*xy[pair].T, color=_TRUE, linewidth=6, alpha=0.4, solid_capstyle="round")
    between = attention * (1 - np.eye(len(xy)))
    for place in np.argsort(between, axis=None)[::-1][:_LINES]:
        row, col = np.unravel_index(place, between.shape)
        axis.plot(*xy[[row, col]].T, color=_ATTENTION, linewidth=1.2, alpha=min(float(between[row, col]) * 2, 1.0))
    axis.set(xticks=[], yticks=[], xlim=(0, CANVAS_PX), ylim=(CANVAS_PX, 0))


def draw_curves(model: CollageModel, variant: str, path: Path) -> None:
    """phi of each head against distance, as learned (lines) and as it was at first (dashes), and the true threshold."""
    aggregator = distance_aware(model)
    if aggregator is None:
        raise TypeError(f"{type(model.aggregator).__name__} has no phi to draw")
    distance = torch.linspace(0, CANVAS_PX * 1.2, 400)
    first = type(aggregator)(aggregator.dim, aggregator.classes, aggregator.params).distance_bias()
    learned = aggregator.distance_bias()
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0.05, 0.85, aggregator.params.heads))
    for bias, style in ((first, {"linestyle": (0, (2, 2)), "linewidth": 0.8}), (learned, {})):
        for shade, theta, beta in zip(shades, bias.theta.detach(), bias.beta.detach(), strict=True):
            label = {} if style else {"label": f"{theta:.0f} px"}
            axis.plot(distance, torch.sigmoid(beta * (distance - theta)), color=shade, **style, **label)
    axis.axvline(RULES[variant].threshold_px, color=_TRUE, linewidth=4, alpha=0.4)
    axis.set(xlabel="distance, px", ylabel="phi: 0 near, 1 far", xlim=(0, float(distance[-1])))
    axis.set_title(f"green: the true threshold, {RULES[variant].threshold_px:.0f} px", loc="left", fontsize=10)
    axis.legend(title="near becomes far at", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def transitions_px(model: CollageModel) -> list[float]:
    """The learned distance of each head at which near becomes far; none of models that are not `distance_aware`."""
    aggregator = distance_aware(model)
    return [] if aggregator is None else sorted(aggregator.distance_bias().theta.detach().flatten().tolist())
