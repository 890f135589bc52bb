"""HDF5 files that are whole and say what cannot be meant: attributes, types, shapes, and sizes that nobody wrote."""

import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wsi_mil import store

_VALUES: tuple[Any, ...] = (
    -1, 0, 1, 7, 2**31, 2**62, 0.0, -0.5, 1e-300, 1e300, float("nan"), float("inf"), "", "None", "x", "../../x", "NaN",
    "\x1b[2J", "z" * 5000, "[" * 2000, "{}", "[]", "null", '{"encoder": 1}', '{"a": NaN}', b"bytes", b"\xff\xfe", True,
    np.zeros(0), np.zeros(3), np.array([[1, 2], [3, 4]]), np.array(["a", "b"], "S1"), np.array([np.nan, np.inf]),
    np.void(b"abc"), np.complex128(1j), np.float16(3), np.uint8(200), h5py.Empty("f"), h5py.Empty("S1"),
    [2**63 - 1, -(2**63)], np.zeros(2, [("a", "i4"), ("b", "f8")]), np.array(["x", "y"], h5py.string_dtype()),
    "done", "empty", "import", "extract", "tile", "distances", "um", "px", "tile_params",
)  # fmt: skip
_TYPES = ("<f2", "<f4", "<f8", ">f8", "<i8", ">i4", "u1", "<u8", "S4", "c16", "?", "V8")
_HUGE = ((1 << 31, 2), (1 << 21, 1 << 10), (1 << 40, 1), (1 << 32,), (3, 1 << 40))


def lie(rng: random.Random, path: Path) -> None:
    """Change one to four things in a file, and seal it again as `store` does, three times of four."""
    with h5py.File(path, "r+") as file:
        for _ in range(rng.choice((1, 1, 2, 4))):
            holder = rng.choice([file, *(item for item in file.values() if isinstance(item, h5py.Dataset))])
            _change_attribute(rng, holder) if rng.random() < 0.6 else _change_dataset(rng, file)
    if rng.random() < 0.75:
        _seal(path)


def _change_attribute(rng: random.Random, holder: h5py.File | h5py.Dataset) -> None:
    known = sorted(holder.attrs)
    name = rng.choice(known) if known and rng.random() < 0.9 else rng.choice(("mpp", "checksum", "unit", "classes"))
    if name in holder.attrs:
        del holder.attrs[name]
    if rng.random() < 0.8:
        holder.attrs[name] = rng.choice(_VALUES)


def _change_dataset(rng: random.Random, file: h5py.File) -> None:
    names = sorted(file)
    if not names:
        return
    name = rng.choice(names)
    before = file[name]
    attrs = {key: _writable(value) for key, value in before.attrs.items()}
    shape = tuple(min(side, 64) for side in (before.shape if isinstance(before, h5py.Dataset) else None) or (3,))
    del file[name]
    match rng.randrange(9):
        case 0:
            return
        case 1:
            file.create_group(name)
        case 2:
            file[name] = h5py.Empty("f4")
        case 3 | 4:
            made = file.create_dataset(name, rng.choice(_HUGE), rng.choice(_TYPES), chunks=True)
            made.attrs.update(attrs)
        case 5:
            values = np.zeros(shape or (1,), rng.choice(("<f2", "<f4", "<f8")))
            values.flat[: rng.randrange(1, 4)] = rng.choice((np.nan, np.inf, -np.inf, 6e4))
            file.create_dataset(name, data=values).attrs.update(attrs)
        case 6:
            file.create_dataset(name, data=np.full(shape or (1,), rng.choice((-(2**63), 2**63 - 1, 2**40, -1))))
            file[name].attrs.update(attrs)
        case _:
            sides = [rng.choice((0, 1, 2, 5, side)) for side in shape or (1,)]
            sides = sides[: rng.choice((0, 1, 2))] if rng.random() < 0.5 else [*sides, rng.choice((1, 2))][:3]
            file.create_dataset(name, tuple(sides), rng.choice(_TYPES)).attrs.update(attrs)


def _writable(value: Any) -> Any:
    """A value as HDF5 takes it: text that was damaged before holds what is no character."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _seal(path: Path) -> None:
    """Write the checksum of what the file holds now: whoever can write a file can do so."""
    try:
        with h5py.File(path, "r+") as file:
            held = sum(item.nbytes for item in file.values() if isinstance(item, h5py.Dataset))
            if held > 1 << 20:
                return
            arrays = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}
            array_attrs = {name: store._plain(file[name].attrs) for name in arrays}
            file.attrs["checksum"] = store.checksum(store.Artifact(arrays, store._plain(file.attrs), array_attrs))
    except (TypeError, ValueError, AttributeError, OSError):
        pass  # what no checksum can be made of stays as it is
