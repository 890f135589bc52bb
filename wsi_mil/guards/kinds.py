"""What a header says, of the kind that everybody counts on: a number where a number is due, or one line that says not.

A checksum tells damage. It does not tell a header that was written so, by a program with a bug or by somebody's hand.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from wsi_mil.guards.text import parse_json

_FARTHEST_UM = 1e7  # 10 m: no slide is as long
_SHOWN = 40


class Kind(NamedTuple):
    """What a value may be."""

    called: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_table(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(parse_json(value), dict)
    except ValueError:
        return False


WORD = Kind("a word", lambda value: isinstance(value, str))
LENGTH = Kind("a length above 0", lambda value: _is_number(value) and 0 < value < 1e9)
COUNT = Kind("a count", lambda value: _is_number(value) and 0 <= value < 1 << 40 and value == int(value))
NUMBER = Kind("a number", _is_number)
TABLE = Kind("JSON with values by name", _is_table)
VALUES = Kind("values by name", lambda value: isinstance(value, dict))

_OF_FEATURES = {
    "slide_id": WORD, "status": WORD, "encoder": WORD, "encoder_weights": WORD, "encoder_weights_sha256": WORD,
    "slide_path": WORD, "mpp_x": LENGTH, "mpp_y": LENGTH, "l0_tile_width": LENGTH, "l0_tile_height": LENGTH,
    "tile_um": LENGTH, "tile_px": LENGTH, "tiles": COUNT, "level0_width": COUNT, "level0_height": COUNT,
    "params": TABLE, "tile_params": TABLE, "stain": TABLE,
}  # fmt: skip


def require_kinds(said: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Refuse values of another kind; what is not there is not missed.

    Raises:
        ValueError: names the first.
    """
    for name, kind in kinds.items():
        if name in said and not kind.fits(said[name]):
            shown = repr(said[name])
            raise ValueError(
                f"{name} is {shown if len(shown) <= _SHOWN else f'{shown[:_SHOWN]}...'}, not {kind.called}"
            )


def require_features(arrays: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> None:
    """Refuse features of a slide that are no row of numbers per tile, or lie on no slide.

    Raises:
        ValueError: says what is wrong.
        KeyError: what every artifact of features has is not there.
    """
    require_kinds(attrs, _OF_FEATURES)
    features, coords = arrays["features"], arrays["coords"]
    if features.ndim != 2 or features.dtype.kind != "f":
        raise ValueError(f"features are {features.dtype} {features.shape}, not a row of numbers per tile")
    if coords.shape != (len(features), 2) or coords.dtype.kind not in "iu":
        raise ValueError(f"coords are {coords.dtype} {coords.shape}, not two whole numbers for each of {len(features)}")
    reach = np.abs(coords.astype(float) * [attrs["mpp_x"], attrs["mpp_y"]]).max(initial=0)
    if reach > _FARTHEST_UM:
        raise ValueError(f"a tile lies {reach:.3g} um from the corner of its slide")
