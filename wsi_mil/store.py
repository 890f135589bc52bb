"""HDF5 artifacts: atomic, self-describing, fingerprinted. With `guards.hdf5` the only door to h5py.

Two promises hold everywhere:

* **Existence means complete** (`wsi_mil.publishing`).
* **An artifact says what decided its content.** Its ``fingerprint`` hashes the stage, the stage's version, its
  parameters and the fingerprint of what it was made from; its ``checksum`` hashes datasets and attributes, and is
  verified the first time a process reads the file.

``docs/format.md`` specifies the layout.
"""

import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from wsi_mil.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from wsi_mil.guards import hdf5, parse_json
from wsi_mil.guards.heaps import require_sound_heaps
from wsi_mil.publishing import replacing

FORMAT_VERSION = 1
FINGERPRINT = re.compile("[0-9a-f]{32}")
_REMEDY = "run the command that made it again, with --overwrite"
_FOREIGN_REMEDY = "copy it again, or make it again with the program that wrote it"
_verified: set[tuple[str, int, int]] = set()
_BLOCK_BYTES = 1 << 26
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""Of the system, whose files may be whole."""
# What h5py turns damage into.
_DAMAGE = (KeyError, RuntimeError, TypeError, ValueError, AttributeError, OverflowError, SystemError)


@dataclass(frozen=True)
class Artifact:
    """What one HDF5 artifact holds."""

    arrays: dict[str, np.ndarray]
    """Datasets by name."""
    attrs: dict[str, Any] = field(default_factory=dict)
    """Attributes of the root: numbers, strings, booleans."""
    array_attrs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Attributes of a dataset, by the dataset's name."""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that made the artifact."""
        return parse_json(self.attrs.get("params", "{}"))


@dataclass(frozen=True)
class Survey:
    """What any HDF5 file holds, told without reading its arrays. Datasets in groups are named ``group/dataset``."""

    attrs: dict[str, Any]
    """Attributes of the root."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the datasets."""
    dtypes: dict[str, str]
    """Types of their values, as NumPy names them."""
    array_attrs: dict[str, dict[str, Any]]
    """Their attributes."""

    @property
    def is_artifact(self) -> bool:
        """Whether it says of itself that wsimil wrote it."""
        return {"format_version", "stage", "fingerprint"} <= self.attrs.keys()


def write(path: Path, artifact: Artifact) -> None:
    """Publish an artifact at ``path``: contiguous datasets, with format version and checksum added."""
    attrs = {**artifact.attrs, "format_version": FORMAT_VERSION}
    complete = Artifact(artifact.arrays, attrs, artifact.array_attrs)
    with replacing(path) as temporary, _Sink(temporary) as sink, h5py.File(sink, "w", locking=False) as file:
        for name, array in artifact.arrays.items():
            dataset = file.create_dataset(name, data=array)
            for key, value in artifact.array_attrs.get(name, {}).items():
                dataset.attrs[key] = value
        for key, value in attrs.items():
            file.attrs[key] = value
        file.attrs["checksum"] = checksum(complete)


class _Sink(io.FileIO):
    """A file for HDF5 to write to, which tells it of no error, and raises the first one when it is closed.

    HDF5 that cannot write its last block cannot close the file either: it prints tracebacks when the objects go, or
    ends the process.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, unless an earlier block could not be written."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while len(left) and not self.error:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.error = error
        return size

    def close(self) -> None:
        """Close it, and raise what went wrong."""
        super().close()
        error, self.error = self.error, None
        if error:
            raise error


def read(path: Path) -> Artifact:
    """Read a whole artifact, verifying its checksum the first time this process sees this version of the file.

    Raises:
        ArtifactMissing: there is no such file.
        ArtifactCorrupt: the file is truncated, is no HDF5 file, leads to another file, or its content does not match
            its checksum.
    """
    with _opened(path) as file:
        found = hdf5.datasets(path, file)
        arrays = {name: item[()] for name, item in found.items()}
        array_attrs = {name: hdf5.attributes(item) for name, item in found.items()}
        artifact = Artifact(arrays, hdf5.attributes(file), array_attrs)
    _verify(path, artifact)
    return artifact


def read_attrs(path: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """Read the root attributes of an artifact, or ``only`` some as far as they are there, without its arrays.

    The checksum is not verified.
    """
    with _opened(path) as file:
        return hdf5.attributes(file, only)


def read_attr(path: Path, name: str) -> Any:
    """Read one root attribute that every artifact of its kind has.

    Raises:
        ArtifactError: it is not there, so another program wrote the file.
    """
    found = read_attrs(path, {name})
    if name not in found:
        raise ArtifactError(
            f"{path} is no artifact of wsimil, as it says no {name}: take it out, or name another folder"
        )
    return found[name]


def read_fingerprint(path: Path) -> str:
    """Read the fingerprint of an artifact, and nothing else."""
    return read_attr(path, "fingerprint")


def survey(path: Path) -> Survey:
    """Tell what a file holds that anybody may have written.

    Raises:
        ArtifactMissing: there is no such file.
        ArtifactCorrupt: it is truncated, no HDF5 file, or leads to another file.
    """
    with _opened(path, _FOREIGN_REMEDY) as file:
        datasets = dict(hdf5.all_datasets(path, file))
        return Survey(
            hdf5.attributes(file),
            {name: tuple(item.shape) for name, item in datasets.items()},
            {name: str(item.dtype) for name, item in datasets.items()},
            {name: hdf5.attributes(item) for name, item in datasets.items()},
        )


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read some datasets of a file that anybody may have written.

    Raises:
        ArtifactMissing: there is no such file.
        ArtifactCorrupt: it is damaged, or lacks one of them.
    """
    with _opened(path, _FOREIGN_REMEDY) as file:
        return {name: hdf5.dataset(path, file, name)[()] for name in names}


