"""The share of one slide in what a model looked at in several, such as a patient's."""

import numpy as np

from wsi_mil.explain.looking import Look, Pairs


def part_of(look: Look, start: int, end: int) -> Look:
    """What was looked at in some tiles of a bag.

    Attention and contributions stay shares of the whole bag. A partner in another slide is left out as if there were
    none, because it can be drawn nowhere.

    Args:
        look: at the bag.
        start: the first of the tiles.
        end: the one after the last.
    """
    if (start, end) == (0, len(look.attention)):
        return look
    rows = slice(start, end)
    return look._replace(
        attention=look.attention[rows],
        contribution=None if look.contribution is None else look.contribution[rows],
        attended=None if look.attended is None else look.attended[rows],
        occlusion=look.occlusion[rows],
        pairs=None if look.pairs is None else _pairs(look.pairs, start, end),
    )


def _pairs(pairs: Pairs, start: int, end: int) -> Pairs:
    """Pairs of tiles that both lie there; the tiles of the part count from 0."""
    own = (pairs.tiles >= start) & (pairs.tiles < end)
    partners, weights, distance_um = pairs.partners[own], pairs.weights[own], pairs.distance_um[own]
    here = (partners >= start) & (partners < end)
    # Those that are left out go last, as a row of partners ends where there are no more.
    order = np.argsort(~here, axis=1, kind="stable")
    shown = [np.take_along_axis(values, order, axis=1) for values in (here, partners - start, weights, distance_um)]
    here, partners, weights, distance_um = shown
    return Pairs(
        pairs.tiles[own] - start,
        np.where(here, partners, -1),
        np.where(here, weights, 0),
        np.where(here, distance_um, np.nan),
    )
