"""Who takes which bags of a step, where several ranks share it.

A step ends when its last rank does, so what counts is the rank with the most work. Largest bag first, each to the rank
with the least so far (LPT: Graham, SIAM J. Appl. Math. 17:416, 1969) keeps that within 4/3 of the least there is. Bags
are dealt within a step and never across: what a step learns from is what one process would learn from.
"""

import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)

_WORTH_A_WORD = 0.15


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """The places of a step's bags that each rank takes, in their order; of more ranks than bags some take none.

    Args:
        costs: how long each bag takes, beside the others.
        ranks: how many share the step.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        rank = min(range(ranks), key=lambda rank: (loads[rank], len(shares[rank]), rank))
        shares[rank].append(place)
        loads[rank] += costs[place]
    return [sorted(share) for share in shares]


def steps_of(order: Sequence[int], bags_per_step: int) -> list[list[int]]:
    """The order of an epoch, cut into steps; the last may have fewer bags."""
    return [list(order[start : start + bags_per_step]) for start in range(0, len(order), bags_per_step)]


def shares_of(steps: Sequence[Sequence[int]], costs: Sequence[int], ranks: int) -> list[list[list[int]]]:
    """The bags of each step that each rank takes: by step, rank, and place.

    Args:
        steps: the bags of each.
        costs: of all bags there are, by their index; none are needed where one rank takes all.
        ranks: how many share each step.
    """
    if ranks == 1:
        return [[list(step)] for step in steps]
    dealt = []
    for step in steps:
        places = deal([costs[index] for index in step], ranks)
        dealt.append([[step[place] for place in share] for share in places])
    return dealt


def idle_share(dealt: Sequence[Sequence[Sequence[int]]], costs: Sequence[int]) -> float:
    """Share of the ranks' time that they wait for each other, if bags take as long as their costs say.

    Args:
        dealt: the bags of each step that each rank takes.
        costs: of all bags there are, by their index.
    """
    loads = [[sum(costs[index] for index in share) for share in shares] for shares in dealt]
    longest = sum(len(step) * max(step) for step in loads)
    return 1 - sum(map(sum, loads)) / longest if longest else 0.0


def tell_idle_share(order: Sequence[int], bags_per_step: int, costs: Sequence[int], ranks: int) -> None:
    """Say it where much of the ranks' time is lost.

    Args:
        order: of an epoch.
        bags_per_step: as it is cut.
        costs: of all bags there are, by their index.
        ranks: how many share each step.
    """
    idle = idle_share(shares_of(steps_of(order, bags_per_step), costs, ranks), costs)
    if idle > _WORTH_A_WORD:
        log.info(
            "--bags-per-step %d on %d devices: they wait for each other about %.0f %% of the time, because bags"
            " differ in size; more bags a step are shared more evenly, and make fewer steps",
            bags_per_step,
            ranks,
            100 * idle,
        )
