"""Figures of merit of class probabilities, or of the classes predicted from them, against true classes.

A bootstrap asks for each some thousands of times, so they are a few calls of numpy: scikit-learn's functions, whose
values these are wherever those are defined, take 20 to 100 times as long to check what they are given.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from wsi_mil.metrics.arrays import Labels, Scores, all_occur, refuse_nan


def auroc(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve; with more than two classes the mean over classes, each against the rest.

    Args:
        labels: index of the true class.
        scores: one column per declared class; only their order within a column counts.

    Returns:
        The area; nan unless every declared class occurs.

    Raises:
        ValueError: a score is nan.
    """
    refuse_nan(scores)
    classes = scores.shape[1]
    if not all_occur(labels, classes):
        return math.nan
    columns = [1] if classes == 2 else range(classes)
    return float(np.mean([_area(labels == column, scores[:, column]) for column in columns]))


def auroc_per_class(labels: Labels, scores: Scores) -> Float[np.ndarray, " classes"]:
    """Area under the ROC curve of each declared class against the rest; nan for one without bags, or with all of them.

    Raises:
        ValueError: a score is nan.
    """
    refuse_nan(scores)
    return np.array([_area(labels == column, scores[:, column]) for column in range(scores.shape[1])])


def roc(
    positive: Bool[np.ndarray, " bags"], scores: Float[np.ndarray, " bags"]
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """The ROC curve: share of false positives, and of true ones, from the strictest threshold to the loosest.

    Returns:
        Both empty unless there are positive bags and others.
    """
    if positive.all() or not positive.any():
        return np.empty(0), np.empty(0)
    found, last = _falling(positive, scores)
    counts = (np.concatenate([[0], np.cumsum(which)[last]]) for which in (~found, found))
    false, true = (count / count[-1] for count in counts)
    return false, true


def precision_recall(
    positive: Bool[np.ndarray, " bags"], scores: Float[np.ndarray, " bags"]
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """The precision-recall curve: recall, and the precision reached there, from the strictest threshold to the loosest.

    The area below it, drawn in steps (each precision from the recall before it on), is `auprc`: to join the points by
    straight lines would promise more than any threshold gives (Davis and Goadrich, ICML 2006).

    Returns:
        Both empty unless there are positive bags and others.
    """
    if positive.all() or not positive.any():
        return np.empty(0), np.empty(0)
    found, last = _falling(positive, scores)
    true, taken = np.cumsum(found)[last], np.flatnonzero(last) + 1
    return true / true[-1], true / taken


def _falling(
    positive: Bool[np.ndarray, " bags"], scores: Float[np.ndarray, " bags"]
) -> tuple[Bool[np.ndarray, " bags"], Bool[np.ndarray, " bags"]]:
    """Bags by falling score: which are positive, and which are the last of their score, as those are taken together."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    return positive[order], np.append(falling[1:] != falling[:-1], True)


def auprc(labels: Labels, scores: Scores) -> float:
    """Average precision: of the last class when there are two, otherwise the mean over classes, each against the rest.

    The sum over thresholds of precision times the recall gained there, without interpolation. A model that knows
    nothing has the share of the class, not 0.5.

    Returns:
        The average precision; nan unless every declared class occurs.

    Raises:
        ValueError: a score is nan.
    """
    refuse_nan(scores)
    classes = scores.shape[1]
    if not all_occur(labels, classes):
        return math.nan
    columns = [1] if classes == 2 else range(classes)
    return float(np.mean([_average_precision(labels == column, scores[:, column]) for column in columns]))


def accuracy(labels: Labels, predicted: Labels) -> float:
    """Share of bags whose class is predicted; nan without bags."""
    return float(np.mean(labels == predicted)) if len(labels) else math.nan


def balanced_accuracy(labels: Labels, predicted: Labels) -> float:
    """Mean recall over the classes that occur among the labels; nan without labels."""
    counts = np.bincount(labels)
    occurs = counts > 0
    hits = np.bincount(labels, weights=labels == predicted)
    return float(np.mean(hits[occurs] / counts[occurs])) if occurs.any() else math.nan


def confusion(labels: Labels, predicted: Labels, classes: int) -> Int[np.ndarray, "classes classes"]:
    """How many bags of each true class (row) were predicted as each class (column), for every declared class.

    Raises:
        ValueError: a label or a prediction is none of the classes.
    """
    both = np.concatenate([labels, predicted])
    if len(both) and not 0 <= both.min() <= both.max() < classes:
        raise ValueError(f"{classes} classes are declared: numbers {both.min()} to {both.max()} are not all among them")
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def f1(labels: Labels, predicted: Labels, classes: int) -> float:
    """Harmonic mean of precision and recall: of the last class when there are two, otherwise the mean over classes.

    Every declared class counts: one that is predicted but does not occur has 0, so that it cannot hide, and one that is
    neither has no F1, so that the mean is nan.
    """
    table = confusion(labels, predicted, classes)
    twice, either = 2 * np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    chosen = slice(1, 2) if classes == 2 else slice(None)
    if not either[chosen].all():
        return math.nan
    return float(np.mean(twice[chosen] / either[chosen]))


def sensitivity(labels: Labels, predicted: Labels) -> float:
    """Share of the bags of class 1, the positive one of two, that are predicted as such; nan if there are none."""
    return accuracy(labels[labels == 1], predicted[labels == 1])


def specificity(labels: Labels, predicted: Labels) -> float:
    """Share of the bags of class 0, the negative one of two, that are predicted as such; nan if there are none."""
    return accuracy(labels[labels == 0], predicted[labels == 0])


def brier(labels: Labels, scores: Scores) -> float:
    """Brier score: the squared distance of the probabilities from the truth, summed over classes, averaged over bags.

    As Brier defined it (Monthly Weather Review 78, 1950), for any number of classes: 0 is best, 2 is certainty of what
    is wrong. With two classes it is twice the figure that looks at the positive class only.

    Returns:
        The score; nan without bags.
    """
    return float(np.mean(np.sum((scores - np.eye(scores.shape[1])[labels]) ** 2, axis=1))) if len(labels) else math.nan


def log_loss(labels: Labels, scores: Scores) -> float:
    """Mean of -log of the probability given to the true class, in nats; nan without bags.

    Probabilities below 2.2e-16 count as that much, so that one certain error costs 36 and not infinity.
    """
    given = np.take_along_axis(scores, labels[:, None], axis=1).astype(np.float64)
    return float(np.mean(-np.log(np.maximum(given, np.finfo(np.float64).eps)))) if len(labels) else math.nan


def _area(positive: Bool[np.ndarray, " bags"], scores: Float[np.ndarray, " bags"]) -> float:
    """Share of pairs (positive, other) in the right order, ties half: the statistic of Mann and Whitney."""
    found, others = scores[positive], np.sort(scores[~positive])
    if not len(found) or not len(others):
        return math.nan
    twice = np.searchsorted(others, found, "left") + np.searchsorted(others, found, "right")
    return float(twice.sum() / (2 * len(found) * len(others)))


def _average_precision(positive: Bool[np.ndarray, " bags"], scores: Float[np.ndarray, " bags"]) -> float:
    order = np.argsort(-scores, kind="stable")
    falling, found = scores[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # bags of one score are taken together
    return float(np.sum(np.diff(found[last], prepend=0) * found[last] / (last + 1)) / found[-1])
