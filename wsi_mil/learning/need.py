"""Whether a training, or asking a trained model, fits into memory, found out beforehand on small bags.

What a model keeps for its backward pass is counted on bags of some sizes and drawn on from there: along a line, unless
it is seen to bend. With 8,000 tiles the peak of a step (``examples/bench_step.py``) is 1.0 to 1.8 times that for the
models of the registry, and three times for relative-discrete, whose attention works block by block. What a model that
is only asked fills at its peak is counted likewise, tensor by tensor.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsi_mil.aggregators import Aggregator, apply
from wsi_mil.bags import Batch
from wsi_mil.errors import TrainingError
from wsi_mil.memory import available_memory

PROBED = (512, 1024, 2048)
"""Tiles of the bags that it is found out on: what is no larger than the last of them is not looked into."""
_BENDS = 1.3
_PEAK_TO_KEPT = 1.5
_PEAK_TO_COUNTED = 1.25  # what an operation fills and empties within itself is not seen
_COPIES = 5  # of the features: this bag and the next one, each read as float16 and in use as float32, and one half done
_TILE_UM = 256.0


def require_memory(model: Aggregator, slide_id: str, tiles: int, reserved: int = 0, beside: Sequence[int] = ()) -> None:
    """Refuse a training whose largest bag will not fit.

    Args:
        model: on the device to train on.
        slide_id: whose bag that is.
        tiles: how many of its tiles are trained on.
        reserved: bytes of the machine's memory that will be filled otherwise.
        beside: tiles of the bags that other processes may train on meanwhile, in the same memory.

    Raises:
        TrainingError: names the slide, what it needs and what there is.
    """
    if tiles <= PROBED[-1]:
        return
    free = _free_bytes(model, reserved)
    kept = {count: kept_bytes(model, count) for count in PROBED}

    def needed(most: int) -> float:
        return sum(step_bytes(kept, model.dim, min(count, most)) for count in (tiles, *beside))

    if (need := needed(tiles)) <= free:
        return
    fitting = tiles
    while fitting > PROBED[0] and needed(fitting) > free:
        fitting = int(fitting * 0.9)
    digits = 10 ** (len(str(fitting)) - 2)
    raise TrainingError(
        f"{_refusal(slide_id, tiles, 'to train on', need, free, len(beside))} add --max-tiles"
        f" {fitting // digits * digits} (of `wsimil train`) to train on so many of a slide, drawn anew each epoch, or"
        " choose another --aggregator"
    )


def require_memory_to_ask(
    model: Aggregator, slide_id: str, tiles: int, reserved: int = 0, beside: Sequence[int] = ()
) -> None:
    """Refuse to begin where the largest bag that the model will be asked about does not fit.

    Bags of validation and test are asked about whole, whatever of a bag is trained on.

    Args:
        model: on the device to use.
        slide_id: whose bag that is.
        tiles: how many it has.
        reserved: bytes of the machine's memory that will be filled otherwise.
        beside: tiles of the bags that other processes may ask about meanwhile, in the same memory.

    Raises:
        TrainingError: names the slide, what it needs and what there is.
    """
    if tiles <= PROBED[-1]:
        return
    free = _free_bytes(model, reserved)
    counted = {count: asked_bytes(model, count) for count in PROBED}
    if (need := sum(answer_bytes(counted, model.dim, count) for count in (tiles, *beside))) > free:
        raise TrainingError(
            f"{_refusal(slide_id, tiles, 'to ask a model about', need, free, len(beside))} make fewer tiles by"
            " `wsimil tile --max-tiles` or larger ones by `--tile-um`, train another --aggregator, or use a --device"
            " with more memory"
        )


def _free_bytes(model: Aggregator, reserved: int) -> int:
    device = next(model.parameters()).device
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory() - reserved


def _refusal(slide_id: str, tiles: int, what: str, need: float, free: int, beside: int) -> str:
    meanwhile, fewer = (f", {beside} more beside it,", " give fewer --devices,") if beside else ("", "")
    return (
        f"{slide_id} has {tiles:,} tiles, and {what} all of them{meanwhile} takes about {need / 2**30:.1f} GiB where"
        f" {max(free, 0) / 2**30:.1f} GiB are free:{fewer}"
    )


def step_bytes(kept: dict[int, int], dim: int, tiles: int) -> float:
    """What a step on one bag takes at its peak, by what small bags make a model keep.

    Args:
        kept: bytes by number of tiles, of three bags, each twice as large as the one before.
        dim: of the features.
        tiles: of the bag.
    """
    return _PEAK_TO_KEPT * _drawn_on(kept, tiles) + _COPIES * 4 * dim * tiles


def answer_bytes(counted: dict[int, int], dim: int, tiles: int) -> float:
    """What asking about one bag takes at its peak, by what small bags take; arguments as of `step_bytes`."""
    return _PEAK_TO_COUNTED * _drawn_on(counted, tiles) + _COPIES * 4 * dim * tiles


def _drawn_on(found: dict[int, int], tiles: int) -> float:
    """Bytes for so many tiles, from those of three bags: along a line, unless it is seen to bend."""
    small, middle, large = sorted(found)
    first, second = ((found[b] - found[a]) / (b - a) for a, b in ((small, middle), (middle, large)))
    beyond = tiles - large
    drawn_on = found[large] + second * beyond
    if second > _BENDS * first:
        bend = (second - first) / (large - small)
        drawn_on += bend * beyond * (tiles - middle)
    return drawn_on


def kept_bytes(model: Aggregator, tiles: int) -> int:
    """Bytes that a model in training keeps of one bag for its backward pass, beside its own weights."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        probe = deepcopy(model).train()
        weights = {tensor.untyped_storage().data_ptr() for tensor in _tensors(probe)}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = probe(_section(tiles, model.dim).to(device)).logits
        del logits
    return sum(kept.values())


def asked_bytes(model: Aggregator, tiles: int) -> int:
    """Bytes that a model fills at most while it is asked about one bag, beside the bag and its own weights."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        batch = _section(tiles, model.dim).to(device)
    with _Counted() as counted:
        apply(model, batch)
    return counted.peak


class _Counted(TorchDispatchMode):
    """Counts the memory of the tensors that are made within, while they are there: on any device alike."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, int] = {}
        self._now = 0
        self.peak = 0
        """The most bytes that were there at once."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}  # what is only looked at otherwise
        for storage in _storages(made):
            if storage.data_ptr() not in given:
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        place = storage.data_ptr()
        if place and place not in self._held:
            self._held[place] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            finalize(storage, self._release, place)

    def _release(self, place: int) -> None:
        self._now -= self._held.pop(place, 0)


def _storages(found: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _section(tiles: int, dim: int) -> Batch:
    """A section of tiles side by side."""
    side = int((tiles - 1) ** 0.5) + 1
    cells = torch.arange(tiles)
    coords_um = _TILE_UM * torch.stack([cells % side, cells // side], dim=1).float()
    return Batch(torch.randn(1, tiles, dim), coords_um[None], torch.ones(1, tiles, dtype=torch.bool))
