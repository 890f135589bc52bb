"""One part of attention as a torch operator with a gradient, so that compiled graphs take it as a whole.

It gets padded batches, whose shapes do not depend on the data: packing the real tiles, reducing tables to numbers per
tile, and choosing the code that computes, happen inside. Its gradient is written by hand and in place, because half a
dozen arrays of the size of the queries are all that attention needs beside its inputs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wsi_mil.attention.backends import TAKES_HALF, choose, module_of
from wsi_mil.attention.checks import wide, wide_dtype
from wsi_mil.attention.operands import LOG2E, Gradients, Operands, Retrace, Task
from wsi_mil.attention.packing import Packing, plan
from wsi_mil.errors import OptionError


class _Inputs(NamedTuple):
    """The arguments of the operator, in its order."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor | None
    theta: Tensor | None
    key: Tensor | None
    query: Tensor | None
    value: Tensor | None
    coords: Tensor | None
    row_code: Tensor | None
    col_code: Tensor | None
    mask: Tensor | None
    slide: Tensor | None
    scale: float
    across: bool
    diagonal: bool
    dropout_p: float
    backend: str


_TENSORS, _DIFFERENTIABLE = 13, 8  # the first of them
_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? beta, Tensor? theta, Tensor? key, Tensor? query, Tensor? value,"
    " Tensor? coords, Tensor? row_code, Tensor? col_code, Tensor? mask, Tensor? slide,"
    " float scale, bool across, bool diagonal, float dropout_p, str backend"
)


def _attend(*arguments: Any) -> tuple[Tensor, ...]:
    """Attend to one part of the pairs of tiles.

    Shapes are those of `wsi_mil.attention.distance_attention`, but beta and theta are (1 or 3, heads), and the codes
    are (bags, heads, tiles). ``scale`` turns products into exponents of two.

    Returns:
        value (bags, heads, tiles, dim_v), with what the value table adds; far, kept and lse (bags, heads, tiles) as in
        `wsi_mil.attention.operands.Part`. All in float32 at least: the gradient of scores is a difference, which would
        show what rounding took off value. Padding is 0. Of lse, what the key's near vector adds is left out: it is
        constant in a row.
    """
    inputs = _Inputs(*arguments)
    packing, backend = _plan(inputs), choose(inputs.backend, inputs.q, inputs.v)
    part = module_of(backend).forward(_operands(inputs, packing, backend), _task(inputs, packing))
    value = wide(part.value)
    if inputs.value is not None:
        value.baddbmm_(torch.stack((part.far, part.kept), dim=-1), _away_and_near(inputs.value))
    return packing.unpack(value), *map(packing.unpack, part[1:])


