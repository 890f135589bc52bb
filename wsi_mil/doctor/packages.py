"""Versions of what is needed, and what the extras would bring."""

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from wsi_mil import __version__
from wsi_mil.doctor.findings import FAIL, OK, WARN, Check, Finding

_PYTHON = (3, 11)
_NEEDED = {
    "numpy": "numpy", "scipy": "scipy", "scikit-image": "skimage", "pillow": "PIL", "pandas": "pandas",
    "h5py": "h5py", "shapely": "shapely", "safetensors": "safetensors", "openslide-python": "openslide",
    "openslide-bin": "openslide_bin", "tifffile": "tifffile", "imagecodecs": "imagecodecs",
    "simplejpeg": "simplejpeg", "huggingface-hub": "huggingface_hub", "lightning-fabric": "lightning_fabric",
    "jinja2": "jinja2", "openpyxl": "openpyxl", "xxhash": "xxhash",
}  # fmt: skip
"""By the name to install, the one to import."""
_PAIR = (
    "install torch and torchvision from one index, such as pip install torch torchvision --index-url"
    " https://download.pytorch.org/whl/cpu"
)
_TRAP = "operator torchvision::"


class Extra(NamedTuple):
    """Something that wsimil does without."""

    module: str
    brings: str
    install: str


EXTRAS = (
    Extra("distributed", "`--scheduler`: slides on a Dask cluster", "pip install 'wsi-mil[cluster]'"),
    Extra("numba", "attention on a CPU in less than half the time, faster resampling", "pip install 'wsi-mil[fast]'"),
    Extra("optuna", "`wsimil crossval --search`: options chosen within the training patients",
          "pip install 'wsi-mil[search]'"),
    Extra("pydicom", "DICOM slides decoded directly, several times as fast", "pip install 'wsi-mil[dicom]'"),
    Extra("s3fs", "slides at s3:// and https:// addresses", "pip install 'wsi-mil[remote]'"),
    Extra("triton", "attention on an NVIDIA GPU in fused kernels", "pip install triton (Linux)"),
    Extra("tensorboard", "curves of a training while it runs", "pip install tensorboard"),
)  # fmt: skip


def versions() -> list[Check]:
    """Python, wsi_mil, and everything that it needs."""
    own = [
        Check("versions", "python", _python),
        Check("versions", "wsi_mil", lambda: Finding(OK, __version__)),
        Check("versions", "torch", partial(_package, "torch", "torch"), _PAIR),
        Check("versions", "torchvision", _torchvision, _PAIR),
        Check("versions", "timm", _timm, _PAIR),
    ]
    return own + [
        Check("versions", name, partial(_package, name, module), f"pip install --force-reinstall {name}")
        for name, module in _NEEDED.items()
    ]


def extras() -> list[Check]:
    """What could be installed besides."""
    return [Check("extras", extra.module, partial(_extra, extra)) for extra in EXTRAS]


def _python() -> Finding:
    told = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < _PYTHON:
        return Finding(FAIL, told, "install Python 3.11 or newer, and wsimil in it")
    return Finding(OK, told)


def _package(name: str, module: str, load: Callable[[], Any] | None = None) -> Finding:
    """Import something that is needed, and compare its version with the one that is asked for."""
    (load or partial(importlib.import_module, module))()
    version = importlib.metadata.version(name)
    wanted = _wanted().get(name, "")
    if wanted and not _fits(version, wanted):
        return Finding(FAIL, f"{version}, and {wanted} is needed", f"pip install '{name}{wanted}'")
    return Finding(OK, version)


def _torchvision() -> Finding:
    """torchvision, which dies beside a torch that it was not built for; wsimil goes around that."""
    try:
        return _package("torchvision", "torchvision")
    except RuntimeError as error:
        if _TRAP not in str(error):
            raise
        pair = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torchvision", "torch"))
        told = f"{error}: {pair} were not built for each other; wsimil goes around that, other programs may not"
        return Finding(WARN, told, _PAIR)


def _timm() -> Finding:
    from wsi_mil.encoders._timm import import_timm

    return _package("timm", "timm", import_timm)


def _extra(extra: Extra) -> Finding:
    if importlib.util.find_spec(extra.module) is None:
        return Finding(OK, f"not installed; would bring {extra.brings}", extra.install)
    try:
        importlib.import_module(extra.module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Finding(WARN, f"is installed and does not load ({error}), so no {extra.brings}", extra.install)
    owners = importlib.metadata.packages_distributions().get(extra.module, [])  # not always called as the module is
    versions = ", ".join(sorted({importlib.metadata.version(owner) for owner in owners}))
    return Finding(OK, f"{versions or 'installed'}: {extra.brings}")


def _wanted() -> dict[str, str]:
    """By the name of a package, the versions that wsi-mil asks for; nothing where wsi-mil itself was not installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("wsi-mil") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    asked = [Requirement(line) for line in lines]
    return {one.name: str(one.specifier) for one in asked if one.marker is None}


def _fits(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)
