"""Devices, precisions and processes, by Lightning Fabric. The only door to it.

Every process (rank) runs the same loop on its share of the bags of each step, and gradients are added up by hand and
not by DDP's wrapper: the sum is then the one device's, to rounding, also where a step has fewer bags than there are
ranks and where a model leaves parameters unused. `--devices N` starts the processes here and gets back what rank 0
wrote; under torchrun they are there already, and each gets all of it.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from wsi_mil import errors, publishing
from wsi_mil.devices import pick_precision
from wsi_mil.errors import IncompatibleError, OptionError, RankLost, WsiMilError, one_line
from wsi_mil.executors import started_ranks
from wsi_mil.progress import is_talking, show_messages

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_ERROR = "error.json"
_LONGEST_WAIT = timedelta(minutes=30)  # for a rank that neither answers nor is gone
_UNTIL_ENDED_S = 10.0
_GO_ON = "What was written down of the training stays: type the same command to go on"


def make_fabric(devices: int, device: torch.device, precision: str) -> "Fabric":
    """A Fabric for this process, or, where `starts_processes`, for those that `spawn` will start.

    Args:
        devices: how many share the work; what torchrun started goes before.
        device: where; with several devices only its kind counts.
        precision: a name of `wsi_mil.devices.PRECISIONS`, or auto, which is fp32.

    Raises:
        OptionError: there are not so many devices, or the precision makes no sense there.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it draws lines around each start
    numbers: Any = _PRECISIONS[pick_precision(precision, "fp32", device)]
    kind, started = device.type, started_ranks()
    ours: Any = [LightningEnvironment()]  # whatever else a SLURM job says of its tasks
    if started > 1:
        count = processes_here(devices)
        _require(count, device)
        return Fabric(
            accelerator=kind,
            strategy=DDPStrategy(timeout=_LONGEST_WAIT),
            devices=count,
            num_nodes=started // count,
            precision=numbers,
            plugins=[TorchElasticEnvironment()],
        )
    if devices > 1:
        _require(devices, device)
        shared = DDPStrategy(timeout=_LONGEST_WAIT, start_method="spawn")
        return Fabric(accelerator=kind, strategy=shared, devices=devices, precision=numbers, plugins=ours)
    only: Any = [device.index or 0] if kind == "cuda" else 1
    return Fabric(accelerator=kind, devices=only, precision=numbers, plugins=ours)


