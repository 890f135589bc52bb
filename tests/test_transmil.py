"""TransMIL and its parts against dense formulas, and its layout on the slide."""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_mil.aggregators import build, params_of
from wsi_mil.aggregators.grid import Grid, convolve, find_cells, make_grid, typical_pitch_um
from wsi_mil.aggregators.nystrom import NystromAttention, nystrom_attention, pseudo_inverse
from wsi_mil.aggregators.transmil import PositionEncoding
from wsi_mil.bags import Batch
from wsi_mil.errors import OptionError

DIM = 5
SMALL = {"hidden": 16, "heads": 2}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(got, wanted, tolerance=1e-10):
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def made(name, seed=0, **options):
    torch.manual_seed(seed)
    return build(name, DIM, 3, **SMALL, **options).double().eval()


def places(tiles, side=12, seed=0):
    """Row and column of tiles at random cells of a square, in no order."""
    cells = torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))[:tiles]
    return torch.stack([cells // side, cells % side], dim=1)


def one_bag(features, coords_um, slide=None):
    mask = torch.ones(1, len(features), dtype=torch.bool)
    return Batch(features.unsqueeze(0), coords_um.unsqueeze(0), mask, None if slide is None else slide.unsqueeze(0))


def on_grid(tiles=40, pitch_um=256.0, **options):
    """A bag of tiles at random cells; its second coordinate is the row."""
    return one_bag(random(tiles, DIM), pitch_um * places(tiles, **options).flip(1).double() + 128)


def with_coords(batch, coords_um):
    return batch._replace(coords_um=coords_um.unsqueeze(0))


def reordered(batch, order):
    return Batch(*(part[:, order] for part in batch[:3]), None if batch.slide is None else batch.slide[:, order])


def as_cells(rows_and_columns, slide=0):
    return functional.pad(rows_and_columns, (1, 0), value=slide)


# ---- Nystrom attention


def test_the_pseudo_inverse_approaches_that_of_torch():
    matrices = torch.softmax(4 * torch.eye(12, dtype=torch.float64) + random(3, 12, 12), dim=-1)
    once = torch.ones(12, dtype=torch.float64)
    assert_same(pseudo_inverse(matrices, once, 25), torch.linalg.pinv(matrices))
    errors = [(pseudo_inverse(matrices, once, n) - torch.linalg.pinv(matrices)).abs().max() for n in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)


def newton(matrices, iterations):
    """The paper's iteration, as released."""
    z = matrices.mT / (matrices.sum(dim=1).max() * matrices.sum(dim=2).max())
    for _ in range(iterations):
        az = matrices @ z
        z = z @ (13 * torch.eye(len(az[0]), dtype=az.dtype) - 15 * az + 7 * az @ az - az @ az @ az) / 4
    return z


@pytest.mark.parametrize("iterations", [1, 6])
@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (5, 1, 1, 1), (2, 3, 1, 4)])
def test_rows_that_are_the_same_are_inverted_as_if_written_out(counts, iterations):
    counts = torch.tensor(counts)
    different = torch.softmax(random(2, 4, 4), dim=-1)
    written_out = different.repeat_interleave(counts, dim=1).repeat_interleave(counts, dim=2)
    got = pseudo_inverse(different, counts.double(), iterations)
    got = got.repeat_interleave(counts, dim=1).repeat_interleave(counts, dim=2)
    assert_same(got, newton(written_out, iterations))


def test_with_a_landmark_per_token_it_is_exact_attention():
    q, k = 3 * random(2, 9, 20, seed=1), 3 * random(2, 9, 20, seed=2)
    k = 0.2 * k + q  # a token attends to itself most, so that the attention has an inverse worth the name
    v = random(2, 9, 4, seed=3)
    wanted = functional.scaled_dot_product_attention(q, k, v)
    assert_same(nystrom_attention(q, k, v, landmarks=9, iterations=40), wanted, 1e-8)


