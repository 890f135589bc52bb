import csv
import io
import math

import numpy as np
import pytest
import torch

from wsi_mil.aggregators import AGGREGATORS, Aggregator, Ensemble, build
from wsi_mil.attention import dense_distance_attention, discrete_distance_attention, discrete_rows
from wsi_mil.bags import Bag, collate, join_bags
from wsi_mil.explain import Head, curves, heads_csv, learnt_distances
from wsi_mil.explain.curves import EDGES_UM, Asked, enrichment, reliance

DIM = 5
BIASED = ("das-mil", "das-mil-paper", "relative-discrete")


def made(name: str = "das-mil", **options: object) -> Aggregator:
    torch.manual_seed(0)
    return build(name, DIM, 2, **options).eval()


def steered(strength: float = 20.0, **options: object) -> Aggregator:
    """das-mil of one head that attends to what is near, whatever tiles show: q = 1, k = 0, far less than near."""
    model = made(heads=1, length_scales_um=[1000.0], **options)
    with torch.no_grad():
        model.query.weight.zero_()
        model.key.weight.zero_()
        model.project[0].weight.zero_()
        model.project[0].bias.fill_(1.0)
        model.query.weight.fill_(1.0 / model.query.in_features)
        model.key_table[:, 1] = strength / model.params.head_dim**0.5
    return model


def bag(name: str = "a", side: int = 12, seed: int = 0) -> Bag:
    cells = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), dim=-1).reshape(-1, 2)
    features = torch.randn(len(cells), DIM, generator=torch.Generator().manual_seed(seed))
    return Bag(name, features, 256.0 * cells + 128.0, {})


def test_a_head_is_near_and_far_where_its_phi_says() -> None:
    head = Head(1, 2, "key", 431.0, 0.02, 400.0)
    at = np.array([head.near_um, head.theta_um, head.far_um, head.theta_um + head.span_um / 2])
    np.testing.assert_allclose(head.phi(at), [0.1, 0.5, 0.9, 0.9])
    flat = Head(1, 1, "key", 431.0, 0.0, 400.0)
    assert (flat.near_um, flat.far_um, flat.span_um) == (-math.inf, math.inf, math.inf)
    assert head.phi(np.array([1e9])) == 1.0  # and no warning of an overflow


def test_heads_are_read_off_the_model_in_um() -> None:
    heads = learnt_distances(made(length_scales_um=[250.0, 500.0], heads=2, sharpness=4.0))
    assert [(one.member, one.head, one.part) for one in heads] == [(1, 1, "key+value"), (1, 2, "key+value")]
    assert [one.theta_um for one in heads] == pytest.approx([250.0, 500.0])
    assert [one.beta_per_um for one in heads] == pytest.approx([4 / 250, 4 / 500])
    (paper,) = learnt_distances(made("das-mil-paper", max_distance_um=10_000.0))
    assert paper[2:] == pytest.approx(("key+query+value", 5000.0, 0.001, 5000.0))


def test_parts_with_a_phi_of_their_own_are_told_apart_and_what_is_not_biased_is_left_out() -> None:
    model = made(heads=1, length_scales_um=[500.0], separate_phi=True)
    with torch.no_grad():
        model.log_theta_um += torch.tensor([[0.0], [1.0], [math.log(2)]])
    heads = learnt_distances(model)
    assert [one.part for one in heads] == ["key", "value"]
    assert [one.theta_um for one in heads] == pytest.approx([500.0, 1000.0])
    assert [one.start_um for one in heads] == pytest.approx([500.0, 500.0])


@pytest.mark.parametrize("name", sorted(set(AGGREGATORS) - set(BIASED)))
def test_models_that_distance_does_not_bias_have_nothing_to_tell(name: str) -> None:
    model = made(name)
    assert learnt_distances(model) == enrichment(model, [bag()]) == reliance(model, [bag()]) == []


def test_every_member_of_an_ensemble_is_told() -> None:
    members = [made(heads=2, length_scales_um=[scale, 2 * scale]) for scale in (300.0, 400.0)]
    model = Ensemble(members, [1.0, 2.0]).eval()
    assert [(one.member, one.head) for one in learnt_distances(model)] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert learnt_distances(model)[2].theta_um == pytest.approx(400.0)
    together, alone = enrichment(model, [bag()]), enrichment(members[1], [bag()])
    assert [one.member for one in together] == [1, 1, 2, 2]
    np.testing.assert_array_equal(together[3].biased, alone[1].biased)
    assert [(one.member, one.head) for one in reliance(model, [bag()])] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_what_the_bias_does_is_found_where_it_does_it() -> None:
    (found,) = enrichment(steered(), [bag("a"), bag("b", seed=1)])
    assert found.tiles.sum() == pytest.approx(1) == found.biased.sum() == found.unbiased.sum()
    np.testing.assert_allclose(found.enrichment_unbiased, 1.0, rtol=1e-5)  # all tiles alike: blind to distance
    assert found.enrichment[0] > 2 > 0.1 > found.enrichment[-1]
    assert (np.diff(found.enrichment) < 1e-6).all()
    assert found.nearer
    assert found.moved == pytest.approx(np.abs(found.biased - found.tiles).sum() / 2, rel=1e-4)
    (away,) = enrichment(steered(-20.0), [bag()])
    assert not away.nearer


