"""Names that become paths, and names that a spreadsheet would take for formulas."""

from pathlib import Path

from wsi_mil.errors import ArtifactError

_MOST_BYTES = 240
"""Of a part of a name: file systems take 255, of which the longest suffix of ours (".geojson") needs its share."""
_MOST_BYTES_IN_ALL = 2000
_SHOWN = 60


def inside(folder: Path, name: str, suffix: str = "") -> Path:
    """Return the path ``<folder>/<name><suffix>``, which lies below ``folder`` whatever the name holds.

    Links that lie in ``folder`` itself are followed: who may write there decides where they lead.

    Args:
        folder: where it has to lie.
        name: a name with "/" between its parts, such as a slide_id.
        suffix: what is written behind it.

    Raises:
        ArtifactError: the name would lead elsewhere, or is none that a file can have.
    """
    if fault := _fault(name):
        shown = repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
        raise ArtifactError(f"{shown} {fault}, so nothing called that is read or written in {folder}: rename it")
    return folder / f"{name}{suffix}"


def is_inside(name: str) -> bool:
    """Whether `inside` takes a name."""
    return not _fault(name)


def is_formula(name: str) -> bool:
    """Whether a spreadsheet that opens a table with this name in it takes it for a formula, and computes it."""
    return name.startswith(("=", "+", "-", "@"))


def printable(name: str) -> str:
    """A name as a terminal may show it: what would move the cursor or colour what follows stands there as ``\\x1b``."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def _fault(name: str) -> str:
    """Why a name is no place inside of a folder; nothing where it is one."""
    parts = name.split("/")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return "holds a control character"
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):  # so Python reads file names of other encodings
        return "is not UTF-8"
    if name.startswith("/"):
        return "is an absolute path"
    if not {"", ".", ".."}.isdisjoint(parts):
        return "leads out of its folder" if ".." in parts else "has an empty part"
    lengths = [len(part.encode()) for part in parts]
    if max(lengths) > _MOST_BYTES or sum(lengths) + len(lengths) > _MOST_BYTES_IN_ALL:
        return f"is too long for a file ({max(lengths)} bytes of at most {_MOST_BYTES})"
    return ""