def dense_nystrom(q, k, v, landmarks, iterations):
    """One head, token by token: zeros in front, means of stretches, three softmaxes."""
    tokens, dim = q.shape
    stretch = math.ceil(tokens / landmarks)
    zeros = torch.zeros(stretch * landmarks - tokens, dim, dtype=q.dtype)
    q, k, v = (torch.cat([zeros, t]) for t in (q, k, v))
    starts = range(0, len(q), stretch)
    mean_q, mean_k = (torch.stack([t[s : s + stretch].mean(dim=0) for s in starts]) for t in (q, k))
    pairs = ((q, mean_k), (mean_q, mean_k), (mean_q, k))
    first, middle, last = (torch.softmax(a @ b.T / math.sqrt(dim), dim=1) for a, b in pairs)
    return (first, middle, last @ v), len(zeros)


@pytest.mark.parametrize(("tokens", "landmarks"), [(12, 4), (13, 4), (3, 8), (1, 4), (8, 8), (9, 8), (21, 16)])
def test_it_is_the_three_softmaxes_with_zeros_in_front(tokens, landmarks):
    q, k, v = (random(2, tokens, 6, seed=seed) for seed in range(3))
    parts = [dense_nystrom(q[head], k[head], v[head], landmarks, 6) for head in range(2)]
    inverse = newton(torch.stack([part[0][1] for part in parts]), 6)
    wanted = [(first @ inverse[head] @ values)[zeros:] for head, ((first, _, values), zeros) in enumerate(parts)]
    assert_same(nystrom_attention(q, k, v, landmarks, 6), torch.stack(wanted))


@pytest.mark.parametrize("name", ["transmil", "transmil-paper"])
def test_bags_of_a_batch_do_not_change_each_other_whatever_landmarks_they_need(name):
    """Some share a group, with zeros in front of the shorter ones, some do not."""
    model, sizes = made(name, landmarks=8), (3, 7, 8, 12, 5, 30)
    bags = [on_grid(tiles, seed=tiles) for tiles in sizes]
    wide = max(sizes)
    fill = [wide - size for size in sizes]
    batch = Batch(
        torch.cat([functional.pad(bag.features, (0, 0, 0, more)) for bag, more in zip(bags, fill, strict=True)]),
        torch.cat([functional.pad(bag.coords_um, (0, 0, 0, more)) for bag, more in zip(bags, fill, strict=True)]),
        torch.cat([functional.pad(bag.mask, (0, more)) for bag, more in zip(bags, fill, strict=True)]),
        None,
    )
    together = model(batch)
    for row, bag in enumerate(bags):
        alone = model(bag)
        assert_same(together.logits[row], alone.logits[0])
        assert_same(together.attention[row, : sizes[row]], alone.attention[0])
        assert not together.attention[row, sizes[row] :].any()


def test_zeros_in_front_change_nothing_up_to_a_multiple_of_the_landmarks():
    q, k, v = (random(2, 5, 6, seed=seed) for seed in range(3))
    filled = [functional.pad(t, (0, 0, 3, 0)) for t in (q, k, v)]
    assert_same(nystrom_attention(*filled, 8, 6)[:, 3:], nystrom_attention(q, k, v, 8, 6))


def test_the_first_token_s_attention_is_its_row_of_exact_attention():
    attend, tokens = NystromAttention(12, 3, 4, 6, 0.0).double(), random(9, 12)
    q, k = (linear(tokens).unflatten(1, (3, 4)) for linear in (attend.query, attend.key))
    wanted = [torch.softmax(k[1:, head] @ q[0, head] / 2, dim=0) for head in range(3)]
    seen = torch.arange(9) > 0
    got = attend.exact_attention(tokens[:1], tokens[None], seen[None])[0]
    assert_same(got[1:], torch.stack(wanted).mean(dim=0))
    assert got[0] == 0


# ---- convolution over the occupied cells


def raster(values, rows_and_columns, height, width):
    """An image, zero where there is no tile."""
    image = torch.zeros(values.shape[1], height, width, dtype=values.dtype)
    image[:, rows_and_columns[:, 0], rows_and_columns[:, 1]] = values.T
    return image.unsqueeze(0)