def _attend_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of the first eight inputs; empty where an input is absent, because an operator cannot return None."""
    inputs = _Inputs(*arguments[: len(_Inputs._fields)])
    packing, backend = _plan(inputs), choose(inputs.backend, inputs.q, inputs.v)
    value, far, kept, lse, of_value, of_lse = map(packing.pack, arguments[len(_Inputs._fields) :])
    if backend in TAKES_HALF:  # rounded before anything is made of it: what values have in common cancels only then
        of_value = of_value.to(inputs.v.dtype)
    of_value = _rows(wide(of_value))
    # einsum, unlike a product and a sum, makes no array of the size of the values.
    steady = torch.einsum("htd,htd->ht", of_value, wide(value)).sub_(of_lse, alpha=LOG2E)
    of_far, of_kept, of_table = torch.zeros_like(far), torch.zeros_like(kept), None
    if inputs.value is not None:
        of_far, of_kept = torch.bmm(of_value, _away_and_near(inputs.value).mT).movedim(-1, 0).contiguous()
        of_table = _of_table(*torch.bmm(torch.stack((far, kept), dim=1), of_value).unbind(1))
        if not inputs.dropout_p:
            steady.addcmul_(of_kept, kept, value=-1)
    operands = _operands(inputs, packing, backend)
    # Without keys there is no weight, whatever the scores: 2 ** (score - inf).
    lse = lse.masked_fill(lse == -math.inf, math.inf)
    retrace = Retrace(lse.contiguous(), steady, of_value.to(operands.v.dtype), of_far, of_kept)
    made = module_of(backend).backward(operands, _task(inputs, packing), retrace)
    del operands
    of_q, of_k, of_key, of_query = _through_tables(inputs, packing, made, _unit(inputs, backend))
    of_q, of_k, of_v = map(packing.unpack, (of_q, of_k, made.v))
    gradients = (of_q, of_k, of_v, made.beta, made.theta, of_key, of_query, of_table)
    return tuple(
        of_q.new_empty(0) if gradient is None else gradient.to(of.dtype)
        for gradient, of in zip(gradients, arguments, strict=False)
    )


def _operands(inputs: _Inputs, packing: Packing, backend: str) -> Operands:
    """Reduce tables to numbers per tile: see `wsi_mil.attention.factored`."""
    q, k, v = (_rows(packing.pack(tensor)) for tensor in inputs[:3])
    xy = None if inputs.coords is None else _near_origin(packing, inputs.coords).to(wide_dtype(q))
    row_code, col_code = (
        each if each is None else packing.pack(each).contiguous() for each in (inputs.row_code, inputs.col_code)
    )
    unit, row, col, near = _unit(inputs, backend), None, None, None
    if inputs.key is not None:
        row = _dot(wide(q), unit * _away_and_near(inputs.key)[:, 0])
    operands = Operands(q, k, v, row, col, inputs.beta, inputs.theta, xy, row_code, col_code)
    if backend in TAKES_HALF:
        if inputs.query is not None:
            col, near = torch.bmm(wide(k), _away_and_near(inputs.query).mT).movedim(-1, 0).contiguous()
        return operands._replace(col=col, near=near, scale=inputs.scale)
    if inputs.query is None:
        queries = wide(q) * unit
    else:
        away, near_query = (unit * _away_and_near(inputs.query)).unbind(1)
        queries = torch.add(near_query.unsqueeze(1), wide(q), alpha=unit)
        col = _dot(wide(k), away)
    return operands._replace(q=queries, k=wide(k), v=wide(v), col=col)


def _unit(inputs: _Inputs, backend: str) -> float:
    """What queries, and what is added to their products, are multiplied by before a backend gets them."""
    return 1.0 if backend in TAKES_HALF else inputs.scale


def _through_tables(
    inputs: _Inputs, packing: Packing, made: Gradients, unit: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q, k and of the tables of key and query, from those of the operands."""
    of_key, of_query = None, None
    of_q, of_k = wide(made.q).mul_(unit), wide(made.k)
    if inputs.query is not None and made.col is not None:
        # Where near was added to every query, its gradient is that of all queries.
        columns = made.col.unsqueeze(1) if made.near is None else torch.stack((made.col, made.near), dim=1)
        of_pair = torch.bmm(columns, wide(packing.pack(inputs.k))).mul_(unit)
        of_query = _of_table(of_pair[:, 0], of_q.sum(dim=1) if made.near is None else of_pair[:, 1])
        of_k.baddbmm_(columns.mT, _away_and_near(inputs.query)[:, : columns.shape[1]], alpha=unit)
    if inputs.key is not None and made.row is not None:
        of_away = torch.bmm(made.row.unsqueeze(1), wide(packing.pack(inputs.q))).squeeze(1) * unit
        of_key = _of_table(of_away, torch.zeros_like(of_away))
        of_q.baddbmm_(made.row.unsqueeze(-1), _away_and_near(inputs.key)[:, :1], alpha=unit)
    return of_q, of_k, of_key, of_query


def _plan(inputs: _Inputs) -> Packing:
    bags, _, tiles, _ = inputs.q.shape
    return plan(bags, tiles, inputs.mask, inputs.slide)


