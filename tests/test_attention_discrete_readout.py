"""What attention by bins looks at, streamed, is what the brute-force form pays."""

import inspect

import pytest
import torch
from test_attention import assert_close, some_mask
from test_attention_discrete import bin_case, brute

from wsi_mil.attention import discrete_readout, discrete_received, discrete_rows
from wsi_mil.errors import OptionError

TILES = 13


@pytest.fixture(autouse=True)
def few_pairs_at_once(monkeypatch):
    """Small cases meet several chunks of rows, and a last one that is not full."""
    monkeypatch.setattr(discrete_readout, "_PAIRS_AT_ONCE", 2 * 3 * TILES * 5)


@pytest.fixture(params=["kqv", "k", "q", "v", "kq, slides", "kqv, self"])
def case(request):
    """Queries, keys, positions, bias and options, with the weights that they mean: what is paid to unit values."""
    tables, _, form = request.param.partition(", ")
    q, k, _, coords, bias = bin_case(tiles=TILES, tables=tables, self_bias=form == "self")
    options = {}
    if form == "slides":
        options = {"mask": some_mask(2, TILES), "slide": torch.arange(TILES).expand(2, TILES) // 5, "scale": 0.3}
    units = torch.eye(TILES, dtype=torch.float64).expand(2, 3, TILES, TILES)
    silent = bias._replace(value=None)  # what is added to values decides no weights
    return (q, k, coords, bias), options, brute(q, k, units, coords, silent, **options)


@pytest.mark.parametrize("rows", [[], [4], [12, 0, 7, 7, 1, 2, 3, 4]])
def test_rows(case, rows):
    operands, options, weights = case
    assert_close(discrete_rows(*operands, torch.tensor(rows, dtype=torch.int64), **options), weights[:, :, rows])


def test_received_with_shares_of_the_rows(case):
    operands, options, weights = case
    share = torch.rand(2, TILES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = torch.einsum("bi,bhij->bhj", share, weights)
    assert_close(discrete_received(*operands, row_share=share, **options), wanted)


def test_padding_may_hold_anything():
    q, k, _, coords, bias = bin_case(tiles=TILES)
    mask, share, rows = some_mask(2, TILES), torch.full((2, TILES), 0.1).double(), torch.arange(TILES)
    wanted = discrete_rows(q, k, coords, bias, rows, mask=mask)
    received = discrete_received(q, k, coords, bias, row_share=share, mask=mask)
    q, k = (tensor.masked_fill(~mask[:, None, :, None], torch.nan) for tensor in (q, k))
    share, coords = share.masked_fill(~mask, torch.nan), coords.masked_fill(~mask.unsqueeze(-1), torch.nan)
    assert_close(discrete_rows(q, k, coords, bias, rows, mask=mask), wanted)
    assert_close(discrete_received(q, k, coords, bias, row_share=share, mask=mask), received)


def test_what_is_not_there_is_refused(case):
    operands, options, _ = case
    with pytest.raises(OptionError, match="rows 0 to 13: tiles are numbered from 0 to 12"):
        discrete_rows(*operands, torch.tensor([0, 13]), **options)
    with pytest.raises(ValueError, match=r"row_share has shape \(1, 13\), with this q it has to be \(2, 13\)"):
        inspect.unwrap(discrete_received)(*operands, row_share=torch.ones(1, TILES), **options)
