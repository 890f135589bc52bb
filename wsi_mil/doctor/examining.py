"""All checks, in the order in which a reader wants them."""

from collections.abc import Iterable, Iterator

from wsi_mil.doctor import hub, machine, packages, reading
from wsi_mil.doctor.findings import Check, Finding, check
from wsi_mil.doctor.round_trip import round_trip


def examine(checks: Iterable[Check] | None = None) -> Iterator[Finding]:
    """Yield what each check finds, as it is done.

    Args:
        checks: what to look at; None = everything, and the round trip of a tiny slide in the end.
    """
    for asked in everything() if checks is None else checks:
        yield check(asked)
    if checks is None:
        yield from round_trip()


def everything() -> list[Check]:
    """Every check but the round trip."""
    return [*packages.versions(), *machine.devices(), *reading.readers(), *reading.codecs(), *machine.places(),
            *hub.access(), *packages.extras()]  # fmt: skip
