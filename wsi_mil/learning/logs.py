"""What TensorBoard shows of a training, where it is installed."""

import importlib.util
from pathlib import Path
from typing import Any

from wsi_mil.learning.examples import Epoch, Pace

FOLDER = "tensorboard"


class TensorBoard:
    """Writes the figures of epochs into ``tensorboard/`` of a folder; nothing without a folder or without the package.

    Args:
        folder: of the training.
        start: the epoch that it goes on from; what was written of it and later ones is not shown any more.
    """

    def __init__(self, folder: Path | None, start: int) -> None:
        self.writer: Any = None
        if folder is None or importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        if start == 0:
            for old in (folder / FOLDER).glob("events.out.tfevents.*"):
                old.unlink()
        self.writer = SummaryWriter(str(folder / FOLDER), purge_step=start)

    def write(self, epoch: Epoch, pace: Pace) -> None:
        """Write one epoch."""
        if self.writer is None:
            return
        figures = {name: value for name, value in epoch.row().items() if name != "epoch"}
        for name, value in (figures | {"bags_per_s": pace.rate}).items():
            self.writer.add_scalar(name, value, epoch.epoch)
        self.writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self.writer is not None:
            self.writer.close()
