"""MNIST-COLLAGE: handwritten digits on a canvas, labelled by how far a 0 lies from a 1.

The benchmark of Wölflein et al. 2023 (arXiv 2305.10552): a collage is a bag of digits, each with its place in pixels,
and it is positive if some 0 and some 1 are closer than 80 px (variant *collage*), or farther apart than 170 px (*inv*).
What a digit is must be seen in its image. That both a 0 and a 1 are there tells 85 to 88 in 100 collages; the others
need the distance.
"""

import gzip
import hashlib
import http.client
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from sklearn.datasets import load_digits
from torch.nn import functional

from wsi_mil.bags import Bag
from wsi_mil.errors import ArtifactMissing, WsiMilError
from wsi_mil.learning import Example

CANVAS_PX = 256
DIGIT_PX = 28
_LEAST_DISTANCE_PX = 20  # of two digits: they may overlap a little
_MEAN_SIZE, _STD_SIZE, _LEAST_SIZE = 10, 2, 2
_PIXEL_MEAN, _PIXEL_STD = 0.1307, 0.3081  # of MNIST, as is usual
BACKGROUND = -_PIXEL_MEAN / _PIXEL_STD
"""Value of an empty pixel in the features."""

_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
# SHA-256 of the four files.
_FILES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


class Rule(NamedTuple):
    """What makes a collage positive."""

    threshold_px: float
    near: bool
    """Whether a 0 and a 1 must be closer than the threshold, or farther apart."""

    def pairs(self, collage: "Collage") -> Bool[np.ndarray, "digits digits"]:
        """Which 0 (row) and which 1 (column) make it positive."""
        distance = np.linalg.norm(collage.xy_px[:, None] - collage.xy_px[None], axis=-1)
        met = distance < self.threshold_px if self.near else distance > self.threshold_px
        return met & (collage.digits == 0)[:, None] & (collage.digits == 1)[None]


RULES = {"collage": Rule(80.0, near=True), "inv": Rule(170.0, near=False)}


class Collage(NamedTuple):
    """Which digits lie where."""

    digits: Int64[np.ndarray, " digits"]
    xy_px: Float32[np.ndarray, "digits 2"]
    """Their centres."""
    positive: bool


class Digits(NamedTuple):
    """Images of digits."""

    images: UInt8[np.ndarray, "images 28 28"]
    labels: Int64[np.ndarray, " images"]


