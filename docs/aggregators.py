"""Prints docs/aggregators.md: every aggregator and its options, from the docstrings beside them.

python docs/aggregators.py > docs/aggregators.md
"""

import ast
import inspect
import itertools
import textwrap
from dataclasses import fields

from wsi_mil.aggregators import AGGREGATORS, Aggregator

INTRODUCTION = """# Aggregators

Made by `make docs` from the docstrings in `wsi_mil/aggregators`. `wsimil train --aggregator NAME --option KEY=VALUE`
takes them by name; values are written as in JSON (`true`, `0.1`, `"max"`, `[500, 2000]`; words need no quotes). Other
packages add theirs: see `examples/custom_aggregator.py`.

Positions: *none* = coordinates are ignored; *relative* = only distances count; *oriented* = directions count too;
*absolute* = a shift of the slide counts too. Graphs in which all tiles are neighbours (`neighbours` 0, distances not
counted) know nothing of them.

Of lengths in um, training chooses `length_scales_um` alone, from the slides that it learns from. `max_distance_um` is
what was published for CAMELYON16 unless it is given: on smaller pieces of tissue nearly all pairs lie in the first of
the ten bins of relative-discrete then, and das-mil-paper hardly sees how far apart they are.

Attention by bins takes five to six times as long as that of das-mil: on 60,000 tiles, with four heads of 32, forward
and backward on one thread of a CPU, 560 to 650 s (estimated from 512 rows of pairs) beside 110 s (Numba)."""


def meanings(params: type) -> dict[str, str]:
    """What the docstring under each field says, of a dataclass and those it inherits from."""
    found: dict[str, str] = {}
    for kind in reversed(params.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # of the class
        for statement, following in itertools.pairwise(body):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and documented:
                found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def section(name: str, aggregator: type[Aggregator]) -> list[str]:
    """Of one aggregator."""
    said = meanings(aggregator.Params)
    rows = [
        f"| `{field.name}` | `{field.default!r}` | {said[field.name].replace('|', chr(92) + '|')} |"
        for field in fields(aggregator.Params)
    ]
    module = inspect.getmodule(aggregator)
    told = [module] + [aggregator] * (sum(inspect.getmodule(kind) is module for kind in AGGREGATORS.values()) > 1)
    about = " ".join(" ".join((inspect.getdoc(one) or "").partition("\n\n")[0].split()) for one in told)
    order = " The order of the array counts." if aggregator.ordered else ""
    header = ["| option | default | |", "| :-- | :-- | :-- |"]
    return [f"## {name}", "", f"{about} Positions: {aggregator.uses_position}.{order}", "", *header, *rows]


def page() -> str:
    """The whole page."""
    sections = ["\n".join(section(name, aggregator)) for name, aggregator in AGGREGATORS.items()]
    return "\n\n".join([INTRODUCTION, *sections])


if __name__ == "__main__":
    print(page())