@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize(("tiles", "width"), [(1, 1), (40, 12), (144, 12), (90, 40), (1500, 40)])
def test_convolution_is_that_of_a_zero_padded_image(side, tiles, width):
    rows_and_columns = places(tiles, width)
    values, kernel = random(tiles, 3).requires_grad_(), random(3, side, side).requires_grad_()
    grid = make_grid(as_cells(rows_and_columns), side)
    cells = grid.mean(values)
    got = convolve(cells, kernel, grid)[grid.cell]
    image = functional.conv2d(
        raster(values, rows_and_columns, width, width), kernel.unsqueeze(1), None, 1, side // 2, 1, 3
    )
    wanted = image[0][:, rows_and_columns[:, 0], rows_and_columns[:, 1]].T
    assert_same(got, wanted)
    weights = random(tiles, 3, seed=5)
    gradients = (torch.autograd.grad((out * weights).sum(), (values, kernel)) for out in (got, wanted))
    for one, other in zip(*gradients, strict=True):
        assert_same(one, other)


def test_the_gradient_of_convolution_is_its_derivative():
    grid = make_grid(as_cells(places(9, 4)), 3)
    operands = (random(9, 2).requires_grad_(), random(2, 3, 3).requires_grad_())
    assert torch.autograd.gradcheck(lambda cells, kernel: convolve(cells, kernel, grid), operands)


def test_slides_are_not_next_to_each_other_and_rows_do_not_wrap():
    cells = torch.tensor([[0, 0, 0], [0, 0, 9], [0, 1, 0], [0, 9, 9], [1, 0, 0], [1, 0, 9], [2, 0, 0]])
    neighbours = make_grid(cells, 7).neighbours
    met = [(place - 24, cell) for place, row in enumerate(neighbours.tolist()) for cell, n in enumerate(row) if n < 7]
    assert sorted(met) == sorted([(0, cell) for cell in range(7)] + [(7, 0), (-7, 2)])


def test_tiles_of_one_cell_enter_as_their_mean():
    grid = make_grid(torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 0]]), 3)
    assert grid.cell.tolist() == [0, 1, 0]
    assert grid.mean(torch.tensor([[1.0, 5.0], [2.0, 2.0], [3.0, 6.0]])).tolist() == [[2, 5.5], [2, 2]]


def test_a_tile_far_off_takes_no_memory():
    far = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 10**6, 10**6]])
    with Biggest() as biggest:
        grid = make_grid(far, 7)
        convolve(torch.ones(3, 2), torch.ones(2, 7, 7), grid)
    assert grid.neighbours.shape == (49, 3)
    assert biggest.numbers < 500


def test_the_encoding_is_the_sum_of_three_convolutions_and_the_tiles():
    torch.manual_seed(0)
    encode, rows_and_columns, values = PositionEncoding(4).double(), places(50), random(50, 4)
    image = raster(values, rows_and_columns, 12, 12)
    convolved = (
        functional.conv2d(image, conv.weight, conv.bias, padding=side // 2, groups=4)
        for conv, side in zip(encode.convolutions, (7, 5, 3), strict=True)
    )
    wanted = (image + sum(convolved))[0][:, rows_and_columns[:, 0], rows_and_columns[:, 1]].T
    assert_same(encode(values, make_grid(as_cells(rows_and_columns), 7)), wanted)


# ---- where tiles lie


def cells_of(coords_um, slide=None, pitch_um=None):
    slide = torch.zeros(len(coords_um), dtype=torch.long) if slide is None else slide
    return find_cells(coords_um, slide, pitch_um or typical_pitch_um(coords_um, slide)).tolist()


def test_the_pitch_of_a_grid_is_found_in_spite_of_rounding():
    coords = (255.93 * places(100).flip(1) + 41_234.5).float()
    slide = torch.zeros(100, dtype=torch.long)
    assert typical_pitch_um(coords, slide) == pytest.approx(255.93, abs=0.02)
    rows_and_columns = places(100)
    wanted = as_cells(rows_and_columns - rows_and_columns.amin(dim=0))
    assert cells_of(coords) == wanted.tolist()


def test_where_there_is_nothing_to_measure_each_slide_is_one_cell():
    coords = torch.tensor([[3.0, 4.0], [3.0, 4.0], [900.0, 0.0]])
    assert cells_of(coords, torch.tensor([4, 4, 7])) == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_the_pitch_is_that_within_slides_and_not_between_them():
    coords = torch.tensor([[0.0, 0.0], [10.0, 0.0], [1.0, 0.0], [11.0, 0.0]])
    slide = torch.tensor([0, 0, 1, 1])
    assert typical_pitch_um(coords, slide) == 10
    assert cells_of(coords, slide) == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]


