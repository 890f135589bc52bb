"""Where tensors live, and in which numbers: what ``--device`` and ``--precision`` name."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

import torch

from wsi_mil.errors import OptionError
from wsi_mil.executors import available_cores, local_rank

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Numbers that a network may compute in."""


def pick_device(name: str = "auto") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:I`` into a device that is there; ``auto`` prefers a GPU.

    Of processes that torchrun started each has a GPU of its own, where it sees those of the others too.

    Raises:
        OptionError: another word, or a GPU that is not there.
    """
    if name == "auto":
        return pick_device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise OptionError(f"--device {name}: give auto, cpu, cuda or cuda:I")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise OptionError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are here: give --device cpu")
    if name == "cuda" and 0 < local_rank() < torch.cuda.device_count():
        return torch.device("cuda", local_rank())
    return torch.device(name)


def pick_precision(name: str, own: str, device: torch.device) -> str:
    """Turn ``auto``, ``fp32``, ``bf16`` or ``fp16`` into the precision of a network on a device.

    Args:
        name: what was asked for; ``auto`` is the network's own on a GPU, and fp32 on a CPU.
        own: the precision that its authors run it in.
        device: where it runs.

    Raises:
        OptionError: an unknown name, or fp16 on a CPU: most only imitate it, slower than fp32, and it overflows beyond
            65504, so there is nothing to be had from it.
    """
    if name == "auto":
        return own if device.type == "cuda" else "fp32"
    if name not in PRECISIONS:
        raise OptionError(f"--precision {name}: give auto, {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type == "cpu":
        raise OptionError(
            "--precision fp16: on a CPU it is slower than fp32, and less exact: give --precision auto, or --device cuda"
        )
    if name == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        log.warning("this CPU does not compute in bf16: --precision bf16 imitates it here, slower than fp32")
    return name


def precision_like(trained: str, device: torch.device) -> str:
    """The precision nearest to one that was recorded, of those that make sense on this device."""
    if device.type == "cuda" or trained == "fp32" or (trained == "bf16" and cpu_has_bf16()):
        return trained
    return "fp32"


def default_batch(device: torch.device) -> int:
    """Tiles per forward pass unless told: on a CPU larger batches are no faster, and the last one is computed whole."""
    return 32 if device.type == "cuda" else 8


@contextmanager
def within_cores() -> Generator[None]:
    """Keep torch from using more threads than there are cores for this process: it overlooks a container's share."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, available_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_cores() -> None:
    """Let torch use the cores of this process: Dask starts workers with one thread for it, whatever they are given."""
    torch.set_num_threads(available_cores())


@contextmanager
def exact_convolutions() -> Generator[None]:
    """Keep cuDNN from rounding float32 to TF32 (10 bits) in convolutions, as it does by default on a GPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies in bf16, in the opinion of the library (oneDNN) that would use it."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
