"""Which tiles are neighbours, against distances of all pairs; sums over neighbours, against dense matrices."""

import numpy as np
import pytest
import torch
from graphs import CASES, batch_of, dense, matrix, scattered

from wsi_mil import nearest
from wsi_mil.aggregators import neighbours
from wsi_mil.aggregators.neighbours import neighbour_graph
from wsi_mil.errors import OptionError


@pytest.mark.parametrize("neighbours", [0, 1, 3, 8, 100])
@pytest.mark.parametrize("batch", CASES.values(), ids=CASES.keys())
def test_neighbours_are_those_that_all_distances_show(batch, neighbours):
    graph = neighbour_graph(batch, neighbours)
    wanted = dense(batch, neighbours)
    assert torch.equal(matrix(graph).bool(), wanted)
    assert len(graph.source) == wanted.sum()  # no edge twice
    assert torch.equal(graph.degree, wanted.sum(dim=1))
    assert (graph.target.diff() >= 0).all()
    xy = batch.coords_um.flatten(0, 1)
    torch.testing.assert_close(graph.um, (xy[graph.source] - xy[graph.target]).norm(dim=1))


def test_a_tile_is_its_own_neighbour_if_asked_and_padding_never():
    batch = CASES["padded"]
    graph = neighbour_graph(batch, 3, self_loops=True)
    assert torch.equal(matrix(graph).bool(), dense(batch, 3, self_loops=True))
    assert torch.equal(graph.degree > 0, batch.mask.flatten())


def test_tiles_as_far_as_the_last_of_the_nearest_are_nearest_too():
    middle_of_a_cross = torch.tensor([[0, 0], [256, 0], [-256, 0], [0, 256], [0, -256], [2560, 0]])
    graph = neighbour_graph(batch_of(middle_of_a_cross), 1)
    assert graph.source[graph.target == 0].tolist() == [1, 2, 3, 4]


def test_a_pixel_more_or_less_does_not_make_a_tie_a_choice():
    cells = np.stack(np.meshgrid(np.arange(9), np.arange(9)), axis=-1).reshape(-1, 2)
    snapped = np.round(cells * 256 / 0.2521) * 0.2521  # tiles lie on whole pixels of level 0
    exact, got = (neighbour_graph(batch_of(xy), 8) for xy in (256.0 * cells, snapped))
    assert torch.equal(got.source, exact.source)
    assert torch.equal(got.target, exact.target)


def test_too_many_pairs_are_refused_and_how_many_are_fewer_is_said():
    with pytest.raises(OptionError, match=r"neighbours 0: too many pairs among 4,097 tiles, choose fewer, such as 8"):
        neighbour_graph(batch_of(scattered(4097, 0)), 0)
    with pytest.raises(OptionError, match="neighbours 4095"):
        neighbour_graph(batch_of(scattered(4097, 0)), 4095)
    with pytest.raises(OptionError, match="neighbours 8"):
        neighbour_graph(batch_of(torch.zeros(5000, 2)), 8)  # all tie


def test_many_tiles_and_some_in_one_place_are_not_too_many(monkeypatch: pytest.MonkeyPatch):
    """Only who has ties is asked about again, and a few tiles at a time; none is lost on the way."""
    xy = torch.cat([scattered(300, 0), torch.full((120, 2), 7.0)])
    whole = neighbour_graph(batch_of(xy), 3)
    assert whole.degree[300:].min() >= 119
    monkeypatch.setattr(nearest, "_AT_ONCE", 1000)
    parts = neighbour_graph(batch_of(xy), 3)
    assert torch.equal(parts.source, whole.source)
    assert torch.equal(parts.target, whole.target)
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 120**2 + 300 * 6)
    neighbour_graph(batch_of(xy), 3)


def test_sums_over_neighbours_and_their_gradients_are_those_of_dense_matrices():
    g = torch.Generator().manual_seed(0)
    graph = neighbour_graph(CASES["padded"], 3)
    nodes = torch.randn(len(graph.degree), 4, generator=g).double().requires_grad_()
    values = torch.randn(len(graph.um), generator=g).double().requires_grad_()
    array, joined = matrix(graph, values), matrix(graph)
    attended = array.masked_fill(joined == 0, -torch.inf).softmax(dim=1).nan_to_num()  # NaN: no neighbours
    pairs = {
        "weighted sum": (graph.weighted_sum(nodes, values), array @ nodes),
        "sum": (graph.sum(values), array.sum(dim=1)),
        "mean": (graph.mean(nodes), joined @ nodes / joined.sum(dim=1, keepdim=True).clamp_min(1)),
        "softmax": (graph.weighted_sum(nodes, graph.softmax(values)), attended @ nodes),
    }
    for got, wanted in pairs.values():
        torch.testing.assert_close(got, wanted)
        leaves, upstream = (nodes, values), torch.randn(got.shape, generator=g).double()
        both = (torch.autograd.grad(of, leaves, upstream, retain_graph=True, allow_unused=True) for of in (got, wanted))
        for one, other in zip(*both, strict=True):
            assert (one is None) == (other is None)
            torch.testing.assert_close(one, other)


def test_softmax_takes_scores_of_any_size():
    graph = neighbour_graph(CASES["grid"], 8)
    scores = torch.where(graph.source % 2 == 0, 1e4, -1e4).double()
    assert graph.softmax(scores).isfinite().all()
