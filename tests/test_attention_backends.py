"""Every way to compute attention gives what the definition gives, forward and backward, whatever it is given."""

import inspect
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from itertools import product
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import assert_close, brute, random_case, some_mask

from wsi_mil.attention import DistanceBias, backends, dense_distance_attention, distance_attention, tiled
from wsi_mil.attention.checks import require_operands
from wsi_mil.attention.dropout import codes, keep
from wsi_mil.attention.packing import plan
from wsi_mil.errors import OptionError

EXACT = ("reference", "tiled")
BACKENDS = (*EXACT, pytest.param("numba", marks=pytest.mark.skipif(not find_spec("numba"), reason="no numba here")))
# Against float64 on the same operands and scores of order 1: worst output, worst gradient relative to the largest of
# its kind. For 16-bit types that is the rounding of what is returned; where parts are joined, of the sum of several.
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (5e-3, 5e-3), torch.float16: (1e-3, 1e-3)}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Small cases meet several blocks, and a last one that is not full."""
    monkeypatch.setitem(tiled.BLOCK, "cpu", 8)
    if find_spec("numba"):
        fused = backends.module_of("numba")
        monkeypatch.setattr(fused, "ROWS", 12)
        monkeypatch.setattr(fused, "COLS", 16)


def outcome(backend, case, learnt=(True,) * 8, **options):
    """Output and gradients, under fixed dropout and a fixed loss, of those of q, k, v, beta, theta, key, query, value
    that are learnt."""
    q, k, v, coords, bias = case
    leaves = [
        None if tensor is None else tensor.detach().clone().requires_grad_(learns)
        for tensor, learns in zip((q, k, v, *bias[:5]), learnt, strict=True)
    ]
    torch.manual_seed(5)
    attended_bias = DistanceBias(*leaves[3:], bias.self_bias)
    got = distance_attention(*leaves[:3], coords, attended_bias, backend=backend, **options)
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    if got.requires_grad:
        (got * weight.bfloat16().to(got.dtype)).sum().backward()  # the same numbers in every type
    return got.detach(), [leaf.grad for leaf in leaves if leaf is not None]


def assert_same_outcome(got, wanted, forward=1e-12, backward=1e-10):
    assert_close(got[0].to(wanted[0].dtype), wanted[0], forward)
    for mine, theirs in zip(got[1], wanted[1], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and mine.numel():
            assert (mine.to(theirs) - theirs).abs().max() <= backward * theirs.abs().max().clamp_min(1e-2)


def in_dtype(case, dtype):
    """Coordinates stay as they are: who has them far from the origin has them in double precision."""
    parts = (None if part is None else part.to(dtype) for part in case[4][:5])
    return (*(tensor.to(dtype) for tensor in case[:3]), case[3], DistanceBias(*parts, case[4].self_bias))


# ---- the same as the definition

SIZES = [0, 1, 2, 7, 8, 9, 16, 21, 33]
HUGE = 1e4  # of scores: too large for the exponential of any type, and for float32 to know weights to more than 1e-3


class Drawn(NamedTuple):
    """A case, how to attend, and which of its tensors are learnt."""

    case: tuple
    options: dict
    learnt: tuple
    huge: bool


@st.composite
def drawn_cases(draw):
    bags, tiles, seed = draw(st.integers(1, 3)), draw(st.sampled_from(SIZES)), draw(st.integers(0, 2**16))
    tables, phis = draw(st.sampled_from(["kqv", "kv", "qv", "k", "q", "v"])), draw(st.sampled_from([1, 3]))
    q, k, v, coords, bias = random_case(
        seed, bags, 2, tiles, 3, 5, tables=tables, self_bias=draw(st.booleans()), phis=phis
    )
    huge = draw(st.sampled_from([False, False, False, True]))
    q = q * draw(st.sampled_from([HUGE, -HUGE])) if huge else q
    if draw(st.booleans()):  # tiles in the same place
        coords[:, tiles // 2 :] = coords[:, :1]
    coords = coords + draw(st.sampled_from([0.0, 1e6]))
    tensors = (q, k, v, coords)
    if draw(st.booleans()):
        tensors = tuple(tensor.mT.contiguous().mT for tensor in tensors)
    mask = {"none": None, "some": some_mask(bags, tiles, seed), "a bag of padding": some_mask(bags, tiles, seed)}
    mask["a bag of padding"][-1] = False
    slides = torch.randint(-1, 2, (bags, tiles), generator=torch.Generator().manual_seed(seed))
    options = {
        "mask": mask[draw(st.sampled_from(list(mask)))],
        "slide": draw(st.sampled_from([None, slides])),
        "dropout_p": draw(st.sampled_from([0.0, 0.0, 0.3])),
    }
    learnt = draw(st.one_of(st.just((True,) * 8), st.tuples(*[st.booleans()] * 8)))
    return Drawn((*tensors, bias), options, learnt, huge)


def some_and_many(test):
    """A property with a few drawn cases, others each time that it is run, and with many of them in a slow test."""
    few, many = (settings(max_examples=examples, deadline=None)(given(drawn_cases())(test)) for examples in (40, 200))
    return few, pytest.mark.slow(many)


def tiled_is_the_definition(drawn):
    got, wanted = (outcome(backend, drawn.case, drawn.learnt, **drawn.options) for backend in ("tiled", "reference"))
    assert_same_outcome(got, wanted, *((1e-9, 1e-7) if drawn.huge else ()))


test_tiled_is_the_definition, test_tiled_is_the_definition_in_many_cases = some_and_many(tiled_is_the_definition)


def numba_is_the_definition(drawn):
    pytest.importorskip("numba", reason="numba, the extra wsi-mil[fast], is not installed")
    got = outcome("numba", in_dtype(drawn.case, torch.float32), drawn.learnt, **drawn.options)
    wanted = outcome("reference", drawn.case, drawn.learnt, **drawn.options)
    if drawn.huge:
        assert_close(got[0].double(), wanted[0], 3e-2)
        assert all(gradient.isfinite().all() for gradient in got[1] if gradient is not None)
    else:
        assert_same_outcome(got, wanted, 1e-5, 1e-3)


test_numba_is_the_definition, test_numba_is_the_definition_in_many_cases = some_and_many(numba_is_the_definition)


@settings(max_examples=40, deadline=None)
@given(
    tiles=st.integers(0, 9),
    seed=st.integers(0, 2**16),
    masked=st.booleans(),
    slides=st.booleans(),
    self_bias=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
)
def test_the_definition_is_what_the_equations_say(tiles, seed, masked, slides, self_bias, scale):
    case = random_case(seed, tiles=tiles, self_bias=self_bias)
    mask = some_mask(2, tiles, seed) if masked else None
    slide = torch.randint(0, 3, (2, tiles), generator=torch.Generator().manual_seed(seed)) if slides else None
    options = {"scale": scale, "mask": mask, "slide": slide}
    assert_close(distance_attention(*case, backend="reference", **options), brute(*case, **options))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("self_bias", [True, False])
def test_how_slides_lie_to_each_other_changes_nothing(backend, self_bias):
    """Each slide is shifted and turned by itself: distances between slides change, those within do not."""
    case = in_dtype(random_case(tiles=40, self_bias=self_bias), torch.float32)
    slide = torch.randint(-1, 2, (2, 40), generator=torch.Generator().manual_seed(1))
    mask, coords = some_mask(2, 40), (64 * case[3]).round() / 64
    turned = torch.stack([-coords[..., 1], coords[..., 0]], dim=-1)
    moved = torch.where((slide == 1).unsqueeze(-1), turned, coords) + 128.0 * slide.unsqueeze(-1)
    wanted, got = (outcome(backend, (*case[:3], xy, case[4]), mask=mask, slide=slide) for xy in (coords, moved))
    assert_same_outcome(got, wanted, 1e-5, 1e-4)
    renumbered = outcome(backend, (*case[:3], moved, case[4]), mask=mask, slide=torch.tensor([5, -9, 0])[slide])
    assert_same_outcome(renumbered, wanted, 1e-5, 1e-4)
    assert (outcome(backend, (*case[:3], coords, case[4]), mask=mask)[0] - wanted[0]).abs().max() > 1e-2


def pairwise(*options):
    """Every combination; fast are those of an even sum of places: with two of the first options, every pair is met."""
    places = product(*map(range, map(len, options)))
    marks = (() if sum(place) % 2 == 0 else pytest.mark.slow for place in places)
    return [pytest.param(*values, marks=mark) for values, mark in zip(product(*options), marks, strict=True)]


@pytest.mark.parametrize(("self_bias", "phis", "dropout_p"), pairwise([True, False], [1, 3], [0.0, 0.4]))
def test_gradients(monkeypatch, self_bias, phis, dropout_p):
    q, k, v, coords, bias = random_case(bags=1, heads=1, tiles=6, dim=2, dim_v=2, self_bias=self_bias, phis=phis)
    monkeypatch.setitem(tiled.BLOCK, "cpu", 3)
    mask, slide = torch.arange(6)[None] != 2, torch.arange(6)[None] // 4
    leaves = [tensor.requires_grad_() for tensor in (q, k, v, *bias[:5])]

    def attend(q, k, v, *parts):
        torch.manual_seed(0)
        bias = DistanceBias(*parts, self_bias=self_bias)
        options = {"mask": mask, "slide": slide, "dropout_p": dropout_p}
        return distance_attention(q, k, v, coords, bias, backend="tiled", **options)

    assert torch.autograd.gradcheck(attend, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode(backend):
    case = in_dtype(random_case(tiles=20), torch.float32)
    wanted = distance_attention(*case, backend=backend)
    with torch.inference_mode():
        assert torch.equal(distance_attention(*case, backend=backend), wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by torch, for its dual numbers
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_derivatives_that_are_not_defined_are_refused(backend):
    q, *rest = in_dtype(random_case(tiles=20), torch.float32)
    q = q.requires_grad_()
    (gradient,) = torch.autograd.grad(
        distance_attention(q, *rest, backend=backend).square().sum(), q, create_graph=True
    )
    with pytest.raises(OptionError, match="second derivatives are those of backend reference"):
        gradient.square().sum().backward()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q.detach(), torch.ones_like(q))
        with pytest.raises(OptionError, match="forward-mode derivatives are those of backend reference"):
            distance_attention(dual, *rest, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_activations_may_be_computed_again(backend):
    q, *rest = in_dtype(random_case(tiles=20), torch.float32)

    def attend(q):
        torch.manual_seed(0)
        return distance_attention(q, *rest, backend=backend, dropout_p=0.3)

    gradients = []
    for run in (attend, lambda q: torch.utils.checkpoint.checkpoint(attend, q, use_reentrant=False)):
        leaf = q.clone().requires_grad_()
        run(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("of_operands", "of_coords", "of_bias"),
    pairwise(
        [torch.float32, torch.bfloat16],
        [torch.float16, torch.float32, torch.float64, torch.int64],
        [torch.float32, torch.float64, torch.bfloat16],
    ),
)
def test_kinds_may_differ(backend, of_operands, of_coords, of_bias):
    q, k, v, coords, bias = random_case(tiles=20)
    bias = DistanceBias(*(part.to(of_bias) for part in bias[:5]))
    q, k, v = (tensor.to(of_operands) for tensor in (q, k, v))
    coords = (3 * coords).round().to(of_coords)
    got = distance_attention(q, k, v, coords, bias, backend=backend)
    exact = (*(tensor.double() for tensor in (q, k, v, coords)), DistanceBias(*(part.double() for part in bias[:5])))
    assert got.dtype == of_operands
    assert_close(got.double(), distance_attention(*exact, backend="reference"), BOUNDS[of_operands][0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_coordinates_in_float64_keep_their_fractions_far_from_the_origin(backend):
    case = random_case(tiles=20)
    low = in_dtype(case, torch.float32)
    got = distance_attention(*low[:3], case[3] + 1e6, low[4], backend=backend)
    assert_close(got.double(), distance_attention(*case, backend="reference"), 1e-5)


def test_plain_attention_is_torchs_own_and_padding_costs_nothing(monkeypatch):
    q, k, v, coords, _ = random_case(tiles=300, dim_v=4)
    mask = some_mask(2, 300)
    mask[1] = False
    case = (q, k, v, coords, None)
    wanted = distance_attention(*case, mask=mask, backend="reference")
    assert_close(distance_attention(*case, mask=mask, backend="tiled"), wanted)
    own, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(q, k, v, scale):
        seen.append(q.shape[-2])
        return own(q, k, v, scale=scale)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    assert_close(distance_attention(*case, mask=mask), wanted)
    assert seen == mask.sum(1).tolist()


# ---- precision


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["plain", "slides", "no bias to itself", "large table"])
@pytest.mark.parametrize(("dtype", "bounds"), BOUNDS.items(), ids=str)
def test_precision(backend, kind, dtype, bounds):
    """Also where parts are joined, and where what a table adds is larger than the values and cancels in gradients."""
    case = random_case(tiles=34, dim=16, dim_v=16, self_bias=kind != "no bias to itself")
    options = {"slide": torch.arange(34).expand(2, 34) // 14} if kind == "slides" else {}
    bias = DistanceBias(*(part.float() for part in case[4][:5]), case[4].self_bias)
    if kind == "large table":
        bias = bias._replace(value=bias.value + 16)
    low = (*(tensor.to(dtype) for tensor in case[:3]), case[3].float(), bias)
    wide = DistanceBias(*(part.double() for part in bias[:5]), bias.self_bias)
    exact = (*(tensor.double() for tensor in low[:4]), wide)
    got, gradients = outcome(backend, low, **options)
    assert got.dtype == dtype
    assert [gradient.dtype for gradient in gradients] == [dtype] * 3 + [torch.float32] * 5
    wanted = outcome("reference", exact, **options)
    parts = 2 if kind in ("slides", "no bias to itself") else 1
    bounds = (bounds[0], parts * bounds[1])
    assert_same_outcome((got.double(), [each.double() for each in gradients]), wanted, *bounds)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("biased", [True, False])
def test_wide_results_are_not_rounded(backend, biased):
    """Nor is plain attention left to torch then, which rounds."""
    q, k, v, coords, bias = random_case(tiles=200, dim=4, dim_v=4)
    q, k, v = (tensor.bfloat16() for tensor in (q, k, v))
    got = distance_attention(q, k, v, coords, bias if biased else None, backend=backend, wide=True)
    exact = distance_attention(*(x.double() for x in (q, k, v)), coords, bias if biased else None, backend="reference")
    assert got.dtype == torch.float32
    assert_close(got.double(), exact, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_autocast_around_it_changes_nothing(backend):
    case = random_case(tiles=20, dtype=torch.float32)
    wanted = distance_attention(*case, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = distance_attention(*case, backend=backend)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_differences_of_coordinates_count_even_far_from_the_origin(backend):
    q, k, v, _, bias = random_case(tiles=20, dtype=torch.float32)
    grid = 256 * torch.randint(0, 40, (2, 20, 2), generator=torch.Generator().manual_seed(1)).float()
    bias = bias._replace(beta=bias.beta / 500, theta=bias.theta * 1000)
    here, far_away = (distance_attention(q, k, v, xy, bias, backend=backend) for xy in (grid, grid + 1e6))
    torch.testing.assert_close(here, far_away, rtol=0, atol=0)


def test_distances_are_exact_though_coordinates_are_large():
    """Expanding (a - b)**2 would lose a step of 256 um between tiles at 1 m from the origin."""
    q, k, v, _, bias = random_case(tiles=30, dtype=torch.float32)
    coords = 1e6 + 256.0 * torch.arange(60).view(2, 30, 1).expand(-1, -1, 2)
    bias = bias._replace(beta=bias.beta / 100, theta=bias.theta * 300)
    exact = (*(tensor.double() for tensor in (q, k, v, coords)), DistanceBias(*(part.double() for part in bias[:5])))
    assert_same_outcome(outcome("tiled", (q, k, v, coords, bias)), outcome("reference", exact), 1e-5, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_steep_and_flat_phi_stay_finite(backend):
    q, k, v, coords, bias = random_case(tiles=20, dtype=torch.float32)
    for beta in (0.0, 1e4, -1e4):
        got, gradients = outcome(backend, (q, k, v, coords, bias._replace(beta=torch.full_like(bias.beta, beta))))
        assert got.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)


# ---- robustness


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_may_hold_anything_forward_and_backward(backend):
    q, k, v, coords, bias = random_case(tiles=20, dtype=torch.float32)
    mask = some_mask(2, 20)
    wanted = outcome(backend, (q, k, v, coords, bias), mask=mask)
    pad = ~mask[:, None, :, None]
    junk = (torch.nan, torch.inf, -1e9)
    q, k, v = (tensor.masked_fill(pad, what) for tensor, what in zip((q, k, v), junk, strict=True))
    got = outcome(backend, (q, k, v, coords.masked_fill(~mask.unsqueeze(-1), torch.nan), bias), mask=mask)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert not got[0].masked_select(pad).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("self_bias", [True, False])
def test_a_bag_of_padding_gives_zeros_and_finite_gradients(backend, self_bias):
    case = random_case(tiles=20, dtype=torch.float32, self_bias=self_bias)
    mask = torch.arange(2)[:, None].expand(2, 20) > 0
    for slide in (None, torch.arange(20).expand(2, 20) // 7):
        got, gradients = outcome(backend, case, mask=mask, slide=slide)
        assert not got[0].any()
        assert got[1].any()
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_input_gives_the_same_bits(backend):
    case = random_case(tiles=70, dtype=torch.float32)
    torch.testing.assert_close(outcome(backend, case), outcome(backend, case), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_left_as_they_were(backend):
    case = random_case(tiles=20, dtype=torch.float32)
    before = [tensor.clone() for tensor in case[:4]]
    outcome(backend, case, mask=some_mask(2, 20), slide=torch.arange(20).expand(2, 20) // 7)
    outcome(backend, tuple(part[:1] if torch.is_tensor(part) else part for part in case))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(case[:4], before, strict=True))


COMPILED = """
import torch
from wsi_mil.attention import DistanceBias, distance_attention
torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 3, 200, 4)
coords, mask, slide = torch.rand(2, 200, 2), torch.rand(2, 200) > 0.4, torch.arange(200).expand(2, 200) // 70
beta, theta, key = torch.ones(3), torch.full((3,), 0.5), torch.randn(3, 2, 4)