def test_tiles_half_way_between_cells_do_not_flicker():
    x = torch.arange(9) * 128.0
    for shift in (0.0, 0.004, 31_234.567, -7_000.1):
        coords = torch.stack([x + shift, torch.zeros(9)], dim=1)
        assert [column for *_, column in cells_of(coords, pitch_um=256.0)] == [0, 1, 1, 2, 2, 3, 3, 4, 4]


# ---- as published


def published(model, features):
    """The network by dense formulas: a padded square, an image, a convolution along the sequence."""
    options = model.params

    def layer(block, tokens):
        attend = block.attend
        normed = functional.layer_norm(tokens, tokens.shape[1:], block.norm.weight, block.norm.bias)
        q, k, v = (
            (normed @ linear.weight.T).unflatten(1, (options.heads, -1)).transpose(0, 1)
            for linear in (attend.query, attend.key, attend.value)
        )
        parts = [dense_nystrom(*head, options.landmarks, options.iterations) for head in zip(q, k, v, strict=True)]
        inverse = newton(torch.stack([part[0][1] for part in parts]), options.iterations)
        outs = []
        for head, ((first, _, values), zeros) in enumerate(parts):
            weights = attend.residual.weight[head, 0, :, 0]
            near = functional.pad(v[head], (0, 0, 16, 16)).unfold(0, 33, 1) @ weights
            outs.append((first @ inverse[head] @ values)[zeros:] + near)
        return tokens + torch.cat(outs, dim=1) @ attend.join[0].weight.T + attend.join[0].bias

    tiles = torch.relu(features @ model.project[0].weight.T + model.project[0].bias)
    side = math.ceil(math.sqrt(len(tiles)))
    tiles = torch.cat([tiles, tiles[: side * side - len(tiles)]])
    tokens = layer(model.first, torch.cat([model.class_token.unsqueeze(0), tiles]))
    image = tokens[1:].T.reshape(1, options.hidden, side, side)
    convolved = (
        functional.conv2d(image, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2, groups=options.hidden)
        for conv in model.encode.convolutions
    )
    tokens = torch.cat([tokens[:1], (image + sum(convolved))[0].flatten(1).T])
    return model.classify(model.norm(layer(model.last, tokens))[0])


@pytest.mark.parametrize("tiles", [1, 2, 3, 16, 17, 40])
def test_is_the_published_network(tiles):
    model, batch = made("transmil-paper"), on_grid(tiles)
    assert_same(model(batch).logits[0], published(model, batch.features[0]), 1e-9)


def test_on_a_full_square_in_raster_order_both_are_one_network():
    paper, real = made("transmil-paper"), made("transmil", seed=1)
    real.load_state_dict(paper.state_dict())
    rows, columns = torch.arange(36) // 6, torch.arange(36) % 6
    batch = one_bag(random(36, DIM), 256.0 * torch.stack([columns, rows], dim=1).double())
    for wanted, got in zip(paper(batch), real(batch), strict=True):
        assert_same(got, wanted)


@pytest.mark.parametrize("name", ["transmil", "transmil-paper"])
@pytest.mark.parametrize(("dim", "before", "published_millions"), [(768, 0, 2.54), (32, 15_552, 2.18)])
def test_has_as_many_parameters_as_published(name, dim, before, published_millions):
    count = before + sum(parameter.numel() for parameter in build(name, dim, 2).parameters())
    assert count - 513 == {768: 2_540_561, 32: 2_179_281}[dim]  # as published, with one logit for two classes
    assert round(count / 1e6, 2) == published_millions


def test_starts_as_published():
    torch.manual_seed(0)
    model = build("transmil-paper", 768, 2)
    assert (model.params.landmarks, model.params.iterations, model.params.dropout) == (256, 6, 0.1)
    assert model.class_token.std().item() == pytest.approx(1, abs=0.1)
    for linear in (model.first.attend.query, model.first.attend.key, model.first.attend.value):
        assert linear.weight.abs().max().item() == pytest.approx(512**-0.5, rel=1e-3)
    for conv, side in zip(model.encode.convolutions, (7, 5, 3), strict=True):
        assert conv.weight.shape == (512, 1, side, side)
        assert conv.weight.abs().max().item() == pytest.approx(1 / side, rel=1e-2)


