"""The page of predictions: nothing from outside an explanation's folder, nothing of names as HTML, never over 10 MB."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from explained import Plain, bag_of, facts_of, some_look, some_places
from PIL import Image
from planted import plant, untrained
from test_report import _Checker

from wsi_mil import checkpoint, publishing
from wsi_mil.errors import ArtifactCorrupt
from wsi_mil.explain import MANIFEST, write_explanation
from wsi_mil.predictions import Prediction
from wsi_mil.report import Reasons, Told, prediction, prediction_page

NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    root = tmp_path_factory.mktemp("model")
    plant(root, "a", positive=True, seed=1)
    return Told(checkpoint.load(untrained(root, root / "a.h5", classes=("far", NASTY))), "0" * 16, (f"wsimil {NASTY}",))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An explanation of three classes."""
    return explained(tmp_path_factory.mktemp("explained") / "s", classes=("a", "b", "c"))


def answer(name: str, **more: object) -> Prediction:
    return Prediction(name, "done", (0.25, 0.75), 24, predicted=NASTY, **more)


def explained(folder: Path, slide_id: str = "a/slide", classes: tuple[str, ...] = ("far", "near")) -> Path:
    places = some_places()
    look = some_look(places, len(classes))
    write_explanation(folder, Plain(), bag_of(places, slide_id), look, facts_of(places, classes))
    return folder


def edit(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST
    publishing.write_bytes(path, json.dumps(json.loads(path.read_text()) | changes).encode())


def test_names_are_text_wherever_they_come_from(told: Told, whole: Path, tmp_path: Path) -> None:
    folder, one = Path(shutil.copytree(whole, tmp_path / "s")), {NASTY: 0.5}
    told_of = {"classes": ["far", NASTY], "told_classes": [NASTY], "predicted": NASTY, "slide_id": NASTY}
    figures = dict.fromkeys(("probabilities", "evidence", "base", "given"), one)
    edit(folder, notes=[NASTY], together=[NASTY], files={"heatmap.png": NASTY}, **told_of, **figures)
    rows = [answer(NASTY, warnings=(NASTY,)), Prediction("b", "failed", error=NASTY)]
    text = prediction_page(rows, told, Reasons([folder])).decode()
    assert "<img src=x" not in text
    assert text.count("&lt;img src=x") > 8
    checker = _Checker(text)
    assert checker.open == []
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in checker.sources)


@pytest.mark.parametrize(
    "name", ["../heatmap.png", "heatmap_/../../heatmap.png", "/etc/heatmap.png", "", "..", "link.png"]
)
def test_no_file_outside_the_folder_is_looked_at(name: str, told: Told, tmp_path: Path) -> None:
    folder = explained(tmp_path / "s")
    Image.new("RGB", (4, 4)).save(tmp_path / "heatmap.png")
    (folder / "link.png").symlink_to(tmp_path / "heatmap.png")
    edit(folder, files={name: "a secret"})
    with pytest.raises(ArtifactCorrupt, match="which is no file of its folder"):
        prediction_page([answer("a")], told, Reasons([folder]))


def test_what_was_warned_of_is_on_the_page(told: Told, tmp_path: Path) -> None:
    places = some_places()._replace(tissue=None)
    write_explanation(tmp_path / "s", None, bag_of(places), some_look(places), facts_of(places))
    text = prediction_page(
        [answer("a/slide", warnings=("unlike training: 3 tiles",))], told, Reasons([tmp_path / "s"])
    ).decode()
    listed = text[text.index("To bear in mind</h2>") :].partition("</ul>")[0]
    assert "The model does not say what slides it learnt from" in listed
    assert "a/slide: unlike training: 3 tiles." in listed
    assert "a/slide: the slide was not at hand" in listed
    assert "a/slide: the tiles&#39; artifact was not at hand" in listed


def test_few_validation_patients_are_told_beside_the_probabilities_that_they_made(told: Told) -> None:
    training = {**told.model.training, "val_patients": {"far": 1, NASTY: 40}}
    text = prediction_page([answer("a")], told._replace(model=replace(told.model, training=training))).decode()
    listed = text[text.index("To bear in mind</h2>") :].partition("</ul>")[0]
    assert "Temperature and threshold are not to be relied on: validation has few patients (1 of class far" in listed


