"""How weights are learnt, which decides the result, and how the work is done, which does not."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_mil.devices import PRECISIONS
from wsi_mil.errors import OptionError
from wsi_mil.learning.examples import Epoch, Pace


@dataclass(frozen=True)
class LearnParams:
    """How weights are learnt."""

    epochs: int = 60
    """At most so many passes over the training bags."""
    patience: int = 20
    """Stop after so many epochs without a lower validation loss."""
    lr: float = 1e-3
    """Peak learning rate of AdamW: a tenth of the steps to warm up, then half a cosine down to zero."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW; weights for which 0 is no rest, such as lengths, are spared (`Aggregator.undecayed`)."""
    bags_per_step: int = 2
    """Bags whose gradients are averaged for one step, on however many devices."""
    seed: int = 0
    """Decides the order of the bags, which tiles are drawn, and dropout; the caller seeds the initial weights."""
    clip: float = 1.0
    """A gradient longer than this is shortened to it; 0 = none is."""
    precision: str = "auto"
    """Numbers that the forward pass computes in: fp32, bf16 or fp16; auto = fp32. Validation is in fp32."""
    max_tiles: int = 0
    """Train on so many tiles of a bag, drawn anew each epoch; 0 = on all. Validation is on all."""

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "bags_per_step"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name.replace('_', '-')} {getattr(self, name)}: give a positive number")
        if not self.lr > 0:
            raise OptionError(f"--lr {self.lr}: give a positive number")
        for name in ("weight_decay", "clip", "max_tiles"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OptionError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 0 or a positive number")
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: give 0 or a positive number")
        if self.precision not in ("auto", *PRECISIONS):
            raise OptionError(f"--precision {self.precision}: give auto, {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class RunParams:
    """How the work of a training is done: none of it decides what is learnt, but for the last digits."""

    devices: int = 1
    """Devices that share the bags of each step: GPUs, or processes on a CPU. Under torchrun what it started counts."""
    folder: Path | None = None
    """Where a training writes down how far it has come, and for TensorBoard; None = nowhere."""
    fingerprint: str = ""
    """What decides the training: what was written down under another one is not gone on with."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """By name, what of it was asked for, to say what is otherwise; as JSON holds it."""
    save_every_minutes: float = 10.0
    """Write it down so often within an epoch, beside each epoch's end; 0 = after every step."""
    overwrite: bool = False
    """Give up another training that was interrupted in the same folder, instead of refusing."""
    watch: Callable[[Epoch, Pace], None] | None = None
    """Is told each epoch as it ends, on every device; must pickle where there are several."""

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise OptionError(f"--devices {self.devices}: give a positive number")
        if not self.save_every_minutes >= 0:
            raise OptionError(f"--save-every-minutes {self.save_every_minutes}: give 0 or a positive number")
