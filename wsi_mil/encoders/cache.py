"""Weight files kept on this machine by `wsimil weights add`.

    <WSIMIL_HOME>/weights/<sha256>.safetensors (or .pth)    a weight file: what it holds is what it is called
    <WSIMIL_HOME>/weights/<published file>.json             which of them the encoders of that file take

Files appear whole or not at all, and a file never changes, so that two processes may add at once: each file is there,
and the record is that of whoever came last. Encoders that share a published file (virchow2 and virchow2-cls) share it
here. Without ``WSIMIL_HOME`` the folder is ``wsi_mil`` in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``).
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import StorageError, WeightsError, one_line
from wsi_mil.guards import parse_json
from wsi_mil.home import home
from wsi_mil.publishing import replacing, sweep, write_bytes
from wsi_mil.weights import sniff

_SUFFIXES = {"safetensors": ".safetensors", "torch": ".pth"}
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Kept:
    """A weight file in the cache."""

    encoder: str
    """The name that it was added under."""
    sha256: str
    """Of the file, 64 hexadecimal digits."""
    suffix: str
    """".safetensors" or ".pth"."""
    origin: str
    """Where it was copied from."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        return folder() / (self.sha256 + self.suffix)


def folder() -> Path:
    """Where the weight files lie.

    Raises:
        OptionError: the user has no home folder, and ``WSIMIL_HOME`` names none.
    """
    return home() / "weights"


def kept(spec: EncoderSpec) -> Kept | None:
    """What the cache has for an encoder.

    Raises:
        WeightsError: it says that it has a file, and has not, so that other weights than the user added would be taken.
    """
    record = _record(spec)
    if not record.is_file():
        return None
    found = _read(record)
    if not found.path.is_file():
        again = f"`wsimil weights add {found.encoder} FILE`, or delete {record}"
        raise WeightsError(f"{found.path} is gone, the weights that were added for {found.encoder}: {again}")
    return found


def keeps(hub_id: str, hub_file: str) -> bool:
    """Whether weights were added for a file of the hub's."""
    return _record_of(f"{hub_id}/{hub_file}").is_file()


def everything_kept() -> list[Kept]:
    """The records of the cache, in order of their names."""
    return [_read(record) for record in sorted(folder().glob("*.json"))]


def by_sha256(sha256: str) -> Path | None:
    """Return the weight file of that hash, if the cache has it, whatever encoder it was added for."""
    if not re.fullmatch("[0-9a-f]{64}", sha256):  # it may come from a file of anybody's
        return None
    paths = [folder() / (sha256 + suffix) for suffix in _SUFFIXES.values()]
    return next((path for path in paths if path.is_file()), None)


def keep(spec: EncoderSpec, file: Path, sha256: str) -> Kept:
    """Copy a weight file into the cache, and record it for its encoder.

    Args:
        spec: of the encoder that will take it.
        file: the file, verified already.
        sha256: of what was verified; a file that changes meanwhile is refused.

    Raises:
        WeightsError: it cannot be copied, as when the disk is full; nothing of it is left then.
    """
    entry = Kept(spec.name, sha256, _SUFFIXES[sniff(file)], str(file.resolve()))
    try:
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        sweep(entry.path.parent)
        with replacing(entry.path) as temporary:
            if _copy(file, temporary) != sha256:
                raise WeightsError(f"{file} changed while it was copied: add it again when it is whole")
        write_bytes(_record(spec), json.dumps(dataclasses.asdict(entry), sort_keys=True).encode())
    except (OSError, StorageError) as error:
        why = error.__cause__ if isinstance(error, StorageError) else error
        told = why.strerror if isinstance(why, OSError) else one_line(error)
        advice = "make room there, or name another folder by WSIMIL_HOME"
        raise WeightsError(f"{file} cannot be copied to {entry.path.parent} ({told}): {advice}") from error
    return entry


def _record(spec: EncoderSpec) -> Path:
    return _record_of(f"{spec.hub_id}/{spec.hub_file}" if spec.hub_id else spec.name)


def _record_of(published: str) -> Path:
    return folder() / f"{quote(published, safe='')}.json"


def _read(record: Path) -> Kept:
    try:
        return Kept(**parse_json(record.read_text()))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{record} is damaged ({error}): delete it, and run `wsimil weights add` again") from error


def _copy(source: Path, target: Path) -> str:
    """Copy a file, and return the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()
