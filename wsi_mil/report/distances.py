"""What distance did it learn? As a section of a page, and as the files that lie beside a model."""

import math
from collections.abc import Sequence

from wsi_mil.explain import DISTANCE_FILES, AtDistance, Head, Reliance, enrichment_csv, heads_csv
from wsi_mil.report.distance_charts import distance_charts
from wsi_mil.report.distance_use import SLIDES, DistanceUse, members, part_of
from wsi_mil.report.page import Section, figure

_HEADING = "What distance did it learn?"
_HEADS_NAMED = 4
_HARDLY = 0.1
"""A share of its first length that no head moved by: lengths were given, then, more than learnt."""


def distance_section(use: DistanceUse, name: str = "") -> Section:
    """The section of a page; empty, so left out, for a model that does not use distances so.

    Args:
        use: what a model does with distances.
        name: of the model, where there are several.
    """
    header = (
        "model",
        "head",
        "biases",
        "near to far at",
        "at first",
        "10 %",
        "90 %",
        "attention moved",
        "log-odds moved",
    )
    rows = _rows(use)
    if len({row[0] for row in rows}) == 1:
        header, rows = header[1:], [row[1:] for row in rows]
    return Section(f"{_HEADING} {name}".strip(), _sentences(use), header, rows, distance_charts(use))


def distance_files(use: DistanceUse) -> dict[str, bytes]:
    """`DISTANCE_FILES` by name, each where there is something to tell."""
    charts = distance_charts(use)
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
    moved = [abs(one.theta_um - one.start_um) / abs(one.start_um) for one in use.heads if one.start_um]
    if moved and max(moved) < _HARDLY:
        told.append(
            f"No length moved by more than {max(100 * max(moved), 0.1):.1f} % in training: they are those that it"
            " started from, and no finding about the label."
        )
    if use.heads and use.tiles is not None:
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
    if use.asked and (use.relied or use.found):
        told.append(f"Measured on up to {SLIDES} slides {use.asked}.")
    return " ".join(told)


def _transitions(heads: Sequence[Head]) -> str:
    """Where heads tell near from far: each by name, where they are few."""
    if len(heads) <= _HEADS_NAMED and members(heads) == 1:
        each = [f"head {one.head}{part_of(one)} at {length(one.theta_um)} ({_span(one)})" for one in heads]
        return f"Near is told from far by {'; '.join(each)}."
    thetas = [one.theta_um for one in heads]
    models = f" in {members(heads)} models" if members(heads) > 1 else ""
    return f"Near is told from far at {length(min(thetas))} to {length(max(thetas))} by {len(heads)} heads{models}."


def _span(head: Head) -> str:
    low, high = sorted((max(head.near_um, 0.0), max(head.far_um, 0.0)))
    return f"10–90 %: {length(low)} to {length(high)}"


def _name(one: AtDistance | Reliance, use: DistanceUse) -> str:
    several = members([*use.heads, *use.found, *use.relied]) > 1
    return f"head {one.head}" + (f" of model {one.member}" if several else "")


def _rows(use: DistanceUse) -> list[tuple[str, ...]]:
    moved = {(one.member, one.head): one for one in use.found}
    relied = {(one.member, one.head): f"{one.log_odds:.2g}" for one in use.relied}
    keys = [(one.member, one.head, one) for one in use.heads] or [(*key, None) for key in moved]
    rows = []
    for member, head, one in keys:
        lengths = ("–",) * 5 if one is None else _lengths(one)
        went = moved.get((member, head))
        share = "–" if went is None else _share(went)
        rows.append((str(member), str(head), *lengths, share, relied.get((member, head), "–")))
    return rows


def _lengths(one: Head) -> tuple[str, ...]:
    return one.part, *map(length, (one.theta_um, one.start_um, one.near_um, one.far_um))


def _share(found: AtDistance) -> str:
    direction = "nearer" if found.nearer else "farther"
    return f"{100 * found.moved:.0f} %, {direction}" if found.moved >= 0.005 else "< 1 %"
