"""The rows of the algorithmic tests: whole, never mixed, never lost; what cannot go well is refused before training."""

import re
import sys

import pytest
import torch


@pytest.fixture
def script(load):
    return load("algorithmic_tests")


@pytest.fixture
def rows_of(load):
    return load("algorithmic_rows")


def kept_row(script, model="abmil", seed=0, sizes="full"):
    return script.Row("collage", model, seed, 0.7, 2 / 3, None, 1.0, 0.875, 3.25, sizes)


def test_a_row_says_the_same_after_writing_and_reading(script, tmp_path):
    row = kept_row(script)
    script.write_rows(tmp_path / "rows.csv", [row])
    assert script.rows_kept(tmp_path / "rows.csv") == [row]


@pytest.fixture
def refuse(script, monkeypatch, capsys):
    """Run the script, which must say why it does not, on one line, before it trains anything."""

    def run(*options):
        monkeypatch.setattr(script, "measure", lambda *_: pytest.fail("it trains"))
        monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of the whole suite
        monkeypatch.setattr(sys, "argv", ["algorithmic_tests.py", "--models", "abmil", *map(str, options)])
        with pytest.raises(SystemExit) as stopped:
            script.main()
        # argparse says it itself, below how it is used, and leaves with 2
        told = capsys.readouterr().err.splitlines()[-1] if stopped.value.code == 2 else stopped.value.code
        assert "error: " in told
        assert "\n" not in told
        return told

    return run


def test_nothing_is_kept_of_a_file_that_is_not_there_and_the_page_stays(refuse, rows_of, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{rows_of.BEGIN}\nmeasured for hours\n{rows_of.END}\n")
    told = refuse("--out", tmp_path / "absent.csv", "--page", page, "--keep")
    assert re.search(r"--keep: there is no .*absent\.csv: give the file of an earlier run", told)
    assert "measured for hours" in page.read_text()
    assert not (tmp_path / "absent.csv").exists()


@pytest.mark.parametrize(("kept", "options", "wanted"), [("quick", (), "full"), ("full", ("--quick",), "quick")])
def test_rows_of_quick_are_never_kept_beside_real_ones(script, refuse, tmp_path, kept, options, wanted):
    out = tmp_path / "rows.csv"
    script.write_rows(out, [kept_row(script, sizes=kept), kept_row(script, "max", sizes=wanted)])
    told = refuse("--out", out, "--keep", *options)
    assert f"holds rows of {kept} sets, these are {wanted}: give another --out" in told


def test_no_run_overwrites_another(refuse, tmp_path):
    out = tmp_path / "rows.csv"
    out.write_text("measured for hours")
    assert "rows.csv is there already: give --keep to add to it, or another --out" in refuse("--out", out)
    assert out.read_text() == "measured for hours"


def test_options_that_make_no_sense_are_refused(refuse, tmp_path):
    for seeds in ("0", "-1"):
        assert f"--seeds {seeds}: give a positive number" in refuse("--out", tmp_path / "rows.csv", "--seeds", seeds)
    assert "--page takes no figures of --quick" in refuse("--out", tmp_path / "rows.csv", "--quick", "--page", "x.md")


def test_what_cannot_be_written_is_refused_before_training(refuse, tmp_path):
    (tmp_path / "file").touch()
    assert f"--out {tmp_path} is a folder: give a file" in refuse("--out", tmp_path)
    for place in ("file", "absent", "/proc"):
        told = refuse("--out", tmp_path / place / "rows.csv")
        assert "rows.csv cannot be written (" in told
        assert "give another --out" in told


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (None, "cannot be read (No such file or directory): give a page that is there"),
        (b"\xff", "cannot be read (it is not UTF-8)"),
        (b"no markers", "it must hold the lines"),
        (b"<!-- table: begin -->", "it must hold the lines"),
        (b"<!-- table: end --><!-- table: begin -->", "it must hold the lines"),
        (b"<!-- table: begin --><!-- table: end -->" * 2, "it must hold the lines"),
    ],
)
def test_a_page_that_takes_no_table_is_refused_before_training(refuse, tmp_path, page, why):
    if page is not None:
        (tmp_path / "page.md").write_bytes(page)
    assert why in refuse("--out", tmp_path / "rows.csv", "--page", tmp_path / "page.md")


def test_rows_of_a_model_or_a_test_that_is_gone_are_refused_by_name(script, refuse, tmp_path):
    out, row = tmp_path / "rows.csv", kept_row(script)
    for gone in (row._replace(model="gone"), row._replace(test="gone")):
        script.write_rows(out, [row, gone])
        assert re.search(
            "rows of gone, no (model|test) here: delete them or give another", refuse("--out", out, "--keep")
        )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("collage,abmil,1,0.7,0.", "it has more or fewer cells than the first line"),
        ("collage,abmil,1,0.7,0.6,,1.0,0.875,3.25,full,more", "it has more or fewer cells than the first line"),
        ("collage,abmil,1,0.7,often,,1.0,0.875,3.25,full", "could not convert string to float: 'often'"),
        ("collage,abmil,1,0.7,0.6,,1.0,,,full", "could not convert string to float: ''"),
    ],
)
def test_a_damaged_row_is_refused_by_its_file_and_line(script, refuse, tmp_path, line, why):
    out = tmp_path / "rows.csv"
    script.write_rows(out, [kept_row(script)])
    out.write_text(out.read_text() + line)
    told = refuse("--out", out, "--keep")
    assert "rows.csv, line 3: " in told
    assert why in told


def test_a_file_that_says_something_twice_is_refused(script, refuse, tmp_path):
    script.write_rows(tmp_path / "rows.csv", [kept_row(script), kept_row(script)])
    assert "rows.csv: abmil, collage, seed 0 again: delete one" in refuse("--out", tmp_path / "rows.csv", "--keep")


def test_a_file_that_does_not_say_how_large_its_sets_were_is_refused(script, refuse, tmp_path):
    out = tmp_path / "rows.csv"
    script.write_rows(out, [kept_row(script)])
    out.write_text(out.read_text().replace(",sizes", ""))
    assert "rows.csv is no table of test,model," in refuse("--out", out, "--keep")


def test_rows_are_whole_when_a_run_is_killed_while_it_writes(script, tmp_path):
    out, rows = tmp_path / "rows.csv", [kept_row(script, seed=seed) for seed in range(3)]
    script.write_rows(out, rows)
    before = out.read_text()

    class Killed(list):
        def __iter__(self):
            yield self[0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        script.write_rows(out, Killed(rows))
    assert out.read_text() == before
    assert list(tmp_path.iterdir()) == [out]
