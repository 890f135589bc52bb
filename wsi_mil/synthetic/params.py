"""What a synthetic cohort is like."""

from dataclasses import dataclass

from wsi_mil.errors import OptionError

REACH = 1.26
"""How far the outline of a nest or cluster goes at most, in mean radii (``SyntheticParams.radius_um``)."""


@dataclass(frozen=True)
class SyntheticParams:
    """What a synthetic cohort is like. Lengths are in micrometres; distances are from centre to centre."""

    slides: int = 120
    """Slides in all, an even number: half near, half far."""
    val_fraction: float = 1 / 6
    """Share of the slides for validation."""
    test_fraction: float = 1 / 3
    """Share of the slides for the test."""
    nests: int = 3
    """Tumour nests on every slide."""
    clusters: int = 3
    """Lymphocyte clusters on every slide."""
    near_um: tuple[float, float] = (900.0, 1180.0)
    """Near: the distance of the closest nest and cluster lies in this range. The lower end holds for both labels: it
    keeps a nest and a cluster out of one tile, which would betray the label without positions."""
    far_um: float = 1600.0
    """Far: the closest nest and cluster are at least this far apart."""
    spacing_um: float = 650.0
    """Smallest distance between two nests, and between two clusters."""
    radius_um: float = 256.0
    """Mean radius of nests and clusters, from which each differs a little; outlines reach up to a quarter further."""
    clearance_um: float = 180.0
    """Stroma between a nest or cluster and the nearest glass, be it around the tissue or in a hole."""
    mpp: float = 1.0
    """Micrometres per pixel of level 0."""
    side_um: float = 4608.0
    """Side of the square slide; the tissue is about nine tenths of it across."""
    seed: int = 0
    """Slide number i depends only on this, i and the options above that describe a slide."""

    def __post_init__(self) -> None:
        self._check_cohort()
        self._check_slide()

    @classmethod
    def quick(cls, seed: int = 0) -> "SyntheticParams":
        """A few slides drawn to 5/8 of the usual size: too few to learn from, enough to show the way."""
        return cls(
            slides=12,
            near_um=(560.0, 740.0),
            far_um=1000.0,
            spacing_um=410.0,
            radius_um=160.0,
            clearance_um=110.0,
            side_um=2880.0,
            seed=seed,
        )

    @property
    def side_px(self) -> int:
        """Side of the slide in level-0 pixels."""
        return round(self.side_um / self.mpp)

    @property
    def split_pairs(self) -> tuple[int, int, int]:
        """How many pairs of slides, one of each label, go to train, val and test."""
        pairs = self.slides // 2
        val, test = (max(1, round(share * pairs)) for share in (self.val_fraction, self.test_fraction))
        return pairs - val - test, val, test

    def _check_cohort(self) -> None:
        if self.slides < 6 or self.slides % 2:
            raise OptionError(f"--slides {self.slides}: give an even number from 6 on, for two classes in three splits")
        if min(self.val_fraction, self.test_fraction) <= 0 or self.split_pairs[0] < 1:
            shares = f"--val-fraction {self.val_fraction:g} --test-fraction {self.test_fraction:g}"
            raise OptionError(f"{shares}: give positive shares that leave some of {self.slides} slides to train")
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: give a number from 0 on")

    def _check_slide(self) -> None:
        for name in ("nests", "clusters"):
            if not 1 <= getattr(self, name) <= 4:
                raise OptionError(f"--{name} {getattr(self, name)}: give 1 to 4, more do not fit a slide")
        low, high = self.near_um
        if not 2 * REACH * self.radius_um < low < high < self.far_um:
            wanted = (
                f"{2 * REACH * self.radius_um:g} (twice the reach of a nest) < low < high < --far-um {self.far_um:g}"
            )
            raise OptionError(f"--near-um {low:g} {high:g}: give {wanted}")
        if self.spacing_um < 2 * REACH * self.radius_um:
            raise OptionError(f"--spacing-um {self.spacing_um:g}: give at least {2 * REACH * self.radius_um:g}")
        if not 0 < self.mpp <= self.radius_um / 20:
            raise OptionError(f"--mpp {self.mpp:g}: give more than 0 and at most {self.radius_um / 20:g}")
        if self.clearance_um < 0:
            raise OptionError(f"--clearance-um {self.clearance_um:g}: give 0 or more")
