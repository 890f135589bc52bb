"""What attention looks at, streamed, is what the dense weights say."""

import inspect

import pytest
import torch
from test_attention import assert_close, random_case, some_mask

from wsi_mil.attention import (
    attention_received,
    attention_rows,
    dense_distance_attention,
    public,
    readout,
)
from wsi_mil.attention.public import DENSE_TILES
from wsi_mil.errors import OptionError

TILES = 23


@pytest.fixture(autouse=True)
def few_pairs_at_once(monkeypatch):
    """Small cases meet several chunks of rows, and a last one that is not full."""
    monkeypatch.setattr(readout, "_PAIRS_AT_ONCE", 2 * 3 * TILES * 5)


@pytest.fixture(params=["plain", "biased", "padded", "slides"])
def case(request):
    """Queries, keys, positions, bias and options, with the weights that they mean."""
    q, k, v, coords, bias = random_case(tiles=TILES, self_bias=request.param != "slides")
    options = {}
    if request.param in ("padded", "slides"):
        options["mask"] = some_mask(2, TILES)
    if request.param == "slides":
        options["slide"] = torch.arange(TILES).expand(2, TILES) // 9
    bias = None if request.param == "plain" else bias
    return (q, k, coords, bias), options, dense_distance_attention(q, k, v, coords, bias, **options).weights


def test_received_is_the_mean_of_the_columns(case):
    operands, options, weights = case
    real = options.get("mask", torch.ones(2, TILES, dtype=torch.bool))
    wanted = weights.sum(dim=2) / real.sum(dim=1)[:, None, None]
    received = attention_received(*operands, **options)
    assert_close(received, wanted)
    assert_close(received.sum(dim=-1), torch.ones(2, 3).double())
    assert not received.masked_select(~real[:, None].expand(-1, 3, -1)).any()


def test_received_with_shares_of_the_rows(case):
    operands, options, weights = case
    share = torch.rand(2, TILES, dtype=torch.float64)
    wanted = torch.einsum("bi,bhij->bhj", share, weights)
    assert_close(attention_received(*operands, **options, row_share=share), wanted)


@pytest.mark.parametrize("inference", [False, True])
def test_received_is_found_by_the_linear_code(monkeypatch, inference):
    q, k, v, coords, bias = random_case(tiles=DENSE_TILES + 8)
    wanted = dense_distance_attention(q, k, v, coords, bias).weights.mean(dim=2)
    monkeypatch.setattr(public, "dense_distance_attention", None)
    with torch.inference_mode(inference):
        received = attention_received(q * 1, k * 1, coords * 1, bias._replace(beta=bias.beta * 1))
    assert_close(received, wanted)


def test_an_autocast_around_it_changes_nothing(case):
    (q, k, coords, bias), options, weights = case
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(attention_rows(q, k, coords, bias, torch.arange(TILES), **options), weights)
        low = q.float(), k.float(), torch.zeros(2, 3, TILES, 5)
        dense = dense_distance_attention(*low, coords, bias, **options)
    assert_close(dense.weights.double(), weights, 1e-5)


def test_shares_of_another_shape_are_refused(case):
    operands, options, _ = case
    with pytest.raises(ValueError, match=r"row_share has shape \(1, 23\), with this q it has to be \(2, 23\)"):
        inspect.unwrap(attention_received)(*operands, **options, row_share=torch.ones(1, TILES))


@pytest.mark.parametrize("rows", [[], [4], [22, 0, 7, 7, 1, 2, 3, 4]])
def test_rows(case, rows):
    operands, options, weights = case
    assert_close(attention_rows(*operands, torch.tensor(rows, dtype=torch.int64), **options), weights[:, :, rows])


def test_rows_that_are_not_there_are_refused(case):
    operands, options, _ = case
    for rows, told in (([0, 23], "0 to 23"), ([-1, 3], "-1 to 3")):
        with pytest.raises(OptionError, match=f"rows {told}: tiles are numbered from 0 to 22"):
            attention_rows(*operands, torch.tensor(rows), **options)


def test_nothing_has_a_gradient(case):
    (q, k, coords, bias), options, _ = case
    q = q.clone().requires_grad_()
    assert not attention_received(q, k, coords, bias, **options).requires_grad
    assert not attention_rows(q, k, coords, bias, torch.tensor([1]), **options).requires_grad


def test_padding_may_hold_anything():
    q, k, _, coords, bias = random_case(tiles=TILES)
    mask = some_mask(2, TILES)
    wanted = attention_received(q, k, coords, bias, mask=mask)
    q, k = (tensor.masked_fill(~mask[:, None, :, None], torch.nan) for tensor in (q, k))
    share = (mask.double() / mask.sum(dim=1, keepdim=True)).masked_fill(~mask, torch.nan)
    coords = coords.masked_fill(~mask.unsqueeze(-1), torch.nan)
    assert_close(attention_received(q, k, coords, bias, mask=mask, row_share=share), wanted)


def test_low_precision_is_summed_in_float32():
    q, k, _, coords, bias = random_case(tiles=600)
    for dtype in (torch.float16, torch.bfloat16):
        received = attention_received(q.to(dtype), k.to(dtype), coords, bias)
        assert received.dtype == torch.float32
        assert_close(received.sum(dim=-1), torch.ones(2, 3), 1e-5)


def test_rows_that_are_no_indices_are_refused(case):
    operands, options, _ = case
    with pytest.raises(OptionError, match=r"rows of shape \(23,\) and torch\.bool: give the indices"):
        inspect.unwrap(attention_rows)(*operands, torch.ones(TILES, dtype=torch.bool), **options)
