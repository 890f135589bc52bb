"""Who takes part in `bench_attention.py`, and what they are given."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from wsi_mil.attention import DistanceBias, distance_attention

DIM = 64
TILE_UM = 256.0
LIMITS = {"published": 2048, "reference": 4096}
"""Tiles up to which variants with arrays of all pairs take part; published with one head only."""


@dataclass(frozen=True)
class Case:
    """What is attended to, and whether gradients are taken."""

    tiles: int
    heads: int
    dtype: torch.dtype
    device: str
    backward: bool

    @property
    def operations(self) -> int:
        """Floating point operations of the matrix products: two forward, five backward."""
        return (14 if self.backward else 4) * self.tiles**2 * DIM * self.heads


class Variant(NamedTuple):
    """Who computes it, and whether phi is ``shared``, there are ``three``, or ``none``."""

    name: str
    phi: str

    def takes(self, case: Case) -> bool:
        """Whether its arrays of all pairs, if it has any, are of a size that most machines can hold."""
        return case.tiles <= LIMITS.get(self.name, case.tiles) and (self.name != "published" or case.heads == 1)


class Inputs(NamedTuple):
    """One bag of tiles, the parameters of the distance by phi, and the gradient of what comes out."""

    q: Tensor
    k: Tensor
    v: Tensor
    coords: Tensor
    biases: dict[str, DistanceBias]
    gradient: Tensor

    @classmethod
    def draw(cls, case: Case) -> "Inputs":
        """Random tiles as dense as on a slide; the heads see from one tile to the whole."""
        generator = torch.Generator(case.device).manual_seed(0)
        side_um, shape = TILE_UM * case.tiles**0.5, (1, case.heads, case.tiles, DIM)

        def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, generator=generator, device=case.device, dtype=dtype)

        q, k, v = (normal(*shape, dtype=case.dtype).requires_grad_() for _ in range(3))
        coords = side_um * torch.rand(1, case.tiles, 2, generator=generator, device=case.device)
        theta = torch.logspace(0, 1, case.heads, base=side_um / TILE_UM, device=case.device) * TILE_UM
        tables = [normal(case.heads, 2, DIM).requires_grad_() for _ in range(3)]
        thetas = {"shared": theta, "three": torch.stack((theta, 2 * theta, 3 * theta))}
        biases = {
            phi: DistanceBias((4 / theta).requires_grad_(), theta.clone().requires_grad_(), *tables)
            for phi, theta in thetas.items()
        }
        return cls(q, k, v, coords, biases, normal(*shape, dtype=case.dtype))


def published_attention(q: Tensor, k: Tensor, v: Tensor, coords: Tensor, bias: DistanceBias) -> Tensor:
    """The equations of `wsi_mil.attention` as they stand: a vector per pair of tiles for key, query and value."""
    distance = torch.cdist(coords, coords)[:, None]
    slope, level = (torch.atleast_2d(parameter)[:, None, :, None, None] for parameter in (bias.beta, bias.theta))
    phis = torch.sigmoid(slope * (distance - level)).to(q.dtype).expand(3, -1, -1, -1, -1).unsqueeze(-1)
    tables = (table.to(q.dtype)[:, :, None, None] for table in bias[2:5])
    key, query, value = (phi * table[:, 0] + (1 - phi) * table[:, 1] for phi, table in zip(phis, tables, strict=True))
    scores = q @ k.mT + torch.einsum("bhid,bhijd->bhij", q, key) + torch.einsum("bhijd,bhjd->bhij", query, k)
    weights = torch.softmax(scores * DIM**-0.5, dim=-1)
    return weights @ v + torch.einsum("bhij,bhijd->bhid", weights, value)


def attend(variant: Variant, given: Inputs) -> Tensor:
    """Attention, by whom the variant says."""
    if variant.name == "sdpa":
        return functional.scaled_dot_product_attention(given.q, given.k, given.v)
    operands = (given.q, given.k, given.v, given.coords, given.biases[variant.phi])
    if variant.name == "published":
        return published_attention(*operands)
    return distance_attention(*operands, backend=variant.name)
