"""Figures of merit, by scikit-learn, of class probabilities against true classes.

A figure that is not defined, because a class it needs is absent, is nan: never an error, and never a made-up value.
"""

import math

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import recall_score, roc_auc_score

Labels = Int[np.ndarray, " bags"]
Scores = Float[np.ndarray, "bags classes"]


def auroc(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve; with more than two classes the mean over classes, each against the rest.

    Args:
        labels: index of the true class.
        scores: one column per declared class; only their order within a column counts.

    Returns:
        The area; nan unless every declared class occurs.
    """
    classes = scores.shape[1]
    if set(labels.tolist()) != set(range(classes)):
        return math.nan
    columns = [1] if classes == 2 else range(classes)
    return float(np.mean([roc_auc_score(labels == column, scores[:, column]) for column in columns]))


def balanced_accuracy(labels: Labels, predicted: Labels) -> float:
    """Mean recall over the classes that occur among the labels; nan without labels."""
    if not len(labels):
        return math.nan
    return float(recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))
