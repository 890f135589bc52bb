"""Where wsimil keeps what may be made or fetched again: weights that were added, slides from far away."""

import os
from pathlib import Path

from wsi_mil.errors import OptionError


def home() -> Path:
    """The folder ``WSIMIL_HOME``, else ``wsi_mil`` in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``).

    Raises:
        OptionError: the user has no home folder, and ``WSIMIL_HOME`` names none.
    """
    try:
        if named := os.environ.get("WSIMIL_HOME"):
            return Path(named).expanduser().absolute()
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The standard says that a relative path counts as none.
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "wsi_mil"
    except RuntimeError as error:
        raise OptionError(f"there is no home folder for caches ({error}): name a folder by WSIMIL_HOME") from error
