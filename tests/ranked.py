"""Ranks for tests: as threads of one process, which start at once, and what a real one notes of its gradients."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from wsi_mil.aggregators import Aggregator
from wsi_mil.errors import RankLost

_PATIENCE_S = 60


class Crowd:
    """Adds up tensors of threads, in the order of their ranks."""

    def __init__(self, ranks: int) -> None:
        self.barrier, self.given = threading.Barrier(ranks, timeout=_PATIENCE_S), {}

    def total(self, rank: int, tensor: Tensor) -> Tensor:
        self.given[rank] = tensor.clone()
        self.barrier.wait()
        total = sum(self.given[one] for one in sorted(self.given))
        self.barrier.wait()
        return total


class ThreadRank:
    """What the loop asks of Lightning Fabric, for a rank that is a thread."""

    device = torch.device("cpu")
    strategy = SimpleNamespace(precision=SimpleNamespace(state_dict=dict))

    def __init__(self, rank: int, crowd: Crowd) -> None:
        self.global_rank, self.world_size, self.crowd = rank, crowd.barrier.parties, crowd

    def setup_optimizers(self, optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimiser

    def autocast(self) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_gradients(self, model: torch.nn.Module, optimiser: object, max_norm: float, **_: object) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    def all_reduce(self, tensor: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "sum"
        return self.crowd.total(self.global_rank, tensor) if self.world_size > 1 else tensor


class ScalingRank(ThreadRank):
    """A rank that scales losses, as Lightning does in fp16; the numbers themselves stay float32."""

    def __init__(self, rank: int, crowd: Crowd) -> None:
        super().__init__(rank, crowd)
        self.scaler = torch.amp.GradScaler("cpu")
        self.strategy = SimpleNamespace(precision=SimpleNamespace(scaler=self.scaler, state_dict=dict))

    def setup_optimizers(self, optimiser: torch.optim.Optimizer) -> Any:
        self.plain = optimiser
        return SimpleNamespace(step=self._step, zero_grad=optimiser.zero_grad)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def clip_gradients(self, model: torch.nn.Module, optimiser: object, max_norm: float, **_: object) -> None:
        self.scaler.unscale_(self.plain)
        super().clip_gradients(model, optimiser, max_norm)

    def _step(self) -> None:
        self.scaler.step(self.plain)
        self.scaler.update()


def in_threads(ranks: int, work: Callable[[ThreadRank], Any], kind: type[ThreadRank] = ThreadRank) -> list[Any]:
    """What each of so many ranks makes of it; the first error of any comes out."""
    crowd = Crowd(ranks)

    def one(rank: int) -> Any:
        try:
            return work(kind(rank, crowd))
        except BaseException:
            crowd.barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        made = [pool.submit(one, rank) for rank in range(ranks)]
    # those that lose another come last
    failed = [error for future in made if (error := future.exception())]
    for error in sorted(failed, key=lambda error: isinstance(error, RankLost)):
        raise error
    return [future.result() for future in made]


def noting_gradients(model: Aggregator, optimiser: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """The gradients of each step that will be taken, as they are right before it."""
    noted: list[dict[str, Tensor]] = []

    def note(*_: object) -> None:
        noted.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    optimiser.register_step_pre_hook(note)
    return noted


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of gradients, beside the largest of them."""
    assert one.keys() == other.keys()
    largest = max(float(tensor.abs().max()) for tensor in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest
