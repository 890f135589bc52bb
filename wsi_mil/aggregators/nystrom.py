"""Attention of all tokens through a few landmarks: Nystrom attention (Xiong et al. 2021, arXiv 2102.03902).

Exact attention compares every pair of tokens. Here tokens are compared with landmarks only, which are means over equal
stretches of the sequence, so time and memory grow with tokens x landmarks. The order of the tokens decides them.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

RESIDUAL_SPAN = 33


def nystrom_attention(
    q: Float[Tensor, "*bags heads tokens dim"],
    k: Float[Tensor, "*bags heads tokens dim"],
    v: Float[Tensor, "*bags heads tokens dim_v"],
    landmarks: int,
    iterations: int,
) -> Float[Tensor, "*bags heads tokens dim_v"]:
    """Approximate ``softmax(q k^T / sqrt(dim)) v``, as the authors released it.

    The sequence is filled up in front with zeros to a multiple of ``landmarks``. They are keys like others: they count
    in each softmax, and the landmarks of a short sequence are mostly theirs. So zeros that are in front already change
    nothing, as long as the multiple stays the same.

    Args:
        q: queries.
        k: keys.
        v: values.
        landmarks: how many means stand for the sequence.
        iterations: steps towards the inverse of the landmarks' attention to each other.
    """
    missing = -q.shape[-2] % landmarks
    q = q * q.shape[-1] ** -0.5
    whole_q, whole_k, whole_v = (nn.functional.pad(t, (0, 0, missing, 0)) for t in (q, k, v))
    # Landmarks that are zeros alone are all the same: one stands for them, which spares a bag of few tiles nearly all.
    zeros = max(missing // (whole_q.shape[-2] // landmarks), 1)
    means = (t.unflatten(-2, (landmarks, -1)).mean(dim=-2) for t in (whole_q, whole_k))
    landmark_q, landmark_k = (mean[..., zeros - 1 :, :] for mean in means)
    counts = q.new_ones(landmark_q.shape[-2])
    counts[0] = zeros
    to_landmarks = torch.softmax(q @ landmark_k.mT + counts.log(), dim=-1)
    among_landmarks = torch.softmax(landmark_q @ landmark_k.mT + counts.log(), dim=-1) / counts
    from_landmarks = torch.softmax(landmark_q @ whole_k.mT, dim=-1)
    # From right to left, so that nothing but the two softmaxes is tokens x landmarks.
    found = counts.unsqueeze(-1) * (from_landmarks @ whole_v)
    return to_landmarks @ (pseudo_inverse(among_landmarks, counts, iterations) @ found)


def pseudo_inverse(
    matrices: Float[Tensor, "*bags heads rows rows"], counts: Float[Tensor, " rows"], iterations: int
) -> Float[Tensor, "*bags heads rows rows"]:
    """Approach the Moore-Penrose inverse by matrix products alone, of third order.

    As released, the start is scaled by the largest sums of rows and columns over all heads together, so what one gives
    depends on the others; here at least not on other bags.

    Args:
        matrices: what to invert, rows and columns that are the same given once.
        counts: how many times each row and column is there. The inverse repeats where they do.
        iterations: how many steps.
    """
    largest_row = (matrices * counts).sum(dim=-1).amax(dim=(-2, -1))
    largest_column = (matrices * counts.unsqueeze(-1)).sum(dim=-2).amax(dim=(-2, -1))
    # Products over all rows are those over different rows, if each carries the root of its count on both sides.
    roots = counts.sqrt().unsqueeze(-1) * counts.sqrt()
    matrices = matrices * roots
    inverse = matrices.mT / (largest_row * largest_column)[..., None, None, None]
    one = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    for _ in range(iterations):
        product = matrices @ inverse
        inverse = 0.25 * inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product)))
    return inverse / roots


class NystromAttention(nn.Module):
    """Self-attention of sequences by `nystrom_attention`, with heads, a value residual and an output layer.

    The value residual adds to what a token attends to a weighted sum of the values of its 33 neighbours in the
    sequence, one set of weights per head: it too depends on the order of the tokens.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: attention heads.
        landmarks: as `nystrom_attention`.
        iterations: as `nystrom_attention`.
        dropout: share of the output dropped in training.
    """

    def __init__(self, dim: int, heads: int, landmarks: int, iterations: int, dropout: float):
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        span = (RESIDUAL_SPAN, 1)
        self.residual = nn.Conv2d(heads, heads, span, padding=(RESIDUAL_SPAN // 2, 0), groups=heads, bias=False)
        self.join = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(self, tokens: Float[Tensor, "bags tokens dim"]) -> Float[Tensor, "bags tokens dim"]:
        """What each token attends to. Zeros in front are filling: what comes out there means nothing."""
        linears = (self.query, self.key, self.value)
        q, k, v = (linear(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in linears)
        attended = nystrom_attention(q, k, v, self.landmarks, self.iterations) + self.residual(v)
        return self.join(attended.transpose(1, 2).flatten(2))

    def exact_attention(
        self,
        token: Float[Tensor, "bags dim"],
        others: Float[Tensor, "bags tokens dim"],
        mask: Bool[Tensor, "bags tokens"],
    ) -> Float[Tensor, "bags tokens"]:
        """Attention that a token would pay to others were it exact: sums to 1 over the mask, mean over heads.

        The approximation has no such weights to show: they may be negative, and need not sum to 1.
        """
        query = self.query(token).unflatten(1, (self.heads, -1))
        # A score is linear in the token: so no keys are made, only what each head looks for.
        sought = torch.einsum("bhd,hdx->bxh", query, self.key.weight.unflatten(0, (self.heads, -1)))
        scores = others @ sought * query.shape[-1] ** -0.5
        return torch.softmax(scores.masked_fill(~mask.unsqueeze(-1), -torch.inf), dim=1).mean(dim=2)
