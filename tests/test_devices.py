"""Which device is taken."""

import pytest
import torch

from wsi_mil.devices import pick_device
from wsi_mil.errors import OptionError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of two GPUs, and no torchrun."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def started(patch: pytest.MonkeyPatch, rank: int) -> None:
    """As torchrun starts this process."""
    for name, value in {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": rank % 2}.items():
        patch.setenv(name, str(value))


def test_a_gpu_is_preferred_and_others_are_taken_by_name(gpus: pytest.MonkeyPatch) -> None:
    assert pick_device() == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    gpus.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:2", ""])
def test_what_is_no_device_or_not_here_is_refused(gpus: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(OptionError, match=f"--device {name}: "):
        pick_device(name)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_of_torchrun_has_a_gpu_of_its_own(gpus: pytest.MonkeyPatch, name: str) -> None:
    started(gpus, 3)
    assert pick_device(name) == torch.device("cuda", 1)
    started(gpus, 2)
    assert pick_device(name).index in (None, 0)


def test_a_process_that_sees_its_own_gpu_alone_takes_that(gpus: pytest.MonkeyPatch) -> None:
    gpus.setattr(torch.cuda, "device_count", lambda: 1)
    started(gpus, 3)
    assert pick_device("cuda").index in (None, 0)