def _task(inputs: _Inputs, packing: Packing) -> Task:
    return Task(packing.runs, inputs.across, inputs.diagonal, inputs.value is not None, inputs.dropout_p)


def _near_origin(packing: Packing, coords: Tensor) -> Tensor:
    """Coordinates (2, tiles), relative to the first tile of their slide: lower precision then loses less of them."""
    xy = packing.pack(coords.unsqueeze(1)).squeeze(0).clone()
    for start, stop in (run for bag in packing.runs for run in bag):
        xy[start:stop] -= xy[start].clone()
    return xy.t().contiguous()


def _away_and_near(table: Tensor) -> Tensor:
    """Far minus near, and near (heads, 2, dim): what phi and 1 multiply."""
    return wide(torch.stack((table[:, 0] - table[:, 1], table[:, 1]), dim=1))


def _of_table(of_away: Tensor, of_near: Tensor) -> Tensor:
    """Gradient of a table from those of far minus near, and of near (heads, dim)."""
    return torch.stack((of_away, of_near - of_away), dim=1)


def _dot(vectors: Tensor, direction: Tensor) -> Tensor:
    return torch.bmm(vectors, direction.unsqueeze(-1)).squeeze(-1)


def _rows(tensor: Tensor) -> Tensor:
    """As it is if the numbers of a tile lie side by side, else copied."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _attend_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    q, _, v = arguments[:3]
    sums = wide_dtype(q)
    return v.new_empty(v.shape, dtype=sums), *(q.new_empty(q.shape[:3], dtype=sums) for _ in range(3))


def _attend_backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    q = arguments[0]
    return tuple(q.new_empty(0) if of is None else of.new_empty(of.shape) for of in arguments[:_DIFFERENTIABLE])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.options = inputs[_TENSORS:]
    ctx.save_for_backward(*inputs[:_TENSORS], *output)


def _differentiate(ctx: Any, of_value: Tensor, of_far: Tensor, of_kept: Tensor, of_lse: Tensor) -> tuple[Any, ...]:
    """Of far and kept no gradient is asked: they are there to be saved."""
    saved = ctx.saved_tensors  # once: where activations are recomputed, a second look is refused
    inputs, output = saved[:_TENSORS], saved[_TENSORS:]
    made = torch.ops.wsi_mil.attend_backward(*inputs, *ctx.options, *output, of_value, of_lse)
    gradients = (None if of is None else gradient for of, gradient in zip(inputs, made, strict=False))
    return *gradients, *(None for _ in range(len(_Inputs._fields) - _DIFFERENTIABLE))


def _differentiate_twice(ctx: Any, *of_gradients: Tensor) -> None:
    raise OptionError("second derivatives are those of backend reference: give backend='reference'")


def _register(name: str, schema: str, compute: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    """What `torch.library.custom_op` does, without loading the compiler (1.3 s, 150 MB) where nothing is compiled."""
    torch.library.define(name, schema)
    torch.library.impl(name, "default", compute)
    torch.library.register_fake(name, shapes)


def _tensors(count: int) -> str:
    return f"({', '.join(['Tensor'] * count)})"


_register("wsi_mil::attend", f"({_ARGUMENTS}) -> {_tensors(4)}", _attend, _attend_shapes)
_register(
    "wsi_mil::attend_backward",
    f"({_ARGUMENTS}, Tensor out, Tensor far, Tensor kept, Tensor lse, Tensor of_out, Tensor of_lse)"
    f" -> {_tensors(_DIFFERENTIABLE)}",
    _attend_backward,
    _attend_backward_shapes,
)
torch.library.register_autograd("wsi_mil::attend", _differentiate, setup_context=_save)
torch.library.register_autograd("wsi_mil::attend_backward", _differentiate_twice)
attend = torch.ops.wsi_mil.attend
"""`_attend` with a gradient."""
