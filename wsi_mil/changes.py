"""What was asked for otherwise: options that a file recorded, beside those of now, in words."""

import json
from collections.abc import Mapping
from typing import Any


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Tell which options were others.

    Args:
        before: by name, as they were read from JSON.
        now: by name; those that were not recorded count as others.

    Returns:
        By name, such as "lr was 0.001, now 0.01"; in the order of ``now``.
    """
    now = json.loads(json.dumps(now))  # a file gives tuples back as lists
    return {
        name: f"{name} was {before.get(name)!r}, now {now[name]!r}" for name in now if before.get(name) != now[name]
    }
