"""Exact distance-aware attention: linear in memory, differentiable, in the order of plain attention's time.

Per head, for query tile i and key tile j::

    phi_ij = sigmoid(beta * (|c_i - c_j| - theta))
    b_ij   = phi_ij * far + (1 - phi_ij) * near            one such bias each for key, query and value
    e_ij   = (q_i . k_j + q_i . bK_ij + bQ_ij . k_j) * scale
    z_i    = sum_j softmax_j(e)_ij * (v_j + bV_ij)

`distance_attention` is the function to call. `attention_received` and `attention_rows` tell what it attends to, and
`dense_distance_attention` is its definition, with weights, for small bags.
`discrete_distance_attention` looks its bias up by bins of distance instead, and has `discrete_received` and
`discrete_rows`.
"""

from wsi_mil.attention.bias import DistanceBias
from wsi_mil.attention.discrete import BinBias, discrete_distance_attention
from wsi_mil.attention.discrete_readout import discrete_received, discrete_rows
from wsi_mil.attention.public import distance_attention
from wsi_mil.attention.readout import attention_received, attention_rows
from wsi_mil.attention.reference import Attended, dense_distance_attention

__all__ = [
    "Attended",
    "BinBias",
    "DistanceBias",
    "attention_received",
    "attention_rows",
    "dense_distance_attention",
    "discrete_distance_attention",
    "discrete_received",
    "discrete_rows",
    "distance_attention",
]
