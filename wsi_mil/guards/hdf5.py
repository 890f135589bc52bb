"""Datasets of HDF5 files that anybody may have written: their own data and nothing else.

HDF5 lets a name lead to another file (external link), and lets a dataset be put together from other files (virtual
dataset) or lie in one (external storage). So whoever sends a bag could have us read, and send on, any file of ours.
Values of changing length become Python objects. Artifacts and bags need none of that. A header may also promise any
number of values, for which memory would be taken before one of them is read. Beside `store`, a door to h5py.
"""

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5o  # ty: ignore[missing-module-member]

from wsi_mil.errors import ArtifactCorrupt

File = h5py.File
_HARD_LINK, _SOFT_LINK = 0, 1  # H5L_TYPE_HARD, _SOFT; asking h5py whether a name is there would follow it
_TEXT = h5py.h5t.py_create(h5py.string_dtype())
_NO_VALUE = h5py.h5t.TypeVlenID | h5py.h5t.TypeReferenceID  # texts are a kind of their own
_MOST_PACKED = 1100  # times that deflate packs zeros (1032), and what others of HDF5's filters do to features
_ALWAYS_BYTES = 1 << 16  # as many as an honest dataset has that nobody wrote to
_REMEDY = "write the data themselves into it, such as by h5repack, if you trust who made it"


def dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of a file that holds all its data itself.

    Args:
        path: of the file, for messages.
        file: the file, open.
        name: of the dataset; "/" leads into groups.

    Raises:
        KeyError: there is none of that name.
        ArtifactCorrupt: the name is a link, or the data lie elsewhere or are objects.
    """
    found: h5py.Group | h5py.Dataset = file
    for part in name.split("/"):
        if not isinstance(found, h5py.Group):
            raise KeyError(f"dataset {name}")
        found = _own(path, found, part)
    if not isinstance(found, h5py.Dataset):
        raise KeyError(f"dataset {name}")
    require_own_data(path, found)
    return found


def datasets(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the datasets at the root of a file, each as `dataset` does; groups are passed over."""
    found = {name: _own(path, file, name) for name in file}
    own = {name: item for name, item in found.items() if isinstance(item, h5py.Dataset)}
    for item in own.values():
        require_own_data(path, item)
    return own


def all_datasets(path: Path, file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield every dataset below the root by its name, ``group/dataset``, whatever type its values have.

    Raises:
        ArtifactCorrupt: something leads to another file.
    """
    for name in _all_names(path, file):
        if isinstance(item := file[name], h5py.Dataset):
            told = name.decode()
            _require_here(path, told, item.id.get_create_plist())
            yield told, item


def places_of_data(path: Path, file: h5py.File) -> Iterator[tuple[int, int]]:
    """Yield where in the file the data of every dataset lie: first byte, and bytes.

    By HDF5's own functions, as this is asked of every file before anything else is read of it.

    Raises:
        ArtifactCorrupt: as `all_datasets`.
    """
    for name in _all_names(path, file):
        found: Any = h5o.open(file.id, name)
        if not isinstance(found, h5py.h5d.DatasetID):
            continue
        made = found.get_create_plist()
        _require_here(path, name.decode(errors="replace"), made)
        if made.get_layout() == h5py.h5d.CHUNKED:
            parts: list[tuple[int, int]] = []
            found.chunk_iter(lambda chunk, parts=parts: parts.append((chunk.byte_offset, chunk.size)))
            yield from parts
        elif (offset := found.get_offset()) is not None:
            yield offset, found.get_storage_size()


def _all_names(path: Path, file: h5py.File) -> list[bytes]:
    """What lies in a file, in groups too; names that lead to another one of the same file are passed over."""
    links = list[tuple[bytes, int]]()
    file.id.links.visit(lambda name, link: links.append((name, link.type)), info=True)
    found = [name for name, kind in links if kind == _HARD_LINK]
    outside = [name for name, kind in links if kind not in (_HARD_LINK, _SOFT_LINK)]
    if outside:
        shown = outside[0].decode(errors="replace")
        raise ArtifactCorrupt(f"{path}: {shown} is a link to another file, which is not followed: {_REMEDY}")
    return found


def attributes(place: h5py.File | h5py.Dataset, only: Collection[str] | None = None) -> dict[str, Any]:
    """The attributes of a file's root or of a dataset by name, as plain Python values: they compare and serialise.

    One text or one number, as nearly all are, is read by HDF5's own functions, in half of the time that h5py's
    `attrs` takes: a folder may hold a million artifacts.

    Args:
        place: the file or dataset.
        only: those that are wanted, as far as they are there; None = all.
    """
    found: list[bytes] = []
    h5py.h5a.iterate(place.id, lambda name, *_: found.append(name))
    named = {name.decode(errors="backslashreplace"): name for name in found}
    return {name: _attribute(place, at) for name, at in named.items() if only is None or name in only}


def plain(value: Any) -> Any:
    """A value of NumPy, or bytes, as a value of Python."""
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _attribute(place: h5py.File | h5py.Dataset, name: bytes) -> Any:
    found = h5py.h5a.open(place.id, name)
    kind: Any = found.get_type()
    if isinstance(kind, _NO_VALUE):  # one flipped bit makes a list of a text, at which HDF5 ends the process
        raise ValueError(f"its attribute {name.decode(errors='replace')} holds a list or a reference")
    if found.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
        return plain(place.attrs[name])
    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
        text = np.empty((), object)
        found.read(text, mtype=_TEXT)
        return text.item().decode("utf-8", "surrogateescape")
    if isinstance(kind, h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID):
        cell = np.empty((), kind.dtype)
        found.read(cell, mtype=kind)
        return cell.item()
    return plain(place.attrs[name])


def require_own_data(path: Path, found: h5py.Dataset) -> None:
    """Refuse a dataset whose data lie in another file, are objects, or cannot all lie in this one.

    Raises:
        ArtifactCorrupt: they do, are, or cannot.
    """
    made = found.id.get_create_plist()
    _require_here(path, str(found.name), made)
    _require_credible(path, found, made)
    if found.dtype.hasobject:
        raise ArtifactCorrupt(f"{path}: {found.name} holds objects instead of numbers, and is not read: {_REMEDY}")


def _require_here(path: Path, name: str, made: Any) -> None:
    """Refuse a dataset of whose creation properties one says that its data lie elsewhere."""
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        raise ArtifactCorrupt(f"{path}: the data of {name} lie in another file, and are not read: {_REMEDY}")


def _require_credible(path: Path, found: h5py.Dataset, made: Any) -> None:
    """Refuse more values, or larger parts that are unpacked at once, than a file of this size can hold."""
    parts = math.prod(found.chunks or ()) * found.dtype.itemsize
    file_bytes, needed = path.stat().st_size, max(found.nbytes, parts)
    most = file_bytes * (_MOST_PACKED if made.get_nfilters() else 1)
    if needed > max(most, _ALWAYS_BYTES):
        raise ArtifactCorrupt(
            f"{path}: {found.name} says that it takes {needed:,} bytes, more than a file of {file_bytes:,} can"
            " hold, and is not read: copy it again"
        )


def _own(path: Path, place: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    if place.id.links.get_info(name.encode()).type != _HARD_LINK:
        raise ArtifactCorrupt(f"{path}: {name} is a link, which is not followed: {_REMEDY}")
    return place[name]
