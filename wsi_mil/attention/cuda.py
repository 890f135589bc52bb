"""Distance-aware attention by Triton kernels, on CUDA devices: exact, linear in memory, equal bits for equal input.

Operands in bfloat16 or float16 are multiplied as they are and summed in float32, and functions of a pair are the
device's fast approximations, whose errors (2**-11 at most) are below those of the operands. Operands in float32 get
accurate functions and true float32 products (``ieee``): for speed there are 16-bit operands.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from wsi_mil.attention import triton_kernels as kernels
from wsi_mil.attention.dropout import threshold
from wsi_mil.attention.operands import LOG2E, Gradients, Operands, Part, Retrace, Task


class Launch(NamedTuple):
    """How a kernel is run."""

    rows: int
    """Queries of a block."""
    cols: int
    """Keys of a block."""
    warps: int
    stages: int
    """Blocks of partners on their way from memory at a time."""


# By kernel, bytes per operand and padded head dim; smaller heads run as the smallest here. Compiled for sm_90, heads up
# to 128 spill no register (a test checks), those of 256 none in the loop over whole blocks; of the blocks of which that
# is true these issue the fewest instructions per score. Not timed on a GPU.
LAUNCHES = {
    ("attend", 2, 64): Launch(64, 64, 4, 2),
    ("attend", 2, 128): Launch(128, 64, 8, 2),
    ("attend", 2, 256): Launch(64, 16, 4, 2),
    ("attend", 4, 64): Launch(32, 32, 4, 2),
    ("attend", 4, 128): Launch(32, 16, 8, 2),
    ("attend", 4, 256): Launch(16, 16, 4, 2),
    ("trace_queries", 2, 64): Launch(64, 32, 4, 2),
    ("trace_queries", 2, 128): Launch(128, 32, 8, 2),
    ("trace_queries", 2, 256): Launch(16, 64, 4, 2),
    ("trace_queries", 4, 64): Launch(32, 16, 4, 2),
    ("trace_queries", 4, 128): Launch(32, 16, 8, 2),
    ("trace_queries", 4, 256): Launch(16, 16, 4, 2),
    ("trace_keys", 2, 64): Launch(32, 64, 4, 2),
    ("trace_keys", 2, 128): Launch(16, 64, 4, 2),
    ("trace_keys", 2, 256): Launch(32, 32, 8, 2),
    ("trace_keys", 4, 64): Launch(32, 64, 8, 2),
    ("trace_keys", 4, 128): Launch(16, 32, 8, 2),
    ("trace_keys", 4, 256): Launch(16, 16, 8, 2),
}
# Where phi is shared or there is none, and no dropout, registers suffice for more.
LIGHT_LAUNCHES = {("trace_keys", 2, 64): Launch(64, 128, 8, 2)}


def forward(operands: Operands, task: Task) -> Part:
    """Attend. See `wsi_mil.attention.operands`."""
    heads, tiles, dim_v = operands.v.shape
    far, kept, lse = operands.q.new_empty((3, heads, tiles), dtype=torch.float32)
    value = operands.v.new_empty((heads, tiles, dim_v), dtype=torch.float32)
    _Call.of(operands, task).run(
        "attend",
        value_ptr=value,
        far_ptr=far if task.far else None,
        kept_ptr=kept if task.dropout_p else None,
        lse_ptr=lse,
        amplify=1 / (1 - task.dropout_p),
    )
    if not task.far:
        far.zero_()
    if not task.dropout_p:
        kept.copy_(lse > -math.inf)
    return Part(value, far, kept, lse)


def backward(operands: Operands, task: Task, retrace: Retrace) -> Gradients:
    """Gradients of the operands; the scores of every block are computed again."""
    call, amplify = _Call.of(operands, task), 1 / (1 - task.dropout_p)
    # Of queries and keys there is more to come, from tables: they are rounded once, at the end.
    dq, dk = (operand.new_empty(operand.shape, dtype=torch.float32) for operand in (operands.q, operands.k))
    dv = operands.v.new_empty(operands.v.shape)
    drow, dcol, dnear = operands.q.new_empty((3, *operands.q.shape[:2]), dtype=torch.float32)
    # Sums over partners of the gradient of phi's exponent, alone and times the distance; not all need be written.
    phis = 0 if operands.beta is None else len(operands.beta)
    sums = operands.q.new_zeros((phis, 2, *operands.q.shape[:2]), dtype=torch.float32)
    # Weights relative to these are those of kept pairs, times 1 / (1 - p).
    shift = retrace.lse - math.log2(amplify)
    given: dict[str, Any] = {
        **_view("dvalue", retrace.of_value.to(operands.v.dtype)),
        "dfar_ptr": _numbers(retrace.of_far) if task.far else None,
        "dkept_ptr": _numbers(retrace.of_kept) if task.dropout_p else None,
        "shift_ptr": _numbers(shift),
        "steady_ptr": _numbers(retrace.steady / amplify),
        "dcurve_ptr": sums,
    }
    call.run("trace_queries", dq_ptr=dq, drow_ptr=drow, **given)
    call.run("trace_keys", dk_ptr=dk, dv_ptr=dv, dcol_ptr=dcol, dnear_ptr=dnear, **given)
    made = Gradients(dq, dk, dv, _like(drow, operands.row), _like(dcol, operands.col), None, None)
    made = made._replace(near=_like(dnear, operands.near))
    if operands.beta is None or operands.theta is None:
        return made
    alone, times_distance = sums.sum(-1, dtype=torch.float64).mul_(math.log(2)).unbind(1)
    beta, theta = times_distance - operands.theta * alone, -operands.beta * alone
    return made._replace(beta=beta.to(operands.beta), theta=theta.to(operands.theta))


class _Call(NamedTuple):
    """What the kernels share."""

    task: Task
    arguments: dict[str, Any]
    pad: int
    """The larger of the padded head dims."""
    light: bool
    """See `LIGHT_LAUNCHES`."""

    @classmethod
    def of(cls, operands: Operands, task: Task) -> "_Call":
        """The operands as the kernels take them."""
        # The interpreter, which runs on a CPU, does not know the device's fast functions.
        fast = operands.q.is_cuda and operands.q.dtype != torch.float32
        dim, dim_v = operands.q.shape[-1], operands.v.shape[-1]
        pad, pad_v = _padded(dim), _padded(dim_v)
        curves = None
        if operands.row is not None or operands.col is not None or task.far:
            curves = _curves(operands, fast)
        arguments = {
            **_view("q", operands.q),
            **_view("k", operands.k),
            **_view("v", operands.v),
            "row_ptr": _numbers(operands.row),
            "col_ptr": _numbers(operands.col),
            "near_ptr": _numbers(operands.near),
            "xy_ptr": None if curves is None else _numbers(operands.xy),
            "curve_ptr": curves,
            "row_code_ptr": operands.row_code,
            "col_code_ptr": operands.col_code,
            "heads": operands.q.shape[0],
            "tiles": operands.q.shape[1],
            "threshold": threshold(task.dropout_p),
            "scale": operands.scale,
            "DIM": dim,
            "DIM_V": dim_v,
            "PAD": pad,
            "PAD_V": pad_v,
            "SHARED": curves is not None and len(curves) == 1,
            "DIAGONAL": task.diagonal or task.across,
            "FAST": fast,
        }
        light = (curves is None or len(curves) == 1) and not task.dropout_p
        return cls(task, arguments, max(pad, pad_v), light)

    def run(self, kernel: str, **more: Any) -> None:
        """Start a kernel."""
        q = self.arguments["q_ptr"]
        launch = launch_of(kernel, q.element_size(), self.pad, self.light)
        own, partner = (launch.cols, launch.rows) if kernel == "trace_keys" else (launch.rows, launch.cols)
        work = _work(self.task, own, partner, q.device)
        if not len(work):
            return
        # Triton starts kernels on the current device, wherever their arguments lie.
        with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
            getattr(kernels, kernel)[len(work), len(q)](
                **self.arguments,
                **more,
                work_ptr=work,
                ROWS=launch.rows,
                COLS=launch.cols,
                EDGE=partner // 2 if partner > 32 else partner,  # a mask takes registers
                num_warps=launch.warps,
                STAGES=launch.stages,
                enable_fp_fusion=True,
            )


def launch_of(kernel: str, item_size: int, pad: int, light: bool) -> Launch:
    """How a kernel is run on operands of so many bytes and such a padded head dim."""
    key = kernel, item_size, max(64, pad)
    return LIGHT_LAUNCHES[key] if light and key in LIGHT_LAUNCHES else LAUNCHES[key]


def _work(task: Task, own: int, partner: int, device: torch.device) -> Int32[Tensor, "programs 10"]:
    """One row per program: start and stop of its own block, of two ranges of whole blocks of partners, of two others.

    Most work first, so that no long program is left to the end.
    """
    rows = [row for bag in task.runs for row in _work_of_bag(bag, task, own, partner)]
    rows.sort(key=lambda row: row[2] - row[3] + row[4] - row[5])
    host = torch.tensor(rows, dtype=torch.int32, pin_memory=device.type == "cuda").view(-1, 10)
    return host.to(device, non_blocking=True)


def _work_of_bag(bag: tuple[tuple[int, int], ...], task: Task, own: int, partner: int) -> Iterator[tuple[int, ...]]:
    for start, stop in bag:
        for first in range(start, stop, own):
            last = min(first + own, stop)
            if task.across:
                whole, rest = zip(_split(bag[0][0], start, partner), _split(stop, bag[-1][1], partner), strict=True)
            elif task.diagonal:
                whole, rest = zip(_split(start, stop, partner), _split(stop, stop, partner), strict=True)
            else:  # blocks that hold partners that are the tile itself need a mask too
                low = first - (first - start) % partner
                high = min(low + -(-(last - low) // partner) * partner, stop)
                after, tail = _split(high, stop, partner)
                whole, rest = ((start, low), after), ((low, high), tail)
            yield (first, last, *whole[0], *whole[1], *rest[0], *rest[1])


def _split(start: int, stop: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Whole blocks and the rest of a range."""
    middle = stop - (stop - start) % size
    return (start, middle), (middle, stop)


