"""What a check finds, and how checks are run so that none takes the others down."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from wsi_mil.errors import one_line

log = logging.getLogger(__name__)

OK, WARN, FAIL = "ok", "warn", "FAIL"
NO_TEMPORARY = "make room in /tmp, or name a folder that you may write to by TMPDIR"
"""What to do where there is no temporary folder."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    status: str
    """`OK`; `WARN`: something will not work or be slow, the rest does; `FAIL`: wsimil does not work here."""
    told: str
    """What was found."""
    remedy: str = ""
    """What to do about it."""
    group: str = ""
    """What it belongs to: versions, devices, ..."""
    name: str = ""
    """What was looked at."""
    seconds: float = 0.0
    """How long that took."""


@dataclass(frozen=True)
class Check:
    """Something to look at."""

    group: str
    name: str
    look: Callable[[], Finding]
    """Says what it found; the name, the group and the seconds are written in. What it raises is a `FAIL`."""
    remedy: str = "see the error; `wsimil --debug doctor` shows where it came from"
    """What to do where it raises."""


def check(asked: Check) -> Finding:
    """Do one check, whatever happens in it."""
    start = time.perf_counter()
    try:
        found = asked.look()
    except Exception as error:  # broken libraries die of anything, and the other checks are to be done then, too
        log.debug("%s: %s", asked.name, error, exc_info=True)
        found = Finding(FAIL, one_line(error), asked.remedy)
    return replace(found, group=asked.group, name=asked.name, seconds=time.perf_counter() - start)
