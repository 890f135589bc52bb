"""Distance-aware attention in blocks of pairs: plain torch, exact, linear in memory, on any device.

Flash attention (Dao et al. 2022, arXiv 2205.14135) with two additions: scores depend on phi, and one more accumulator
takes the phi of what is attended to. Distances are symmetric, so those of blocks I and J, and their phi, serve the
pairs (I, J) and (J, I), the second as transposed views: elementwise loops and BLAS take those at the same speed.
Scratch is taken once per call and reused by every block. Block sizes and figures: ``docs/decisions.md``.
"""

import math
from collections.abc import Iterator
from itertools import chain, combinations, combinations_with_replacement, product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from wsi_mil.attention.dropout import keep
from wsi_mil.attention.operands import LOG2E, Gradients, Operands, Part, Retrace, Task

# Tiles per side: enough that starting an operation costs little, few enough that some arrays of pairs stay in cache.
BLOCK = {"cpu": 512}
_LARGE_BLOCK = 2048  # of every other device

Pairs = Float[Tensor, "rows cols"]


class _Tile(NamedTuple):
    """One block of pairs of one head."""

    head: int
    rows: slice
    cols: slice
    phis: tuple[Pairs, ...]
    """Of key, query and value: the same array three times when they are shared, none without distances."""
    distance: Pairs
    spare: tuple[Pairs, Pairs]
    """Scratch to compute in."""

    def mirrored(self) -> "_Tile":
        """The same pairs the other way round."""
        phis = tuple(phi.t() for phi in self.phis)
        first, second = self.spare
        return _Tile(self.head, self.cols, self.rows, phis, self.distance.t(), (first.t(), second.t()))


def forward(operands: Operands, task: Task) -> Part:
    """Attend. See `wsi_mil.attention.operands`."""
    heads, tiles, dim_v = operands.v.shape
    zeros = operands.v.new_zeros
    part = Part(zeros(heads, tiles, dim_v), zeros(heads, tiles), zeros(heads, tiles), zeros(heads, tiles))
    # Until the end `lse` holds the greatest score so far, to which the sums are relative.
    part.lse.fill_(torch.finfo(part.lse.dtype).min)
    total = zeros(heads, tiles)
    for tile in _tiles(operands, task):
        _attend(operands, task, tile, part, total)
    attended = total > 0
    share = torch.where(attended, 1 / total, 0)
    part.lse.add_(total.log2()).masked_fill_(~attended, -math.inf)
    part.value.mul_(share.unsqueeze(-1))
    part.far.mul_(share)
    part.kept.copy_(part.kept * share if task.dropout_p else attended)
    return part


def backward(operands: Operands, task: Task, retrace: Retrace) -> Gradients:
    """Gradients of the operands; the scores of every block are computed again."""
    made, sums = _no_gradients(operands), _PhiSums.like(operands)
    for tile in _tiles(operands, task):
        _retrace(operands, task, tile, retrace, made)
        if operands.beta is not None:
            _trace_phi(operands, task, tile, retrace, made, sums)
    for gradient in (made.q, made.k, made.row, made.col):
        if gradient is not None:
            gradient.mul_(math.log(2))  # scores are exponents of two
    return made._replace(**sums.gradients(operands))


def _no_gradients(operands: Operands) -> Gradients:
    row, col, beta, theta = (None if each is None else torch.zeros_like(each) for each in operands[3:7])
    return Gradients(*(each.new_zeros(each.shape) for each in operands[:3]), row, col, beta, theta)


class _PhiSums(NamedTuple):
    """Sums over all pairs of the gradient of phi's exponent ``beta * (distance - theta)``, in double precision."""

    alone: Float[Tensor, "phis heads"]
    times_distance: Float[Tensor, "phis heads"]

    @classmethod
    def like(cls, operands: Operands) -> "_PhiSums":
        shape = (0, 0) if operands.beta is None else operands.beta.shape
        return cls(*operands.q.new_zeros((2, *shape), dtype=torch.float64))

    def add(self, index: int, tile: _Tile, of_exponent: Pairs) -> None:
        """Take in a tile; ``of_exponent`` is spoilt."""
        self.alone[index, tile.head] += of_exponent.sum()
        self.times_distance[index, tile.head] += of_exponent.mul_(tile.distance).sum()

    def gradients(self, operands: Operands) -> dict[str, Tensor]:
        """Of slope and shift of phi."""
        if operands.beta is None or operands.theta is None:
            return {}
        slope = (self.times_distance - operands.theta * self.alone) * math.log(2)
        shift = -operands.beta * self.alone * math.log(2)
        return {"beta": slope.to(operands.beta), "theta": shift.to(operands.beta)}