@pytest.mark.parametrize("name", BIASED)
def test_shares_are_those_of_all_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, one = made(name, heads=2), bag(side=6)
    batch, rows = collate([one]), torch.arange(36)
    attention = model.pair_attention(batch)
    away = torch.cdist(one.coords_um.double(), one.coords_um.double()).numpy()
    others = ~np.eye(36, dtype=bool)
    expected = [
        np.histogram(away[others], EDGES_UM, weights=weights[others])[0]
        for read in (attention.heads, attention.unbiased)
        for weights in read(rows)[0].double().numpy()
    ]
    monkeypatch.setattr(curves, "_PAIRS_AT_ONCE", 100)  # a few rows at a time
    found = enrichment(model, [one], Asked(top=20, drawn=16))
    for head, shares in enumerate(found):
        for got, counts in ((shares.biased, expected[head]), (shares.unbiased, expected[2 + head])):
            np.testing.assert_allclose(got, counts[counts > 0] / counts.sum(), rtol=1e-4)


@pytest.mark.parametrize("name", BIASED)
def test_head_attention_is_what_the_model_pays(name: str) -> None:
    """The mean of values by its rows is what the model's own layer gives."""
    model, batch = made(name, heads=2), collate([bag(side=4)])
    rows = model.pair_attention(batch).heads(torch.arange(16))
    with torch.no_grad():
        tiles = model.project(model.standardise(batch))
        q, k = (each(tiles).unflatten(-1, (2, -1)).transpose(1, 2) for each in (model.query, model.key))
        v = torch.eye(16).expand(1, 2, 16, 16)  # what is attended to, by its number
        scale = model._setting(batch)["scale"]
        if name == "relative-discrete":
            expected = discrete_distance_attention(
                q, k, v, batch.coords_um, model.bin_bias()._replace(value=None), scale=scale
            )
        else:
            bias = model.distance_bias()._replace(value=None)
            expected = dense_distance_attention(q, k, v, batch.coords_um, bias, scale=scale).values
    torch.testing.assert_close(rows, expected)


def test_rows_of_bins_know_of_padding_and_of_slides() -> None:
    bias = made("relative-discrete", heads=2, max_distance_um=2000.0).bin_bias()._replace(value=None)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 9, bias.key.shape[-1], generator=generator)
    coords, mask, slide = bag(side=3).coords_um[None], torch.ones(1, 9, dtype=torch.bool), torch.arange(9)[None] // 5
    mask[0, 7:] = False
    rows = discrete_rows(q, k, coords, bias, torch.tensor([8, 2]), mask=mask, slide=slide)
    v = torch.eye(9).expand(1, 2, 9, 9)
    torch.testing.assert_close(
        rows, discrete_distance_attention(q, k, v, coords, bias, mask=mask, slide=slide)[:, :, [8, 2]].detach()
    )
    assert not rows[:, :, 0].any()
    assert not rows[..., 7:].any()


def test_tiles_of_other_slides_have_no_distance() -> None:
    one, other = bag("a", side=4), bag("b", side=4, seed=1)
    model = steered()
    joined = enrichment(model, [join_bags([one, other], "p")], Asked(top=32, drawn=0))
    np.testing.assert_allclose(joined[0].tiles, enrichment(model, [one], Asked(top=16, drawn=0))[0].tiles)


def test_bags_that_tell_nothing_are_passed_over() -> None:
    lonely = Bag("lonely", torch.zeros(1, DIM), torch.zeros(1, 2), {})
    assert enrichment(made(), [lonely]) == enrichment(made(), []) == []
    with_it, without = (enrichment(made(), bags) for bags in ([lonely, bag()], [bag()]))
    np.testing.assert_array_equal(with_it[0].biased, without[0].biased)


def test_other_tiles_are_drawn_by_the_seed_and_the_name() -> None:
    counted = torch.arange(100.0)
    first, again, other = (curves._chosen(counted, *how).tolist() for how in (
        ("a", Asked(5, 5, 0)), ("a", Asked(5, 5, 0)), ("b", Asked(5, 5, 0)),
    ))  # fmt: skip
    assert first == again != other
    assert first[:5] == other[:5] == [99, 98, 97, 96, 95]
    assert len(set(first)) == 10
    assert len(curves._chosen(counted[:3], "a", Asked(5, 5, 0))) == 3


def test_answers_rely_on_the_head_whose_distances_matter() -> None:
    model = made(heads=2, length_scales_um=[500.0, 1500.0])
    with torch.no_grad():
        model.value_table[0] = model.value_table[0, :1]  # the same near and far
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = reliance(model, [bag()])
    assert first.log_odds == pytest.approx(0, abs=1e-6)
    assert second.log_odds > 1e-3
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_tables_hold_what_is_documented() -> None:
    heads = list(csv.DictReader(io.StringIO(heads_csv([Head(1, 2, "key", 431.0, 0.02, 400.0)]).decode())))
    assert heads == [
        {"member": "1", "head": "2", "part": "key", "theta_um": "431.0", "near_um": "321.1", "far_um": "540.9",
         "beta_per_um": "0.02", "start_um": "400.0"}
    ]  # fmt: skip
    found = enrichment(steered(), [bag()])
    rows = list(csv.DictReader(io.StringIO(curves.enrichment_csv(found).decode())))
    assert list(rows[0]) == ["member", "head", "from_um", "to_um", "tiles", "attention", "attention_unbiased"]
    assert len(rows) == len(found[0].tiles)
    assert sum(float(row["attention"]) for row in rows) == pytest.approx(1, abs=1e-4)
    assert [row["to_um"] for row in rows[:-1]] == [row["from_um"] for row in rows[1:]]
