"""The built-in encoder: it tells tissue apart, in numbers with names and units."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.color import rgb2hed
from skimage.draw import disk

from wsi_mil.encoders import find_encoder, load_encoder
from wsi_mil.encoders import morphology as morph

GLASS, PINK, DARK_NUCLEUS, PALE_NUCLEUS = (244, 243, 246), (225, 160, 195), (62, 35, 110), (130, 100, 165)


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)


def paint(kind: str, rng: np.random.Generator, px: int = 224) -> np.ndarray:
    """A tile of 256 um: glass, plain stroma, crowded small dark nuclei, or large pale ones."""
    scale = px / 256
    tile = np.full((px, px, 3), GLASS if kind == "glass" else PINK, float)
    nuclei = {"lymphocytes": (260, 3.5, DARK_NUCLEUS), "tumour": (90, 7.0, PALE_NUCLEUS)}
    if kind in nuclei:
        count, radius, colour = nuclei[kind]
        for _ in range(count):
            rows, columns = disk(rng.uniform(0, px, 2), radius * scale * rng.uniform(0.85, 1.15), shape=tile.shape[:2])
            tile[rows, columns] = np.array(colour) + rng.normal(0, 6, 3)
    return np.clip(tile + rng.normal(0, 4, tile.shape), 0, 255).astype(np.uint8)


KINDS = ("glass", "stroma", "lymphocytes", "tumour")


@pytest.fixture(scope="module")
def painted() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {kind: np.stack([paint(kind, rng) for _ in range(12)]) for kind in KINDS}


@pytest.fixture(scope="module")
def described(painted) -> dict[str, dict[str, np.ndarray]]:
    """Mean of every feature, by kind of tile and by name."""
    encoder = load_encoder("morphology")
    return {
        kind: dict(zip(morph.FEATURES, encoder.encode(tiles).numpy().T, strict=True)) for kind, tiles in painted.items()
    }


def test_morphology_tells_kinds_of_tissue_apart(painted):
    encoder = load_encoder("morphology")
    train = {kind: encoder.encode(tiles[:6]) for kind, tiles in painted.items()}
    test = {kind: encoder.encode(tiles[6:]) for kind, tiles in painted.items()}
    everything = torch.cat(list(train.values()))
    scale = everything.std(0) + 1e-6
    centroids = torch.stack([features.mean(0) for features in train.values()]) / scale
    for index, features in enumerate(test.values()):
        assert (torch.cdist(features / scale, centroids).argmin(1) == index).all()


def test_morphology_names_what_it_measures(described):
    mean = {kind: {name: values.mean() for name, values in features.items()} for kind, features in described.items()}
    small, large, stroma, glass = (mean[kind] for kind in ("lymphocytes", "tumour", "stroma", "glass"))
    assert glass["glass_fraction"] > 0.99 > 0.01 > stroma["glass_fraction"]
    assert stroma["nuclei_density"] < 0.1 < large["nuclei_density"] < small["nuclei_density"]
    assert small["nuclei_small_dark_density"] > 5 * large["nuclei_small_dark_density"]
    assert large["nuclei_large_pale_density"] > 5 * small["nuclei_large_pale_density"]
    assert small["nuclei_hematoxylin"] > large["nuclei_hematoxylin"]
    assert small["nuclei_spacing"] < large["nuclei_spacing"] < stroma["nuclei_spacing"]
    assert stroma["eosin_mean"] > glass["eosin_mean"]


def test_nuclei_are_counted_and_measured_in_physical_units():
    tile = np.full((224, 224, 3), PINK, np.uint8)
    for row in range(20, 224, 40):
        for column in range(20, 224, 40):
            tile[disk((row, column), 5 / morph._UM, shape=tile.shape[:2])] = DARK_NUCLEUS
    found = dict(zip(morph.FEATURES, morph.describe(tile), strict=True))
    count = len(range(20, 224, 40)) ** 2
    assert found["nuclei_density"] * 1000 == pytest.approx(count / 0.256**2, rel=1e-3)
    assert found["nuclei_peaks"] * 1000 == pytest.approx(count / 0.256**2, rel=1e-3)
    assert found["nuclei_area_mean"] * 100 == pytest.approx(np.pi * 5**2, rel=0.25)
    assert found["nuclei_spacing"] * 20 == pytest.approx(40 * morph._UM, rel=0.02)
    assert found["nuclei_eccentricity"] < 0.35
    assert found["nuclei_area_std"] < 0.05


def test_fibres_have_a_direction_and_noise_has_none():
    stripes = np.full((224, 224, 3), PINK, np.uint8)
    stripes[::8] = stripes[1::8] = DARK_NUCLEUS
    fibres = morph.FEATURES.index("fibres")
    assert morph.describe(stripes)[fibres] > 0.95
    assert morph.describe(stripes.transpose(1, 0, 2).copy())[fibres] > 0.95
    assert morph.describe(noise())[fibres] < 0.2


def test_stains_are_those_of_scikit_image():
    tile = np.clip(noise(), 1, None)
    found = dict(zip(morph.FEATURES, morph.describe(tile), strict=True))
    expected = rgb2hed(tile)[::2, ::2] * 6  # scikit-image divides by the density of 1e-6
    for index, stain in enumerate(("hematoxylin", "eosin", "dab")):
        assert found[f"{stain}_mean"] == pytest.approx(expected[..., index].mean(), rel=1e-3)
        assert found[f"{stain}_q90"] == pytest.approx(np.quantile(expected[..., index], 0.9), rel=1e-2)


@given(colour=hnp.arrays(np.uint8, 3), noise_=st.integers(0, 255), px=st.sampled_from([16, 100, 224, 256]))
def test_morphology_is_finite_and_of_order_one_on_anything(colour, noise_, px):
    spots = np.random.default_rng(noise_).integers(0, noise_ + 1, (px, px, 3))
    features = morph.describe(((colour + spots) % 256).astype(np.uint8))
    assert np.isfinite(features).all()
    assert np.abs(features).max() < 100


@pytest.mark.parametrize("value", [0, 255, 128])
def test_constant_tiles_have_no_texture_and_no_nuclei(value):
    found = dict(zip(morph.FEATURES, morph.describe(np.full((224, 224, 3), value, np.uint8)), strict=True))
    for name, number in found.items():
        if name.endswith("_std") or "_band_" in name or name in ("nuclei_density", "edges_mean", "fibres"):
            assert number == pytest.approx(0, abs=2e-2), name


def test_tiles_of_another_pixel_size_are_measured_alike(described):
    rng = np.random.default_rng(6)
    coarse = load_encoder("morphology").encode(np.stack([paint("tumour", rng, 448) for _ in range(6)])).mean(0)
    for name in ("nuclei_density", "nuclei_area_mean", "nuclei_hematoxylin", "eosin_mean"):
        here = described["tumour"][name].mean()
        assert coarse[morph.FEATURES.index(name)] == pytest.approx(here, rel=0.2), name


def test_the_names_are_unique_and_as_many_as_the_table_says():
    assert len(set(morph.FEATURES)) == len(morph.FEATURES) == find_encoder("morphology").dim