def _attend(operands: Operands, task: Task, tile: _Tile, part: Part, total: Float[Tensor, "heads tiles"]) -> None:
    """Add a tile of pairs to the running sums of its rows (online softmax)."""
    weights = _scores(operands, task, tile)
    rows, cols = (tile.head, tile.rows), (tile.head, tile.cols)
    best = part.lse[rows]
    top = torch.maximum(best, weights.amax(dim=1))
    shrink = (best - top).exp2_()
    weights.sub_(top.unsqueeze(1)).exp2_()
    total[rows].mul_(shrink).add_(weights.sum(dim=1))
    best.copy_(top)
    if task.dropout_p:
        weights.mul_(_kept(operands, task, tile))
        part.kept[rows].mul_(shrink).add_(weights.sum(dim=1))
    part.value[rows].mul_(shrink.unsqueeze(1)).addmm_(weights, operands.v[cols])
    if task.far:
        part.far[rows].mul_(shrink).add_(weights.mul_(tile.phis[2]).sum(dim=1))


def _retrace(operands: Operands, task: Task, tile: _Tile, retrace: Retrace, made: Gradients) -> None:
    """Gradients of q, k and v; leaves the weights and the gradients of the scores in the tile's scratch."""
    weights, change = _scores(operands, task, tile), tile.spare[1]
    rows, cols = (tile.head, tile.rows), (tile.head, tile.cols)
    weights.sub_(retrace.lse[rows].unsqueeze(1)).exp2_()
    torch.mm(retrace.of_value[rows], operands.v[cols].t(), out=change)
    if task.far:
        change.addcmul_(tile.phis[2], retrace.of_far[rows].unsqueeze(1))
    if task.dropout_p:
        kept = _kept(operands, task, tile)
        change.add_(retrace.of_kept[rows].unsqueeze(1)).mul_(kept)
        change.sub_(retrace.steady[rows].unsqueeze(1)).mul_(weights)
        weights.mul_(kept)
    else:
        change.sub_(retrace.steady[rows].unsqueeze(1)).mul_(weights)
    made.v[cols].addmm_(weights.t(), retrace.of_value[rows])
    made.q[rows].addmm_(change, operands.k[cols])
    made.k[cols].addmm_(change.t(), operands.q[rows])


def _trace_phi(operands: Operands, task: Task, tile: _Tile, retrace: Retrace, made: Gradients, sums: _PhiSums) -> None:
    """Gradients of row, col and of phi's exponent, from the weights and changes that `_retrace` left."""
    weights, change = tile.spare
    far = retrace.of_far[tile.head, tile.rows].unsqueeze(1).mul(LOG2E)  # in the unit of scores
    terms = list(_score_terms(operands, made, tile))
    if len(sums.alone) > 1:
        if task.far:
            sums.add(2, tile, _through_sigmoid(weights, tile.phis[2], out=weights).mul_(far))
        for term in terms:
            phi = tile.phis[term.index]
            term.gradient.add_(torch.mul(change, phi, out=weights).sum(term.dim))
            sums.add(term.index, tile, _through_sigmoid(change, phi, out=weights).mul_(term.factor))
        return
    of_phi, phi = weights.mul_(far), tile.phis[0]
    for term in terms:
        of_phi.addcmul_(change, term.factor)
    sums.add(0, tile, _through_sigmoid(of_phi, phi, out=of_phi))
    if terms:
        change.mul_(phi)
    for term in terms:
        term.gradient.add_(change.sum(term.dim))


class _ScoreTerm(NamedTuple):
    """Phi times a number per row or column, in the scores of a tile."""

    index: int
    factor: Float[Tensor, "#rows #cols"]
    gradient: Float[Tensor, " rows_or_cols"]
    """Of the factor, to be added to."""
    dim: int
    """The dimension that the factor does not depend on."""