def test_as_published_the_order_of_the_array_counts_and_coordinates_do_not():
    model, batch = made("transmil-paper"), on_grid()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert (model(reordered(batch, order)).logits - model(batch).logits).abs().max() > 1e-3
    assert torch.equal(model(batch._replace(coords_um=-3 * batch.coords_um)).logits, model(batch).logits)


def test_copies_count_for_the_tile_that_they_show():
    model, features = made("transmil-paper"), random(5, DIM)
    shares = {}
    model.last.register_forward_pre_hook(lambda layer, given: shares.update(all=layer.class_attention(given[0])[0, 1:]))
    attention = model(one_bag(features, torch.zeros(5, 2).double())).attention[0]
    assert shares["all"].shape == (9,)
    assert_same(attention, shares["all"][:5] + functional.pad(shares["all"][5:], (0, 1)))


def test_features_are_taken_as_they_are():
    model, batch = made("transmil-paper"), on_grid()
    wanted = model(batch).logits
    model.fit_features(torch.full((DIM,), 3.0), torch.full((DIM,), 2.0))
    assert torch.equal(model(batch).logits, wanted)


# ---- on the real layout


def test_the_grid_starts_at_the_tiles():
    model, batch = made("transmil"), on_grid()
    wanted = model(batch)
    for shift in ((256.0, 0.0), (50_000.0, -7_000.3)):
        got = model(batch._replace(coords_um=batch.coords_um + torch.tensor(shift)))
        assert_same(got.logits, wanted.logits)


def test_turning_and_mirroring_count():
    model, batch = made("transmil"), on_grid()
    wanted = model(batch).logits
    x, y = batch.coords_um[0].unbind(dim=1)
    for moved in ((-x, y), (x, -y), (y, -x)):
        got = model(with_coords(batch, torch.stack(moved, dim=1))).logits
        assert (got - wanted).abs().max() > 1e-4


def test_the_pitch_may_be_given():
    found, batch = made("transmil"), on_grid(pitch_um=100.0)
    given, wider = made("transmil", tile_um=100.0), made("transmil", tile_um=300.0)
    assert_same(given(batch).logits, found(batch).logits)
    assert (wider(batch).logits - found(batch).logits).abs().max() > 1e-4


def test_scale_does_not_matter_where_the_pitch_is_found():
    model = made("transmil")
    assert_same(model(on_grid(pitch_um=20.0)).logits, model(on_grid(pitch_um=512.0)).logits)


def test_slides_far_apart_are_two_grids():
    model, batch = made("transmil", tile_um=256.0), on_grid()
    slide = (torch.arange(40) >= 25).long()
    above = batch.coords_um[0] + torch.stack([torch.zeros(40), 256.0 * 1000 * slide], dim=1)
    apart = model(with_coords(batch, above)).logits  # tissue far below other tissue, on one slide
    two_slides = batch._replace(slide=slide.unsqueeze(0))
    assert_same(model(two_slides).logits, apart)
    assert (model(batch).logits - apart).abs().max() > 1e-4


