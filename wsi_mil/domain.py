"""What the slides that a model learnt from were like, and whether another slide is like them.

Three things of a slide are looked at: its resolution, how many tiles it has, and the mean of its features. The mean is
compared with those of the training slides: how far it is from their mean, as the root mean square over the features of
(difference / scale). A feature's scale is made of its variance between slides, and of what the mean of so many tiles
varies by alone. How far is far, the training slides themselves say: each was held against all the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from wsi_mil.bags import Bag
from wsi_mil.errors import OptionError

FEWEST = 5
"""Of fewer slides nobody can tell what is usual among them."""
_FAR, _OF_TRAINING = 1.25, 0.99  # times what this share of the training slides stays within: see docs/decisions.md
_MPP_MARGIN, _TILES_MARGIN = 1.1, 2.0  # beyond what was seen; scanners of one nominal resolution differ by some percent
_ARRAYS = ("mean", "between", "within", "distances")


class SlideFacts(NamedTuple):
    """One slide in numbers."""

    mpp_x: float
    """Level-0 um/px."""
    tiles: int
    mean: Float64[np.ndarray, " dim"]
    """Of the features over its tiles."""
    variance: Float64[np.ndarray, " dim"]
    """Of the features over its tiles."""


def slide_facts(mpp_x: float, features: Tensor) -> SlideFacts:
    """Describe a slide by its um/px and its features, (tiles, dim), at least one tile."""
    variance, mean = torch.var_mean(features, dim=0, correction=0)  # no copy in float64: 100,000 tiles are large
    return SlideFacts(float(mpp_x), len(features), mean.double().numpy(), variance.double().numpy())


@dataclass(frozen=True, eq=False)
class Domain:
    """What slides a model learnt from, by training or by validation."""

    slides: int
    """How many they were."""
    mpp_x: tuple[float, float]
    """The least and the most level-0 um/px."""
    tiles: tuple[int, int]
    """The fewest and the most tiles of a slide."""
    mean: Float64[np.ndarray, " dim"] = field(repr=False)
    """Over the slides, of each slide's mean."""
    between: Float64[np.ndarray, " dim"] = field(repr=False)
    """Variance of these means between slides."""
    within: Float64[np.ndarray, " dim"] = field(repr=False)
    """Variance over the tiles of one slide, the mean over the slides."""
    distances: Float64[np.ndarray, " n"] = field(repr=False)
    """Of each slide from all the others: n is ``slides``, or more in an ensemble; none where there are fewer than 3."""

    @classmethod
    def of(cls, slides: Sequence[SlideFacts]) -> "Domain":
        """Describe the slides of a training, at least one."""
        if not slides:
            raise OptionError("no slide to describe: name slides to train on")
        means = np.stack([slide.mean for slide in slides])
        variances = np.stack([slide.variance for slide in slides])
        mpps, counts = [slide.mpp_x for slide in slides], [slide.tiles for slide in slides]
        return cls(
            len(slides),
            (min(mpps), max(mpps)),
            (min(counts), max(counts)),
            means.mean(axis=0),
            means.var(axis=0, ddof=1) if len(slides) > 1 else np.zeros(means.shape[1]),
            variances.mean(axis=0),
            _left_out(means, variances, np.array(counts)),
        )

    @classmethod
    def merged(cls, domains: Sequence["Domain"]) -> "Domain":
        """What the members of an ensemble have seen together; a slide that several have seen counts several times."""
        weights = np.array([float(one.slides) for one in domains])
        weights /= weights.sum()
        mean = sum(share * one.mean for share, one in zip(weights, domains, strict=True))
        spread = [one.between + (one.mean - mean) ** 2 for one in domains]
        return cls(
            max(one.slides for one in domains),
            (min(one.mpp_x[0] for one in domains), max(one.mpp_x[1] for one in domains)),
            (min(one.tiles[0] for one in domains), max(one.tiles[1] for one in domains)),
            np.asarray(mean),
            np.asarray(sum(share * one for share, one in zip(weights, spread, strict=True))),
            np.asarray(sum(share * one.within for share, one in zip(weights, domains, strict=True))),
            np.sort(np.concatenate([one.distances for one in domains])),
        )

    @property
    def cannot_tell(self) -> str:
        """Why it cannot tell whether a slide is like these; "" if it can."""
        if self.slides >= FEWEST:
            return ""
        return f"the model learnt from {self.slides} slides, too few to tell whether a slide is like them"

    def distance(self, slide: SlideFacts) -> float:
        """How far a slide's features are from those of training; about 1 for a slide like them."""
        return float(
            _distance((slide.mean - self.mean)[None], self.between[None], (self.within / slide.tiles)[None])[0]
        )

    @property
    def far(self) -> float:
        """The distance from which a slide is unlike those of training."""
        return _FAR * self.farthest

    @property
    def farthest(self) -> float:
        """The distance that all but the most unusual of the training slides stay within, each from all the others."""
        return float(np.quantile(self.distances, _OF_TRAINING, method="higher"))

    @property
    def mpp_limits(self) -> tuple[float, float]:
        """The least and the most level-0 um/px that are not warned of."""
        return self.mpp_x[0] / _MPP_MARGIN, self.mpp_x[1] * _MPP_MARGIN

    @property
    def tile_limits(self) -> tuple[float, float]:
        """The fewest and the most tiles that are not warned of."""
        return self.tiles[0] / _TILES_MARGIN, self.tiles[1] * _TILES_MARGIN

    @property
    def told(self) -> tuple[str, str]:
        """Resolutions and numbers of tiles, for people: ``0.25 to 0.5 um/px``, ``67 to 77 tiles``."""
        least, most = (f"{mpp:.4g}" for mpp in self.mpp_x)
        fewest, largest = map(str, self.tiles)
        return f"{_range(least, most)} um/px", f"{_range(fewest, largest)} tiles"

    def warnings(self, slide: SlideFacts) -> list[str]:
        """In what a slide is unlike those of training: nothing, if it is like them or nobody can tell."""
        if self.cannot_tell:
            return []
        found = []
        resolutions, counts = (text.rpartition(" ")[0] for text in self.told)
        if not self.mpp_limits[0] <= slide.mpp_x <= self.mpp_limits[1]:
            found.append(f"unlike training: {slide.mpp_x:.4g} um/px, and {resolutions} there")
        if not self.tile_limits[0] <= slide.tiles <= self.tile_limits[1]:
            found.append(f"unlike training: {slide.tiles} tiles, and {counts} there")
        if (distance := self.distance(slide)) > self.far:
            found.append(
                f"unlike training: its features are {distance:.1f} off the mean, those there {self.farthest:.1f} at"
                " most"
            )
        return found

    def header(self) -> dict[str, Any]:
        """The part of it that a checkpoint keeps as JSON."""
        return {"slides": self.slides, "mpp_x": self.mpp_x, "tiles": self.tiles}

    def tensors(self) -> dict[str, Tensor]:
        """The part of it that a checkpoint keeps as tensors, float32."""
        return {name: torch.from_numpy(getattr(self, name).astype(np.float32)) for name in _ARRAYS}

    @classmethod
    def restored(cls, header: dict[str, Any], tensors: dict[str, Tensor]) -> "Domain":
        """What `header` and `tensors` came from, but for the rounding to float32.

        Raises:
            KeyError: something is missing.
            TypeError: something is there that should not.
        """
        arrays = {name: tensors[name].double().numpy() for name in _ARRAYS}
        (least, most), (fewest, largest) = header["mpp_x"], header["tiles"]
        return cls(header["slides"], (least, most), (fewest, largest), **arrays)


