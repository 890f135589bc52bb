"""`distance_attention`: checks what it is given and chooses the code that computes it."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from wsi_mil.attention import dropout
from wsi_mil.attention.bias import DistanceBias
from wsi_mil.attention.checks import real_coords, require_operands, wide_bias, wide_dtype
from wsi_mil.attention.factored import Setting, factored_distance_attention
from wsi_mil.attention.reference import dense_distance_attention
from wsi_mil.errors import OptionError

_ALIGNED = {"cuda": 8}
"""By device the multiple that dimensions must have for torch's attention to keep nothing of size n x n."""

Backend = Literal["auto", "reference", "tiled", "numba", "triton"]

# Up to so many tiles arrays of all pairs are faster than blocks of them (docs/decisions.md).
DENSE_TILES = 192


def distance_attention(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: DistanceBias | None,
    *,
    scale: float | None = None,
    mask: Bool[Tensor, "bags tiles"] | None = None,
    slide: Int[Tensor, "bags tiles"] | None = None,
    dropout_p: float = 0.0,
    backend: Backend = "auto",
    wide: bool = False,
) -> Float[Tensor, "bags heads tiles dim_v"]:
    """Attend with scores and values that depend on distance.

    Memory is linear in the tiles, forward and backward. float16 and bfloat16 are summed in float32. Who needs second or
    forward-mode derivatives, or `torch.func`, takes ``backend="reference"``: the others refuse them.

    Args:
        q: queries (bags, heads, tiles, dim).
        k: keys, as the queries.
        v: values (bags, heads, tiles, dim_v).
        coords: positions (bags, tiles, 2); distances have their unit. They get no gradient.
        bias: the distance dependence, in the unit of ``coords``; None = plain attention.
        scale: factor of the scores; None = ``dim ** -0.5``.
        mask: True = real tile. Padding is neither attended to nor updated, whatever it holds: its output is 0.
        slide: tiles of different slides have no distance, so they attend to each other without bias. Meant for the
            slides of a patient: time grows with the pairs of slides too.
        dropout_p: share of the attention weights dropped, the others being scaled up. What is dropped depends on
            torch's global CPU generator (where compiled, on what the compiler makes of it), not on the backend.
        backend: ``reference`` (arrays of all pairs: the definition), ``tiled`` (plain torch, any device), ``numba``
            (CPU, not float64; the extra ``wsi-mil[fast]``), ``triton`` (CUDA, not float64), or ``auto``: the fastest
            of those that are installed.
        wide: return float32 at least, for what forgives no rounding: in 16 bits tiles share a maximum by the hundred.

    Returns:
        The attended values (bags, heads, tiles, dim_v), of the type of ``v`` unless ``wide``; 0 where there was nothing
        to attend to.

    Raises:
        OptionError: the backend is unknown, not installed or cannot take these tensors, or ``dropout_p`` is no share.
        ValueError: shapes or kinds of operands do not belong together.

    Example:
        >>> q = k = v = torch.randn(1, 2, 500, 32)
        >>> coords_um = 256 * torch.rand(1, 500, 2)
        >>> near, far = torch.zeros(2, 32), torch.ones(2, 32)
        >>> table = torch.stack((far, near), dim=1)
        >>> bias = DistanceBias(torch.full((2,), 0.01), torch.tensor([200.0, 2000.0]), table, None, table)
        >>> distance_attention(q, k, v, coords_um, bias).shape
        torch.Size([1, 2, 500, 32])
    """
    require_operands(q, k, v, coords, bias, mask, slide)
    if backend not in get_args(Backend):
        raise OptionError(f"backend {backend}: choose one of {', '.join(get_args(Backend))}")
    if not 0 <= dropout_p < 1:
        raise OptionError(f"dropout_p {dropout_p}: give a share from 0 up to, but below, 1")
    # Attention has its own rule for precision, whatever an autocast around it says.
    with torch.autocast(q.device.type, enabled=False):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        mask = None if mask is not None and not torch.compiler.is_compiling() and bool(mask.all()) else mask
        seed = dropout.draw_seed() if dropout_p else None
        bias, coords = wide_bias(bias, q), real_coords(coords)
        if backend == "reference" or (backend == "auto" and q.shape[2] <= DENSE_TILES):
            attended = dense_distance_attention(
                q, k, v, coords, bias, scale=scale, mask=mask, slide=slide, dropout_p=dropout_p, seed=seed
            ).values
        elif bias is None and not dropout_p and backend == "auto" and _is_plain(q, v, wide):
            attended = _plain(q, k, v, scale, mask)
        else:
            codes = None if seed is None else dropout.codes(seed, *q.shape[:3], q.device)
            setting = Setting(scale, mask, slide, dropout_p, codes, backend)
            attended = _linear(q, k, v, coords, bias, setting)
        return attended.to(wide_dtype(v) if wide else v.dtype)


def _is_plain(q: Tensor, v: Tensor, wide: bool) -> bool:
    """Whether torch's own attention will do: it rounds to the type of the values."""
    return q.shape[-1] == v.shape[-1] and not (wide and v.dtype != wide_dtype(v))


def _linear(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: DistanceBias | None,
    setting: Setting,
) -> Float[Tensor, "bags heads tiles dim_v"]:
    """By numbers per tile, in blocks."""
    learnt = (q, k, v, *(() if bias is None else bias[:5]))
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in learnt if tensor is not None):
        raise OptionError("forward-mode derivatives are those of backend reference: give backend='reference'")
    return factored_distance_attention(q, k, v, coords, bias, setting)


def _plain(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    scale: float,
    mask: Bool[Tensor, "bags tiles"] | None,
) -> Float[Tensor, "bags heads tiles dim_v"]:
    """Torch's own attention, bag by bag: it keeps nothing of size n x n as long as it gets no mask.

    Nor numbers of a tile that lie apart, nor values of another dimension than the queries (`_is_plain`).
    """
    dim_v = v.shape[-1]
    q, k, v = (functional.pad(tensor, (0, -tensor.shape[-1] % _ALIGNED.get(q.device.type, 1))) for tensor in (q, k, v))
    q, k, v = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q, k, v))
    if mask is None:
        return functional.scaled_dot_product_attention(q, k, v, scale=scale)[..., :dim_v]
    bags = []
    for bag, real in enumerate(mask):
        index = real.nonzero().squeeze(1)
        # of tensors of three axes torch makes all of n x n
        q_own, k_own, v_own = (tensor[bag : bag + 1][:, :, index] for tensor in (q, k, v))
        one = functional.scaled_dot_product_attention(q_own, k_own, v_own, scale=scale)[0]
        bags.append(one.new_zeros(v.shape[1:]).index_copy(1, index, one))
    return torch.stack(bags)[..., :dim_v]
