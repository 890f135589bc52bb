"""What attention is given: refused by name where it cannot be meant, and brought to the precision of sums."""

import torch
from torch import Tensor

from wsi_mil.attention.bias import DistanceBias


def require_operands(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    coords: Tensor,
    bias: DistanceBias | None,
    mask: Tensor | None,
    slide: Tensor | None,
) -> None:
    """Refuse what would else be broadcast, or read, as something that was not meant.

    Raises:
        ValueError: names the operand, and what it has to be.
    """
    if q.dim() != 4 or not q.shape[-1]:
        raise ValueError(f"q has shape {tuple(q.shape)}: give (bags, heads, tiles, dim), of at least one dimension")
    bags, heads, tiles, dim = q.shape
    dim_v = dim if v is None else v.shape[-1]
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "k": (k, (bags, heads, tiles, dim)),
        "v": (v, (bags, heads, tiles, dim_v)),
        "coords": (coords, (bags, tiles, 2)),
        "mask": (mask, (bags, tiles)),
        "slide": (slide, (bags, tiles)),
    }
    if bias is not None:
        phis = (3, heads) if bias.beta.dim() == 2 else (heads,)
        expected |= {"beta": (bias.beta, phis), "theta": (bias.theta, phis)}
        expected |= {"key": (bias.key, (heads, 2, dim)), "query": (bias.query, (heads, 2, dim))}
        expected |= {} if v is None else {"value": (bias.value, (heads, 2, dim_v))}
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, with this q it has to be {shape}")
        if tensor is not None and tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, q on {q.device}: bring them together")
    _require_kinds(q, k, v, mask, slide)


def _require_kinds(q: Tensor, k: Tensor, v: Tensor | None, mask: Tensor | None, slide: Tensor | None) -> None:
    if not q.is_floating_point():
        raise ValueError(f"q is of {q.dtype}: give real numbers")
    for name, tensor in (("k", k), ("v", v)):
        if tensor is not None and tensor.dtype != q.dtype:
            raise ValueError(f"{name} is of {tensor.dtype}, q of {q.dtype}: bring them to one type")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask is of {mask.dtype}: give torch.bool, True = real tile")
    if slide is not None and (slide.is_floating_point() or slide.dtype == torch.bool):
        raise ValueError(f"slide is of {slide.dtype}: give whole numbers")


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which sums are made: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(wide_dtype(tensor))


def wide_bias(bias: DistanceBias | None, q: Tensor) -> DistanceBias | None:
    """The bias in the type of sums; None if it has no tables, because then distance has no effect."""
    if bias is None or (bias.key is None and bias.query is None and bias.value is None):
        return None
    dtype = wide_dtype(q)
    key, query, value = (None if table is None else table.to(dtype) for table in bias[2:5])
    return DistanceBias(bias.beta.to(dtype), bias.theta.to(dtype), key, query, value, bias.self_bias)


def real_coords(coords: Tensor) -> Tensor:
    """Coordinates as numbers whose differences are exact enough, without gradient: whole ones in float64."""
    return wide(coords.detach()) if coords.is_floating_point() else coords.detach().double()