def model(q, key):
    bias = DistanceBias(beta, theta, key, key, key, self_bias=False)
    return distance_attention(q.relu(), k, v, coords, bias, mask=mask, slide=slide, backend="tiled")

def outcome(attend):
    leaves = [tensor.clone().requires_grad_() for tensor in (q, key)]
    out = attend(*leaves)
    out.square().sum().backward()
    return [out, *(leaf.grad for leaf in leaves)]

torch.testing.assert_close(outcome(torch.compile(model, backend="aot_eager", fullgraph=True)), outcome(model))

from wsi_mil.aggregators import build
from wsi_mil.bags import Batch
for name in ("das-mil", "das-mil-paper", "self-attention"):
    torch._dynamo.reset()  # they share a forward, and its compilations are limited
    network = build(name, 6, 2, attention_dropout=0.1)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for tiles in (50, 250):
        batch = Batch(torch.randn(2, tiles, 6), 5000 * torch.rand(2, tiles, 2), torch.rand(2, tiles) > 0.3)
        for mode in (network.eval(), network.train()):
            torch.manual_seed(1)
            compiled(batch).logits.sum().backward()
        network.eval()
        torch.testing.assert_close(compiled(batch).logits, network(batch).logits)
"""


@pytest.mark.slow
def test_a_compiled_model_takes_it_whole():
    """In a process of its own, where no type checker stands between the compiler and the code."""
    subprocess.run([sys.executable, "-W", "error", "-c", COMPILED], check=True)


# ---- dropout


def test_what_dropout_drops_is_fair_and_independent():
    made = codes(torch.tensor(3), 1, 2, 500, torch.device("cpu"))
    kept = keep(made.row[0, :, :, None], made.col[0, :, None, :], 0.1).double()
    error = (0.1 * 0.9 / kept[0].numel()) ** 0.5
    assert (kept.mean(dim=(1, 2)) - 0.9).abs().max() < 5 * error
    for axis in (0, 1):  # of rows and columns too
        assert kept[0].mean(dim=axis).std() < 1.2 * (0.1 * 0.9 / 500) ** 0.5
    neighbours = torch.stack([kept[0], kept[1], kept[0].roll(1, 0), kept[0].roll(1, 1), kept[0].mT]).flatten(1)
    assert (torch.corrcoef(neighbours) - torch.eye(5).double()).abs().max() < 0.02


def test_dropout_keeps_the_mean_and_changes_with_every_call():
    case = random_case(bags=1, heads=1, tiles=12)
    torch.manual_seed(0)
    outputs = torch.stack([distance_attention(*case, dropout_p=0.2, backend="tiled") for _ in range(500)])
    assert not torch.equal(outputs[0], outputs[1])
    wanted, spread = distance_attention(*case, backend="tiled"), outputs.std(dim=0) / 500**0.5
    assert ((outputs.mean(dim=0) - wanted).abs() / spread).max() < 5


def test_weights_are_told_before_dropout():
    case = random_case()
    dropped, whole = (dense_distance_attention(*case, dropout_p=p) for p in (0.5, 0.0))
    assert torch.equal(dropped.weights, whole.weights)
    assert not torch.equal(dropped.values, whole.values)


# ---- memory and cost

MEMORY = """
import sys, torch
from wsi_mil.attention import DistanceBias, distance_attention
torch.set_num_threads(1)
def grown(tiles):
    q, k, v = (torch.randn(1, 1, tiles, 64, requires_grad=True) for _ in range(3))
    tables = [torch.randn(1, 2, 64, requires_grad=True) for _ in range(3)]
    bias = DistanceBias(torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True), *tables)
    coords, weight = torch.rand(1, tiles, 2), torch.randn(1, 1, tiles, 64)
    open("/proc/self/clear_refs", "w").write("5")
    status = lambda key: int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) * 1024
    before = status("VmRSS")
    distance_attention(q, k, v, coords, bias, backend=sys.argv[1]).backward(weight)
    return status("VmHWM") - before
