"""timm, made importable beside a torch without CUDA.

timm imports torchvision, and the torchvision of PyPI is built for CUDA: beside a CPU torch its C++ library does not
load, and its import dies of ``operator torchvision::nms does not exist`` (pytorch/vision#9077). Nothing of what it
lacks then is needed here, so the two operators whose absence kills the import are declared, without code.
"""

import importlib
import sys
from types import ModuleType

import torch

_MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # an operator lives as long as the library that declared it


def import_timm() -> ModuleType:
    """Import timm, first curing torchvision where it needs it."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _declared or "operator torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left behind
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for schema in _MISSING:
            _declared[0].define(schema)
        importlib.import_module("torchvision")
    import timm

    return timm
