"""MNIST-COLLAGE: nothing made otherwise goes into a table unseen, and what is damaged is named."""

import importlib
import json
import sys

import pytest

from wsi_mil.errors import WsiMilError

pytestmark = pytest.mark.usefixtures("load")


@pytest.fixture
def script(load, monkeypatch):
    """The script, whose trainings are told by their seed alone and of which nothing is drawn."""
    script, searching = load("mnist_collage"), importlib.import_module("collage_search")

    def run(job, source):
        score = script.Score(job.model, job.variant, job.protocol, job.seed, 0.5, 0.5)
        return score, script.Learnt(*score[:4], 1e-3, "", "published", "")

    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr(searching, "try_recipe", lambda name, variant, recipe, *_: abs(recipe.lr - 2e-3))
    for module in (script, searching):
        monkeypatch.setattr(module, "in_processes", lambda function, jobs, *_: [function(*job) for job in jobs])
    digits = importlib.import_module("collage_data")._stand_in()
    monkeypatch.setattr(script, "load_source", lambda folder, cache: digits)
    return script


@pytest.fixture
def main(script, monkeypatch, tmp_path):
    def main(*arguments):
        monkeypatch.setattr(
            sys, "argv", ["mnist_collage.py", "--variant", "inv", "--out", str(tmp_path / "out.csv"), *arguments]
        )
        script.main()

    return main


def refused(main, told, *arguments):
    with pytest.raises(SystemExit, match=told):
        main(*arguments)


def test_it_is_told_what_a_table_was_made_of(main, tmp_path):
    main("--protocol", "paper", "--models", "max")
    main("--models", "gat")
    main("--models", "max", "--epochs", "120")  # as it is without
    made = json.loads((tmp_path / "out.json").read_text())
    assert set(made) == {"paper", "fresh"}
    assert set(made["paper"]["models"]) == {"max"}
    assert made["fresh"]["epochs"] == 120
    assert (made["fresh"]["batch"], made["fresh"]["weight_decay"], made["fresh"]["clip"]) == (10, 0.01, 1.0)
    assert made["fresh"]["digits"] == "scikit-learn's digits, not MNIST"
    assert made["fresh"]["models"]["gat"]["usual"]["neighbours"] == 3
    assert made["fresh"]["models"]["gat"]["all"]["neighbours"] == 0
    assert set(made["fresh"]["models"]) == {"gat", "max"}


def test_lengths_that_the_training_collages_decide_are_not_told_as_options(main, tmp_path):
    main("--models", "das-mil", "transmil", "relative-discrete")
    models = json.loads((tmp_path / "out.json").read_text())["fresh"]["models"]
    assert "length_scales_um" not in models["das-mil"]["usual"]
    assert models["das-mil"]["usual"]["sharpness"] == 10
    assert "max_distance_um" not in models["relative-discrete"]["as das-mil"]
    assert "tile_um" not in models["transmil"]["usual"]
    assert models["transmil"]["tile_um 60"]["tile_um"] == 60


@pytest.mark.parametrize("kept", ["out.csv", "out.trials.csv", "out.weights"])
def test_results_of_unknown_digits_are_not_taken(main, tmp_path, kept):
    main("--models", "max")
    (tmp_path / "out.weights").mkdir()
    (tmp_path / "out.weights" / "max.pt").touch()
    for name in {"out.csv", "out.learnt.csv", "out.trials.csv", "out.json"} - {kept}:
        (tmp_path / name).unlink()
    if kept != "out.weights":
        (tmp_path / "out.weights" / "max.pt").unlink()
    refused(main, rf"{kept} holds results of protocol fresh, and \S+out\.json does not tell of what", "--models", "max")


@pytest.mark.parametrize(
    ("otherwise", "told"),
    [
        (["--epochs", "1"], "epochs 120, now 1: give another --out"),
        (["--lr", "0.1"], "lr None, now 0.1"),
        (["--test-seed", "7"], "test_seed 2103, now 7"),
        (["--reader", "published"], "reader None, now published"),
    ],
)
def test_what_would_be_made_otherwise_does_not_go_into_a_table(main, tmp_path, otherwise, told):
    main("--models", "max")
    before = (tmp_path / "out.json").read_bytes()
    refused(main, told, "--models", "max", *otherwise)
    assert (tmp_path / "out.json").read_bytes() == before


def test_options_that_changed_since_are_noticed_and_those_of_others_do_not_matter(main, monkeypatch):
    record = importlib.import_module("collage_record")
    main("--models", "max", "gat")
    usual = record.fresh_options
    monkeypatch.setattr(
        record, "fresh_options", lambda name, choice: {"hidden": 99} if name == "max" else usual(name, choice)
    )
    main("--models", "gat")
    refused(main, r"out\.csv was made with other options of max: give another --out", "--models", "gat", "max")


def test_a_first_try_that_ended_before_any_result_decides_nothing(main, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    searching = importlib.import_module("collage_search")
    through = searching.in_processes
    monkeypatch.setattr(searching, "in_processes", stopped)
    with pytest.raises(KeyboardInterrupt):
        main("--models", "max", "--epochs", "1")
    monkeypatch.setattr(searching, "in_processes", through)
    main("--models", "max")


def test_damaged_files_are_named(main, tmp_path):
    main("--models", "max")
    rows = (tmp_path / "out.csv").read_text()
    (tmp_path / "out.csv").write_text(rows + "max,inv,fr")
    refused(main, r"error: \S+out\.csv, line 3: it has more or fewer cells .*: mend or delete", "--models", "max")
    (tmp_path / "out.csv").write_text(rows.replace("0.5", "half"))
    refused(main, r"error: \S+out\.csv, line 2: could not convert .*'half'", "--models", "max")
    for other in (b"notes of another kind\n", b"", b"\xff\xfe\n"):
        (tmp_path / "out.csv").write_bytes(other)
        refused(main, r"error: \S+out\.csv(, line 0: .*codec.*| is no table of model,variant,.*)", "--models", "max")
        assert (tmp_path / "out.csv").read_bytes() == other
    (tmp_path / "out.csv").write_text(rows)
    (tmp_path / "out.json").write_text('{"fresh": {')
    refused(main, r"error: \S+out\.json is damaged .*: delete it with the table it belongs to", "--models", "max")
    for other in ("[]", '{"fresh": 1}'):
        (tmp_path / "out.json").write_text(other)
        refused(main, r"error: \S+out\.json does not tell what a table was made of: delete it, or", "--models", "max")
    refused(
        main, r"error: .*Not a directory", "--models", "max", "--out", str(tmp_path / "out.csv" / "none" / "out.csv")
    )


def test_a_training_that_was_cut_off_is_named(load, tmp_path):
    runs = load("collage_runs")
    digits = importlib.import_module("collage_data")._stand_in()
    collages = runs.fresh_collages("inv", digits)
    collages = runs.Collages(collages.train[:10], collages.val[:10], collages.test[:10])
    recipe = runs.Recipe(1e-3, 1)
    runs._trained("max", "inv", collages, recipe, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    for damaged in (path.read_bytes()[:-200], b"", b"none at all"):
        path.write_bytes(damaged)
        with pytest.raises(WsiMilError, match=r"\.pt is damaged \(.+\): delete it, and it is trained again"):
            runs._trained("max", "inv", collages, recipe, 0, tmp_path)
