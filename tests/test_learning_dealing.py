"""Who takes which bags of a step."""

import logging
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_mil.learning import dealing

COSTS = st.lists(st.integers(0, 10**9), max_size=40)
RANKS = st.integers(1, 9)


def loads(costs: list[int], shares: list[list[int]]) -> list[int]:
    return [sum(costs[place] for place in share) for share in shares]


@given(COSTS, RANKS)
def test_every_bag_is_dealt_once_the_same_each_time_and_in_order(costs: list[int], ranks: int) -> None:
    shares = dealing.deal(costs, ranks)
    assert shares == dealing.deal(costs, ranks)
    assert len(shares) == ranks
    assert sorted(place for share in shares for place in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    sizes = [len(share) for share in shares]
    assert len(costs) < ranks or min(sizes) >= 1


@given(COSTS, RANKS)
def test_no_rank_has_more_than_lpt_may_give_it(costs: list[int], ranks: int) -> None:
    """Graham's bound of a greedy deal, of what each rank had at the least and the largest bag."""
    longest = max(loads(costs, dealing.deal(costs, ranks)))
    largest = max(costs, default=0)
    assert longest <= sum(costs) / ranks + largest * (1 - 1 / ranks) + 1e-6 * max(largest, 1)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.integers(1, 3))
def test_it_is_within_a_third_of_the_best_deal_there_is(costs: list[int], ranks: int) -> None:
    best = min(
        max(sum(cost for cost, rank in zip(costs, dealt, strict=True) if rank == one) for one in range(ranks))
        for dealt in product(range(ranks), repeat=len(costs))
    )
    assert max(loads(costs, dealing.deal(costs, ranks))) <= best * (4 / 3 - 1 / (3 * ranks)) + 1e-9


@given(st.integers(1, 50), st.integers(1, 20), RANKS, st.randoms(use_true_random=False))
def test_an_epoch_has_every_bag_once_in_the_steps_of_one_process(bags: int, size: int, ranks: int, random) -> None:
    order = random.sample(range(bags), bags)
    costs = [random.randrange(10**6) for _ in range(bags)]
    steps = dealing.steps_of(order, size)
    dealt = dealing.shares_of(steps, costs, ranks)
    assert [index for step in steps for index in step] == order
    assert all(len(step) == size for step in steps[:-1])
    assert [sorted(index for share in shares for index in share) for shares in dealt] == [sorted(s) for s in steps]
    assert dealing.shares_of(steps, [], 1) == [[step] for step in steps]
    assert 0 <= dealing.idle_share(dealt, costs) < 1


def test_large_bags_are_kept_apart_where_dealing_in_turn_puts_them_together() -> None:
    costs = [100, 1, 100, 1]
    assert dealing.deal(costs, 2) == [[0, 1], [2, 3]]
    dealt = dealing.shares_of([[0, 1, 2, 3]], costs, 2)
    assert dealing.idle_share(dealt, costs) == 0
    assert dealing.idle_share([[[0, 2], [1, 3]]], costs) == pytest.approx(1 - 202 / 400)
    assert dealing.idle_share([[[0], []]], costs) == 0.5


def test_much_waiting_is_told_with_the_way_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        dealing.tell_idle_share([0, 1, 2, 3], 4, [5, 5, 5, 5], 2)
        assert not caplog.messages
        dealing.tell_idle_share([0, 1, 2, 3], 2, [9, 1, 1, 9], 2)
    assert "--bags-per-step 2 on 2 devices: they wait for each other about 44 % of the time" in caplog.text