grown(200)  # what is compiled at first use stays out of it
print(*(grown(int(tiles)) for tiles in sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_memory_grows_with_the_tiles_and_not_with_their_pairs(backend):
    few, many = 1024, 5120
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), backend, str(few), str(many)]
    of_few, of_many = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert (of_many - of_few) / (many - few) < 8 * 64 * 4  # bytes per tile; all pairs would be 24,000


def test_padding_is_not_computed():
    mask = torch.zeros(3, 100, dtype=torch.bool)
    mask[0, ::2], mask[2, :7] = True, True
    packing = plan(3, 100, mask, None)
    assert packing.runs == (((0, 50),), (), ((50, 57),))
    assert packing.index.tolist() == [*range(0, 100, 2), *range(200, 207)]


def test_tiles_are_packed_by_bag_and_slide():
    slide = torch.tensor([[5, 1, 5, 1], [1, 1, 9, 9]])
    mask = torch.tensor([[True, True, True, True], [True, False, True, True]])
    packing = plan(2, 4, mask, slide)
    assert packing.index.tolist() == [1, 3, 0, 2, 4, 6, 7]
    assert packing.runs == (((0, 2), (2, 4)), ((4, 5), (5, 7)))


# ---- what cannot be meant


@pytest.fixture
def forgetful():
    """What was found out about backends is forgotten before and after."""
    backends._hindrance.cache_clear()
    yield
    backends._hindrance.cache_clear()


