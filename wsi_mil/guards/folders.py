"""Folders of whoever wrote them: what may not be listed is no empty folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from wsi_mil.errors import WsiMilError


def walked(folder: Path, refused: type[WsiMilError]) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` that follows links, and passes over no folder but one that is gone.

    Args:
        folder: where to begin; the folders that are handed out may be changed, as for `os.walk`.
        refused: what is raised where a folder cannot be listed.
    """

    def tell(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # another process may remove its own
            why = error.strerror or str(error)
            raise refused(f"{error.filename} cannot be listed ({why}): allow it, or move it elsewhere") from error

    return os.walk(folder, followlinks=True, onerror=tell)
