import logging
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from planted import plant_cohort

from wsi_mil import workflow
from wsi_mil.aggregators import Ensemble, build
from wsi_mil.bags import Bag
from wsi_mil.distances import BIN_UM
from wsi_mil.explain import Head
from wsi_mil.learning import LearnParams
from wsi_mil.report import DISTANCE_FILES, Chart, Curve, DistanceUse, distance_files, distance_section, figure, page
from wsi_mil.report.chart import Bar, Mark, Tick
from wsi_mil.report.distance_charts import _scale
from wsi_mil.report.distances import length
from wsi_mil.tile_distances import TileDistances
from wsi_mil.train_params import TrainParams
from wsi_mil.workflow import Folders, LabelTable

TRAINING = {"distances": TileDistances.of(np.bincount(np.arange(16, 220)), BIN_UM).record()}
SVG = "{http://www.w3.org/2000/svg}"


def bags() -> list[Bag]:
    cells = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"), dim=-1).reshape(-1, 2)
    return [Bag("a", torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), 256.0 * cells, {})]


def use(name: str = "das-mil", **options: object) -> DistanceUse:
    torch.manual_seed(0)
    return DistanceUse.of(build(name, 5, 2, **options).eval(), TRAINING, bags)


def test_a_few_heads_are_told_in_a_sentence_a_table_and_two_charts() -> None:
    section = distance_section(use(heads=2, length_scales_um=[431.0, 2000.0]))
    assert "head 1 at 431 µm (10–90 %: 194 µm to 668 µm); head 2 at 2 mm" in section.text
    assert "95 % of the tile distances of training lie below 3.3" in section.text
    assert "Answers rely most on the distances of head" in section.text
    assert [row[:4] for row in section.rows] == [
        ("1", "key+value", "431 µm", "431 µm"), ("2", "key+value", "2 mm", "2 mm")
    ]  # fmt: skip
    assert section.header[:4] == ("head", "biases", "near to far at", "at first")
    assert all(len(row) == len(section.header) for row in section.rows)
    phi, attention = section.charts
    assert [curve.name for curve in phi.curves] == ["head 1", "head 2"]
    assert len(phi.bars) == np.count_nonzero(TRAINING["distances"]["pairs"])
    assert [curve.dashed for curve in attention.curves] == [False, True, False, True]


@pytest.mark.parametrize("name", ["das-mil", "das-mil-paper", "relative-discrete"])
def test_bags_of_one_tile_have_no_distances_to_tell_of(name: str) -> None:
    lone = [bag._replace(features=bag.features[:1], coords_um=bag.coords_um[:1]) for bag in bags()]
    torch.manual_seed(0)
    section = distance_section(DistanceUse.of(build(name, 5, 2).eval(), TRAINING, lambda: lone))
    assert all(len(row) == len(section.header) for row in section.rows)


@pytest.mark.parametrize(("factor", "hardly"), [(1.05, True), (1.2, False), (0.8, False)])
def test_lengths_that_training_hardly_moved_are_no_finding(factor: float, hardly: bool) -> None:
    section = distance_section(DistanceUse([Head(1, 1, "key", factor * 900.0, 0.01, 900.0)]))
    assert ("No length moved by more than 5.0 % in training" in section.text) == hardly


def test_a_length_that_moved_by_next_to_nothing_is_not_told_to_stand_still() -> None:
    """Lengths are told to three digits: 1.025 and 1.0251 mm may look as if one had moved by a hundredth."""
    section = distance_section(DistanceUse([Head(1, 1, "key", 1025.1, 0.01, 1024.9)]))
    assert "No length moved by more than 0.1 % in training" in section.text


def test_curves_and_marks_lie_where_the_axis_says() -> None:
    told = use(heads=1, length_scales_um=[1000.0])
    (phi, _), scale = distance_section(told).charts, _scale(told)
    (mark,) = phi.marks
    (tick,) = (tick for tick in phi.ticks if tick.text == "1 mm")
    assert mark.at == pytest.approx(tick.at, abs=1e-6)
    (curve,) = phi.curves
    assert np.interp(mark.at, curve.at, curve.values) == pytest.approx(0.5, abs=0.01)
    assert (scale.at(scale.low_um), scale.at(scale.high_um)) == (0, pytest.approx(1))
    assert all(0 <= bar.left < bar.right <= 1 + 1e-9 and 0 < bar.height <= 0.9 for bar in phi.bars)


