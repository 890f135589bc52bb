"""Where tensors live: the device that ``--device`` names."""

import torch

from wsi_mil.errors import OptionError


def pick_device(name: str = "auto") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:I`` into a device that is there; ``auto`` prefers a GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise OptionError(f"--device {name}: give auto, cpu, cuda or cuda:I")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise OptionError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are here: give --device cpu")
    return torch.device(name)
