"""MNIST-COLLAGE: the tables of docs/results.md are those of the rows beside them, whole."""

import importlib
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def tables(load):
    return load("collage_tables")


@pytest.mark.parametrize("protocol", ["fresh", "paper"])
def test_the_tables_of_the_docs_are_those_of_the_rows_beside_them(tables, protocol):
    table = list(getattr(tables, f"{protocol}_table")(DOCS / "mnist-collage"))
    assert any(line.startswith(("| collage | das-mil |", "| das-mil-paper |")) for line in table)
    page = (DOCS / "results.md").read_text().partition("## MNIST-COLLAGE")[2]
    assert table[0] in page
    told = page[page.index(table[0]) :].partition("\n\n")[0]
    assert told.splitlines() == table


def scores(tables, model, variant, protocol, accuracies):
    return [tables.Score(model, variant, protocol, seed, each, each / 2) for seed, each in enumerate(accuracies)]


@pytest.fixture
def folder(tables, tmp_path):
    """A table of each protocol: two models that are through, and one that is not."""
    usual, other = tables.READERS_TRIED
    rows = scores(tables, "das-mil", "inv", "fresh", (0.9, 0.9, 0.8, 0.9, 1.0))
    rows += scores(tables, "gat", "inv", "fresh", (0.95,) * 5)
    rows += scores(tables, "max", "inv", "fresh", (0.99,) * 4) + scores(tables, "max", "inv", "paper", (0.99,) * 5)[4:]
    px = ("17 160 400", "165", "171 180", "20 169.6", "100 300")
    how = {"das-mil": (0.004, "", usual), "gat": (0.016, "all", other), "max": (0.001, "", usual)}
    learnt = [tables.Learnt(*row[:4], *how[row.model], px[row.seed] if row.model == "das-mil" else "") for row in rows]
    trials = [tables.Trial("gat", "inv", reader, "", 0.002, seed, 0.5) for reader in (usual, other) for seed in (0, 1)]
    trials += [tables.Trial("gat", "collage", usual, "", 0.002, 0, 0.5), trials[0]._replace(model="das-mil")]
    paper = scores(tables, "abmil", "collage", "paper", (0.71, 0.73, 0.75, 0.77, 0.79))
    paper += scores(tables, "abmil", "inv", "paper", (0.7,) * 5) + scores(tables, "max", "collage", "paper", (0.9,) * 5)
    write = importlib.import_module("row_files").write_rows
    others = scores(tables, "gat", "inv", "fresh", (0.5, 0.6, 0.7, 0.8, 0.9))
    others += scores(tables, "das-mil", "inv", "fresh", (0.9,) * 4)  # not through: no figure
    written = {"fresh": rows, "fresh.learnt": learnt, "fresh.trials": trials, "other-layouts": others, "paper": paper}
    written["other-layouts.learnt"] = [row for row in learnt if row.model == "gat" and row.seed < 4]
    for name, table in written.items():
        write(tmp_path / f"{name}.csv", table)
    return tmp_path


FRESH = """\
| variant | model | accuracy % | on others % | AUROC % | rate | options | reader | trials | near to far, px (true) |
| :-- | :-- | --: | --: | --: | --: | :-- | :-- | --: | :-- |
| inv | gat | 95.0 ± 0.0 | 70.0 ± 15.8 | 47.5 ± 0.0 | 0.016 | all | normalised-jitter | 4 | – |
| inv | das-mil | 90.0 ± 7.1 | – | 45.0 ± 3.5 | 0.004 | – | – | 1 | 160, 165, 171, 170, 100 (170) |
"""
# SE: 0.75 - 0.74 and 0.7 - 0.692, by the roots of (0.0316² + 0.01²) / 5 and 0.015² / 5
PAPER = """\
| model | collage % | published % | SE | inv % | published % | SE |
| :-- | --: | --: | --: | --: | --: | --: |
| abmil | 75.0 ± 3.2 | 74.0 ± 1.0 | +0.7 | 70.0 ± 0.0 | 69.2 ± 1.5 | +1.2 |
"""


def test_tables_tell_best_first_what_was_reached_and_how_of_what_is_through(tables, folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["collage_tables.py", str(folder)])
    tables.main()
    assert capsys.readouterr().out == f"{FRESH}\n{PAPER}"


@pytest.mark.parametrize("changed", ["gat,inv,fresh,4,0.032,all,normalised-jitter,\n", ""])
def test_rows_of_two_recipes_or_of_one_that_is_not_known_are_refused(tables, folder, monkeypatch, changed):
    path = folder / "fresh.learnt.csv"
    before, line = path.read_text(), "gat,inv,fresh,4,0.016,all,normalised-jitter,\n"
    assert line in before
    path.write_text(before.replace(line, changed))
    monkeypatch.setattr(sys, "argv", ["collage_tables.py", str(folder)])
    with pytest.raises(SystemExit, match=r"error: \S+fresh\.learnt\.csv does not give one recipe of gat inv"):
        tables.main()


def test_figures_of_another_model_are_not_put_beside(tables, folder, monkeypatch):
    path = folder / "other-layouts.learnt.csv"
    path.write_text(path.read_text().replace("gat,inv,fresh,2,0.016", "gat,inv,fresh,2,0.008"))
    monkeypatch.setattr(sys, "argv", ["collage_tables.py", str(folder)])
    with pytest.raises(SystemExit, match=r"error: \S+other-layouts\.learnt\.csv: gat inv 2 is not the model of"):
        tables.main()


def test_a_folder_without_rows_has_no_tables(tables, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["collage_tables.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        tables.main()
    missing = ("fresh.csv", "fresh.learnt.csv", "fresh.trials.csv")
    missing += ("other-layouts.csv", "other-layouts.learnt.csv", "paper.csv")
    assert f"does not hold {', '.join(missing)}" in capsys.readouterr().err
