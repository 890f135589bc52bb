"""`wsimil doctor`: is this machine fit for it, and where it is not, what to do.

Every check stands alone and imports what it needs itself: one that fails, whatever its library dies of, is told on its
line, and the others go on. `findings` runs them; the checks are in `packages`, `machine`, `reading`, `hub` and
`round_trip`.
"""

from wsi_mil.doctor.examining import examine
from wsi_mil.doctor.findings import FAIL, OK, WARN, Check, Finding, check

__all__ = ["FAIL", "OK", "WARN", "Check", "Finding", "check", "examine"]
