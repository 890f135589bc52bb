"""Deal whole groups of patients, such as sites, to parts of given sizes, every class as evenly as it goes."""

import numpy as np
from jaxtyping import Float, Int

Counts = Int[np.ndarray, "groups classes"]
Shares = Float[np.ndarray, " parts"]
Dealt = Int[np.ndarray, " groups"]


def deal(counts: Counts, shares: Shares, rng: np.random.Generator) -> Dealt:
    """Deal groups to parts.

    As in site-preserved cross-validation (Howard et al., Nature Communications 12, 4423, 2021), the sum over parts and
    classes of the squared difference between what a part has and its share is made small; here each class is measured
    by its own size, so that rare ones count as much. Largest groups are dealt first, each to where it helps most; then
    groups are moved and swapped while that helps, which need not end at the best deal of all. Ties fall as the
    generator does.

    Args:
        counts: patients of each class in each group.
        shares: what part of all patients each part should have; they sum to 1. There are no fewer groups than parts.
        rng: draws ties.

    Returns:
        The part of each group; no part is empty.
    """
    weights = counts / np.maximum(counts.sum(axis=0), 1)
    order = rng.permutation(len(counts))
    order = order[np.argsort(-weights[order].sum(axis=1), kind="stable")]
    parts = rng.permutation(len(shares))  # so that no part is favoured where all are alike
    dealt, over = np.full(len(counts), -1), -np.outer(shares, np.ones(counts.shape[1]))
    for left, group in zip(range(len(order), 0, -1), order.tolist(), strict=True):
        empty = parts[~np.isin(parts, dealt)]
        open_to = empty if len(empty) >= left else parts  # the last groups go where there is none yet
        added = (2 * over[open_to] @ weights[group] + np.square(weights[group]).sum()) / shares[open_to]
        dealt[group] = open_to[np.argmin(added)]
        over[dealt[group]] += weights[group]
    return _improved(weights, shares, dealt)


def _improved(weights: np.ndarray, shares: np.ndarray, dealt: np.ndarray) -> np.ndarray:
    """Swap one pair of groups at a time, the one that helps most, until none does.

    Each part also holds an empty group, which costs nothing: to swap a group with that is to move it.
    """
    groups, parts = len(dealt), np.arange(len(shares))
    weights = np.vstack([weights, np.zeros((len(parts), weights.shape[1]))])
    apart = np.square(weights[:, None] - weights[None]).sum(axis=2)
    while True:
        at = np.concatenate([dealt, parts])
        over = (at == parts[:, None]) @ weights - shares[:, None]
        felt = weights @ over.T
        given = felt[np.arange(len(at)), at][:, None] - felt[:, at].T  # (w_i - w_j) . over of i's part
        change = (apart - 2 * given) / shares[at][:, None]
        change = change + change.T
        change[at[:, None] == at] = 0
        alone = np.flatnonzero(np.bincount(dealt, minlength=len(parts))[dealt] == 1)
        change[alone, groups:] = change[groups:, alone] = np.inf  # no part is emptied
        one, other = divmod(int(np.argmin(change)), len(at))
        if change[one, other] > -1e-12:
            return dealt
        at[[one, other]] = at[[other, one]]
        dealt = at[:groups]