def _curves(operands: Operands, fast: bool) -> Float32[Tensor, "phis heads 2"] | None:
    """Factor and summand that turn a distance into what the kernels take a tanh or, if not fast, a power of two of."""
    if operands.beta is None or operands.theta is None:
        return None
    factor = operands.beta.float() * (0.5 if fast else -LOG2E)
    return torch.stack((factor, -factor * operands.theta.float()), dim=-1)


def _padded(dim: int) -> int:
    """The power of two that a head dim is filled up to; 16 is the least that tensor cores take."""
    return max(16, 1 << (dim - 1).bit_length())


def _view(name: str, operand: Float[Tensor, "heads tiles dim"]) -> dict[str, Any]:
    """Vectors as the kernels take them: wherever they are, but the numbers of one beside each other."""
    operand = operand if operand.stride(-1) == 1 else operand.contiguous()
    return {f"{name}_ptr": operand, f"{name}_head": operand.stride(0), f"{name}_tile": operand.stride(1)}


def _numbers(operand: Float[Tensor, "*any"] | None) -> Float32[Tensor, "*any"] | None:
    return None if operand is None else operand.float().contiguous()


def _like(gradient: Float32[Tensor, "heads tiles"], operand: Float[Tensor, "heads tiles"] | None) -> Tensor | None:
    return None if operand is None else gradient.to(operand.dtype)
