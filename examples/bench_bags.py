"""Reading bags back for training: `python bench_bags.py [--bags feats/]`.

Bags of uneven length are written as `wsimil extract` writes them (or `--bags` names a folder of them), and read by
`read_bag`, by `store.read` and, for the limit, by `numpy.fromfile`, as many bytes from plain files. Each in two states
of the machine: "warm", the files being in the memory of the operating system, and "cold", after it was asked to forget
them (it may not, and the disk below may have a memory of its own). "First" reads verify checksums, as the first read in
a process does. Figures are medians of `--rounds`, which take turns. Prints Markdown.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from wsi_mil import store
from wsi_mil.bags import read_bag

Reader = Callable[[Path], object]


def write_bags(folder: Path, count: int, tiles: int, dim: int) -> None:
    """Write bags of a quarter of so many tiles, to so many."""
    rng = np.random.default_rng(0)
    for index, share in enumerate(np.linspace(0.25, 1.0, count)):
        length = max(1, int(tiles * share))
        arrays = {
            "features": rng.standard_normal((length, dim), np.float32).astype(np.float16),
            "coords": rng.integers(0, 100_000, (length, 2)),
        }
        attrs = {"stage": "extract", "slide_id": f"slide-{index}", "mpp_x": 0.5, "mpp_y": 0.5}
        attrs |= {"l0_tile_width": 512, "l0_tile_height": 512}
        store.write(folder / f"slide-{index}.h5", store.Artifact(arrays, attrs))


def forget(paths: list[Path]) -> None:
    """Ask the operating system to keep nothing of some files in memory."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def seconds(read: Reader, paths: list[Path], cold: bool) -> float:
    """Time to read all files, one after the other."""
    if cold:
        forget(paths)
    began = time.perf_counter()
    for path in paths:
        read(path)
    return time.perf_counter() - began


def first(path: Path) -> object:
    """Read a bag as a process does that has not seen it before: written anew, its checksum is verified."""
    os.utime(path)
    return read_bag(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bags", type=Path, help="a folder of features, which are left as they are")
    parser.add_argument("--count", type=int, default=20, help="of bags")
    parser.add_argument("--tiles", type=int, default=15_000, help="of the longest")
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if not options.bags:
            write_bags(Path(name), options.count, options.tiles, options.dim)
        bags = sorted((options.bags or Path(name)).rglob("*.h5"))
        plain = [Path(name) / f"{index}.bin" for index in range(len(bags))]
        for path, copy in zip(bags, plain, strict=True):
            copy.write_bytes(path.read_bytes())
        size = sum(path.stat().st_size for path in bags)
        ways: dict[str, tuple[Reader, list[Path]]] = {
            "numpy.fromfile": (lambda path: np.fromfile(path, np.float16, path.stat().st_size // 2), plain),
            "store.read": (store.read, bags),
            "read_bag (float32)": (read_bag, bags),
        }
        if not options.bags:
            ways["read_bag, first"] = (first, bags)
        states = [state for state in ("warm", "cold") if state == "warm" or hasattr(os, "posix_fadvise")]
        for read, paths in ways.values():
            seconds(read, paths, cold=False)
        taken: dict[tuple[str, str], list[float]] = {(state, way): [] for state in states for way in ways}
        for _ in range(options.rounds):
            for (state, way), found in taken.items():
                found.append(seconds(*ways[way], cold=state == "cold"))
        print(f"{len(bags)} bags, {size / 1e9:.2f} GB, medians of {options.rounds} rounds\n")
        print("| files | read by | bags/s | GB/s | by numpy.fromfile |\n| :-- | :-- | --: | --: | --: |")
        for (state, way), found in taken.items():
            middle = median(found)
            ratio = middle / median(taken[state, "numpy.fromfile"])
            print(f"| {state} | {way} | {len(bags) / middle:.1f} | {size / middle / 1e9:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
