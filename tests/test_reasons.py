"""`wsimil explain` and `predict --explain` as they are typed, from slides and from anybody's bags to the page."""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import peers
import pytest
from painting import slide_of_a_disc
from planted import plant, untrained
from test_cli import call

from wsi_mil.checkpoint import load, patient_hash, save
from wsi_mil.domain import Domain, SlideFacts
from wsi_mil.explain import MANIFEST, running
from wsi_mil.interop import PeerOptions, own_bags
from wsi_mil.predictions import read_predictions
from wsi_mil.reasons import _members
from wsi_mil.report import DISTANCE_FILES
from wsi_mil.stage import RunOptions
from wsi_mil.tiling import TileParams
from wsi_mil.train import CHECKPOINT
from wsi_mil.workflow import Encoding, extract_features, tile

BRIEF = ("--top", 4, "--partners", 3, "--occlusions", 2, "--device", "cpu")
CLASSES = ("benign <b>", "in situ", "invasive")
SLIDES = ("a", "a/b")


@pytest.fixture(scope="module")
def kept(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `here` copies, made once where that will lie: artifacts tell where their slides are."""
    root = tmp_path_factory.mktemp("reasons")
    with pytest.MonkeyPatch.context() as patch:
        (root / "here").mkdir()
        patch.chdir(root / "here")
        slide_of_a_disc(root / "here/slides/a.tif", (1024, 1024), radius_um=450)
        slide_of_a_disc(root / "here/slides/a/b.tif", (1024, 1024), radius_um=400, seed=1)
        tile(Path("slides"), Path("tiles"), TileParams(64, 256.0), RunOptions())
        extract_features(Path("tiles"), Path("feats"), Encoding({"morphology": None}), RunOptions(), None)
        untrained(Path("model").absolute(), Path("feats/a.h5"), classes=CLASSES)
    return (root / "here").rename(root / "kept")


@pytest.fixture
def here(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Slides ``a`` and ``a/b``, their tiles and features, and a model of three classes."""
    folder = kept.with_name("here")
    shutil.copytree(kept, folder)
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(folder)


def manifests(out: Path) -> dict[str, dict]:
    folders = sorted((out / "explanations").iterdir())
    return {unquote(folder.name): json.loads((folder / MANIFEST).read_text()) for folder in folders}


def contents(out: Path) -> dict[str, bytes]:
    root = out / "explanations"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def of_class(files: dict[str, str], name: str) -> set[str]:
    return {file for file in files if file.startswith(name)}


def test_slides_of_three_classes_from_the_file_to_the_page(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "slides" / "broken.svs").write_bytes(b"no slide")
    words = ("explain", "slides", "--out", "one", *BRIEF)
    assert call(*words) == 1
    told = capfd.readouterr()
    assert "failed: broken:" in told.err
    assert "2 explained in one/explanations" in told.out
    rows = {row.slide_id: row for row in read_predictions(here / "one" / "predictions.csv")[0]}
    made = manifests(here / "one")
    assert sorted(made) == list(SLIDES)
    for name in SLIDES:
        assert made[name]["probabilities"] == dict(zip(CLASSES, rows[name].probabilities, strict=True))
        assert made[name]["told_classes"] == list(CLASSES)
        for kind in ("contribution", "top_tiles", "bottom_tiles"):
            files = {f"{kind}_{end}.png" for end in ("benign-b-", "in-situ", "invasive")}
            assert of_class(made[name]["files"], kind) == files
        assert {"heatmap.png", "pairs.png", "overlay.ome.tif", "tissue.geojson"} <= made[name]["files"].keys()
    with (here / "one" / "explanations" / "a%2Fb" / "tiles.csv").open() as file:
        header = next(csv.reader(file))
    assert {f"{kind}_{name}" for kind in ("contribution", "occlusion") for name in CLASSES} < set(header)
    page = (here / "one" / "report.html").read_text()
    assert page.count("<img ") == 2 * (1 + 1 + 3 * 3)
    assert "benign <b>" not in page
    assert "what each tile gave to the evidence for benign &lt;b&gt;" in page
    assert "it cannot tell whether a slide is like them" in page.lower()
    before = contents(here / "one")
    monkeypatch.setattr(running, "look", None)  # what is finished is not even looked at
    assert call(*words) == 1
    assert contents(here / "one") == before


def test_predict_explains_as_explain_does_and_json_has_stdout_for_itself(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = ("slides/a.tif", "--device", "cpu")
    assert call("explain", *few, "--out", "one") == 0
    capfd.readouterr()
    assert call("predict", *few, "--explain", "--out", "two", "--json", "-") == 0
    told = json.loads(capfd.readouterr().out)
    assert [row["slide_id"] for row in told["slides"]] == ["a"]
    assert contents(here / "one") == contents(here / "two")
    assert told["files"] == {
        "table": "two/predictions.csv", "json": "two/predictions.json", "page": "two/report.html",
    }  # fmt: skip
    assert all(Path(file).is_file() for file in told["files"].values())
    assert told["explained"] == [{"slide_id": "a", "status": "done", "folder": "two/explanations/a", "error": ""}]
    assert (Path(told["explained"][0]["folder"]) / MANIFEST).is_file()
    assert call("predict", *few, "--out", "three") == 0
    assert not (here / "three" / "explanations").exists()
    assert (here / "three" / "report.html").exists()


def test_slides_that_moved_are_found_and_others_in_their_place_refused(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("explain", "--bags", "feats", "--out", "out", *BRIEF)
    (here / "slides").rename(here / "moved")
    assert call(*words) == 0
    assert "a.tif is not there, so there are no pictures: name the folder" in " ".join(capfd.readouterr().err.split())
    assert not any(name.endswith(".png") for name in contents(here / "out"))
    page = (here / "out" / "report.html").read_text()
    assert "a/b: the slide was not at hand: tables and GeoJSON only, no pictures." in page
    slide_of_a_disc(here / "slides/a.tif", (1024, 1024), radius_um=450, seed=7)  # same name and size, other content
    assert call(*words) == 1
    assert "failed: a: explain:" in (told := " ".join(capfd.readouterr().err.split()))
    assert "a.tif is not the slide that the tiles of a were made from" in told
    page = (here / "out" / "report.html").read_text()
    assert "a: not explained: " in page  # and what was said of it before is not shown as if all were well
    assert ">a</h2>" not in page
    assert ">a/b</h2>" in page
    assert call(*words, "--slides", "moved") == 0  # as the messages say; pictures are added
    made = manifests(here / "out")
    assert all("heatmap.png" in one["files"] for one in made.values())
    assert all(one["notes"] == [] for one in made.values())


def test_the_page_is_of_the_whole_folder(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--out", "out", "--device", "cpu")
    assert call("explain", "slides/a/b.tif", *words) == 0
    assert call("predict", "slides/a.tif", *words, "--json", "out.json") == 0
    page = (here / "out" / "report.html").read_text()
    assert "2 of 2 answered by das-mil" in page
    assert "The last call asked for the first 1; the others the same model answered before." in page
    assert '<h2 id="section-3-heading">b</h2>' in page
    assert page.count("<img ") == 1 + 1 + 3 * 3
    told = json.loads((here / "out.json").read_text())
    assert ([row["slide_id"] for row in told["slides"]], told["explained"]) == (["a"], [])
    folder = here / "out" / "explanations" / "b"
    made = json.loads((folder / MANIFEST).read_text())
    for changed, note in (
        ({"model": "another"}, "holds explanations of other answers, not shown here: 1."),
        ({"probabilities": dict.fromkeys(CLASSES, 1 / 3)}, "holds explanations of other answers, not shown here: 1."),
        ({"files": {"../x": "a secret"}}, "which is no file of its folder"),
    ):
        (folder / MANIFEST).write_text(json.dumps(made | changed))
        assert call("predict", "slides/a.tif", *words) == 0
        page = (here / "out" / "report.html").read_text()
        assert note in page
        assert "<img " not in page


def test_an_explanation_warns_of_what_its_answer_warns_of(here: Path) -> None:
    untrained(here / "known", here / "feats" / "a.h5", classes=CLASSES)
    path = here / "known" / CHECKPOINT
    domain = Domain.of([SlideFacts(0.5, 900, np.zeros(60), np.ones(60))._replace(mpp_x=8.0)] * 6)
    training = {"patients": [patient_hash("p")], "trained_slides": []}
    save(path, replace(load(path), domain=domain, training=training))
    (here / "p.csv").write_text("slide_id,patient_id\na,p\na/b,q\n")
    words = ("explain", "--bags", "feats", "--model", "known", "--out", "out", *BRIEF)
    for more, patient in (((), 0), (("--patients", "p.csv"), 1)):  # the second call looks at nothing anew
        assert call(*words, *more) == 0
        rows = {row.slide_id: row for row in read_predictions(here / "out" / "predictions.csv")[0]}
        made = manifests(here / "out")
        assert all(tuple(made[name]["warnings"]) == rows[name].warnings for name in SLIDES)
        assert [warning.partition(":")[0] for warning in made["a"]["warnings"][:2]] == ["unlike training"] * 2
        assert sum("patient p was in training" in warning for warning in made["a"]["warnings"]) == patient
        assert made["a"]["model_notes"] == []
    assert call("explain", "--bags", "feats", "--out", "unknown", *BRIEF) == 0
    (first, second) = manifests(here / "unknown")["a"]["model_notes"]
    assert "it cannot tell whether a slide is like them" in first
    assert "it cannot tell whether a slide was in training" in second


def test_tiles_are_looked_for_where_they_are_said_to_be(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.move("tiles", "elsewhere")
    words = ("explain", "--bags", "feats", *BRIEF)
    assert call(*words, "--out", "one") == 0
    assert "tissue.geojson" not in manifests(here / "one")["a"]["files"]
    assert "the tiles&#39; artifact was not at hand" in (here / "one" / "report.html").read_text()
    assert call(*words, "--out", "two", "--tiles", "elsewhere") == 0
    assert "tissue.geojson" in manifests(here / "two")["a"]["files"]
    capfd.readouterr()
    for options, message in (
        (("explain", "--bags", "feats", "--tiles", "nowhere"), "--tiles nowhere: no folder is there"),
        (("explain", "slides/a.tif", "--tiles", "elsewhere"), "--tiles elsewhere tells of --bags"),
        (("predict", "--bags", "feats", "--tiles", "elsewhere"), "add --explain"),
        (("predict", "--bags", "feats", "--slides", "slides"), "which say it themselves"),
        (("predict", "--bags", "feats", "--weights", "nowhere"), "--weights tells of the encoder"),
        (("explain", "--bags", "feats", "--trust-checkpoint"), "--trust-checkpoint tells of the encoder"),
        (("explain", "--scheduler", "tcp://127.0.0.1:9"), "--scheduler tells of slides"),
        (("predict", "--bags", "feats", "--json", "s3://bucket/a.json"), "nothing is written to servers"),
    ):
        assert call(*options) == 2
        assert message in " ".join(capfd.readouterr().err.split())


def test_the_slides_of_a_patient_are_explained_by_one_answer(here: Path) -> None:
    untrained(here / "both", here / "feats" / "a.h5", seeds=(0, 1), unit="patient")
    (here / "p.csv").write_text("slide_id,patient_id\na,p\na/b,p\n")
    assert call("explain", "--bags", "feats", "--model", "both", "--patients", "p.csv", "--out", "out", *BRIEF) == 0
    ((row,), names, _) = read_predictions(here / "out" / "predictions.csv")
    made = manifests(here / "out")
    assert (row.slide_id, sorted(made)) == ("a; a/b", list(SLIDES))
    assert all(one["probabilities"] == dict(zip(names, row.probabilities, strict=True)) for one in made.values())
    given = sum(one["given"]["pos"] for one in made.values())
    assert given + made["a"]["base"]["pos"] == pytest.approx(made["a"]["evidence"]["pos"])
    page = (here / "out" / "report.html").read_text()
    assert "as the model was asked together with a/b." in page
    assert "Spread is the standard deviation over the 2 models" in page


def test_another_programs_features_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(2):
        peers.trident(tmp_path / "features_uni_v2" / f"s{index}.h5", *peers.bag(index))
    made = own_bags(tmp_path / "features_uni_v2", PeerOptions(mpp=0.5))
    assert made.items is not None
    untrained(tmp_path / "model", made.items[0].source)
    plant(tmp_path / "tiles", "s0", positive=True, seed=0)  # our own, of the same name: not theirs
    words = ("explain", "--bags", "features_uni_v2", "--mpp", 0.5, "--out", "out", *BRIEF)
    assert call(*words) == 0
    assert set(manifests(tmp_path / "out")["s1"]["files"]) == {"tiles.csv", "tiles.geojson", "pairs.csv"}
    assert call(*words, "--tiles", "tiles") == 2
    assert "another program's tiles: leave it out" in " ".join(capfd.readouterr().err.split())


def test_what_is_empty_has_an_answer_that_says_so_and_nothing_to_explain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plant(tmp_path / "feats", "good", positive=True, seed=1)
    plant(tmp_path / "feats", "void", positive=True, seed=2, tiles=0)
    path = untrained(tmp_path / "model", tmp_path / "feats" / "good.h5")
    assert call("explain", "--bags", "feats", *BRIEF) == 0
    assert "1 explained in predictions/explanations" in capfd.readouterr().out
    assert list(manifests(tmp_path / "predictions")) == ["good"]
    assert "no tissue was found" in (tmp_path / "predictions" / "report.html").read_text()
    untrained(path.parent, tmp_path / "feats" / "good.h5", seeds=(3,))
    assert call("explain", "--bags", "feats", *BRIEF) == 1
    assert "made by another model: add --overwrite" in " ".join(capfd.readouterr().err.split())
    assert call("explain", "--bags", "feats", *BRIEF, "--overwrite") == 0


def test_without_slides_a_checkpoint_tells_what_distance_it_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plant(tmp_path / "feats", "a", positive=True, seed=1)
    untrained(tmp_path / "model", tmp_path / "feats" / "a.h5", seeds=(0, 1))
    assert call("explain", "--out", "out") == 0
    told = capsys.readouterr().out
    table, figure = (tmp_path / "out" / DISTANCE_FILES[index] for index in (0, 2))
    with table.open() as file:
        heads = list(csv.DictReader(file))
    assert {head["member"] for head in heads} == {"1", "2"}
    assert "near to far at (um)" in told
    assert figure.read_text().startswith("<svg")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {table.name, figure.name}
    assert call("explain", "--out", "out", "--json", "-") == 0  # the same again
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(Path("out", DISTANCE_FILES[index])) for index in (0, 2)]
    assert [(one["member"], one["head"]) for one in told["heads"]] == [
        (int(head["member"]), int(head["head"])) for head in heads
    ]
    assert [one["theta_um"] for one in told["heads"]] == pytest.approx(
        [float(head["theta_um"]) for head in heads], abs=0.1
    )
    assert call("explain", "--patients", "p.csv") == 2
    assert "--patients tells of slides: name some" in " ".join(capsys.readouterr().err.split())
    table.write_text("of another model")
    assert call("explain", "--out", "out") == 1
    assert "tells of another model, or was written otherwise: add --overwrite" in " ".join(
        capsys.readouterr().err.split()
    )
    assert call("explain", "--out", "out", "--overwrite") == 0
    untrained(tmp_path / "plain", tmp_path / "feats" / "a.h5", "abmil")
    capsys.readouterr()
    assert call("explain", "--model", "plain", "--out", "none") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "abmil learns no distance at which near turns to far" in line
    assert not (tmp_path / "none").exists()


def test_a_row_names_its_slides_whatever_they_are_called() -> None:
    assert _members("a; b; c", {"a", "b", "c"}) == ["a", "b", "c"]
    assert _members("a; b; c", {"a; b", "c", "a"}) == ["a; b", "c"]
    assert _members("a; b", {"a; b"}) == ["a; b"]
    assert _members("a; b", {"a"}) == []
