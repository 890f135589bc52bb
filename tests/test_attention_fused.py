"""The fused backend against the same formula in float64, dense and differentiated by autograd."""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from parts import retrace_of

pytest.importorskip("numba", reason="numba is not installed")

from wsi_mil.attention import fused, tiled
from wsi_mil.attention.dropout import codes, keep
from wsi_mil.attention.operands import Gradients, Operands, Part, Task

# Of the greatest number of a tensor.
FORWARD, GRADIENT = 2e-6, 1e-5


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks of few tiles, whole register tiles and parts of them."""
    monkeypatch.setattr(fused, "ROWS", 20)
    monkeypatch.setattr(fused, "COLS", 32)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def make(tiles, heads=2, dim=8, dim_v=5, phis=1, terms="kqv", dropout=False, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    def uniform(*shape):
        return torch.rand(*shape, generator=g)

    fates = codes(torch.tensor(3), 1, heads, tiles, torch.device("cpu"))
    return Operands(
        q=normal(heads, tiles, dim) * dim**-0.5,
        k=normal(heads, tiles, dim),
        v=normal(heads, tiles, dim_v),
        row=normal(heads, tiles) if "k" in terms else None,
        col=normal(heads, tiles) if "q" in terms else None,
        beta=uniform(phis, heads) + 0.5 if terms else None,
        theta=uniform(phis, heads) * 2 if terms else None,
        xy=uniform(2, tiles) * 4 if terms else None,
        row_code=fates.row[0] if dropout else None,
        col_code=fates.col[0] if dropout else None,
    )


def one_run(tiles, **options):
    return Task(
        **{"runs": (((0, tiles),),), "across": False, "diagonal": True, "far": True, "dropout_p": 0.0} | options
    )


def pairs_of(task, tiles):
    """Which pairs a task is of."""
    bag, run = torch.full((2, tiles), -1)
    for number, runs in enumerate(task.runs):
        for start, stop in runs:
            bag[start:stop], run[start:stop] = number, start
    same = run[:, None] == run
    pairs = (bag[:, None] == bag) & (~same if task.across else same)
    return pairs if task.diagonal else pairs & ~torch.eye(tiles, dtype=torch.bool)


def truth(operands, task):
    """The definition in `wsi_mil.attention.operands`."""
    pairs = pairs_of(task, operands.q.shape[1])
    scores, phis = operands.q @ operands.k.mT, [torch.zeros(()).double()] * 3
    if operands.beta is not None:
        x, y = operands.xy
        distance = torch.hypot(x[:, None] - x, y[:, None] - y)
        # hypot has no gradient at 0, and coordinates need none
        phis = torch.sigmoid(operands.beta[..., None, None] * (distance.detach() - operands.theta[..., None, None]))
        phis = phis.expand(3, *phis.shape[1:])
    if operands.row is not None:
        scores = scores + phis[0] * operands.row[..., None]
    if operands.col is not None:
        scores = scores + phis[1] * operands.col[:, None]
    weights = torch.where(pairs, torch.exp2(scores - scores.detach().amax(-1, keepdim=True)), 0)
    total = weights.sum(-1)
    lse = torch.where(total > 0, total.log2() + scores.detach().amax(-1), -math.inf)
    weights = weights / torch.where(total > 0, total, 1)[..., None]
    if task.dropout_p:
        weights = weights * keep(operands.row_code[..., None], operands.col_code[:, None], task.dropout_p)
        weights = weights / (1 - task.dropout_p)
    far = (weights * phis[2]).sum(-1) if task.far else torch.zeros_like(lse)
    return Part(weights @ operands.v, far, weights.sum(-1), lse)


def true_gradients(operands, task, grads):
    """Truth of both passes."""
    leaves = [None if tensor is None else tensor.double().requires_grad_() for tensor in operands[:7]]
    xy = None if operands.xy is None else operands.xy.double()
    part = truth(Operands(*leaves, xy, *operands[8:]), task)
    wanted = [leaf for leaf in leaves if leaf is not None]
    total = sum(
        (torch.where(got.isfinite(), got, 0) * grad.double()).sum() for got, grad in zip(part, grads, strict=True)
    )
    made = iter(torch.autograd.grad(total, wanted, materialize_grads=True))
    return part, Gradients(*(None if leaf is None else next(made) for leaf in leaves))


def random_grads(part, task, seed=1):
    """Gradients of what a task gives; what is constant has none, nor have rows without keys."""
    g = torch.Generator().manual_seed(seed)
    value, far, kept, lse = (torch.randn(tensor.shape, generator=g) for tensor in part)
    empty = part.lse == -math.inf
    return Part(
        value.masked_fill(empty[..., None], 0),
        (far * task.far).masked_fill(empty, 0),
        (kept * bool(task.dropout_p)).masked_fill(empty, 0),
        lse.masked_fill(empty, 0),
    )


def error(got, wanted):
    """The greatest difference, in parts of the greatest number."""
    if wanted.numel() == 0:
        return 0.0
    got, wanted = torch.nan_to_num(got.double(), neginf=0), torch.nan_to_num(wanted, neginf=0)
    return ((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-3)).item()


def assert_true(operands, task, forward=FORWARD, gradient=GRADIENT):
    got = fused.forward(operands, task)
    grads = random_grads(got, task)
    part, gradients = true_gradients(operands, task, grads)
    assert torch.equal(got.lse == -math.inf, part.lse == -math.inf)
    for name, one, other in zip(Part._fields, got, part, strict=True):
        assert error(one, other) <= forward, name
    for name, one, other in zip(
        Gradients._fields, fused.backward(operands, task, retrace_of(task, got, grads)), gradients, strict=True
    ):
        assert (one is None) == (other is None)
        assert one is None or one.shape == other.shape
        assert one is None or error(one, other) <= gradient, name


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("phis", [1, 3])
@pytest.mark.parametrize("terms", ["kqv", "kv", "qv", "k", "q", "v"])
def test_equals_the_definition(phis, terms):
    for tiles, diagonal, dropout_p in product((1, 2, 75, 130), (True, False), (0.0, 0.3)):
        runs = (((0, tiles),),) if tiles < 3 else (((0, tiles // 3), (tiles // 3, tiles // 2)), ((tiles // 2, tiles),))
        task = Task(runs, False, diagonal, "v" in terms, dropout_p)
        assert_true(make(tiles, phis=phis, terms=terms, dropout=bool(dropout_p)), task)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("across", [False, True])
def test_equals_the_definition_without_distances(across, dropout_p):
    for runs in ((((0, 50), (50, 140)),), (((0, 10), (10, 60), (60, 61)), ((61, 100),), ((100, 100), (100, 140)))):
        task = one_run(140, runs=runs, across=across, far=False, dropout_p=dropout_p)
        assert_true(make(140, terms="", dropout=bool(dropout_p)), task)


@pytest.mark.parametrize(("dim", "dim_v"), [(64, 64), (16, 80), (3, 33)])
def test_equals_the_definition_in_blocks_of_full_size(dim, dim_v):
    assert_true(make(500, heads=1, dim=dim, dim_v=dim_v, phis=3), one_run(500))


def test_no_tiles():
    operands, task = make(0), Task((), False, True, True, 0.0)
    part = fused.forward(operands, task)
    gradients = fused.backward(operands, task, retrace_of(task, part, part))
    assert part.value.shape == (2, 0, 5)
    assert not gradients.beta.any()


@pytest.mark.parametrize("backend", [fused, tiled])
def test_a_row_without_keys_has_no_gradient_whatever_it_is_given(backend):
    operands, task = make(1), one_run(1, diagonal=False)
    part = backend.forward(operands, task)
    assert (part.lse == -math.inf).all()
    given = retrace_of(task, part, Part(*map(torch.ones_like, part)))
    gradients = backend.backward(operands, task, given._replace(steady=torch.ones_like(given.steady)))
    assert not any(gradient.any() for gradient in gradients if gradient is not None)


@pytest.mark.usefixtures("small_blocks")
def test_drops_what_other_backends_drop():
    operands = make(90, dropout=True)._replace(v=torch.eye(90).expand(2, 90, 90))  # the values are the weights
    task = one_run(90, dropout_p=0.4)
    dropped, wanted = (backend.forward(operands, task).value == 0 for backend in (fused, tiled))
    assert torch.equal(dropped, wanted)
    assert 0.35 < dropped.float().mean() < 0.45


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("across", [False, True])
def test_same_bits_on_any_number_of_threads_and_from_several_at_once(across, threads):
    terms = "" if across else "kqv"
    operands = make(200, terms=terms)
    task = one_run(200, runs=(((0, 90), (90, 200)),), across=across, far=not across)
    grads = random_grads(fused.forward(operands, task), task)

    def both(_=None):
        part = fused.forward(operands, task)
        return [
            tensor
            for tensor in (*part, *fused.backward(operands, task, retrace_of(task, part, grads)))
            if tensor is not None
        ]

    threads(1)
    alone = both()
    for number in (2, 7):
        threads(number)
        assert all(map(torch.equal, both(), alone))
    with ThreadPoolExecutor(3) as pool:
        assert all(all(map(torch.equal, made, alone)) for made in pool.map(both, range(6)))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [1e3, -1e3])
def test_huge_scores_stay_right(size):
    """Of about 10,000, where the numbers that lse can be lie 0.001 apart: half of that is the error of a weight."""
    operands = make(100, dim=4, terms="v")
    whole = operands.q.sign() * size, operands.k.mul(4).round()  # so that scores are exact
    assert (whole[0] @ whole[1].mT).abs().max() > 1e4
    assert_true(operands._replace(q=whole[0], k=whole[1]), one_run(100), gradient=1e-3)


@pytest.mark.usefixtures("small_blocks")
def test_huge_biases_stay_finite():
    operands = make(100, phis=3)
    operands = operands._replace(row=operands.row * 1e4, col=operands.col * 1e4, beta=operands.beta * 1e4)
    task = one_run(100)
    part = fused.forward(operands, task)
    gradients = fused.backward(operands, task, retrace_of(task, part, random_grads(part, task)))
    assert all(tensor.isfinite().all() for tensor in (*part, *gradients) if tensor is not None)


@pytest.mark.usefixtures("small_blocks")
def test_only_differences_of_coordinates_count():
    operands, task = make(100), one_run(100)
    xy = (operands.xy * 1000).round()
    operands = operands._replace(beta=operands.beta / 1000, theta=operands.theta * 1000)
    here, there = (fused.forward(operands._replace(xy=xy + shift), task) for shift in (0, 1e6))
    assert all(map(torch.equal, here, there))
    assert_true(operands._replace(xy=xy + 1e6), task)


@pytest.mark.usefixtures("small_blocks")
def test_nan_shows_where_it_matters():
    operands, task = make(100), one_run(100)
    operands.q[0, 7, 0] = torch.nan
    nan = fused.forward(operands, task).value.isnan()
    assert nan[0, 7].all()
    assert nan.sum() == nan[0, 7].sum()
    operands.k[1, 3, 0] = torch.nan
    assert fused.forward(operands, task).value[1].isnan().all()


def test_memory_layout_does_not_matter():
    operands, task = make(50), one_run(50)
    strided = Operands(
        *(t.transpose(0, -1).contiguous().transpose(0, -1) if torch.is_tensor(t) else t for t in operands)
    )
    assert all(map(torch.equal, fused.forward(strided, task), fused.forward(operands, task)))


def test_other_precisions_are_refused():
    operands = make(5)
    double = Operands(*(each.double() if torch.is_tensor(each) else each for each in operands))
    with pytest.raises(ValueError, match="computes in float32"):
        fused.forward(double, one_run(5))
