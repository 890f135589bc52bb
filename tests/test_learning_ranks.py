"""Several ranks learn what one learns: gradients, weights and figures; and what comes of one that is gone."""

import json
import signal
from collections.abc import Generator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranked import Crowd, ScalingRank, ThreadRank, in_threads, largest_difference, noting_gradients
from torch import Tensor

from wsi_mil.aggregators import Aggregator, build
from wsi_mil.bags import Bag
from wsi_mil.errors import IncompatibleError, RankLost
from wsi_mil.executors import is_first_to_tell
from wsi_mil.learning import Epoch, Example, LearnParams, RunParams, loop, ranks
from wsi_mil.learning.loop import rank_seed
from wsi_mil.tasks import Classification
from wsi_mil.weights import load_tensors, save_tensors

DIM = 5
CLASSES = ("neg", "pos")
OPTIONS: dict[str, dict[str, Any]] = {
    "das-mil": {"heads": 2, "head_dim": 4, "dropout": 0.0},
    "abmil": {"hidden": 8, "dropout": 0.0},
}


class Uneven:
    """Bags of very different sizes, a third of them positive, so that classes have weights."""

    in_memory = True

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = [int(index % 3 == 0) for index in range(count)]
        self.bags = []
        for index, target in enumerate(self.targets):
            tiles = int(torch.randint(2, 40, (1,), generator=generator))
            features = torch.randn(tiles, DIM, generator=generator)
            features[:2, 0] += 4 * target
            coords_um = 256.0 * torch.stack([torch.arange(tiles) % 6, torch.arange(tiles) // 6], dim=1)
            self.bags.append(Bag(f"s{index}", features, coords_um, {}))

    @property
    def tiles(self) -> list[int]:
        return [len(bag.features) for bag in self.bags]

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> Example:
        return Example(self.bags[index], self.targets[index])


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Generator[None]:
    """More cost such small bags more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job_of(name: str, bags: int, params: LearnParams, run: RunParams | None = None) -> loop._Job:
    torch.manual_seed(0)
    train, val = Uneven(bags, 1), Uneven(7, 2)
    model = build(name, DIM, 2, **OPTIONS[name])
    return loop._Job(model, Classification.balanced(CLASSES, train.targets), train, val, params, run or RunParams())


def learnt(fabric: Any, job: loop._Job) -> tuple[Aggregator, list[Epoch], list[dict[str, Tensor]]]:
    """The model, its history, and the gradients of every step, on one rank."""
    job = loop._Job(deepcopy(job.model), job.task, job.train, job.val, job.params, job.run)
    training = loop._Training(job, fabric)
    noted = noting_gradients(job.model, training.plain)
    return job.model, training.run(), noted


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.sampled_from(sorted(OPTIONS)), st.integers(3, 13), st.integers(1, 7), st.integers(2, 4))
def test_gradients_weights_and_figures_are_those_of_one_rank(name: str, bags: int, size: int, count: int) -> None:
    job = job_of(name, bags, LearnParams(epochs=2, lr=1e-3, bags_per_step=size, max_tiles=25))
    alone, history, gradients = in_threads(1, lambda rank: learnt(rank, job))[0]
    for model, told, noted in in_threads(count, lambda rank: learnt(rank, job)):
        assert len(noted) == len(gradients) == 2 * -(-bags // size)
        assert largest_difference(noted[0], gradients[0]) < 1e-6
        for one, other in zip(told, history, strict=True):
            assert one.row() == pytest.approx(other.row(), rel=1e-4, abs=1e-6)
        for key, tensor in alone.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_a_rank_that_has_no_bag_takes_the_steps_of_fp16_too() -> None:
    job = job_of("abmil", 4, LearnParams(epochs=2, bags_per_step=1))
    alone, _, gradients = in_threads(1, lambda rank: learnt(rank, job), ScalingRank)[0]
    for model, _, noted in in_threads(3, lambda rank: learnt(rank, job), ScalingRank):
        assert largest_difference(noted[0], gradients[0]) < 1e-6
        for key, tensor in alone.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_each_bag_is_learnt_from_once_an_epoch_by_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    learn_from = loop._Training._learn_from

    def spy(self: loop._Training, bag: Any, bags: int) -> None:
        seen.append((self.rank, bag.index))
        learn_from(self, bag, bags)

    monkeypatch.setattr(loop._Training, "_learn_from", spy)
    job = job_of("das-mil", 11, LearnParams(epochs=1, bags_per_step=4))
    in_threads(3, lambda rank: learnt(rank, job))
    assert sorted(index for _, index in seen) == list(range(11))
    assert {rank for rank, _ in seen} == {0, 1, 2}


def test_ranks_that_were_told_different_things_are_refused() -> None:
    jobs = [job_of("abmil", 6, LearnParams(epochs=1, lr=lr)) for lr in (1e-3, 1e-4)]
    with pytest.raises(IncompatibleError, match="type the same command on every machine"):
        in_threads(2, lambda rank: learnt(rank, jobs[rank.global_rank]))


def test_a_slurm_job_does_not_decide_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_PROCID", "3")
    for devices in (1, 2):
        fabric = ranks.make_fabric(devices, torch.device("cpu"), "auto")
        assert (fabric.world_size, fabric.global_rank) == (devices, 0)


def test_what_torchrun_ends_says_what_to_do_next() -> None:
    shared, before = ThreadRank(0, Crowd(2)), signal.getsignal(signal.SIGTERM)
    with pytest.raises(RankLost, match=r"told to end.*type the same command to go on"), ranks.told_to_end(shared):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    with ranks.told_to_end(ThreadRank(0, Crowd(1))):
        assert signal.getsignal(signal.SIGTERM) is before


def test_of_processes_that_fail_together_one_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_first_to_tell()
    assert is_first_to_tell()
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert [is_first_to_tell() for _ in range(3)] == [True, False, False]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_first_to_tell()


class Broken(ThreadRank):
    """A rank that has lost the others."""

    def all_reduce(self, tensor: Tensor, reduce_op: str) -> Tensor:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:7107")


def test_who_loses_another_rank_says_so_and_what_to_do_next() -> None:
    with pytest.raises(RankLost, match=r"^process 2 of 3 no longer reaches another .* type the same command") as told:
        ranks.add_up(Broken(1, Crowd(3)), torch.zeros(1))
    assert "\n" not in str(told.value)


def note_all(fabric: Any, jobs: dict[str, loop._Job], folder: Path) -> None:
    """Learn several models in this process, and leave what rank 0 finds."""
    for name, job in jobs.items():
        model, history, noted = learnt(fabric, job)
        if fabric.global_rank == 0:
            tensors = {f"weights.{key}": tensor for key, tensor in model.state_dict().items()}
            tensors |= {f"{step}.{key}": tensor for step, grads in enumerate(noted) for key, tensor in grads.items()}
            rows = json.dumps([epoch.row() for epoch in history])
            save_tensors(folder / f"{name}.safetensors", tensors, {"history": rows})


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_gloo_processes_have_the_gradients_of_one(tmp_path: Path, devices: int) -> None:
    params = LearnParams(epochs=2, bags_per_step=4)
    jobs = {name: job_of(name, 9, params) for name in OPTIONS}
    ranks.spawn(ranks.make_fabric(devices, torch.device("cpu"), "auto"), note_all, jobs, tmp_path)
    for name, job in jobs.items():
        model, history, noted = in_threads(1, lambda rank, job=job: learnt(rank, job))[0]
        tensors, told = load_tensors(tmp_path / f"{name}.safetensors")
        first = {key.removeprefix("0."): tensor for key, tensor in tensors.items() if key.startswith("0.")}
        assert largest_difference(first, noted[0]) < 1e-6
        for one, other in zip(json.loads(told["history"]), history, strict=True):
            assert one == pytest.approx(other.row(), rel=1e-4, abs=1e-6)
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(tensors[f"weights.{key}"], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_every_process_draws_numbers_of_its_own() -> None:
    drawn = set()
    for rank in range(1, 9):
        torch.manual_seed(rank_seed(5, rank))
        drawn.add(tuple(torch.rand(3).tolist()))
    assert len(drawn) == 8
