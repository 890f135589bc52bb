"""What distance did it learn? As a section of a page, and as the files that lie beside a model."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64

from wsi_mil.aggregators import Aggregator
from wsi_mil.bags import Bag, as_one, read_bag
from wsi_mil.errors import one_line
from wsi_mil.explain import (
    AtDistance,
    Head,
    Reliance,
    enrichment,
    enrichment_csv,
    heads_csv,
    learnt_distances,
    reliance,
)
from wsi_mil.report.page import Bar, Chart, Curve, Mark, Section, Tick, figure
from wsi_mil.stage import artifact_path, attempt
from wsi_mil.tile_distances import TileDistances
from wsi_mil.train import Trained

log = logging.getLogger(__name__)

DISTANCE_FILES = ("learnt_distances.csv", "attention_by_distance.csv", "learnt_distances.svg")
_HEADING = "What distance did it learn?"
_SLIDES = 8
_HEADS_NAMED = 4
_FEW = 1e-3  # share of tiles below which a ratio of shares is noise
_POINTS = 121
_WIDTH, _HEIGHT = 460, 220  # two lie side by side, and their writing stays as large as that of the page
_MARGIN = 4.0  # how far beyond the tiles' distances a curve is drawn, so that where it turns is seen


@dataclass(frozen=True)
class DistanceUse:
    """What a model does with distances; all empty for one that does not use them so."""

    heads: Sequence[Head] = ()
    found: Sequence[AtDistance] = ()
    relied: Sequence[Reliance] = ()
    tiles: TileDistances | None = None
    """How far apart the tiles of the training patients lie; None: the checkpoint does not tell."""

    @classmethod
    def of(cls, model: Aggregator, training: Mapping[str, Any], bags: Callable[[], Iterable[Bag]]) -> "DistanceUse":
        """Ask a model.

        Args:
            model: a trained model or ensemble.
            training: `Checkpoint.training`.
            bags: gives what it is asked about, anew each time, so that they need not all be in memory at once.
        """
        told = attempt(lambda: (enrichment(model, bags()), reliance(model, bags())))
        if isinstance(told, Exception):  # an explanation is not worth the training
            log.warning("what distance does to attention is not told: %s", one_line(told))
            told = ([], [])
        return cls(learnt_distances(model), *told, TileDistances.recorded(training))


def distance_use(trained: Trained, feats: Path, device: torch.device) -> DistanceUse:
    """What a training made of distances, by some slides that it did not learn from."""
    unseen = [unit for unit in trained.cohort.units if unit.split != "train"]
    rng = np.random.default_rng(trained.checkpoint.training["params"]["learn"]["seed"])
    chosen = sorted(rng.choice(len(unseen), min(_SLIDES, len(unseen)), replace=False).tolist())
    some = [unseen[index] for index in chosen]

    def read() -> Iterator[Bag]:
        for unit in some:
            yield as_one([read_bag(artifact_path(feats, member.slide_id)) for member in unit.members], unit.bag_id)

    return DistanceUse.of(trained.checkpoint.model().to(device), trained.checkpoint.training, read)


def distance_section(use: DistanceUse) -> Section:
    """The section of a page; empty, so left out, for a model that does not use distances so."""
    header = ("model", "head", "biases", "near to far at", "10 %", "90 %", "attention moved", "log-odds moved")
    rows = _rows(use)
    if len({row[0] for row in rows}) == 1:
        header, rows = header[1:], [row[1:] for row in rows]
    return Section(_HEADING, _sentences(use), header, rows, _charts(use))


def distance_files(use: DistanceUse) -> dict[str, bytes]:
    """`DISTANCE_FILES` by name, each where there is something to tell."""
    charts = _charts(use)
    contents = (
        heads_csv(use.heads) if use.heads else b"",
        enrichment_csv(use.found) if use.found else b"",
        figure(_HEADING, charts) if charts else b"",
    )
    return {name: data for name, data in zip(DISTANCE_FILES, contents, strict=True) if data}


def length(um: float) -> str:
    """A distance for people: 431 µm, 1.24 mm, 14.2 mm; a dash where there is none."""
    if not math.isfinite(um) or um < 0:
        return "–"
    return f"{um:.0f} µm" if round(um) < 1000 else f"{um / 1000:.3g} mm"


def _sentences(use: DistanceUse) -> str:
    told = [_transitions(use.heads)] if use.heads else []
    if told and use.tiles is not None:
        told.append(f"95 % of the tile distances of training lie below {length(use.tiles.quantile(0.95))}.")
    if use.relied:
        most = max(use.relied, key=lambda one: one.log_odds)
        told.append(
            f"Answers rely most on the distances of {_name(most, use)}: were its biases the same at all of them,"
            f" log-odds would change by {most.log_odds:.2g} on average."
        )
    if use.found:
        one = max(use.found, key=lambda one: one.moved)
        told.append(f"Distance redirects the attention of {_name(one, use)} most: {_share(one)}.")
    return " ".join(told)


def _transitions(heads: Sequence[Head]) -> str:
    """Where heads tell near from far: each by name, where they are few."""
    if len(heads) <= _HEADS_NAMED and _members(heads) == 1:
        each = [f"head {one.head}{_part(one)} at {length(one.theta_um)} ({_span(one)})" for one in heads]
        return f"Near is told from far by {'; '.join(each)}."
    thetas = [one.theta_um for one in heads]
    models = f" in {_members(heads)} models" if _members(heads) > 1 else ""
    return f"Near is told from far at {length(min(thetas))} to {length(max(thetas))} by {len(heads)} heads{models}."


def _part(head: Head) -> str:
    return "" if "+" in head.part else f" ({head.part})"


def _span(head: Head) -> str:
    low, high = sorted((max(head.near_um, 0.0), max(head.far_um, 0.0)))
    return f"10–90 %: {length(low)} to {length(high)}"


def _name(one: AtDistance | Reliance, use: DistanceUse) -> str:
    return f"head {one.head}" + (f" of model {one.member}" if _members(use.found) > 1 else "")


def _rows(use: DistanceUse) -> list[tuple[str, ...]]:
    moved = {(one.member, one.head): one for one in use.found}
    relied = {(one.member, one.head): f"{one.log_odds:.2g}" for one in use.relied}
    keys = [(one.member, one.head, one) for one in use.heads] or [(*key, None) for key in moved]
    rows = []
    for member, head, one in keys:
        lengths = ("–",) * 4 if one is None else (one.part, *map(length, (one.theta_um, one.near_um, one.far_um)))
        went = moved.get((member, head))
        share = "–" if went is None else _share(went)
        rows.append((str(member), str(head), *lengths, share, relied.get((member, head), "–")))
    return rows


def _share(found: AtDistance) -> str:
    direction = "nearer" if found.nearer else "farther"
    return f"{100 * found.moved:.0f} %, {direction}" if found.moved >= 0.005 else "< 1 %"


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
        """1, 2 and 5 of each power of ten, or only the powers where those would be too many."""
        decades = range(math.floor(math.log10(self.low_um)), math.ceil(math.log10(self.high_um)) + 1)
        steps = (1, 2, 5) if self.high_um / self.low_um < 10**3 else (1,)
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


def _charts(use: DistanceUse) -> list[Chart]:
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
            f"head {one.head}{_part(one)}" if one.member == 1 else "",
            tuple(one.phi(points).tolist()), places, one.head - 1, one.part in ("query", "value"),
        )
        for one in use.heads
    )  # fmt: skip
    marks = tuple(Mark(scale.at(one.theta_um), one.head - 1) for one in use.heads if scale.holds(one.theta_um))
    grey = "" if use.tiles is None else "; grey: how many tiles lie so far apart"
    return Chart(
        f"Near (0) to far (1) over distance; dotted: one half{grey}",
        curves,
        1.0,
        _WIDTH,
        _HEIGHT,
        ticks=scale.ticks,
        levels=(Tick(0, "0"), Tick(0.5, "0.5"), Tick(1, "1")),
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
    one_model = _members(found) == 1
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
    caption = f"Attention by tiles, over distance (1: like all tiles){dashed}"
    return Chart(caption, tuple(curves), 1.0, _WIDTH, _HEIGHT, ticks=scale.ticks, levels=levels)


def _plain(ratio: Float64[np.ndarray, " bins"], one: AtDistance) -> Float64[np.ndarray, " bins"]:
    """In powers of two; NaN where there are too few tiles to tell."""
    return np.log2(np.maximum(np.where(one.tiles < _FEW, np.nan, ratio), 2.0**-9))


def _heights(powers: Float64[np.ndarray, " bins"], octaves: int) -> tuple[float, ...]:
    return tuple(((np.clip(powers, -octaves, octaves) + octaves) / (2 * octaves)).tolist())


def _members(each: Sequence[Head] | Sequence[AtDistance]) -> int:
    return max(one.member for one in each)