def draw_layouts(rule: Rule, count: int, random: np.random.RandomState) -> list[Collage]:
    """Draw collages, half of them positive, in random order.

    The order of draws is that of the published generator, so that `RandomState(1)` gives the published collages: for
    each class in turn its collages, each drawn again, with its size kept, until it is of the class.
    """
    drawn = [_draw_layout(rule, positive, random) for positive in (True, False) for _ in range(count // 2)]
    order = list(range(len(drawn)))
    random.shuffle(order)
    return [drawn[index] for index in order]


def _draw_layout(rule: Rule, positive: bool, random: np.random.RandomState) -> Collage:
    size = max(int(random.normal(_MEAN_SIZE, _STD_SIZE)), _LEAST_SIZE)
    while True:
        digits = random.randint(0, 10, size)
        collage = Collage(digits, _draw_places(size, random), positive)
        if rule.pairs(collage).any() == positive:
            return collage


def _draw_places(size: int, random: np.random.RandomState) -> Float32[np.ndarray, "digits 2"]:
    half = DIGIT_PX // 2
    while True:
        xy = random.uniform(half, CANVAS_PX - half, size=(size, 2))
        distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        if distance.min() >= _LEAST_DISTANCE_PX:
            return xy.astype(np.float32)


def with_images(collages: Sequence[Collage], digits: Digits, random: np.random.RandomState) -> list[Example]:
    """Give every digit an image: those of a kind one after another, in one random order, and again when they are all
    used. Pixels are the features.

    Coordinates take the place of micrometres: what a model calls um is a pixel here.
    """
    order = random.permutation(len(digits.labels))
    of_kind = [order[digits.labels[order] == kind] for kind in range(10)]
    used, examples = np.zeros(10, np.int64), []
    for number, collage in enumerate(collages):
        chosen = np.empty(len(collage.digits), np.int64)
        for place, kind in enumerate(collage.digits):
            chosen[place] = of_kind[kind][used[kind] % len(of_kind[kind])]
            used[kind] += 1
        pixels = (digits.images[chosen] / np.float32(255) - _PIXEL_MEAN) / _PIXEL_STD
        examples.append(_example(number, collage, torch.from_numpy(pixels.astype(np.float32)).flatten(1)))
    return examples


def with_one_hot(collages: Sequence[Collage]) -> list[Example]:
    """Give every digit its identity instead of an image: ten features, one of them 1."""
    return [
        _example(number, collage, functional.one_hot(torch.from_numpy(collage.digits), 10).float())
        for number, collage in enumerate(collages)
    ]


def _example(number: int, collage: Collage, features: Float[torch.Tensor, "digits dim"]) -> Example:
    bag = Bag(f"collage-{number}", features, torch.from_numpy(collage.xy_px), {"digits": collage.digits})
    return Example(bag, int(collage.positive))


def presence(collage: Collage) -> bool:
    """Whether there are both a 0 and a 1: within 0.2 points of the most that a model without positions can reach, who
    would weigh how many of each there are.
    """
    return bool((collage.digits == 0).any() and (collage.digits == 1).any())


# ---- images of digits


class Source(NamedTuple):
    """Images to learn from, images to test on, and where they are from."""

    train: Digits
    test: Digits
    name: str


def load_source(folder: Path | None, cache: Path) -> Source:
    """MNIST from a folder, else from the cache, else downloaded into it; offline, scikit-learn's digits stand in.

    Raises:
        ArtifactMissing: the folder lacks one of the four files.
        WsiMilError: a file is not MNIST's (its SHA-256 differs).
    """
    if folder is None:
        try:
            folder = _download(cache)
        except ConnectionError as error:
            print(f"MNIST cannot be downloaded ({error}): scikit-learn's digits stand in.", file=sys.stderr)
            print("Their figures are not those of MNIST: give --mnist DIR for these.", file=sys.stderr)
            return _stand_in()
    return Source(_read_split(folder, "train"), _read_split(folder, "t10k"), "MNIST")


def _download(cache: Path) -> Path:
    """The folder, with all four files.

    Raises:
        ConnectionError: one cannot be had.
        WsiMilError: one is not MNIST's.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if not (cache / name).exists():
            try:
                with urllib.request.urlopen(_SOURCE + name, timeout=30) as answer:
                    content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise ConnectionError(f"{_SOURCE + name}: {error}") from error
            _verify(content, name, f"{_SOURCE}{name} gave something else than MNIST: try again later or from elsewhere")
            (cache / f"{name}.part").write_bytes(content)
            (cache / f"{name}.part").replace(cache / name)
    return cache


def _read_split(folder: Path, prefix: str) -> Digits:
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz").reshape(-1, DIGIT_PX, DIGIT_PX)
    return Digits(images, _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64))


def _read_idx(path: Path) -> UInt8[np.ndarray, " numbers"]:
    """The numbers of an idx file: a magic number whose last byte counts the dimensions, their sizes, the bytes."""
    if not path.exists():
        raise ArtifactMissing(f"{path} is missing: --mnist takes a folder with {', '.join(_FILES)}")
    content = path.read_bytes()
    _verify(content, path.name, f"{path} is not the file of MNIST: get it again from {_SOURCE}")
    raw = gzip.decompress(content)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])


def _verify(content: bytes, name: str, told: str) -> None:
    if hashlib.sha256(content).hexdigest() != _FILES[name]:
        raise WsiMilError(f"{told} (its SHA-256 differs), or give --mnist DIR")


def _stand_in() -> Source:
    """scikit-learn's 8 x 8 digits, enlarged to 20 x 20 in the middle, as MNIST's are; every sixth is for testing."""
    small, labels = load_digits(return_X_y=True)
    large = functional.interpolate(torch.from_numpy(small).float().view(-1, 1, 8, 8) / 16, size=20, mode="bilinear")
    images = (functional.pad(large, (4, 4, 4, 4)).squeeze(1) * 255).round().to(torch.uint8).numpy()
    held_out = np.arange(len(labels)) % 6 == 0
    train, test = (Digits(images[chosen], labels[chosen].astype(np.int64)) for chosen in (~held_out, held_out))
    return Source(train, test, "scikit-learn's digits, not MNIST")
