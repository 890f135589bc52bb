"""How sure a figure is: the bootstrap over patients."""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from scipy.special import ndtr, ndtri

from wsi_mil.errors import OptionError
from wsi_mil.metrics.arrays import Labels

log = logging.getLogger(__name__)

Rows = Int[np.ndarray, " rows"]
_BATCH = 200  # resamples that are drawn at once: memory, nothing else
_ALONE = 1000  # patients up to which each is left out alone to tell skewness; it would take their square otherwise
_GROUPS = 200  # of the patients of a stratum, which are left out together where there are more


class Interval(NamedTuple):
    """A figure and its confidence limits, nan where there is too little to tell."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampling:
    """How patients are drawn."""

    seed: int
    """Decides the draws."""
    resamples: int = 2000
    """How often all are drawn."""
    level: float = 0.95
    """Confidence."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: give 0 or a positive number")
        if self.resamples < 100:
            raise OptionError(f"--resamples {self.resamples}: give at least 100, such as 2000")
        if not 0 < self.level < 1:
            raise OptionError(f"--level {self.level}: give a share between 0 and 1, such as 0.95")


def bootstrap(
    figure: Callable[[Rows], float],
    labels: Labels,
    patients: Sequence[str],
    how: Resampling,
    name: str = "the figure",
) -> Interval:
    """Confidence interval of any figure, of one model or of several, by drawing patients with replacement.

    A patient brings all of its bags. Patients are drawn within strata, those that have the same set of labels, so that
    every class that occurs does so in every resample, and figures that need all of them stay defined (Davison and
    Hinkley, "Bootstrap Methods and their Application", 1997, section 3.2). The only patient of a stratum is in each
    resample. The limits are corrected for bias and skewness (BCa: Efron, JASA 82:171, 1987): of AUROC, they held
    the true value in 89 to 97 % of samples with 20 patients a class or more, where plain percentiles held it in 83 to
    96 %; with fewer and areas near 1 neither does, and `delong_interval` is to be preferred. Skewness is told by
    leaving out each patient, or of more than 1,000 patients whole groups of them (Shao and Tu, "The Jackknife and
    Bootstrap", 1995), so that time grows as the number of patients and not as its square.

    Args:
        figure: takes the rows to judge, with repeats, and gives the figure of them. One that judges two models on the
            same rows, and gives the difference, has a paired interval: what is hard for both cancels out.
        labels: index of each bag's true class.
        patients: owner of each bag.
        how: how patients are drawn; the same gives the same limits, in whatever order the bags come.
        name: what the log calls the figure.

    Returns:
        The figure of the bags as they are, with limits: nan if the figure is, if a class that occurs has fewer
        than two patients, if all resamples give the same (which tells nothing of other patients), or if one gives nan
        (which is logged, with how many).

    Raises:
        ValueError: there are not as many patients as labels.
    """
    owners = _Owners(labels, patients)
    value = figure(np.arange(len(labels)))
    drawn = [stratum for stratum in owners.strata if len(stratum) > 1]
    kept = [stratum for stratum in owners.strata if len(stratum) == 1]
    if not math.isfinite(value) or owners.fewest < 2 or not drawn:
        return Interval(value, math.nan, math.nan)
    distribution, low, high = _drawn_anew(
        lambda *strata: figure(owners.rows(np.concatenate([*strata, *kept]))), drawn, value, how
    )
    undefined = int(np.isnan(distribution).sum())
    if undefined:
        log.warning("no interval of %s: it is not defined on %d of %d resamples", name, undefined, how.resamples)
    return Interval(value, low, high) if low < high else Interval(value, math.nan, math.nan)