@pytest.mark.parametrize("spread_um", [0.0, 30.0])
def test_the_order_of_the_array_does_not_count_even_for_tiles_of_one_place(spread_um):
    model, order = made("transmil", tile_um=256.0), torch.randperm(40, generator=torch.Generator().manual_seed(1))
    coords = 512 * (torch.arange(40) // 4).double().unsqueeze(1).expand(-1, 2) + spread_um * random(40, 2).clamp(-3, 3)
    batch = one_bag(random(40, DIM), coords, torch.arange(40) % 2)
    wanted, got = model(batch), model(reordered(batch, order))
    assert_same(got.logits, wanted.logits)
    assert_same(got.attention, wanted.attention[:, order])


def test_the_sequence_runs_by_slide_row_column_and_then_exact_place():
    coords = 256 * torch.tensor([[0.0, 3.0], [2.2, 0.1], [1.9, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    slide = torch.tensor([0, 0, 0, 0, 0, -1])
    order = build("transmil", 1, 2, **SMALL, tile_um=256.0).lay_out(torch.arange(6.0).view(-1, 1), coords, slide).order
    assert order.tolist() == [3, 2, 1, 4, 0, 5]


def test_slides_follow_each_other_by_their_tiles_and_not_by_their_numbers():
    model, content = (
        build("transmil", 1, 2, **SMALL, tile_um=256.0),
        torch.tensor([[3.0], [1], [1], [1], [0], [0], [9]]),
    )
    for slide, wanted in (
        ([7, 5, 7, 5, 0, 0, -2], [4, 5, 1, 3, 0, 2, 6]),
        ([0, 1, 0, 1, 2, 2, 3], [4, 5, 1, 3, 0, 2, 6]),
    ):
        order = model.lay_out(content, 256.0 * torch.arange(7).unsqueeze(1).expand(-1, 2), torch.tensor(slide)).order
        assert order.tolist() == wanted


def test_neighbours_on_the_slide_count_and_not_those_in_the_array():
    model, batch = made("transmil", landmarks=4), on_grid(tiles=30, side=6)
    grids: list[Grid] = []
    model.encode.register_forward_pre_hook(lambda encode, given: grids.append(given[1]))
    model(batch)
    rows_and_columns = places(30, 6)
    near = (rows_and_columns.unsqueeze(0) - rows_and_columns.unsqueeze(1)).abs().amax(dim=-1) <= 3
    assert (grids[0].neighbours < 30).sum() == near.sum()


# ---- memory


class Biggest(TorchDispatchMode):
    """Counts the numbers in the biggest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in (out if isinstance(out, list | tuple) else [out]) if isinstance(t, torch.Tensor)]
        self.numbers = max([self.numbers, *(t.untyped_storage().nbytes() // t.element_size() for t in tensors)])
        return out


@pytest.mark.parametrize("name", ["transmil", "transmil-paper"])
def test_memory_grows_with_tiles_and_not_with_their_pairs(name):
    model, biggest, kept = made(name, landmarks=8), {}, {}
    for tiles in (625, 2500):
        batch, saved = on_grid(tiles, side=60), {}

        def keep(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with Biggest() as mode:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = model(batch).logits.sum()
            kept[tiles] = sum(saved.values())
            loss.backward()
        biggest[tiles] = mode.numbers
    assert biggest[2500] < 4.5 * biggest[625]
    assert kept[2500] < 4.5 * kept[625]
    assert biggest[2500] <= 49 * 2600  # the neighbours in a window, which are fewer numbers than its features


def test_the_convolution_keeps_no_window():
    saved, grid = [], make_grid(as_cells(places(1000, 40)), 7)
    cells, kernel = random(1000, 64).requires_grad_(), random(64, 7, 7).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        convolve(cells, kernel, grid)
    assert sum(saved) <= cells.numel() + kernel.numel() + grid.neighbours.numel()


def test_a_small_bag_does_not_pay_for_all_landmarks():
    with Biggest() as biggest:
        made("transmil", landmarks=256)(on_grid(tiles=10))
    assert biggest.numbers < 256 * 256


# ---- options


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("transmil", {"hidden": 0}, "hidden 0"),
        ("transmil", {"heads": 5}, "hidden 512: give a multiple of heads, 5"),
        ("transmil", {"landmarks": -1}, "landmarks -1"),
        ("transmil", {"iterations": 0}, "iterations 0"),
        ("transmil", {"dropout": 1}, r"dropout 1\.0"),
        ("transmil", {"tile_um": -1}, r"tile_um -1\.0: give a positive number, or 0"),
        ("transmil", {"tile_um": math.inf}, "tile_um inf"),
        ("transmil", {"tile_um": math.nan}, "tile_um nan"),
        ("transmil-paper", {"tile_um": 256}, "transmil-paper has no such option; it has hidden, heads, landmarks"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(name, options, named):
    with pytest.raises(OptionError, match=named):
        params_of(name, options)


def test_landmarks_are_half_of_the_width_unless_given():
    assert params_of("transmil", {"hidden": 64}).landmarks == 32
    assert params_of("transmil", {"hidden": 64, "landmarks": 5}).landmarks == 5


def test_what_attention_gives_is_dropped_in_training_only():
    torch.manual_seed(0)
    batch = on_grid()
    dropping, keeping = (build("transmil", DIM, 3, **SMALL, dropout=share).double() for share in (0.5, 0.0))
    keeping.load_state_dict(dropping.state_dict())
    assert not torch.equal(dropping(batch).logits, dropping(batch).logits)
    assert torch.equal(dropping.eval()(batch).logits, keeping(batch).logits)
