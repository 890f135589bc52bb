"""Datasets of HDF5 files that anybody may have written: their own data and nothing else.

HDF5 lets a name lead to another file (external link), and lets a dataset be put together from other files (virtual
dataset) or lie in one (external storage). So whoever sends a bag could have us read, and send on, any file of ours.
Values of changing length become Python objects. Artifacts and bags need none of that. A header may also promise any
number of values, for which memory would be taken before one of them is read. Beside `store`, a door to h5py.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import h5py

from wsi_mil.errors import ArtifactCorrupt

File = h5py.File
_HARD_LINK = 0  # H5L_TYPE_HARD; asking h5py whether a name is there would follow it
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
    found: list[str] = []
    outside: list[str] = []

    def visit(name: str, link: object) -> None:
        (outside if isinstance(link, h5py.ExternalLink) else found).append(name)

    file.visititems_links(visit)
    if outside:
        raise ArtifactCorrupt(f"{path}: {outside[0]} is a link to another file, which is not followed: {_REMEDY}")
    for name in found:
        is_soft = isinstance(file.get(name, getlink=True), h5py.SoftLink)
        if not is_soft and isinstance(item := file[name], h5py.Dataset):
            _require_here(path, item)
            yield name, item


def require_own_data(path: Path, found: h5py.Dataset) -> None:
    """Refuse a dataset whose data lie in another file, are objects, or cannot all lie in this one.

    Raises:
        ArtifactCorrupt: they do, are, or cannot.
    """
    _require_here(path, found)
    _require_credible(path, found)
    if found.dtype.hasobject:
        raise ArtifactCorrupt(f"{path}: {found.name} holds objects instead of numbers, and is not read: {_REMEDY}")


def _require_here(path: Path, found: h5py.Dataset) -> None:
    made = found.id.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        raise ArtifactCorrupt(f"{path}: the data of {found.name} lie in another file, and are not read: {_REMEDY}")


def _require_credible(path: Path, found: h5py.Dataset) -> None:
    """Refuse more values, or larger parts that are unpacked at once, than a file of this size can hold."""
    parts = math.prod(found.chunks or ()) * found.dtype.itemsize
    file_bytes, needed = path.stat().st_size, max(found.nbytes, parts)
    most = file_bytes * (_MOST_PACKED if found.id.get_create_plist().get_nfilters() else 1)
    if needed > max(most, _ALWAYS_BYTES):
        raise ArtifactCorrupt(
            f"{path}: {found.name} says that it takes {needed:,} bytes, more than a file of {file_bytes:,} can"
            " hold, and is not read: copy it again"
        )


def _own(path: Path, place: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    if place.id.links.get_info(name.encode()).type != _HARD_LINK:
        raise ArtifactCorrupt(f"{path}: {name} is a link, which is not followed: {_REMEDY}")
    return place[name]