def test_what_could_not_be_explained_and_what_was_answered_before_is_on_the_page(told: Told) -> None:
    failed = {"a": "the disk is gone", "c": f"{NASTY} is damaged"}
    rows = [
        answer("a", warnings=("unlike training: 3 tiles",)),
        answer("b; c"),
        Prediction("d", "failed", error="torn"),
    ]
    earlier = [answer("e"), answer("d")]
    text = prediction_page(
        rows, told, Reasons(failed=failed, notes=["x/explanation.json is damaged"]), earlier
    ).decode()
    assert "4 of 5 answered by das-mil" in text
    assert "The last call asked for the first 3; the others the same model answered before." in text
    listed = text[text.index("To bear in mind</h2>") :].partition("</ul>")[0]
    assert "a: not explained: the disk is gone." in listed
    assert "c: not explained: &lt;img src=x onerror=alert(1)&gt; is damaged." in listed
    assert "X/explanation.json is damaged." in listed
    cells = [row.partition("</tr>")[0] for row in text.split('<th role="rowheader"')[1:6]]
    remarks = [cell.rpartition('data-label="remark">')[2].partition("<")[0] for cell in cells]
    assert remarks == ["1 to bear in mind; not explained", "not explained", "torn", "", ""]
    alone = prediction_page(rows, told).decode()
    assert "answered before" not in alone
    assert "not explained" not in alone


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "is damaged"), ("[]", "is damaged"), ('{"slide_id": "a", "files": {}}', "lacks model"), ("3", "is damaged")],
)
def test_an_explanation_that_is_damaged_or_of_another_version_is_refused_by_name(
    text: str, fault: str, told: Told, tmp_path: Path
) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactCorrupt, match=f"{MANIFEST} {fault}.*explain the slide again"):
        prediction_page([answer("a")], told, Reasons([tmp_path]))


def test_what_was_damaged_since_is_told_in_its_place_and_the_others_are_shown(
    told: Told, whole: Path, tmp_path: Path
) -> None:
    torn = Path(shutil.copytree(whole, tmp_path / "torn"))
    (torn / "heatmap.png").write_bytes(b"no picture")
    text = prediction_page([answer("s")], told, Reasons([torn, whole])).decode()
    assert f"What is in {torn} cannot be shown: UnidentifiedImageError: cannot identify image file" in text
    assert text.count("<img ") == 11
    (torn / "heatmap.png").unlink()
    with pytest.raises(ArtifactCorrupt, match=r"names 'heatmap.png', which is not there: explain the slide again"):
        prediction_page([answer("s")], told, Reasons([torn]))


def test_a_page_of_many_slides_stays_below_10_mb_and_says_what_it_leaves_out(
    told: Told, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    one = Path(shutil.copytree(whole, tmp_path / "explanations" / "s"))
    for path in one.glob("*.png"):  # as large as pictures of a slide get
        Image.fromarray(noise).save(path)
    monkeypatch.setattr(prediction, "_MOST_EXPLAINED", 30)
    long = "n" * 2000
    warnings = tuple(f"{long} {index}" for index in range(3))
    rows = [answer(f"{long}{index}", warnings=warnings) for index in range(6000)]
    page = prediction_page(rows, told, Reasons([one] * 40))
    text = page.decode()
    assert 5_000_000 < len(page) < 10_000_000
    assert 0 < text.count("<img ") < 40 * 11
    assert f"More of its pictures are in {one}." in text
    assert "10 more slides" in text
    assert f"each in its own folder, in {one.parent}." in text
    assert "Here are the first 3000 of 6000" in text
    assert "17500 more: see predictions.csv" in text


def test_a_slide_with_more_pictures_than_there_is_room_for_shows_the_first(
    told: Told, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prediction_page([answer("s")], told, Reasons([whole])).count(b"<img ") == 11
    monkeypatch.setattr(prediction, "MOST_BYTES", 60_000)
    part = prediction_page([answer("s")], told, Reasons([whole])).decode()
    assert 0 < part.count("<img ") < 11
    assert f"More of its pictures are in {whole}." in part
