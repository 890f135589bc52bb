"""DAS-MIL learns what only distances say: whether some nest lies near a cluster, everything else being equal."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from wsi_mil import metrics
from wsi_mil.aggregators import build
from wsi_mil.bags import Bag, collate

SIDE, TILE_UM = 16, 256.0
LENGTH_SCALES_UM = (256.0, 606.0, 1434.0, 3394.0)  # one tile to nearly the whole grid, as training would set them


def corners(rng: np.random.Generator, near: bool) -> np.ndarray:
    """Three nests, then three clusters, of 2 x 2 tiles that do not touch; the closest pair is near or far."""
    while True:
        drawn = rng.integers(0, SIDE - 1, (6, 2))
        apart = np.linalg.norm(drawn[:, None] - drawn[None], axis=-1) + 99 * np.eye(6)
        closest = apart[:3, 3:].min()
        if apart.min() >= 2.2 and (2.2 <= closest <= 4 if near else closest > 6):
            return drawn


def planted(rng: np.random.Generator, near: bool, noise: int = 0) -> Bag:
    """One-hot kinds of tissue, or the same hidden in ``noise`` more dimensions and within-kind noise."""
    kinds = np.zeros((SIDE, SIDE), dtype=int)
    for index, (row, column) in enumerate(corners(rng, near)):
        kinds[row : row + 2, column : column + 2] = 1 + (index >= 3)
    features = np.eye(3)[kinds.ravel()]
    if noise:
        spread = np.concatenate([np.repeat(features, 4, axis=1), np.zeros((SIDE**2, noise))], axis=1)
        features = 4 * spread + rng.normal(size=spread.shape)
    rows, columns = np.divmod(np.arange(SIDE**2), SIDE)
    coords = TILE_UM * np.stack([columns, rows], axis=1) + TILE_UM / 2
    return Bag("near" if near else "far", torch.from_numpy(features).float(), torch.from_numpy(coords).float(), {})


def cohort(bags: int, seed: int, noise: int = 0) -> list[Bag]:
    rng = np.random.default_rng(seed)
    return [planted(rng, near=bool(index % 2), noise=noise) for index in range(bags)]


def targets(bags: list[Bag]) -> torch.Tensor:
    return torch.tensor([bag.slide_id == "near" for bag in bags]).long()


def learnt(name: str, train: list[Bag], seed: int, epochs: int = 30, **options):
    """A model trained until it has learnt its bags, at most ``epochs`` times through them."""
    torch.manual_seed(seed)
    tiles = torch.cat([bag.features for bag in train])
    model = build(name, tiles.shape[1], 2, **options)
    model.fit_features(tiles.mean(0), tiles.std(0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(epochs):
        losses = []
        for step in torch.randperm(len(train)).view(-1, 2).tolist():
            bags = [train[index] for index in step]
            loss = cross_entropy(model(collate(bags)).logits, targets(bags))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
        if np.mean(losses) < 0.02:
            break
    return model.eval()


def held_out_auroc(model, bags: list[Bag]) -> float:
    with torch.no_grad():
        scores = torch.cat([model(collate([bag])).logits.softmax(dim=1) for bag in bags])
    return metrics.auroc(targets(bags).numpy(), scores.numpy())


def test_das_mil_learns_a_distance_from_forty_bags():
    model = learnt("das-mil", cohort(40, seed=0), seed=0, length_scales_um=LENGTH_SCALES_UM)
    assert held_out_auroc(model, cohort(60, seed=1)) >= 0.95


@pytest.mark.parametrize("name", ["abmil", "abmil-gated", "max", "mean", "self-attention"])
def test_a_model_without_positions_cannot_tell_these_bags_apart_at_all(name):
    torch.manual_seed(0)
    model = build(name, 3, 2).eval()
    logits = model(collate(cohort(8, seed=0))).logits
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_das_mil_learns_a_distance_whatever_the_seed(seed):
    model = learnt("das-mil", cohort(40, seed=10 + seed), seed=seed)
    assert held_out_auroc(model, cohort(100, seed=100 + seed)) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_noisy_features_do_not_hide_the_distance(seed):
    train, test = (cohort(bags, seed=first + seed, noise=28) for bags, first in ((60, 10), (100, 100)))
    model = learnt("das-mil", train, seed, 40, length_scales_um=LENGTH_SCALES_UM)
    assert held_out_auroc(model, test) >= 0.9  # four of the five seeds reach 0.95, the worst 0.93


@pytest.mark.slow
def test_bins_of_half_a_millimetre_tell_the_distance_too():
    model = learnt("relative-discrete", cohort(40, seed=0), seed=0, max_distance_um=4608.0)
    assert held_out_auroc(model, cohort(60, seed=1)) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", ["abmil", "self-attention"])
def test_noise_gives_models_without_positions_nothing_to_learn(name):
    model = learnt(name, cohort(60, seed=10, noise=28), seed=0)
    assert 0.3 <= held_out_auroc(model, cohort(100, seed=100, noise=28)) <= 0.7
