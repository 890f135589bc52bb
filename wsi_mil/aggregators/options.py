"""Checks that the options of several aggregators share."""

import math

from wsi_mil.errors import OptionError


def require_counts(**values: int) -> None:
    """Refuse a count below 1, by name."""
    for name, value in values.items():
        if value < 1:
            raise OptionError(f"{name} {value}: give a whole number of at least 1")


def require_sizes(**values: int) -> None:
    """Refuse a size below 0, by name; 0 means that there is no such thing, or another size instead."""
    for name, value in values.items():
        if value < 0:
            raise OptionError(f"{name} {value}: give a whole number of at least 0")


def require_positive(**values: float) -> None:
    """Refuse a number that is not above 0 and finite, by name."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise OptionError(f"{name} {value}: give a positive number")


def require_fraction(**values: float) -> None:
    """Refuse a fraction outside [0, 1), by name."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise OptionError(f"{name} {value}: give a number from 0 up to, but below, 1")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise OptionError(f"{name} {value}: choose one of {', '.join(choices)}")


def require_heads(hidden: int, heads: int) -> None:
    """Refuse a width that heads cannot share evenly."""
    if hidden % heads:
        raise OptionError(f"hidden {hidden}, heads {heads}: give a width that is a multiple of the heads")


def require_neighbours(neighbours: int) -> None:
    """Refuse a number of neighbours below 0."""
    if neighbours < 0:
        raise OptionError(f"neighbours {neighbours}: give a whole number, or 0 for all other tiles of the slide")
