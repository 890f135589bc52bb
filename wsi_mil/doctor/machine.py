"""Cores, memory, GPUs, and the disks that are written to."""

import os
import shutil
import stat
import tempfile
from functools import partial
from pathlib import Path

from wsi_mil.doctor.findings import FAIL, NO_TEMPORARY, OK, WARN, Check, Finding
from wsi_mil.publishing import existing

_GIB = 1 << 30
_LITTLE_MEMORY, _LITTLE_DISK, _NO_DISK = 4 * _GIB, 20 * _GIB, _GIB // 2
_NVIDIA = Path("/proc/driver/nvidia/version")
_TRIED = 1 << 16  # bytes


def devices() -> list[Check]:
    """What computes."""
    return [
        Check("devices", "CPU", _cores),
        Check("devices", "memory", _memory, "it is read from /proc, as Linux has it: wsimil is tested nowhere else"),
        Check("devices", "CUDA", _cuda, "reinstall torch, or the GPU's driver"),
        Check("devices", "MPS", _mps),
    ]  # fmt: skip


def places() -> list[Check]:
    """Where files go."""
    return [
        Check("places", "cache folder", _cache, "name a folder that you may write to by WSIMIL_HOME"),
        Check("places", "disk of the cache", lambda: _disk(existing(_home()), "WSIMIL_HOME")),
        Check("places", "working folder", partial(_writable, Path())),
        Check("places", "disk of the working folder", lambda: _disk(Path().absolute(), "--out")),
        Check("places", "temporary folder", lambda: _writable(Path(tempfile.gettempdir()), "TMPDIR"), NO_TEMPORARY),
        Check(
            "places", "disk of the temporary folder", lambda: _disk(Path(tempfile.gettempdir()), "TMPDIR"), NO_TEMPORARY
        ),
    ]


def _cores() -> Finding:
    from wsi_mil.executors import available_cores

    mine, there = available_cores(), os.cpu_count() or 1
    told = f"{mine} of {there} cores, as affinity and control group allow"
    if mine == 1 < there:
        return Finding(WARN, told, "ask the scheduler for more: every stage reads slides in threads")
    return Finding(OK, told)


def _memory() -> Finding:
    from wsi_mil.memory import available_memory

    free = available_memory()
    told = f"{free / _GIB:.1f} GiB to be had, as the machine and control groups allow"
    if free < _LITTLE_MEMORY:
        return Finding(WARN, told, "large encoders take several GiB: ask the scheduler for more, or close programs")
    return Finding(OK, told)


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = "; ".join(f"{one.name}, {one.total_memory / _GIB:.0f} GiB" for one in found)
        return Finding(OK, f"{names} (CUDA {torch.version.cuda})")
    if _NVIDIA.exists():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        return Finding(WARN, f"an NVIDIA driver is here, but {built} and sees no GPU",
                       "install torch for the driver's CUDA (pytorch.org), or see CUDA_VISIBLE_DEVICES")  # fmt: skip
    return Finding(OK, "none; encoders run on the CPU, the large ones slowly")


def _mps() -> Finding:
    import torch

    there = torch.backends.mps.is_available()
    return Finding(OK, "there, and not used by wsimil (--device auto, cpu, cuda)" if there else "none")


def _home() -> Path:
    from wsi_mil.encoders.cache import folder

    return folder().parent


def _cache() -> Finding:
    home = _home()
    if not home.exists():
        where = existing(home)
        if os.access(where, os.W_OK | os.X_OK):
            return Finding(OK, f"{home} is not there yet, and will be made")
        return Finding(WARN, f"{home} cannot be made, as {where} is not yours to write to",
                       "name another folder by WSIMIL_HOME")  # fmt: skip
    sizes = [size for path in home.rglob("*") if (size := _file_size(path)) is not None]
    found = _writable(home, "WSIMIL_HOME")
    return Finding(found.status, f"{found.told}; {len(sizes)} files, {sum(sizes) / _GIB:.2f} GiB", found.remedy)


def _file_size(path: Path) -> int | None:
    """Bytes of a file; None of what is none, or was removed meanwhile."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _writable(folder: Path, option: str = "--out") -> Finding:
    """Whether something can be written there: only trying tells; a full disk still has room for an empty file."""
    place = folder.absolute()
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(_TRIED))
            file.flush()
            os.fsync(file.fileno())
            return Finding(OK, f"{place} can be written to")
    except OSError as error:
        return Finding(WARN, f"{place} cannot be written to ({error.strerror})", f"name another folder by {option}")


def _disk(folder: Path, option: str) -> Finding:
    free = shutil.disk_usage(folder).free
    told = f"{free / _GIB:,.1f} GiB free at {folder}"
    remedy = f"make room there, or name a folder on another disk by {option}"
    if free < _NO_DISK:
        return Finding(FAIL, told, remedy)
    return Finding(WARN, told, remedy) if free < _LITTLE_DISK else Finding(OK, told)
