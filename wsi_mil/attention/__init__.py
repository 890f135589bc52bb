"""Exact distance-aware attention.

Per head, for query tile i and key tile j::

    phi_ij = sigmoid(beta * (|c_i - c_j| - theta))
    b_ij   = phi_ij * far + (1 - phi_ij) * near            one such bias each for key, query and value
    e_ij   = (q_i . k_j + q_i . bK_ij + bQ_ij . k_j) * scale
    z_i    = sum_j softmax_j(e)_ij * (v_j + bV_ij)

`distance_attention` is the function to call; `dense_distance_attention` is its definition, and gives the weights too.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from wsi_mil.attention.bias import DistanceBias
from wsi_mil.attention.reference import Attended, dense_distance_attention

__all__ = ["Attended", "DistanceBias", "dense_distance_attention", "distance_attention"]


def distance_attention(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    coords: Float[Tensor, "bags tiles 2"],
    bias: DistanceBias | None,
    *,
    scale: float | None = None,
    mask: Bool[Tensor, "bags tiles"] | None = None,
    slide: Int[Tensor, "bags tiles"] | None = None,
) -> Float[Tensor, "bags heads tiles dim_v"]:
    """Attend with scores and values that depend on distance.

    Args:
        q: queries.
        k: keys.
        v: values.
        coords: positions; distances have their unit. They get no gradient.
        bias: the distance dependence, in the unit of ``coords``; None = plain attention.
        scale: factor of the scores; None = ``dim ** -0.5``.
        mask: True = real tile. Padding is neither attended to nor updated, whatever it holds: its output is 0.
        slide: tiles of different slides have no distance, so they attend to each other without bias.

    Returns:
        The attended values; 0 where there was nothing to attend to.
    """
    return dense_distance_attention(q, k, v, coords, bias, scale=scale, mask=mask, slide=slide).values