def test_backends_that_cannot_be_are_refused_by_name(monkeypatch, forgetful):
    case = random_case(tiles=20)
    with pytest.raises(OptionError, match="backend flash: choose one of auto, reference, tiled, numba, triton"):
        inspect.unwrap(distance_attention)(*case, backend="flash")
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backends, "module_of", lambda backend: None)
    with pytest.raises(OptionError, match=r"numba cannot take torch\.float64 of 5 dimensions on cpu: take auto"):
        distance_attention(*case, backend="numba")
    with pytest.raises(OptionError, match=r"triton cannot take torch\.float64 of 5 dimensions on cpu"):
        distance_attention(*case, backend="triton")
    backends._hindrance.cache_clear()
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"numba is not installed: pip install 'wsi-mil\[fast\]'"):
        distance_attention(*case, backend="numba")


def test_auto_takes_the_fastest_that_is_there(monkeypatch, forgetful):
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which is for who asks for triton
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backends, "module_of", lambda backend: None)
    assert [backends.choose("auto", tensor, tensor) for tensor in (single, double)] == ["numba", "tiled"]
    assert backends.choose("triton", single, single) == "triton"
    backends._hindrance.cache_clear()
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert backends.choose("auto", single, single) == "tiled"


def test_bfloat16_is_not_interpreted(monkeypatch):
    """Triton's interpreter multiplies its bits as if they were whole numbers, and says nothing."""
    half, brain = torch.zeros(1).half(), torch.zeros(1).bfloat16()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backends, "_hindrance", lambda backend, warn: None)
    monkeypatch.setattr(backends, "_fit_gpu", lambda device: True)
    assert backends.choose("triton", half, half) == "triton"
    assert backends.choose("auto", brain, brain) == "numba"
    with pytest.raises(
        OptionError, match=r"interpreter cannot take torch\.bfloat16: unset TRITON_INTERPRET, or take auto"
    ):
        backends.choose("triton", brain, brain)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert backends.choose("triton", brain, brain) == "triton"


