"""What a model looked at in several slides, told apart: nothing is lost, nothing is said twice."""

import numpy as np
from explained import some_look, some_places

from wsi_mil.explain.looking import Look, Pairs
from wsi_mil.explain.shares import part_of

PLACES = some_places()
TILES = len(PLACES.coords)
CUT = 10


def looked() -> Look:
    """Pairs within the first slide, within the second, and across."""
    tiles = np.array([3, TILES - 1, 5])
    partners = np.array([[TILES - 2, 1, 9], [CUT, 0, TILES - 2], [TILES - 1, TILES - 2, -1]])
    weights = np.array([[0.5, 0.3, 0.1], [0.4, 0.3, 0.2], [0.6, 0.1, 0.0]])
    far = np.where(partners < 0, np.nan, np.abs(partners - tiles[:, None]) * 100.0)
    return some_look(PLACES, 3)._replace(pairs=Pairs(tiles, partners, weights, far))


def test_the_parts_are_the_whole() -> None:
    whole = looked()
    first, second = part_of(whole, 0, CUT), part_of(whole, CUT, TILES)
    for name in ("attention", "contribution", "attended", "occlusion"):
        parts = [getattr(first, name), getattr(second, name)]
        np.testing.assert_array_equal(np.concatenate(parts), getattr(whole, name), err_msg=name)
    for name in ("probabilities", "evidence", "base"):
        assert getattr(first, name) is getattr(second, name) is getattr(whole, name)
    assert part_of(whole, 0, TILES) is whole


def test_partners_in_another_slide_are_left_out_and_the_others_move_up() -> None:
    first, second = part_of(looked(), 0, CUT).pairs, part_of(looked(), CUT, TILES).pairs
    assert first is not None
    assert second is not None
    assert first.tiles.tolist() == [3, 5]
    assert first.partners.tolist() == [[1, 9, -1], [-1, -1, -1]]
    assert first.weights.tolist() == [[0.3, 0.1, 0], [0, 0, 0]]
    np.testing.assert_array_equal(first.distance_um, [[200, 600, np.nan], [np.nan] * 3])
    assert second.tiles.tolist() == [TILES - 1 - CUT]
    assert second.partners.tolist() == [[0, TILES - 2 - CUT, -1]]
    assert second.weights.tolist() == [[0.4, 0.2, 0]]


def test_what_a_model_does_not_tell_stays_untold() -> None:
    part = part_of(some_look(PLACES, contribution=False, pairs=False), 2, 5)
    assert part.contribution is part.base is part.attended is part.pairs is None
    assert len(part.attention) == len(part.occlusion) == 3
