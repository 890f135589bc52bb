"""From padded batches to the real tiles of all bags in a row, and back. Bags then cost what their real tiles cost."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from wsi_mil.attention.operands import Runs


class Packing(NamedTuple):
    """Where the real tiles of a padded batch lie when they are packed."""

    bags: int
    tiles: int
    index: Int[Tensor, " packed"] | None
    """For each packed tile its place among all ``bags * tiles``; None = the tiles of a single bag as they are."""
    runs: Runs

    def pack(self, padded: Shaped[Tensor, "bags heads tiles *rest"]) -> Shaped[Tensor, "heads packed *rest"]:
        """Real tiles only: padding is not even read. A single full bag is not copied."""
        if self.index is None:
            return padded.squeeze(0)
        tiles = max(self.tiles, 1)
        return padded.transpose(1, 2)[self.index // tiles, self.index % tiles].transpose(0, 1)

    def unpack(self, packed: Shaped[Tensor, "heads packed *rest"]) -> Shaped[Tensor, "bags heads tiles *rest"]:
        """Back into a padded batch, with zeros where nothing is real."""
        if self.index is None:
            return packed.unsqueeze(0)
        heads, _, *rest = packed.shape
        padded = packed.new_zeros(heads, self.bags * self.tiles, *rest)
        padded[:, self.index] = packed
        return padded.unflatten(1, (self.bags, self.tiles)).transpose(0, 1).contiguous()


def plan(
    bags: int, tiles: int, mask: Bool[Tensor, "bags tiles"] | None, slide: Int[Tensor, "bags tiles"] | None
) -> Packing:
    """Pack by bag, then by slide; the tiles of a slide stay in order."""
    if slide is None and bags == 1 and (mask is None or bool(mask.all())):
        return Packing(bags, tiles, None, (((0, tiles),) if tiles else (),))
    if mask is None:
        mask = torch.ones(bags, tiles, dtype=torch.bool, device=None if slide is None else slide.device)
    index = mask.flatten().nonzero().squeeze(1)
    # One number per run: the bag, then the slide.
    run = index // max(tiles, 1)
    if slide is not None:
        _, of_slide = slide.flatten()[index].unique(return_inverse=True)
        run = run * (of_slide.max() + 1 if len(of_slide) else 1) + of_slide
        order = torch.argsort(run, stable=True)
        index, run = index[order], run[order]
    _, lengths = run.unique_consecutive(return_counts=True)
    return Packing(bags, tiles, index, _runs(bags, tiles, index, lengths))


def _runs(bags: int, tiles: int, index: Int[Tensor, " packed"], lengths: Int[Tensor, " runs"]) -> Runs:
    """Start and stop of each run, sorted into the bags they are of."""
    of_bag: list[list[tuple[int, int]]] = [[] for _ in range(bags)]
    stops = lengths.cumsum(0)
    for start, stop in zip((stops - lengths).tolist(), stops.tolist(), strict=True):
        of_bag[int(index[start]) // tiles].append((start, stop))
    return tuple(tuple(runs) for runs in of_bag)
