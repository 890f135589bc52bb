import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted import plant

from wsi_mil.aggregators import build
from wsi_mil.bags import Bag
from wsi_mil.cohort import Cohort, Member
from wsi_mil.predictions import Prediction
from wsi_mil.report import SlideFiles, notable, pictures, slides_section


def row(slide_id: str, label: str, p: float, split: str = "test") -> Prediction:
    predicted = "pos" if p > 0.5 else "neg"
    return Prediction(slide_id, "done", (1 - p, p), 30, label, split, predicted=predicted)


def test_the_best_and_the_worst_of_each_class_are_chosen_and_told_why() -> None:
    rows = [
        row("a", "pos", 0.9), row("b", "pos", 0.2), row("c", "pos", 0.99, "train"), row("d", "pos", 0.6, "val"),
        row("e", "neg", 0.1), row("f", "neg", 0.4),
        Prediction("g", "empty", label="neg", split="test"),
    ]  # fmt: skip
    found = notable(rows, ("neg", "pos"))
    assert [one.row.slide_id for one in found] == ["e", "f", "a", "b"]
    assert (
        found[1].why == "judged worst (right, but the least sure) of 2 neg: predicted neg, neg with probability 0.600"
    )
    assert found[2].why == "judged best of 3 pos: predicted pos, pos with probability 0.900"
    assert found[3].why.startswith("judged worst (the most wrong) of 3 pos: predicted neg")
    assert [one.why.split(":")[0] for one in notable(rows[:1], ("neg", "pos"))] == ["the only pos"]


@pytest.fixture
def files(tmp_path: Path, make_slide) -> SlideFiles:
    path = make_slide("here.tif")
    for name, attrs in {"here": {"slide_path": str(path)}, "gone": {}, "lost": {}}.items():
        plant(tmp_path / "feats", name, positive=True, seed=0, mpp_x=1.0, mpp_y=1.0, **attrs)
    return SlideFiles(tmp_path / "feats")


def cohort(*names: str, patient: str = "") -> Cohort:
    members = tuple(Member(name, "pos", patient or name, "test") for name in names)
    return Cohort(members, {}, unit="patient" if patient else "slide", declared=("neg", "pos"))


def test_slides_that_are_not_at_hand_are_passed_over_with_one_message(
    files: SlideFiles, caplog: pytest.LogCaptureFixture
) -> None:
    network = build("abmil", 6, 2).eval()
    judged = {"abmil": notable([row("here", "pos", 0.9), row("gone", "pos", 0.2)], ("neg", "pos"))}
    judged["max"] = notable([row("lost", "pos", 0.9)], ("neg", "pos"))
    with caplog.at_level(logging.WARNING):
        section = slides_section(judged, lambda *_: network, cohort("here", "gone", "lost"), files)
    (picture,) = section.pictures
    assert picture.caption.startswith("here (test): abmil, judged best of 2 pos")
    assert Image.open(io.BytesIO(picture.data)).format == "JPEG"
    (message,) = caplog.messages
    assert message.startswith("no picture in the report of gone, lost")
    assert "--slides" in message


def test_slides_that_moved_are_found_and_a_page_does_not_grow_without_end(
    files: SlideFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = build("abmil", 6, 2).eval()
    moved = SlideFiles(files.feats, moved={"gone": tmp_path / "here.tif"})
    judged = {"abmil": notable([row("here", "pos", 0.9), row("gone", "pos", 0.2)], ("neg", "pos"))}

    def draw() -> int:
        return len(slides_section(judged, lambda *_: network, cohort("here", "gone"), moved).pictures)

    assert draw() == 2
    monkeypatch.setattr(pictures, "MOST_BYTES", 50_000)
    assert draw() < 2
    assert "the page would become too large" in caplog.text


def test_of_a_patient_the_slide_that_got_most_attention_is_drawn() -> None:
    slides = [Bag(name, torch.zeros(2, 3), torch.zeros(2, 2), {}) for name in "ab"]
    network = build("abmil", 3, 2).eval()
    parts = list(pictures._looked_at(network, slides, "a; b"))
    assert [bag.slide_id for bag, _ in parts] == ["a", "b"]
    assert np.sum([share.sum() for _, share in parts]) == pytest.approx(1, abs=1e-5)