def _drawn_anew(
    of_patients: Callable[..., float], strata: Sequence[Int[np.ndarray, " _"]], value: float, how: Resampling
) -> tuple[Float[np.ndarray, " resamples"], float, float]:
    """The figure of every resample, and its limits."""
    many = sum(len(stratum) for stratum in strata) > _ALONE
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # resamples that are all alike: limits are nan
        found = stats.bootstrap(
            strata,
            of_patients,
            n_resamples=how.resamples,
            batch=_BATCH,
            vectorized=False,
            confidence_level=how.level,
            method="percentile" if many else "BCa",
            rng=np.random.default_rng(how.seed),
        )
        limits = found.confidence_interval
        if many:
            limits = _corrected(found.bootstrap_distribution, value, _acceleration(of_patients, strata), how.level)
    low, high = (float(limit) for limit in limits)
    return found.bootstrap_distribution, low, high


def _acceleration(of_patients: Callable[..., float], strata: Sequence[Int[np.ndarray, " _"]]) -> float:
    """The skewness that BCa corrects for, from leaving out one group of a stratum's patients after the other."""
    cubes, squares = 0.0, 0.0
    for number, stratum in enumerate(strata):
        groups = min(len(stratum), _GROUPS)
        group = np.arange(len(stratum)) % groups
        others = [list(strata[:number]), list(strata[number + 1 :])]
        left = np.array([of_patients(*others[0], stratum[group != out], *others[1]) for out in range(groups)])
        pull = (groups - 1) / groups * (left.mean() - left)
        cubes, squares = cubes + float(np.sum(pull**3)), squares + float(np.sum(pull**2))
    return cubes / (6 * squares**1.5) if squares else math.nan


def _corrected(
    drawn: Float[np.ndarray, " resamples"], value: float, acceleration: float, level: float
) -> tuple[float, float]:
    """The limits of BCa (Efron 1987)."""
    bias = ndtri((np.mean(drawn < value) + np.mean(drawn <= value)) / 2)
    limits = []
    for z in (ndtri((1 - level) / 2), ndtri((1 + level) / 2)):
        share = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
        limits.append(math.nan if np.isnan(share) else float(np.quantile(drawn, share)))
    return limits[0], limits[1]


def exact(hits: int, trials: int, level: float = 0.95) -> Interval:
    """Confidence interval of a proportion of independent patients (Clopper and Pearson, Biometrika 26:404, 1934).

    It holds the true proportion at least as often as it promises, however few there are, and also where all or none
    are hit, of which resamples say nothing: of 10 in 10, that it is 0.69 or more.

    Args:
        hits: how many were as they should be.
        trials: of how many, each a patient of its own.
        level: confidence.

    Returns:
        The proportion with its limits; all nan of none.
    """
    if not trials:
        return Interval(math.nan, math.nan, math.nan)
    found = stats.binomtest(hits, trials).proportion_ci(level, method="exact")
    return Interval(hits / trials, float(found.low), float(found.high))


class _Owners:
    """Which bags are whose. Patients are numbered by name, so that the order of the bags does not matter."""

    def __init__(self, labels: Labels, patients: Sequence[str]) -> None:
        if len(patients) != len(labels):
            raise ValueError(f"{len(labels)} bags, and {len(patients)} patients: give the owner of each bag")
        owner = np.unique(np.asarray(patients), return_inverse=True)[1].reshape(-1)
        self._sorted = np.argsort(owner, kind="stable")
        self._count = np.bincount(owner)
        self._start = np.cumsum(self._count) - self._count
        has = np.zeros((len(self._count), labels.max(initial=0) + 1), dtype=bool)
        has[owner, labels] = True
        counts = has.sum(axis=0)
        self.fewest = int(counts[counts > 0].min(initial=len(labels)))
        """Patients of the rarest class that occurs."""
        alike = np.unique(has, axis=0, return_inverse=True)[1].reshape(-1)
        self.strata = [np.flatnonzero(alike == stratum) for stratum in range(alike.max(initial=-1) + 1)]
        """Numbers of the patients that have the same set of labels."""

    def rows(self, drawn: Int[np.ndarray, " drawn"]) -> Rows:
        """The bags of patients, each as often as its owner was drawn."""
        count = self._count[drawn]
        before = np.cumsum(count) - count
        return self._sorted[np.repeat(self._start[drawn] - before, count) + np.arange(count.sum())]