def test_a_broken_library_is_done_without_and_named(monkeypatch, forgetful):
    def broken(backend):
        raise ImportError("Numba needs another NumPy")

    single = torch.zeros(1)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backends, "module_of", broken)
    with pytest.warns(UserWarning, match="attention does without numba, which cannot be imported: Numba needs another"):
        assert backends.choose("auto", single, single) == "tiled"
    with pytest.raises(OptionError, match="backend numba cannot be imported: Numba needs another NumPy"):
        backends.choose("numba", single, single)


@pytest.mark.parametrize("dropout_p", [-0.1, 1.0, 7])
def test_dropout_is_a_share(dropout_p):
    with pytest.raises(OptionError, match="dropout_p"):
        inspect.unwrap(distance_attention)(*random_case(), dropout_p=dropout_p)


WRONG = {
    "k": lambda q, k, v, coords, bias: (q, k[:, :, 1:], v, coords, bias),
    "v": lambda q, k, v, coords, bias: (q, k, v[:, :1], coords, bias),
    "coords": lambda q, k, v, coords, bias: (q, k, v, coords[:1], bias),
    "theta": lambda q, k, v, coords, bias: (q, k, v, coords, bias._replace(theta=bias.theta[:1])),
    "query": lambda q, k, v, coords, bias: (q, k, v, coords, bias._replace(query=bias.value)),
}