def _require(devices: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    if device.index:
        raise OptionError(
            f"--devices {devices} --device {device}: several devices are the first ones: leave out the :I"
        )
    if devices > (there := torch.cuda.device_count()):
        raise OptionError(f"--devices {devices}: {there} CUDA devices are here: give --devices {there}")


def processes_here(devices: int) -> int:
    """How many processes of this machine share a training; what torchrun started goes before ``devices``."""
    started = started_ranks()
    return int(os.environ.get("LOCAL_WORLD_SIZE", started)) if started > 1 else devices


def starts_processes(fabric: "Fabric") -> bool:
    """Whether the ranks are processes that are still to be started."""
    return fabric.world_size > 1 and started_ranks() == 1


def spawn(fabric: "Fabric", work: "Callable[[Fabric, Any, Path], None]", job: Any, folder: Path) -> None:
    """Start the processes of all ranks, run ``work(fabric, job, folder)`` in each, and wait for them.

    Args:
        fabric: as `make_fabric` made it.
        work: a function of a module, so that the processes find it.
        job: what it is given; must pickle.
        folder: where rank 0 leaves its results.

    Raises:
        WsiMilError: what any of them raised; `RankLost` where one was killed. The others are ended then.
        OSError: one could not read or write.
    """
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it says whom it ends
    threads = max(1, torch.get_num_threads() // fabric.world_size)
    start: Any = _on_rank
    before = multiprocessing.active_children()
    try:
        fabric.launch(start, work, job, folder, threads, is_talking())
    except ProcessRaisedException as error:
        if not (folder / _ERROR).exists():
            raise
        told = json.loads((folder / _ERROR).read_text())
        raise getattr(errors, told["kind"], OSError)(told["message"]) from error
    except ProcessExitedException as error:
        raise RankLost(_who_is_gone(error, fabric.world_size)) from error
    finally:
        for child in multiprocessing.active_children():
            if child not in before:  # Ctrl-C may have reached this process alone
                child.terminate()


def _who_is_gone(error: Any, ranks: int) -> str:
    how = f"by {error.signal_name}" if error.signal_name else f"with exit code {error.exit_code}"
    memory = ", as the system ends what fills its memory" if error.signal_name == "SIGKILL" else ""
    return f"process {error.error_index + 1} of the {ranks} that shared the training ended {how}{memory}. {_GO_ON}"


def _on_rank(
    fabric: "Fabric",
    work: "Callable[[Fabric, Any, Path], None]",
    job: Any,
    folder: Path,
    threads: int,
    talks: bool,
) -> None:
    """What a started process does."""
    os.environ |= {"RANK": str(fabric.global_rank), "WORLD_SIZE": str(fabric.world_size)}
    torch.set_num_threads(threads)
    if talks:
        show_messages()
    try:
        work(fabric, job, folder)
    except RankLost:
        time.sleep(_UNTIL_ENDED_S)  # who started this process sees first who is gone, and why, and ends this one
        raise
    except (WsiMilError, OSError) as error:
        told = {"kind": type(error).__name__, "message": one_line(error)}
        publishing.write_bytes(folder / _ERROR, json.dumps(told).encode())
        raise
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def told_to_end(fabric: "Fabric") -> Generator[None]:
    """Within it, a rank that torchrun ends (SIGTERM), as it does where another is gone, says so and what to do next."""
    if fabric.world_size == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise RankLost(f"the training was told to end, as torchrun does where one of its processes is gone. {_GO_ON}")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def first_before_others(fabric: "Fabric") -> Generator[None]:
    """What is done within it, rank 0 does first, and the others when it is done."""
    nothing = torch.zeros(1)
    if fabric.global_rank:
        add_up(fabric, nothing)
    yield
    if not fabric.global_rank:
        add_up(fabric, nothing)


def require_same(fabric: "Fabric", told: str) -> None:
    """Refuse ranks that were told different things.

    Args:
        fabric: of this rank.
        told: all that has to be the same, in words.

    Raises:
        IncompatibleError: it is not; on every rank.
    """
    mine = torch.frombuffer(bytearray(hashlib.sha256(told.encode()).digest()), dtype=torch.uint8)
    first, *others = gather_bytes(fabric, mine)
    if any(not torch.equal(first, other) for other in others):
        raise IncompatibleError(
            "the processes that share this training were told different things: type the same command on every machine,"
            " with the same wsimil and torch, and --bags, --labels and --out in folders that all of them see"
        )


def add_up(fabric: "Fabric", tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum of a tensor over the ranks, the same on each. All that ranks say to each other goes through here.

    Raises:
        RankLost: one of them is gone.
    """
    if fabric.world_size == 1:
        return tensor
    try:
        total = fabric.all_reduce(tensor.to(fabric.device), reduce_op="sum")
    except RuntimeError as error:  # gloo's and NCCL's
        raise RankLost(
            f"process {fabric.global_rank + 1} of {fabric.world_size} no longer reaches another that shared the"
            f" training: it was killed, has failed, or its machine is gone. {_GO_ON}"
        ) from error
    assert isinstance(total, Tensor)
    return total


def add_up_gradients(fabric: "Fabric", parameters: list[torch.nn.Parameter]) -> None:
    """Give every rank the sum of all ranks' gradients; a parameter that had none on any rank gets none."""
    if fabric.world_size == 1:
        return
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=fabric.device)
    total = add_up(fabric, torch.cat([*(piece.flatten() for piece in pieces), used]))
    sums = total[: -len(parameters)].split([p.numel() for p in parameters])
    for parameter, gradient, count in zip(parameters, sums, total[-len(parameters) :].tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).clone() if count else None


def begin_scaling(fabric: "Fabric") -> None:
    """Let this rank take a step before it had a bag: the scaler of fp16 begins with the first loss that it is given."""
    if scaler := getattr(fabric.strategy.precision, "scaler", None):
        scaler.scale(torch.zeros(1, device=fabric.device))


def agree(fabric: "Fabric", wanted: bool) -> bool:
    """What rank 0 wants, on every rank."""
    mine = float(wanted and fabric.global_rank == 0)
    return bool(add_up(fabric, torch.tensor(mine)).item())


def gather_bytes(fabric: "Fabric", mine: Shaped[Tensor, " bytes"]) -> list[Tensor]:
    """A tensor of bytes of one length from every rank, in the order of ranks."""
    if fabric.world_size == 1:
        return [mine]
    rows = torch.zeros(fabric.world_size, len(mine), dtype=torch.int64)
    rows[fabric.global_rank] = mine
    return list(add_up(fabric, rows).to(torch.uint8).cpu())