def digest(path: Path, names: Collection[str]) -> str:
    """Digest (xxh3, 128 bits) of all that some datasets of anybody's file hold, of their attributes and of the root's.

    Raises:
        ArtifactMissing: there is no such file.
        ArtifactCorrupt: it is damaged, or lacks one of them.
    """
    found = xxhash.xxh3_128()
    with _opened(path, _FOREIGN_REMEDY) as file:
        found.update(repr(sorted(hdf5.attributes(file).items())).encode())
        for name in sorted(names):
            data = hdf5.dataset(path, file, name)
            found.update(repr((name, data.dtype.str, data.shape, sorted(hdf5.attributes(data).items()))).encode())
            rows = max(1, _BLOCK_BYTES * max(1, len(data)) // max(1, data.nbytes)) if data.shape else 1
            for start in range(0, len(data) if data.shape else 0, rows):
                found.update(data[start : start + rows].tobytes())
    return found.hexdigest()


def fingerprint(stage: str, version: int, params: Mapping[str, Any], upstream: str) -> str:
    """Hash everything that decides the content of an artifact.

    Args:
        stage: name of the stage.
        version: raised whenever the stage's code starts to give another result for the same input.
        params: the stage's parameters, JSON-serialisable.
        upstream: fingerprint of what the artifact is made from.

    Returns:
        32 hexadecimal digits.
    """
    text = json.dumps([stage, version, params, upstream], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def checksum(artifact: Artifact) -> str:
    """Digest (xxh3, 128 bits) of every dataset and attribute but ``checksum`` itself."""
    digest = xxhash.xxh3_128()
    for name in sorted(artifact.arrays):
        array = np.ascontiguousarray(artifact.arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data if array.size else b"")
        digest.update(_canonical(artifact.array_attrs.get(name, {})))
    digest.update(_canonical({key: value for key, value in artifact.attrs.items() if key != "checksum"}))
    return digest.hexdigest()


@contextmanager
def _opened(path: Path, remedy: str = _REMEDY) -> Generator[h5py.File]:
    # Published artifacts never change, so HDF5's file lock, which fails on many network file systems, is not wanted.
    try:
        with h5py.File(path, "r", locking=False) as file:
            require_sound_heaps(path, file)
            yield file
    except FileNotFoundError as error:
        raise ArtifactMissing(f"{path} does not exist: make it, or name where it lies") from error
    except PermissionError as error:
        raise ArtifactError(f"{path} cannot be read (permission denied): allow it, then type the same again") from error
    except OSError as error:
        if error.errno in _SHORTAGES:
            mend = "it may be whole: mend that, then type the same again"
            raise ArtifactError(f"{path} cannot be read now ({os.strerror(error.errno)}): {mend}") from error
        raise ArtifactCorrupt(f"{path} is damaged ({error}): {remedy}") from error
    except _DAMAGE as error:
        raise ArtifactCorrupt(f"{path} is damaged ({error}): {remedy}") from error


def _verify(path: Path, artifact: Artifact) -> None:
    status = path.stat()
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size)
    if key in _verified:
        return
    recorded = artifact.attrs.get("checksum")
    if recorded is None:
        raise ArtifactCorrupt(f"{path} has no checksum, so wsimil did not write it: {_REMEDY}")
    try:
        found = checksum(artifact)
    except (TypeError, ValueError) as error:  # attributes that never were ours
        raise ArtifactCorrupt(f"{path} is damaged ({error}): {_REMEDY}") from error
    if recorded != found:
        raise ArtifactCorrupt(f"{path} does not match its checksum: {_REMEDY}")
    _verified.add(key)


def _canonical(attrs: Mapping[str, Any]) -> bytes:
    return json.dumps({key: hdf5.plain(value) for key, value in attrs.items()}, sort_keys=True).encode()