def test_kinds_of_operands_are_checked():
    attend, case = inspect.unwrap(distance_attention), random_case(tiles=4)
    with pytest.raises(ValueError, match=r"k is of torch\.float32, q of torch\.float64: bring them to one type"):
        attend(case[0], case[1].float(), *case[2:])
    with pytest.raises(ValueError, match=r"q is of torch\.int64: give real numbers"):
        attend(*(tensor.long() for tensor in case[:3]), *case[3:])
    with pytest.raises(ValueError, match="coords is a ndarray: give a torch tensor"):
        inspect.unwrap(require_operands)(*case[:3], case[3].numpy(), case[4], None, None)
    with pytest.raises(ValueError, match="coords is on meta, q on cpu"):
        attend(*case[:3], case[3].to("meta"), case[4])
    with pytest.raises(ValueError, match=r"mask is of torch\.uint8: give torch\.bool"):
        attend(*case, mask=torch.ones(2, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"slide is of torch\.float32: give whole numbers"):
        attend(*case, slide=torch.ones(2, 4))


@pytest.mark.parametrize("name", WRONG)
def test_shapes_that_would_broadcast_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} has shape"):
        inspect.unwrap(distance_attention)(*WRONG[name](*random_case()))


def test_the_operator_keeps_torchs_rules():
    """Its schema, gradient, shapes without data, and what the compiler makes of it."""
    q, k, v, coords, bias = random_case(tiles=9)
    leaves = [tensor.requires_grad_() for tensor in (q, k, v, *map(torch.atleast_2d, bias[:2]), *bias[2:5])]
    codes = (None, None)
    for mask, slide in ((None, None), (some_mask(2, 9), torch.arange(9).expand(2, 9) // 4)):
        options = (0.7, False, True, 0.0, "tiled")
        torch.library.opcheck(torch.ops.wsi_mil.attend.default, (*leaves, coords, *codes, mask, slide, *options))
