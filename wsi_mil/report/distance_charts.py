"""Curves of near and far over distance, and of attention over distance."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from wsi_mil.explain import AtDistance
from wsi_mil.report.chart import SHARES, Bar, Chart, Curve, Mark, Tick
from wsi_mil.report.distance_use import DistanceUse, members, part_of

_FEW = 1e-3  # share of tiles below which a ratio of shares is noise
_POINTS = 121
_MARGIN = 4.0  # how far beyond the tiles' distances a curve is drawn, so that where it turns is seen


class _Scale(NamedTuple):
    """A logarithmic axis of distances."""

    low_um: float
    high_um: float

    def at(self, um: float) -> float:
        """From 0 at the left end to 1 at the right."""
        return math.log(um / self.low_um) / math.log(self.high_um / self.low_um)

    def holds(self, um: float) -> bool:
        return self.low_um <= um <= self.high_um

    @property
    def points_um(self) -> Float64[np.ndarray, " points"]:
        return np.geomspace(self.low_um, self.high_um, _POINTS)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """1, 2 and 5 of each power of ten; fewer where those would run into each other."""
        decades = range(math.floor(math.log10(self.low_um)), math.ceil(math.log10(self.high_um)) + 1)
        span = self.high_um / self.low_um
        steps = (1, 2, 5) if span < 60 else (1, 3) if span < 10**3 else (1,)
        ums = [step * 10.0**decade for decade in decades for step in steps]
        return tuple(
            Tick(self.at(um), f"{um:g} µm" if um < 1000 else f"{um / 1000:g} mm") for um in ums if self.holds(um)
        )


def _scale(use: DistanceUse) -> _Scale:
    """What the tiles' distances span; and what curves turn at, if that is near."""
    if use.tiles is not None:
        filled = np.flatnonzero(use.tiles.pairs)
        low, high = max(use.tiles.edges_um[filled[0]], 1.0), use.tiles.edges_um[filled[-1] + 1]
    elif use.found:
        low, high = use.found[0].edges_um[[0, -1]]
    else:
        thetas = [one.theta_um for one in use.heads]
        low, high = min(thetas) / _MARGIN, max(thetas) * _MARGIN
    turns = [one.theta_um for one in use.heads if low / _MARGIN <= one.theta_um <= high * _MARGIN]
    return _Scale(
        float(min(low, *(0.8 * um for um in turns), low)), float(max(high, *(1.25 * um for um in turns), high))
    )


def distance_charts(use: DistanceUse) -> list[Chart]:
    """None of a model that does not use distances so."""
    if not (use.heads or use.found):
        return []
    scale = _scale(use)
    return [
        *([_phi_chart(use, scale)] if use.heads else []),
        *([_attention_chart(use.found, scale)] if use.found else []),
    ]


def _phi_chart(use: DistanceUse, scale: _Scale) -> Chart:
    points = scale.points_um
    places = tuple(map(scale.at, points))
    curves = tuple(
        Curve(
            f"head {one.head}{part_of(one)}" if one.member == 1 else "",
            tuple(one.phi(points).tolist()), places, one.head - 1, one.part in ("query", "value"),
        )
        for one in use.heads
    )  # fmt: skip
    marks = tuple(Mark(scale.at(one.theta_um), one.head - 1) for one in use.heads if scale.holds(one.theta_um))
    grey = "" if use.tiles is None else "; grey: how many tiles lie so far apart"
    return Chart(
        f"What each head takes for far; dotted: one half{grey}",
        curves,
        1.0,
        across="distance of two tiles",
        up="near (0) to far (1)",
        ticks=scale.ticks,
        levels=SHARES,
        bars=_bars(use, scale),
        marks=marks,
    )


def _bars(use: DistanceUse, scale: _Scale) -> tuple[Bar, ...]:
    """Pairs of tiles by the logarithm of their distance, the most at nine tenths of the height."""
    if use.tiles is None:
        return ()
    edges = [min(max(scale.at(max(um, scale.low_um)), 0.0), 1.0) for um in use.tiles.edges_um]
    bins = [(*ends, share) for *ends, share in zip(edges, edges[1:], use.tiles.shares, strict=False)]
    dense = [(left, right, share / (right - left)) for left, right, share in bins if share and right > left]
    most = max((height for _, _, height in dense), default=1.0)
    return tuple(Bar(left, right, 0.9 * height / most) for left, right, height in dense)


def _attention_chart(found: Sequence[AtDistance], scale: _Scale) -> Chart:
    """On a logarithmic scale as well: twice and half lie as far from 1."""
    one_model = members(found) == 1
    ratios = [(one, _plain(one.enrichment, one), _plain(one.enrichment_unbiased, one)) for one in found]
    seen = np.concatenate([each for _, *pair in ratios for each in pair])
    octaves = min(max(math.ceil(np.nanmax(np.abs(seen), initial=1.0)), 1), 6)
    curves = []
    for one, biased, unbiased in ratios:
        middles = np.clip(np.sqrt(one.edges_um[1:] * one.edges_um[:-1]), scale.low_um, scale.high_um)
        places, name = tuple(map(scale.at, middles)), f"head {one.head}" if one.member == 1 else ""
        curves.append(Curve(name, _heights(biased, octaves), places, one.head - 1))
        if one_model:
            curves.append(Curve("", _heights(unbiased, octaves), places, one.head - 1, True))
    dashed = "; dashed: without what distance adds" if one_model else ""
    step = 1 if octaves < 4 else 2
    levels = tuple(
        Tick((power + octaves) / (2 * octaves), f"{2**power}" if power >= 0 else f"1/{2**-power}")
        for power in range(-octaves, octaves + 1)
        if power % step == 0
    )
    caption = f"Attention that tiles get at each distance (1: like all tiles){dashed}"
    return Chart(
        caption, tuple(curves), 1.0, across="distance of two tiles", up="attention / tiles", ticks=scale.ticks,
        levels=levels,
    )  # fmt: skip


def _plain(ratio: Float64[np.ndarray, " bins"], one: AtDistance) -> Float64[np.ndarray, " bins"]:
    """In powers of two; NaN where there are too few tiles to tell."""
    return np.log2(np.maximum(np.where(one.tiles < _FEW, np.nan, ratio), 2.0**-9))


def _heights(powers: Float64[np.ndarray, " bins"], octaves: int) -> tuple[float, ...]:
    return tuple(((np.clip(powers, -octaves, octaves) + octaves) / (2 * octaves)).tolist())
