"""Stain normalisation: what is found was planted, what is made is what the formulas of the papers give by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from painting import EOSIN, HAEMATOXYLIN, flat, noisy, smooth_grey
from PIL import Image

from wsi_mil import arguments, stain
from wsi_mil.errors import OptionError, SlideError
from wsi_mil.stain import macenko, reinhard

PATH = Path("slides/a.svs")
METHODS = ("macenko", "reinhard")
ADVICE = "leave the slide out, or give all of them --stain none"
PALE = (np.array([[0.49, 0.77, 0.41], [0.10, 0.88, 0.46]]), 0.6)
DARK = (np.array([[0.65, 0.70, 0.29], [0.27, 0.75, 0.60]]), 1.3)


def unit(stains: np.ndarray) -> np.ndarray:
    return stains / np.linalg.norm(stains, axis=1, keepdims=True)


def amounts(side: int = 120, seed: int = 0) -> np.ndarray:
    """Haematoxylin and eosin of some tissue: a quarter each of the first alone, the second alone, both, and glass."""
    drawn = np.random.default_rng(seed).uniform(0.3, 1.5, (2, side, side))
    quarter = side // 4
    drawn[1, :quarter] = drawn[0, quarter : 2 * quarter] = drawn[:, 3 * quarter :] = 0
    return drawn


def tissue(stains: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    """One tissue, stained in some way, by the law of Beer and Lambert."""
    density = np.einsum("khw,kc->hwc", amounts(seed=seed) * strength, unit(stains))
    return np.rint(240 * np.exp(-density)).astype(np.uint8)


def fitted(method: str, image: np.ndarray) -> stain.Normaliser:
    return stain.fit(method, image.reshape(-1, 3), PATH)


def lab(rgb: np.ndarray) -> list[float]:
    """l, alpha and beta of one pixel, by the equations of Reinhard et al."""
    red, green, blue = (float(value) for value in rgb)
    long = math.log(0.3811 * red + 0.5783 * green + 0.0402 * blue)
    middle = math.log(0.1967 * red + 0.7244 * green + 0.0782 * blue)
    short = math.log(0.0241 * red + 0.1288 * green + 0.8444 * blue)
    return [
        (long + middle + short) / math.sqrt(3),
        (long + middle - 2 * short) / math.sqrt(6),
        (long - middle) / math.sqrt(2),
    ]


def rgb(l_alpha_beta: list[float]) -> np.ndarray:
    """The way back, by the equations of Reinhard et al., the last of them solved: they print it to four digits only."""
    light, alpha, beta = (value / math.sqrt(root) for value, root in zip(l_alpha_beta, (3, 6, 2), strict=True))
    long, middle, short = math.exp(light + alpha + beta), math.exp(light + alpha - beta), math.exp(light - 2 * alpha)
    cones = [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]
    return np.linalg.solve(cones, [long, middle, short])


# ------------------------------------------------------------------------------------------------------- macenko


@pytest.mark.parametrize(("stains", "strength"), [PALE, DARK])
def test_macenko_finds_the_stains_that_were_planted(stains: np.ndarray, strength: float) -> None:
    found = fitted("macenko", tissue(stains, strength))
    assert isinstance(found, stain.Macenko)
    angles = np.degrees(np.arccos(np.clip((found.stains * unit(stains)).sum(axis=1), -1, 1)))
    assert (angles < 1).all()
    np.testing.assert_allclose(found.maxima, np.percentile(amounts()[:, :90], 99, axis=(1, 2)) * strength, rtol=0.05)


def test_macenko_recombines_the_amounts_of_each_pixel_with_the_reference() -> None:
    image = tissue(*DARK)
    made = fitted("macenko", image)
    changed = made(image)
    own, maxima = np.array(made.fitted["stains"]), np.array(made.fitted["maxima"])
    haematoxylin, eosin = [0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]
    for y, x in [(3, 5), (40, 60), (70, 11), (110, 110)]:
        density = [-math.log(value / 240) for value in image[y, x].tolist()]
        (h, e), *_ = np.linalg.lstsq(own.T, np.array(density), rcond=None)
        h, e = h / maxima[0] * 1.9705, e / maxima[1] * 1.0308
        wanted = [240 * math.exp(-(h * a + e * b)) for a, b in zip(haematoxylin, eosin, strict=True)]
        np.testing.assert_allclose(changed[y, x], wanted, atol=0.51)


def test_macenko_leaves_a_slide_that_is_stained_like_the_reference_as_it_is() -> None:
    parts = amounts()[:, :90]
    scale = np.array([1.9705, 1.0308]) / np.percentile(parts, 99, axis=(1, 2))
    density = np.einsum("khw,kc->hwc", amounts() * scale[:, None, None], np.array(macenko._STAINS))
    image = np.rint(240 * np.exp(-density)).astype(np.uint8)
    assert np.abs(fitted("macenko", image)(image).astype(int) - image).max() <= 6


# ------------------------------------------------------------------------------------------------------ reinhard


def test_reinhard_moves_and_stretches_each_pixel_by_the_papers_equations() -> None:
    image = tissue(*PALE)
    made = fitted("reinhard", image)
    stained = image[-np.log(image / 240).mean(axis=2) >= 0.15]
    values = np.array([lab(pixel) for pixel in stained])
    np.testing.assert_allclose(made.fitted["mean"], values.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(made.fitted["std"], values.std(axis=0), rtol=1e-4)
    mean, std = [8.74108109, -0.12440419, 0.0444982], [0.6135447, 0.10989545, 0.0286032]
    changed, compared = made(image), 0
    for y, x in np.random.default_rng(0).integers(0, 90, (200, 2)):
        share = min(-np.log(image[y, x] / 240).mean() / 0.3, 1)
        moved = (np.array(lab(image[y, x])) - values.mean(axis=0)) / values.std(axis=0) * std + mean
        wanted = image[y, x] + share * (np.clip(rgb(moved.tolist()), 0, 255) - image[y, x])
        np.testing.assert_allclose(changed[y, x], wanted, atol=0.52)
        compared += share == 1
    assert compared > 50


def test_reinhard_gives_the_references_mean_and_spread() -> None:
    reference = np.random.default_rng(1).normal(size=(4000, 3)) * [0.3, 0.05, 0.015] + [8.3, -0.14, 0.05]
    image = np.stack([rgb(pixel.tolist()) for pixel in reference]).clip(1, 190).astype(np.uint8).reshape(40, 100, 3)
    made = fitted("reinhard", image)
    changed = made(image)
    whole = (changed.max(axis=2) < 250) & (changed.min(axis=2) > 5)  # not cut off at either end of 8 bits
    after = np.array([lab(pixel) for pixel in changed[whole]])
    before = np.array([lab(pixel) for pixel in image[whole]])
    wanted = (before - made.fitted["mean"]) / made.fitted["std"] * reinhard._STD + reinhard._MEAN
    assert whole.mean() > 0.6
    np.testing.assert_allclose(after.mean(axis=0), wanted.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(after.std(axis=0), wanted.std(axis=0), rtol=0.05)


# ---------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("method", METHODS)
def test_two_stainings_of_one_tissue_become_alike(method: str) -> None:
    images = tissue(*PALE), tissue(*DARK)
    before = np.abs(np.subtract(*images, dtype=int))[:90].mean()  # the rest is glass
    after = np.abs(np.subtract(*(fitted(method, image)(image) for image in images), dtype=int))[:90].mean()
    assert before > 30
    assert after < before / 3


@pytest.mark.parametrize("method", METHODS)
def test_glass_stays_glass_and_nothing_is_no_number(method: str) -> None:
    image = tissue(*DARK)
    made = fitted(method, image)
    for white in (255, 245, 240):
        assert np.abs(made(flat(16, 16, (white,) * 3)).astype(int) - white).max() <= 12
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(18, -1, 3)
    assert made(every).shape == every.shape  # black among them; warnings are errors
    assert made(np.zeros((2, 2, 3), np.uint8)).max() < 40


@pytest.mark.parametrize("method", METHODS)
def test_a_tile_alone_is_what_it_is_among_others(method: str) -> None:
    image = tissue(*PALE)
    made = fitted(method, image)
    tiles = image.reshape(2, 60, 120, 3)
    assert np.array_equal(made.all(tiles)[1], made(tiles[1]))
    assert np.array_equal(made(image)[60:], made(tiles[1]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("image", "why"),
    [
        (flat(40, 40), "0 of 1600 pixels in a sample of its tiles are stained"),
        (flat(40, 40, (222, 140, 186)), "(its colours span 0.0 degrees|hardly varies)"),
        (flat(40, 40, (0, 0, 0)), "(its colours span 0.0 degrees|hardly varies)"),
        (
            noisy(flat(40, 40, (222, 140, 186)), 2.0),
            "(its colours span 5.2 degrees, and two stains at least 12|hardly varies, .* more than 5 times)",
        ),
        (noisy(flat(40, 40, (120, 120, 120)), 1.0), "(its colours span .* degrees|hardly varies)"),
    ],
)
def test_a_slide_without_stain_or_of_one_colour_is_refused_by_name(method: str, image: np.ndarray, why: str) -> None:
    message = rf"--stain {method} cannot be fitted to slides/a.svs: .*{why}.*: {ADVICE}$"
    with pytest.raises(SlideError, match=message):
        fitted(method, image)


@pytest.mark.parametrize("sigma", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("strength", [0.5, 1.1, 2.0])
@pytest.mark.parametrize(
    "one",
    [-np.log(np.array(EOSIN) / 240), -np.log(np.array(HAEMATOXYLIN) / 240), DARK[0][0], PALE[0][1]],
    ids=["eosin", "haematoxylin", "dark haematoxylin", "pale eosin"],
)
def test_macenko_refuses_the_noise_of_one_stain(sigma: float, strength: float, one: np.ndarray) -> None:
    amount = np.random.default_rng(0).uniform(0.3, 1.5, (120, 120, 1)) * strength
    image, whole = (
        240 * np.exp(-part * one / np.linalg.norm(one)) for part in (amount, np.full_like(amount, strength))
    )
    why = "(its colours span .* degrees, and two stains at least 12|its colours .* stretched .* times, more than 5)"
    for only in (image, whole):
        with pytest.raises(SlideError, match=rf"^--stain macenko cannot be fitted to slides/a.svs: {why}: {ADVICE}$"):
            fitted("macenko", noisy(only, sigma))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sigma", [0.0, 2.0, 4.0])
@pytest.mark.parametrize(("stains", "strength"), [PALE, DARK])
def test_pale_and_dark_tissue_with_the_noise_of_a_scanner_is_fitted(
    method: str, sigma: float, stains: np.ndarray, strength: float
) -> None:
    fitted(method, noisy(tissue(stains, strength), sigma))


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0])
def test_a_grey_scan_without_stain_is_refused_and_not_tinted(sigma: float) -> None:
    image = noisy(smooth_grey(240, 240), sigma)
    why = "(alpha|beta) hardly varies, and would be stretched more than 5 times"
    with pytest.raises(SlideError, match=rf"^--stain reinhard cannot be fitted to slides/a.svs: {why}: {ADVICE}$"):
        fitted("reinhard", image)
    with pytest.raises(SlideError, match=f"^--stain macenko cannot be fitted to slides/a.svs: .*: {ADVICE}$"):
        fitted("macenko", image)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("column", ["pen", "black"])
def test_tiles_with_ink_are_fitted_on_only_where_there_are_no_others(method: str, column: str) -> None:
    tiles = np.stack([tissue(*DARK, seed=seed) for seed in range(8)])
    tiles[::2, 20:70, 10:110] = 12, 14, 40  # black pen
    coords = np.stack([np.arange(8), np.zeros(8, np.int64)], axis=1)

    def fit(measured: dict[str, np.ndarray], some: np.ndarray = coords) -> dict:
        return stain.fit_slide(method, lambda wanted: tiles[wanted[:, 0]], some, PATH, measured=measured).fitted

    share = np.tile(np.array([0.3, 0.01], np.float32), 4)
    clean, spoilt = fit({}, coords[1::2]), fit({})
    assert fit({"pen": np.zeros(8, np.float32), column: share}) == clean
    assert clean != spoilt
    assert fit({column: np.full(8, 0.3, np.float32)}) == spoilt
    assert fit({"pen": share, "black": 0.31 - share}) == spoilt  # no tile is free of both
    recipe = stain.stain_recipe(method)
    assert (recipe["max_pen"], recipe["max_black"]) == (0.01, 0.01)


def test_methods_are_those_of_the_command_and_others_are_refused() -> None:
    assert tuple(arguments.Stain) == stain.METHODS == ("none", *METHODS)
    assert stain.stain_recipe() == {"method": "none"}
    assert stain.stain_recipe("macenko")["target_maxima"] == [1.9705, 1.0308]
    with pytest.raises(OptionError, match="--stain vahadane: give one of none, macenko, reinhard"):
        stain.stain_recipe("vahadane")
    with pytest.raises(OptionError, match="--stain none: nothing is to be fitted"):
        fitted("none", flat(40, 40))


@pytest.mark.parametrize("method", METHODS)
def test_the_recipe_tells_how_tiles_are_drawn_and_the_format_names_all_of_it(method: str) -> None:
    recipe, text = stain.stain_recipe(method), (Path(__file__).parents[1] / "docs/format.md").read_text()
    assert recipe["draw"] == "spread"
    section = text.partition("| key of `stain` |")[2].partition("\n\n")[0]
    assert [name for name in recipe if f"`{name}`" not in section] == []


@pytest.mark.parametrize("method", METHODS)
def test_a_slide_is_fitted_on_the_same_tiles_whoever_reads_them(method: str) -> None:
    many, asked = np.stack([tissue(*DARK, seed=seed)[15:45, :30] for seed in range(300)]), []

    def read(coords: np.ndarray) -> np.ndarray:
        asked.append(coords[:, 0])
        return many[coords[:, 0]]

    coords = np.stack([np.arange(300), np.zeros(300, np.int64)], axis=1)
    found = [stain.fit_slide(method, read, coords, PATH, threads).fitted for threads in (1, 3)]
    assert found[0] == found[1]
    once = np.concatenate(asked[: len(asked) // 2])
    assert (len(once), len(set(once))) == (128, 128)
    assert once.min() < 10
    assert once.max() > 290
    tile = many[0]
    asked.clear()
    assert np.array_equal(stain.fit_slide("none", read, coords, PATH)(tile), tile)
    assert asked == []


@pytest.mark.parametrize("method", METHODS)
def test_real_tissue_is_brought_to_the_reference(method: str, shared: Path) -> None:
    image = np.array(Image.open(shared / "data/tiles/he-target.png").convert("RGB"))
    made = fitted(method, image)
    changed = made(image)
    if isinstance(made, stain.Macenko):
        np.testing.assert_allclose(made.stains, [[0.526, 0.755, 0.391], [0.084, 0.845, 0.528]], atol=2e-3)
        np.testing.assert_allclose(made.maxima, [2.868, 0.972], atol=2e-3)
        np.testing.assert_allclose(changed.reshape(-1, 3).mean(axis=0), [168, 122, 154], atol=1)
        again = fitted(method, changed)
        np.testing.assert_allclose(again.fitted["stains"], unit(macenko._STAINS), atol=0.02)
        np.testing.assert_allclose(again.fitted["maxima"], macenko._MAXIMA, rtol=0.05)
    else:
        np.testing.assert_allclose(made.fitted["mean"], [8.249, -0.145, 0.063], atol=2e-3)
        np.testing.assert_allclose(made.fitted["std"], [0.544, 0.104, 0.019], atol=2e-3)
        stained = -np.log(image / 240).mean(axis=2) >= 0.15
        after = reinhard._TO_LAB @ reinhard._log_cones(changed[stained].T)
        np.testing.assert_allclose(after.mean(axis=1), reinhard._MEAN, atol=0.03)
        np.testing.assert_allclose(after.std(axis=1), reinhard._STD, rtol=0.15)  # brighter than white is cut off