def slides_of(bag: Bag, mpps: Sequence[float]) -> list[SlideFacts]:
    """The slides of one bag, given the um/px of each in the bag's order."""
    if bag.slide is None:
        return [slide_facts(mpps[0], bag.features)]
    return [slide_facts(mpp, bag.features[bag.slide == index]) for index, mpp in enumerate(mpps)]


def _range(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def _distance(
    off: Float64[np.ndarray, "slides dim"],
    between: Float64[np.ndarray, "#slides dim"],
    sampling: Float64[np.ndarray, "slides dim"],
) -> Float64[np.ndarray, " slides"]:
    """Root mean square of what the features are off by; one that never varied in training says nothing."""
    scale = between + sampling
    squares = np.divide(off**2, scale, out=np.zeros_like(off), where=scale > 0)
    return np.sqrt(squares.sum(axis=1) / np.maximum((scale > 0).sum(axis=1), 1))


def _left_out(
    means: Float64[np.ndarray, "slides dim"],
    variances: Float64[np.ndarray, "slides dim"],
    tiles: np.ndarray,
) -> Float64[np.ndarray, " n"]:
    """How far each slide is from all the others, in order; of fewer than 3, none."""
    count = len(means)
    if count < 3:
        return np.zeros(0)
    off = means - means.mean(axis=0)  # first, so that little is lost where features are far from 0
    others = -off / (count - 1)
    squares = (off**2).sum(axis=0) - off**2
    between = np.maximum(squares - (count - 1) * others**2, 0) / (count - 2)
    within = (variances.sum(axis=0) - variances) / (count - 1)
    return np.sort(_distance(off - others, between, within / tiles[:, None]))