def _score_terms(operands: Operands, made: Gradients, tile: _Tile) -> Iterator[_ScoreTerm]:
    if operands.row is not None and made.row is not None:
        rows = (tile.head, tile.rows)
        yield _ScoreTerm(0, operands.row[rows].unsqueeze(1), made.row[rows], 1)
    if operands.col is not None and made.col is not None:
        cols = (tile.head, tile.cols)
        yield _ScoreTerm(1, operands.col[cols].unsqueeze(0), made.col[cols], 0)


def _through_sigmoid(gradient: Pairs, phi: Pairs, *, out: Pairs) -> Pairs:
    """``gradient * phi * (1 - phi)`` in one pass."""
    return torch.ops.aten.sigmoid_backward.grad_input(gradient, phi, grad_input=out)


def _scores(operands: Operands, task: Task, tile: _Tile) -> Pairs:
    """Scores of a tile, in its first scratch."""
    scores = tile.spare[0]
    rows, cols = (tile.head, tile.rows), (tile.head, tile.cols)
    torch.mm(operands.q[rows], operands.k[cols].t(), out=scores)
    if operands.row is not None:
        scores.addcmul_(tile.phis[0], operands.row[rows].unsqueeze(1))
    if operands.col is not None:
        scores.addcmul_(tile.phis[1], operands.col[cols])
    if tile.rows == tile.cols and not task.diagonal:
        scores.fill_diagonal_(-math.inf)
    return scores


def _kept(operands: Operands, task: Task, tile: _Tile) -> Pairs:
    """1 / (1 - p) for pairs that dropout keeps, 0 for others."""
    if operands.row_code is None or operands.col_code is None:
        raise ValueError("dropout needs codes that decide what is dropped")
    row, col = operands.row_code[tile.head, tile.rows].unsqueeze(1), operands.col_code[tile.head, tile.cols]
    return keep(row, col, task.dropout_p).to(operands.q.dtype).div_(1 - task.dropout_p)


def _tiles(operands: Operands, task: Task) -> Iterator[_Tile]:
    """Every tile of the task, with its phi; scratch is shared, so each must be done with before the next."""
    side = BLOCK.get(operands.q.device.type, _LARGE_BLOCK)
    side = min(side, max((stop - start for bag in task.runs for start, stop in bag), default=0))
    none = operands.q.new_zeros(0, len(operands.q))
    beta, theta = (none if each is None else each for each in (operands.beta, operands.theta))
    scratch = operands.q.new_empty(3 + len(beta), side * side)
    slopes, shifts = beta.tolist(), -beta * theta  # phi's exponent is beta * distance + shift
    for rows, cols in _block_pairs(task, side):
        height, width = rows.stop - rows.start, cols.stop - cols.start
        distance, first, second, *phis = scratch[:, : height * width].view(-1, height, width)
        if operands.xy is not None:
            _measure(operands.xy, rows, cols, distance, first)
        for head in range(len(operands.q)):
            for phi, slope, shift in zip(phis, slopes, shifts, strict=True):
                torch.add(shift[head], distance, alpha=slope[head], out=phi).sigmoid_()
            tile = _Tile(head, rows, cols, tuple(phis * 3 if len(phis) == 1 else phis), distance, (first, second))
            yield tile
            if rows != cols:
                yield tile.mirrored()


def _block_pairs(task: Task, side: int) -> Iterator[tuple[slice, slice]]:
    """Unordered pairs of blocks: of each run, or with ``across`` of different runs of each bag."""
    for bag in task.runs:
        runs = [[slice(i, min(i + side, stop)) for i in range(start, stop, side)] for start, stop in bag]
        if task.across:
            yield from (pair for one, other in combinations(runs, 2) for pair in product(one, other))
        else:
            yield from chain.from_iterable(combinations_with_replacement(blocks, 2) for blocks in runs)


def _measure(xy: Float[Tensor, "2 tiles"], rows: slice, cols: slice, out: Pairs, spare: Pairs) -> None:
    """Distances by explicit differences: expanding the square would cancel far from the origin."""
    torch.sub(xy[0, rows].unsqueeze(1), xy[0, cols], out=out)
    torch.sub(xy[1, rows].unsqueeze(1), xy[1, cols], out=spare)
    out.mul_(out).addcmul_(spare, spare).sqrt_()