def test_the_heads_of_an_ensemble_are_told_as_one_range() -> None:
    torch.manual_seed(0)
    members = [build("das-mil", 5, 2, heads=4) for _ in range(3)]
    section = distance_section(DistanceUse.of(Ensemble(members, [1.0] * 3).eval(), TRAINING, bags))
    assert "at 256 µm to 16.4 mm by 12 heads in 3 models." in section.text
    assert [row[:2] for row in section.rows] == [(str(m), str(h)) for m in (1, 2, 3) for h in (1, 2, 3, 4)]
    assert [curve.name for curve in section.charts[0].curves if curve.name] == [f"head {n}" for n in (1, 2, 3, 4)]


def test_bins_have_no_transition_but_an_effect() -> None:
    told = use("relative-discrete", heads=2, max_distance_um=3000.0)
    section = distance_section(told)
    assert len(section.charts) == 1
    assert [row[:6] for row in section.rows] == [(n, "–", "–", "–", "–", "–") for n in ("1", "2")]
    assert sorted(distance_files(told)) == ["attention_by_distance.csv", "learnt_distances.svg"]


def test_of_a_model_without_there_is_no_section_and_no_file() -> None:
    told = use("abmil")
    assert distance_files(told) == {}
    assert b"What distance" not in page("t", "l", [distance_section(told)])


def test_the_files_are_whole_and_refer_to_nothing_outside() -> None:
    files = distance_files(use(heads=2))
    assert tuple(files) == DISTANCE_FILES
    drawn = ElementTree.fromstring(files["learnt_distances.svg"])
    assert len(drawn.findall(f".//{SVG}polyline")) == 2 + 4
    assert b"href" not in files["learnt_distances.svg"]
    assert b"<script" not in files["learnt_distances.svg"]


def test_an_old_checkpoint_draws_no_distribution() -> None:
    model = build("das-mil", 5, 2, heads=1, length_scales_um=[1000.0]).eval()
    section = distance_section(DistanceUse.of(model, {}, bags))
    assert section.charts[0].bars == ()
    assert "tile distances" not in section.text
    assert len(distance_section(DistanceUse([Head(1, 1, "key", 900.0, 0.01, 500.0)])).charts) == 1


def test_what_cannot_be_looked_at_costs_no_training(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[Bag]:
        raise OSError("the disk is gone")

    with caplog.at_level(logging.WARNING):
        told = DistanceUse.of(build("das-mil", 5, 2).eval(), TRAINING, broken)
    assert len(told.heads) == 4
    assert not told.found
    assert "the disk is gone" in caplog.text


@pytest.mark.parametrize(
    ("um", "text"),
    [(0.0, "0 µm"), (430.6, "431 µm"), (999.7, "1 mm"), (1240.0, "1.24 mm"), (14_230.0, "14.2 mm"), (-3.0, "–"),
     (math.inf, "–")],
)  # fmt: skip
def test_lengths_are_for_people(um: float, text: str) -> None:
    assert length(um) == text


def test_a_figure_holds_its_charts_one_below_the_other() -> None:
    chart = Chart(
        "A < B",
        (Curve("one", (0.0, 1.0)), Curve("two", (1.0, 0.0), colour=7, dashed=True)), 1.0,
        ticks=(Tick(0.5, "middle"),), levels=(Tick(0.25, "quarter"),), bars=(Bar(0.1, 0.2, 0.5),),
        marks=(Mark(0.5, 1),), across="distance", up="share",
    )  # fmt: skip
    drawn = ElementTree.fromstring(figure("T & U", [chart, chart]))
    text = "".join(drawn.itertext())
    assert all(words in text for words in ("T & U", "A < B", "middle", "quarter", "● one", "┅■ two"))
    assert "epoch" not in text
    assert [line.get("class") for line in drawn.findall(f".//{SVG}polyline")] == ["c0", "c1 dashed"] * 2
    assert len({group.get("transform") for group in drawn.findall(f"{SVG}g")}) == 2
    bar = drawn.find(f".//{SVG}rect[@class='bar']")
    assert bar is not None
    assert (bar.get("x"), bar.get("width"), bar.get("y"), bar.get("height")) == ("34.0", "34.0", "95.0", "95.0")


def test_a_training_writes_them_and_leaves_none_of_another(tmp_path: Path) -> None:
    table = LabelTable(plant_cohort(tmp_path))
    folders = Folders.under(tmp_path)
    params = TrainParams(learn=LearnParams(epochs=1))
    workflow.train_model(table, folders, params, "cpu")
    assert {path.name for path in folders.model.iterdir()} >= set(DISTANCE_FILES)
    assert "What distance did it learn?" in (folders.model / "report.html").read_text()
    assert len((folders.model / "learnt_distances.csv").read_text().splitlines()) == 1 + 4
    workflow.train_model(table, folders, replace(params, aggregator="abmil"), "cpu", overwrite=True)
    assert not {path.name for path in folders.model.iterdir()} & set(DISTANCE_FILES)
    assert "What distance did it learn?" not in (folders.model / "report.html").read_text()
