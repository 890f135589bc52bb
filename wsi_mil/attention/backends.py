"""Which code computes a part of attention: modules with the functions that `wsi_mil.attention.operands` describes."""

import importlib
import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

from wsi_mil.errors import OptionError

MODULES = {"triton": "cuda", "numba": "fused", "tiled": "tiled"}
"""Backends, fastest first, and their modules here."""
TAKES_HALF = {"triton"}
"""The others compute in float32 at least."""
_TRITON_DIM = 256  # blocks of larger heads do not fit the shared memory of a multiprocessor
_PACKAGES = {"triton": "triton", "numba": "'wsi-mil[fast]'"}


def choose(backend: str, q: Tensor, v: Tensor) -> str:
    """The backend that computes on such queries and values; ``auto`` takes the fastest that is there.

    Raises:
        OptionError: the backend is not installed, or cannot take such tensors.
    """
    dim = max(q.shape[-1], v.shape[-1])
    able = {
        "triton": (q.device.type == "cuda" or _interpreted()) and q.dtype != torch.float64 and dim <= _TRITON_DIM,
        "numba": q.device.type == "cpu" and q.dtype != torch.float64,
        "tiled": True,
    }
    installed = {name: name == "tiled" or importlib.util.find_spec(name) is not None for name in MODULES}
    if backend == "auto":
        backend = next(name for name in MODULES if able[name] and installed[name])
    if not installed[backend]:
        raise OptionError(f"backend {backend} is not installed: pip install {_PACKAGES[backend]}, or take another")
    if not able[backend]:
        kind = f"{q.dtype} of {dim} dimensions on {q.device.type}"
        raise OptionError(f"backend {backend} cannot take {kind}: take auto or tiled")
    return backend


def _interpreted() -> bool:
    """Whether Triton has been told to run kernels, slowly, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def module_of(backend: str) -> ModuleType:
    """Import a backend when it is needed: Numba and Triton are optional, and slow to import."""
    return importlib.import_module(f"wsi_mil.attention.{MODULES[backend]}")
