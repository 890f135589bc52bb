"""Which code computes a part of attention: modules with the functions that `wsi_mil.attention.operands` describes."""

import importlib
import importlib.util
import os
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from wsi_mil.errors import OptionError

MODULES = {"triton": "cuda", "numba": "fused", "tiled": "tiled"}
"""Backends, fastest first, and their modules here."""
TAKES_HALF = {"triton"}
"""They get operands as they came, and scale scores themselves; the others compute in float32 at least."""
INTERPRETED = {torch.float16, torch.float32}
"""Types that Triton's interpreter computes with; bits of bfloat16 it multiplies as if they were whole numbers."""
_TRITON_DIM = 256  # blocks of larger heads do not fit the shared memory of a multiprocessor
_PACKAGES = {"triton": "triton", "numba": "'wsi-mil[fast]'"}


def choose(backend: str, q: Tensor, v: Tensor) -> str:
    """The backend that computes on such queries and values; ``auto`` takes the fastest that is there.

    Raises:
        OptionError: the backend is not installed, or cannot take such tensors.
    """
    dim, on = max(q.shape[-1], v.shape[-1]), q.device.type
    able = {
        "triton": (_fit_gpu(q.device) or (backend != "auto" and _interpreted()))
        and q.dtype != torch.float64
        and dim <= _TRITON_DIM
        and not _garbled(q),
        "numba": on == "cpu" and q.dtype != torch.float64,
        "tiled": True,
    }
    if backend == "auto":
        return next(name for name in MODULES if able[name] and _hindrance(name, True) is None)
    if hindrance := _hindrance(backend, False):
        raise OptionError(f"backend {backend} {hindrance}")
    if backend == "triton" and _garbled(q):
        raise OptionError(f"Triton's interpreter cannot take {q.dtype}: unset TRITON_INTERPRET, or take auto or tiled")
    if not able[backend]:
        raise OptionError(f"backend {backend} cannot take {q.dtype} of {dim} dimensions on {on}: take auto or tiled")
    return backend


@cache
def _hindrance(backend: str, warn: bool) -> str | None:
    """Why a backend cannot be used here, found out once; what is installed but broken is worth a warning."""
    if backend == "tiled":
        return None
    if importlib.util.find_spec(backend) is None:
        return f"is not installed: pip install {_PACKAGES[backend]}, or take another"
    try:
        module_of(backend)
    except ImportError as error:
        if warn:
            warnings.warn(f"attention does without {backend}, which cannot be imported: {error}", stacklevel=2)
        return f"cannot be imported: {error}"
    return None


def _fit_gpu(device: torch.device) -> bool:
    """Whether it is a GPU that knows the kernels' instructions: NVIDIA's, Ampere or later."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _interpreted() -> bool:
    """Whether Triton has been told to run kernels, slowly, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _garbled(q: Tensor) -> bool:
    """Whether Triton would run, but compute something else than it was asked for."""
    return _interpreted() and q.dtype not in INTERPRETED


def module_of(backend: str) -> ModuleType:
    """Import a backend when it is needed: Numba and Triton are optional, and slow to import."""
    return importlib.import_module(f"wsi_mil.attention.{MODULES[backend]}")
