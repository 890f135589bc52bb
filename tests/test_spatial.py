"""Does space matter: the verdict on models that use where tiles lie, could, and cannot."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import plant_cohort

from wsi_mil import studies, workflow
from wsi_mil.aggregators import Aggregator, Output, build
from wsi_mil.bags import Bag, Batch, collate
from wsi_mil.evaluation import Answers, does_space_matter
from wsi_mil.evaluation.spatial import PERMUTED, UNBIASED, permuted, scaled, unbiased
from wsi_mil.interop import PeerOptions
from wsi_mil.learning import LearnParams
from wsi_mil.metrics import Resampling
from wsi_mil.predictions import Prediction
from wsi_mil.train import CHECKPOINT
from wsi_mil.train_params import TrainParams
from wsi_mil.workflow import Folders, LabelTable

FEW = Resampling(0, 100)


@dataclass(frozen=True)
class _None:
    pass


class Nearness(Aggregator):
    """Positive where the two marked tiles of a slide lie near each other: made by hand, so that it surely uses that."""

    uses_position = "relative"
    Params = _None

    def forward(self, batch: Batch) -> Output:
        logits = []
        for features, coords, slide in zip(batch.features, batch.coords_um, self._slides(batch), strict=True):
            first, second = torch.nonzero(features[:, 0] > 0.5).flatten()[:2]
            distance = (coords[first] - coords[second]).norm()
            near = (1000.0 - distance) / 500.0 if slide[first] == slide[second] else torch.tensor(0.0)
            logits.append(torch.stack([-near, near]))
        return Output(torch.stack(logits), batch.mask / batch.mask.sum(1, keepdim=True))

    def _slides(self, batch: Batch) -> torch.Tensor:
        return torch.zeros(batch.mask.shape) if batch.slide is None else batch.slide


def slides(count: int = 40) -> list[tuple[Bag, str]]:
    """Bags whose label is whether two marked tiles lie near each other."""
    made = []
    for index in range(count):
        rng = np.random.default_rng(index)
        coords = rng.uniform(0, 10_000, size=(50, 2)).astype(np.float32)
        coords[1] = coords[0] + (300.0 if index % 2 else 4000.0)
        features = np.zeros((50, 6), np.float32)
        features[:2, 0] = 1.0
        bag = Bag(f"s{index:02d}", torch.from_numpy(features), torch.from_numpy(coords), {})
        made.append((bag, "near" if index % 2 else "far"))
    return made


def asking(bags: list[tuple[Bag, str]]):
    classes = ("far", "near")

    def ask(model: Aggregator, change) -> Answers:
        rows = []
        for bag, label in bags:
            with torch.inference_mode():
                scores = tuple(model(collate([change(bag)])).logits.double().softmax(-1)[0].tolist())
            decided = classes[int(np.argmax(scores))]
            rows.append(Prediction(bag.slide_id, "done", scores, 50, label, predicted=decided))
        return Answers.of(rows, classes)

    return ask


def test_a_model_that_lives_on_distance_loses_it_all() -> None:
    model = Nearness(6, 2, _None())
    found = does_space_matter(asking(slides()), model, FEW)
    rows = {row.name: row for row in found.rows}
    assert list(rows) == [PERMUTED, "distances x 0.5", "distances x 2"]
    assert 0.35 < rows[PERMUTED].auroc < 0.65
    assert rows[PERMUTED].lost.low > 0.2
    assert found.sentence.startswith("This task used where tiles lie: AUROC 1.000 becomes")


def test_a_model_that_could_use_distance_but_does_not_is_told_apart() -> None:
    torch.manual_seed(0)
    model = build("das-mil", 6, 2, value_bias=False).eval()  # biases of scores start at nothing
    found = does_space_matter(asking(slides()), model, FEW)
    assert all(row.moved == 0 for row in found.rows)
    assert found.sentence.startswith("This model ignores where tiles lie")


def test_a_model_that_answers_otherwise_but_as_well_did_not_need_distance() -> None:
    bags = slides()
    marked = [(bag._replace(features=bag.features + (label == "near")), label) for bag, label in bags]

    class Both(Nearness):
        """Knows the answer without looking where tiles lie, and is surer where they are near."""

        def forward(self, batch: Batch) -> Output:
            near = super().forward(batch)
            certain = 1.0 * (2.0 * (batch.features[:, :, 1].mean(1) > 0.5) - 1.0)
            return near._replace(logits=0.2 * near.logits.clamp(-3, 3) + torch.stack([-certain, certain], 1))

    model = Both(6, 2, _None())
    found = does_space_matter(asking(marked), model, FEW)
    assert found.sentence.startswith("No sign that this task used where tiles lie")


def test_a_model_without_positions_is_asked_nothing() -> None:
    model = build("abmil", 6, 2).eval()
    found = does_space_matter(asking(slides(6)), model, FEW)
    assert found.rows == ()
    assert "cannot use where tiles lie" in found.sentence


@pytest.mark.parametrize(
    ("name", "options"),
    [("das-mil", {"self_bias": False}), ("das-mil-paper", {}), ("relative-discrete", {})],
)
def test_without_biases_no_distance_counts_and_the_model_itself_stays(name: str, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = build(name, 6, 2, **options).eval()
    bag = slides(1)[0][0]
    bag = bag._replace(features=torch.randn(50, 6, generator=torch.Generator().manual_seed(0)))
    alone = bag._replace(slide=torch.arange(50))  # tiles of different slides have no distance
    without = unbiased(model)
    assert without is not None
    with torch.inference_mode():
        assert torch.allclose(without(collate([bag])).logits, model(collate([alone])).logits, atol=1e-4)
        assert not torch.allclose(model(collate([bag])).logits, without(collate([bag])).logits, atol=1e-4)
    assert unbiased(build("gcn", 6, 2)) is None
    assert UNBIASED == "no distance biases"


def test_tiles_are_dealt_anew_within_their_slide_only() -> None:
    bag = slides(1)[0][0]._replace(slide=torch.arange(50) // 25)
    moved = permuted(bag, 3)
    assert not torch.equal(moved.coords_um, bag.coords_um)
    for rows in (slice(0, 25), slice(25, 50)):
        assert sorted(moved.coords_um[rows].tolist()) == sorted(bag.coords_um[rows].tolist())
    assert torch.equal(moved.coords_um, permuted(bag, 3).coords_um)
    assert not torch.equal(moved.coords_um, permuted(bag, 4).coords_um)
    assert torch.equal(scaled(bag, 2.0).coords_um, 2 * bag.coords_um)
    assert torch.equal(moved.features, bag.features)


def test_evaluate_tells_it_of_a_trained_model(tmp_path: Path) -> None:
    labels, folders = LabelTable(plant_cohort(tmp_path, slides=24, test=10)), Folders.under(tmp_path)
    params = TrainParams("das-mil", learn=LearnParams(epochs=3, patience=3, lr=3e-3))
    assert workflow.train_model(labels, folders, params, "cpu") is not None
    out = tmp_path / "evaluation"
    study = studies.evaluate_model(
        tmp_path / "model" / CHECKPOINT,
        labels,
        Folders(model=out, feats=folders.feats, tiles=folders.tiles),
        studies.Asked("test", spatial=True, device="cpu"),
        FEW,
        PeerOptions(),
    )
    assert study.spatial is not None
    assert len(study.spatial.rows) == 4
    assert (out / "spatial.csv").exists()
    assert study.spatial.sentence in (out / "report.html").read_text()
