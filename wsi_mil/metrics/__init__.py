"""How good a model's answers are, how sure that is, and whether another model's are better: arrays in, figures out.

Everywhere ``labels`` (bags,) holds the index of each bag's true class, and ``scores`` (bags, classes) one column of
probabilities for each **declared** class, whether or not it occurs; ``patients`` names the owner of each bag. Patients,
not bags, are drawn and counted, since bags of one patient are alike.

* A figure that is not defined, because a class it needs is absent, is nan: never an error, never a made-up value, and
  never the figure of the classes that happen to be there.
* What is chosen (`choose_threshold`, `fit_temperature`) is chosen on validation bags, never on those reported.
  Temperature first: the threshold belongs to the scores that it was chosen on.
* An `Interval` holds the figure itself, not the mean of its resamples, and limits that are nan where there is too
  little to tell. `small_sample_notes` says in words what is too small.

labels, scores = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
bootstrap(lambda rows: auroc(labels[rows], scores[rows]), labels, ["a", "b", "c", "d"], Resampling(seed=0))
"""

from wsi_mil.metrics.arrays import by_log_odds
from wsi_mil.metrics.calibration import Reliability, calibrate, ece, fit_temperature, reliability
from wsi_mil.metrics.comparison import holm, mcnemar
from wsi_mil.metrics.delong import Difference, delong_interval, delong_test
from wsi_mil.metrics.figures import (
    accuracy,
    auprc,
    auroc,
    auroc_per_class,
    balanced_accuracy,
    brier,
    confusion,
    f1,
    log_loss,
    precision_recall,
    roc,
    sensitivity,
    specificity,
)
from wsi_mil.metrics.intervals import Interval, Resampling, bootstrap, exact
from wsi_mil.metrics.notes import small_sample_notes
from wsi_mil.metrics.thresholds import NEUTRAL, choose_threshold, predict_at

__all__ = [
    "NEUTRAL",
    "Difference",
    "Interval",
    "Reliability",
    "Resampling",
    "accuracy",
    "auprc",
    "auroc",
    "auroc_per_class",
    "balanced_accuracy",
    "bootstrap",
    "brier",
    "by_log_odds",
    "calibrate",
    "choose_threshold",
    "confusion",
    "delong_interval",
    "delong_test",
    "ece",
    "exact",
    "f1",
    "fit_temperature",
    "holm",
    "log_loss",
    "mcnemar",
    "precision_recall",
    "predict_at",
    "reliability",
    "roc",
    "sensitivity",
    "small_sample_notes",
    "specificity",
]
