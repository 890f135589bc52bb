"""Explanations of bags: the model's own answer to the bit, made once, one failure at a time, never half."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from planted import plant, untrained

from wsi_mil.asked import find_bags
from wsi_mil.errors import WeightsError
from wsi_mil.explain import MANIFEST, Explained, ExplainOptions, LookOptions, explain_bags, explanation_folder, running
from wsi_mil.predict import PredictOptions, predict_bags
from wsi_mil.predictions import read_predictions
from wsi_mil.stage import Item

BRIEF = LookOptions(top=4, partners=3, occlusions=2)


@pytest.fixture
def feats(tmp_path: Path) -> Path:
    for index, name in enumerate(("a", "a/b", "c")):
        plant(tmp_path / "feats", name, positive=bool(index % 2), seed=index, tiles=20 + index)
    return tmp_path / "feats"


def alone(feats: Path) -> list[list[Item]]:
    return [[item] for item in find_bags(feats)]


def explain(path: Path, questions: list[list[Item]], out: Path, **options: object) -> dict[str, Explained]:
    found = explain_bags(path, questions, ExplainOptions(out, BRIEF, **options))
    return {one.slide_id: one for one in found}


def manifest(out: Path, slide_id: str) -> dict:
    return json.loads((explanation_folder(out, slide_id) / MANIFEST).read_text())


def column(out: Path, slide_id: str, name: str) -> list[float]:
    with (explanation_folder(out, slide_id) / "tiles.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("aggregator", "classes", "seeds"),
    [
        ("das-mil", ("neg", "pos"), (0,)),
        ("das-mil", ("x", "y", "z"), (0, 1)),
        ("max", ("x", "y", "z"), (0,)),
        ("transmil", ("neg", "pos"), (0,)),
    ],
)
def test_the_answer_is_that_of_the_table_to_the_bit(
    aggregator: str, classes: tuple[str, ...], seeds: tuple[int, ...], feats: Path, tmp_path: Path
) -> None:
    path = untrained(tmp_path / "model", feats / "a.h5", aggregator, classes, seeds)
    predict_bags(path, find_bags(feats), PredictOptions(tmp_path / "p"))
    rows, named, _ = read_predictions(tmp_path / "p" / "predictions.csv")
    found = explain(path, alone(feats), tmp_path / "e")
    assert {name: one.status for name, one in found.items()} == dict.fromkeys(("a", "a/b", "c"), "done")
    for row in rows:
        made = manifest(tmp_path / "e", row.slide_id)
        assert made["probabilities"] == dict(zip(named, row.probabilities, strict=True))
        assert (made["slide_id"], made["predicted"], made["tiles"]) == (row.slide_id, row.predicted, row.tiles)
        assert made["classes"] == list(classes)
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"a", "a%2Fb", "c"}


def test_what_is_finished_is_not_looked_at_again_and_another_model_is_refused(
    feats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (untrained(tmp_path / str(seed), feats / "a.h5", seeds=(seed,)) for seed in (0, 1))
    explain(one, alone(feats)[:2], tmp_path / "e")
    asked: list[str] = []
    real = running.look
    monkeypatch.setattr(
        running, "look", lambda model, bag, options: (asked.append(bag.slide_id), real(model, bag, options))[1]
    )
    assert {told.status for told in explain(one, alone(feats), tmp_path / "e").values()} == {"done"}
    assert asked == ["c"]
    refused = explain(other, alone(feats), tmp_path / "e")
    assert {told.status for told in refused.values()} == {"failed"}
    assert "was explained otherwise: model was" in refused["a"].error
    assert "--overwrite" in refused["a"].error
    assert asked == ["c"]
    explain(other, alone(feats), tmp_path / "e", overwrite=True)
    assert asked == ["c", "a", "a/b", "c"]
    models = {manifest(tmp_path / "e", name)["model"] for name in ("a", "a/b", "c")}
    assert len(models) == 1
    assert explain(other, alone(feats), tmp_path / "e")["a"].status == "done"


def test_one_that_fails_and_one_that_is_empty_do_not_stop_the_others(feats: Path, tmp_path: Path) -> None:
    path = untrained(tmp_path / "model", feats / "a.h5")
    plant(feats, "void", positive=True, seed=9, tiles=0)
    plant(feats, "alien", positive=True, seed=10, encoder="uni")
    (feats / "torn.h5").write_bytes(b"torn")
    found = explain(path, alone(feats), tmp_path / "e")
    assert {name: one.status for name, one in found.items()} == {
        "a": "done", "a/b": "done", "alien": "failed", "c": "done", "torn": "failed", "void": "empty",
    }  # fmt: skip
    assert "torn.h5 is damaged" in found["torn"].error
    assert "encoder is uni and not toy" in found["alien"].error
    assert {name for name, one in found.items() if one.folder.exists()} == {"a", "a/b", "c"}
    with pytest.raises(WeightsError):
        explain(tmp_path / "nothing", alone(feats), tmp_path / "e")


def test_without_the_slide_there_are_tables_and_the_log_says_how_to_get_pictures(
    feats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    explain(untrained(tmp_path / "model", feats / "a.h5"), alone(feats), tmp_path / "e")
    assert "a/b: /nowhere/a/b.svs is not there, so there are no pictures" in caplog.text
    assert "--slides DIR" in caplog.text
    made = manifest(tmp_path / "e", "a/b")
    assert set(made["files"]) == {"tiles.csv", "tiles.geojson", "pairs.csv"}
    assert not made["pictures"]
    assert made["notes"][0].startswith("the slide was not at hand")


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_each_slide_of_a_patient_has_its_share(seeds: tuple[int, ...], feats: Path, tmp_path: Path) -> None:
    path = untrained(tmp_path / "model", feats / "a.h5", seeds=seeds, unit="patient")
    plant(feats, "void", positive=True, seed=9, tiles=0)
    patient = find_bags(feats)
    found = explain(path, [patient], tmp_path / "e")
    names = [name for name, one in found.items() if one.status == "done"]
    assert names == ["a", "a/b", "c"]
    made = [manifest(tmp_path / "e", name) for name in names]
    for one, name in zip(made, names, strict=True):
        assert one["together"] == [other for other in names if other != name]
        assert (one["probabilities"], one["evidence"], one["base"]) == tuple(
            made[0][what] for what in ("probabilities", "evidence", "base")
        )
        assert sum(column(tmp_path / "e", name, "contribution_pos")) == pytest.approx(one["given"]["pos"])
        with (explanation_folder(tmp_path / "e", name) / "pairs.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert all(row["distance_um"] and int(row["partner"]) < one["tiles"] for row in rows)
    given = sum(one["given"]["pos"] for one in made)
    assert given + made[0]["base"]["pos"] == pytest.approx(made[0]["evidence"]["pos"])
    for name in ("attention", "attended"):
        assert sum(sum(column(tmp_path / "e", slide_id, name)) for slide_id in names) == pytest.approx(1, abs=1e-6)


def test_a_slide_asked_about_alone_is_not_explained_by_what_was_said_of_it_with_others(
    feats: Path, tmp_path: Path
) -> None:
    path = untrained(tmp_path / "model", feats / "a.h5", unit="patient")
    explain(path, [find_bags(feats)[:2]], tmp_path / "e")
    assert (
        "was explained otherwise: together was a/b, now none" in explain(path, alone(feats), tmp_path / "e")["a"].error
    )
    assert explain(path, [find_bags(feats)[:2]], tmp_path / "e")["a"].status == "done"


def test_one_slide_of_a_patient_fails_alone(feats: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.svs").write_bytes(b"no slide")
    plant(feats, "a", positive=False, seed=0, slide_path=str(tmp_path / "torn.svs"))
    path = untrained(tmp_path / "model", feats / "a.h5", unit="patient")
    found = explain(path, [find_bags(feats)], tmp_path / "e")
    assert {name: one.status for name, one in found.items()} == {"a": "failed", "a/b": "done", "c": "done"}
    assert "torn.svs" in found["a"].error
    assert not explanation_folder(tmp_path / "e", "a").exists()
    assert manifest(tmp_path / "e", "c")["together"] == ["a", "a/b"]  # the answer is of all of them


def test_the_bag_goes_by_the_name_of_its_item(feats: Path, tmp_path: Path) -> None:
    path = untrained(tmp_path / "model", feats / "a.h5")
    explain(path, [[Item("renamed", feats / "a.h5")]], tmp_path / "e")
    assert manifest(tmp_path / "e", "renamed")["slide_id"] == "renamed"


def test_killed_in_the_middle_there_is_no_folder_and_the_next_run_sweeps(feats: Path, tmp_path: Path) -> None:
    path = untrained(tmp_path / "model", feats / "a.h5")
    code = (
        "import os; from pathlib import Path; from wsi_mil.explain import writing, explain_bags, ExplainOptions\n"
        "from wsi_mil.asked import find_bags\n"
        "writing.write_pairs = lambda *_: os._exit(9)\n"
        f"explain_bags(Path({str(path)!r}), [[one] for one in find_bags(Path({str(feats)!r}))],"
        f" ExplainOptions(Path({str(tmp_path / 'e')!r})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 9
    left = list((tmp_path / "e").iterdir())
    assert [folder.suffix for folder in left] == [".tmp"]
    assert any(left[0].iterdir())
    explain(path, alone(feats), tmp_path / "e")
    assert {folder.name for folder in (tmp_path / "e").iterdir()} == {"a", "a%2Fb", "c"}
