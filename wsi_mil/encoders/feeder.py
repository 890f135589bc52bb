"""Batches on their way to encoders and back, so that a GPU always has the next one waiting.

On a GPU a batch goes through three steps that the host only asks for: it is copied from pinned memory on a stream of
its own, while the network still works on the batch before; the network starts when the copy has arrived; its result is
copied back to pinned memory. Two batches may be under way, so the host can take its time over one result while the
device works on the next. An encoder that offers `encode` alone, or that is on the CPU, answers at once: the same path,
with one batch under way.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from wsi_mil.encoders.loading import Encoder
from wsi_mil.encoders.pooling import require_vectors
from wsi_mil.stage import attempt

_ON_DEVICE = 2  # batches: one that is computed, one that waits


@runtime_checkable
class DeviceEncoder(Protocol):
    """What an encoder offers beside `encode` so that nobody has to wait for its device."""

    name: str
    dim: int
    device: torch.device

    def embed(self, tiles: UInt8[Tensor, "tiles height width 3"]) -> Float32[Tensor, "tiles dim"]:
        """Encode tiles that are on the device; the result is there too, and may still be in the making."""
        ...


class Fed(NamedTuple):
    """A batch that has come back."""

    label: Any
    encoders: Sequence[Encoder]
    found: list[Tensor | Exception]
    """Features on the CPU, float32 (tiles, dim), or what went wrong, for each of the encoders."""
    busy_s: float
    """How long they worked on it."""


Found = tuple[Tensor, float]
"""Features, and the seconds that they took."""


@dataclass
class _UnderWay:
    label: Any
    encoders: Sequence[Encoder]
    answers: list[Callable[[], Found] | Exception] = field(default_factory=list)
    """Each waits for its features."""


class Feeder:
    """Takes batches and gives what several encoders made of them, in the same order; used by one thread."""

    def __init__(self, encoders: Sequence[Encoder], cuda: ModuleType | Any = torch.cuda) -> None:
        """Look where the encoders are.

        Args:
            encoders: that batches may be put to.
            cuda: where streams and events come from.
        """
        devices = {_device(encoder) for encoder in encoders} - {None}
        self._lines = {device: _Line(device, cuda) for device in devices if device}
        self._depth = _ON_DEVICE if self._lines else 1
        self._under_way: deque[_UnderWay] = deque()

    def __enter__(self) -> "Feeder":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what is under way: its memory must not go before."""
        while self._under_way:
            self.get()

    def __len__(self) -> int:
        """How many batches are under way."""
        return len(self._under_way)

    @property
    def is_full(self) -> bool:
        """Whether one is to be got before another is put."""
        return len(self) >= self._depth

    def allocate(self, size: int) -> UInt8[Tensor, "bytes"]:
        """Make memory for pixels: pinned, if a GPU is to copy from it."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=any(line.pins for line in self._lines.values()))

    def put(self, label: Any, tiles: UInt8[Tensor, "tiles height width 3"], encoders: Sequence[Encoder]) -> None:
        """Send a batch on its way.

        Args:
            label: comes back with the features.
            tiles: in memory of `allocate`, which stays untouched until they have come back.
            encoders: that are to encode it.
        """
        batch, there = _UnderWay(label, encoders), dict[torch.device, Tensor | Exception]()
        for encoder in encoders:
            device = _device(encoder)
            if device is None:
                batch.answers.append(attempt(_at_once, encoder, tiles))
                continue
            if device not in there:  # copied once for all encoders on it
                there[device] = attempt(self._lines[device].upload, tiles)
            copied = there[device]
            start = self._lines[device].start
            batch.answers.append(copied if isinstance(copied, Exception) else attempt(start, encoder, copied))
        self._under_way.append(batch)

    def get(self) -> Fed:
        """Wait for the batch that was put first."""
        batch = self._under_way.popleft()
        found = [one if isinstance(one, Exception) else attempt(one) for one in batch.answers]
        done = [one for one in found if not isinstance(one, Exception)]
        features = [one if isinstance(one, Exception) else one[0] for one in found]
        return Fed(batch.label, batch.encoders, features, sum((seconds for _, seconds in done), 0.0))


class _Line:
    """The way to one GPU and back."""

    def __init__(self, device: torch.device, cuda: Any) -> None:
        self.device, self.cuda, self.pins = device, cuda, device.type == "cuda"
        self.copying = cuda.Stream(device)

    def upload(self, tiles: UInt8[Tensor, "tiles height width 3"]) -> UInt8[Tensor, "tiles height width 3"]:
        """Copy tiles while the device computes; what is computed next waits for them."""
        with self.cuda.stream(self.copying):
            there = tiles.to(self.device, non_blocking=True)
            arrived = self.cuda.Event()
            arrived.record(self.copying)
        self.cuda.current_stream(self.device).wait_event(arrived)
        return there

    def start(self, encoder: DeviceEncoder, there: UInt8[Tensor, "tiles height width 3"]) -> Callable[[], Found]:
        """Let an encoder compute, and its result be copied back; return what waits for it."""
        computing = self.cuda.current_stream(self.device)
        began, done = (self.cuda.Event(enable_timing=True) for _ in range(2))
        began.record(computing)
        features = require_vectors(encoder.embed(there), encoder.name, len(there), encoder.dim)
        here = torch.empty(features.shape, dtype=torch.float32, pin_memory=self.pins)
        here.copy_(features, non_blocking=True)
        done.record(computing)
        keep = [there, features]  # their memory may be given to others only when the device is done with it

        def wait() -> Found:
            done.synchronize()
            keep.clear()
            return here, began.elapsed_time(done) / 1000

        return wait


def encoded(encoder: Encoder, tiles: UInt8[Tensor, "tiles height width 3"]) -> Float32[Tensor, "tiles dim"]:
    """What an encoder makes of tiles, waited for.

    Raises:
        EncoderError: it is not one vector per tile.
    """
    return require_vectors(encoder.encode(tiles.numpy()), encoder.name, len(tiles), encoder.dim)


def _device(encoder: Encoder) -> torch.device | None:
    """The GPU of an encoder that can be fed without waiting."""
    return encoder.device if isinstance(encoder, DeviceEncoder) and encoder.device.type != "cpu" else None


def _at_once(encoder: Encoder, tiles: UInt8[Tensor, "tiles height width 3"]) -> Callable[[], Found]:
    began = time.perf_counter()
    features = encoded(encoder, tiles)
    seconds = time.perf_counter() - began
    return lambda: (features, seconds)
