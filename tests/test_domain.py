import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_mil.bags import Bag, join_bags
from wsi_mil.checkpoint import Checkpoint, Part, Recipe, ensemble, load, save
from wsi_mil.domain import FEWEST, Domain, SlideFacts, slide_facts, slides_of
from wsi_mil.errors import OptionError
from wsi_mil.weights import load_tensors, save_tensors

DIM = 8


def slides(count: int, seed: int = 0, tiles: int = 50, shift: float = 0.0, mpp: float = 0.5) -> list[SlideFacts]:
    """Slides that differ by 1 in their mean, their tiles by 2; two features never vary."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        features = rng.normal(size=DIM) + shift + 2 * rng.normal(size=(tiles, DIM))
        features[:, -2:] = 0.0
        made.append(slide_facts(mpp, torch.from_numpy(features).float()))
    return made


def recipe_by_hand(one: SlideFacts, others: list[SlideFacts]) -> float:
    """The distance as the page says it, slowly."""
    means = np.stack([slide.mean for slide in others])[:, : DIM - 2]
    scale = means.var(axis=0, ddof=1)
    scale += np.mean([slide.variance[: DIM - 2] for slide in others], axis=0) / one.tiles
    return float(np.sqrt((((one.mean[: DIM - 2] - means.mean(axis=0)) ** 2) / scale).mean()))


def test_distances_are_those_of_each_slide_from_all_the_others() -> None:
    made = slides(9)
    made = [slide._replace(mean=slide.mean + np.r_[np.full(DIM - 2, 1e3), 0, 0]) for slide in made]  # far from zero
    by_hand = sorted(recipe_by_hand(slide, made[:at] + made[at + 1 :]) for at, slide in enumerate(made))
    domain = Domain.of(made)
    np.testing.assert_allclose(domain.distances, by_hand, rtol=1e-6)
    assert domain.far == pytest.approx(1.25 * by_hand[-1], rel=1e-6)
    (new,) = slides(1, seed=7)
    assert domain.distance(new) == pytest.approx(recipe_by_hand(new, made), rel=1e-6)


def test_slides_like_those_of_training_are_not_warned_of_and_shifted_ones_are() -> None:
    domain = Domain.of(slides(40))
    assert [warning for slide in slides(100, seed=1) for warning in domain.warnings(slide)] == []
    for slide in slides(20, seed=2, shift=6.0):
        (warning,) = domain.warnings(slide)
        assert warning.startswith("unlike training: its features are ")


def test_a_slide_of_a_few_tiles_is_warned_of_for_its_tiles_and_not_for_their_chance_mean() -> None:
    told = [
        domain_told for slide in slides(50, seed=3, tiles=2) for domain_told in Domain.of(slides(40)).warnings(slide)
    ]
    assert set(told) == {"unlike training: 2 tiles, and 50 there"}
    assert len(told) == 50


@pytest.mark.parametrize(
    ("mpp", "tiles", "told"),
    [
        (0.5, 50, []),
        (0.46, 26, []),
        (0.54, 99, []),
        (0.25, 50, ["unlike training: 0.25 um/px, and 0.5 there"]),
        (0.6, 50, ["unlike training: 0.6 um/px, and 0.5 there"]),
        (0.5, 101, ["unlike training: 101 tiles, and 50 there"]),
        (0.5, 24, ["unlike training: 24 tiles, and 50 there"]),
    ],
)
def test_resolution_and_tiles_have_a_margin(mpp: float, tiles: int, told: list[str]) -> None:
    domain = Domain.of(slides(10))
    assert domain.warnings(SlideFacts(mpp, tiles, domain.mean, domain.within)) == told


def test_a_range_is_told_as_one() -> None:
    domain = Domain.of([*slides(5), *slides(5, seed=1, mpp=0.25, tiles=80)])
    told = domain.warnings(SlideFacts(2.0, 500, domain.mean, domain.within))
    assert told == ["unlike training: 2 um/px, and 0.25 to 0.5 there", "unlike training: 500 tiles, and 50 to 80 there"]


@pytest.mark.parametrize("count", [1, 2, 3, FEWEST - 1])
def test_of_a_few_slides_nobody_can_tell(count: int) -> None:
    domain = Domain.of(slides(count))
    assert domain.cannot_tell == f"the model learnt from {count} slides, too few to tell whether a slide is like them"
    assert domain.warnings(SlideFacts(9.0, 1, domain.mean + 100, domain.within)) == []
    assert Domain.of(slides(FEWEST)).cannot_tell == ""


def test_no_slide_is_no_domain() -> None:
    with pytest.raises(OptionError, match="no slide to describe"):
        Domain.of([])


def test_features_that_never_varied_say_nothing() -> None:
    domain = Domain.of(slides(10))
    (slide,) = slides(1, seed=4)
    odd = slide._replace(mean=slide.mean + np.r_[np.zeros(DIM - 2), 50.0, 50.0])
    assert domain.distance(odd) == domain.distance(slide)


def test_merged_domains_are_those_of_all_slides() -> None:
    made = slides(12)
    parts = [made[4:], made[:4] + made[8:], made[:8]]  # as the rounds of a cross-validation
    merged, whole = Domain.merged([Domain.of(part) for part in parts]), Domain.of(made)
    np.testing.assert_allclose(merged.mean, whole.mean)
    np.testing.assert_allclose(merged.within, whole.within)
    np.testing.assert_allclose(merged.between[:-2], whole.between[:-2], rtol=0.2)
    assert (len(merged.distances), merged.slides, merged.tiles) == (24, 8, (50, 50))
    wide = Domain.merged([whole, Domain.of(slides(6, seed=1, mpp=0.25, tiles=10))])
    assert (wide.mpp_x, wide.tiles) == ((0.25, 0.5), (10, 50))


def test_the_slides_of_a_patient_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    bags = [
        Bag(name, torch.from_numpy(rng.normal(size=(size, DIM))).float(), torch.zeros(size, 2), {})
        for name, size in (("a", 3), ("b", 5))
    ]
    first, second = slides_of(join_bags(bags, "p"), [0.5, 0.25])
    assert [(one.mpp_x, one.tiles) for one in (first, second)] == [(0.5, 3), (0.25, 5)]
    for fact, bag in zip((first, second), bags, strict=True):
        np.testing.assert_allclose(fact.mean, bag.features.numpy().mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(fact.variance, bag.features.numpy().var(axis=0), atol=1e-6)


def checkpoint(domain: Domain | None) -> Checkpoint:
    recipe = Recipe("toy", "0", 256.0, 224)
    state = {"weight": torch.ones(2)}
    return Checkpoint("mean", (Part({}),), DIM, ("x", "y"), recipe, "built-in", {}, {}, {}, state, domain=domain)


def test_a_checkpoint_keeps_it_beside_its_weights_and_one_without_it_still_loads(tmp_path: Path) -> None:
    domain = Domain.of(slides(10))
    save(tmp_path / "with.safetensors", checkpoint(domain))
    back = load(tmp_path / "with.safetensors")
    assert back.state.keys() == {"weight"}
    assert back.domain is not None
    (slide,) = slides(1, seed=5)
    assert back.domain.distance(slide) == pytest.approx(domain.distance(slide), rel=1e-5)
    assert back.domain.far == pytest.approx(domain.far, rel=1e-6)
    assert (back.domain.slides, back.domain.mpp_x, back.domain.tiles) == (10, (0.5, 0.5), (50, 50))
    save(tmp_path / "again.safetensors", back)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "with.safetensors").read_bytes()
    save(tmp_path / "without.safetensors", checkpoint(None))
    assert load(tmp_path / "without.safetensors").domain is None


def test_it_is_small_in_the_file(tmp_path: Path) -> None:
    wide = [slide._replace(mean=np.zeros(1536), variance=np.ones(1536)) for slide in slides(400)]
    save(tmp_path / "with.safetensors", checkpoint(Domain.of(wide)))
    save(tmp_path / "without.safetensors", checkpoint(None))
    assert (tmp_path / "with.safetensors").stat().st_size - (tmp_path / "without.safetensors").stat().st_size < 22_000


def test_a_damaged_one_is_refused_by_name(tmp_path: Path) -> None:
    from wsi_mil.errors import WeightsError

    save(tmp_path / "c.safetensors", checkpoint(Domain.of(slides(10))))
    state, metadata = load_tensors(tmp_path / "c.safetensors")
    state.pop("wsi_mil.domain.mean")
    save_tensors(tmp_path / "d.safetensors", state, metadata)
    with pytest.raises(WeightsError, match=r"d.safetensors is a checkpoint of another version of wsimil .*mean"):
        load(tmp_path / "d.safetensors")


def test_an_ensemble_has_seen_what_its_members_have_or_nobody_knows() -> None:
    one, other = (checkpoint(Domain.of(slides(6, seed=seed))) for seed in (0, 1))
    both = ensemble([one, other], {}).domain
    assert both is not None
    assert len(both.distances) == 12
    assert ensemble([one, dataclasses.replace(other, domain=None)], {}).domain is None
