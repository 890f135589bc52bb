"""Amounts of bytes, as people write them."""

import re

from wsi_mil.errors import OptionError

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15} | {
    f"{letter}I": 1024.0**power for power, letter in enumerate("KMGTP", 1)
}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGTP]?I?)B?", re.IGNORECASE)


def parse_size(text: str, option: str = "--cache-size") -> int:
    """Bytes of ``200GB`` (1000s), ``1.5TiB`` (1024s), or a plain number.

    Raises:
        OptionError: it is no such amount, or nothing.

    Example:
        parse_size("1.5KiB") == 1536
    """
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].upper() if match else "?"
    size = round(float(match[1]) * _UNITS[unit]) if match and unit in _UNITS else 0
    if size < 1:
        raise OptionError(f"{option} {text}: give an amount such as 200GB, 500MB or 1.5TiB")
    return size


def show_size(size: int) -> str:
    """Bytes with a unit of 1000s: ``1.23 GB``; plain below 1000."""
    if size < 1000:
        return f"{size:.0f} bytes"
    power = next((power for power in (1, 2, 3, 4) if size < 999.5 * 1000**power), 5)
    return f"{size / 1000**power:.3g} {('kB', 'MB', 'GB', 'TB', 'PB')[power - 1]}"
