import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import plant_cohort

from wsi_mil import workflow
from wsi_mil.distances import BIN_UM, quantile
from wsi_mil.evaluation import CrossvalParams, Place, crossval, folded
from wsi_mil.learning import LearnParams
from wsi_mil.tile_distances import TileDistances, merged
from wsi_mil.train_params import TrainParams
from wsi_mil.workflow import Folders, LabelTable

COUNTS = st.lists(st.integers(0, 9), max_size=300).map(np.array)


@given(COUNTS)
def test_no_pair_is_lost_and_each_stays_where_it_is(counts: np.ndarray) -> None:
    counts = counts.astype(np.int64)
    told = TileDistances.of(counts, BIN_UM)
    middles = (np.arange(len(counts)) + 0.5) * BIN_UM
    assert told.pairs.tolist() == np.histogram(middles, told.edges_um, weights=counts)[0].tolist()
    assert told.pairs.sum() == counts.sum()
    assert (np.diff(told.edges_um) > 0).all()


def test_it_is_short_and_its_quantiles_are_near() -> None:
    counts = np.random.default_rng(0).integers(0, 1000, 2500)
    told = TileDistances.of(counts, BIN_UM)
    assert len(json.dumps(told.record())) < 1000
    assert told.quantile(0.95) == pytest.approx(quantile(counts, 0.95), rel=0.02)
    assert told.shares.sum() == pytest.approx(1)


def test_what_is_recorded_is_read_back_and_old_checkpoints_tell_nothing() -> None:
    told = TileDistances.of(np.arange(40), BIN_UM)
    again = TileDistances.recorded({"distances": json.loads(json.dumps(told.record()))})
    assert again is not None
    assert again.record() == told.record()
    assert TileDistances.recorded({}) is None


@given(COUNTS, COUNTS)
def test_merging_adds(one: np.ndarray, other: np.ndarray) -> None:
    one, other = one.astype(np.int64), other.astype(np.int64)
    whole = np.zeros(max(len(one), len(other)), np.int64)
    whole[: len(one)] += one
    whole[: len(other)] += other
    both = merged([TileDistances.of(one, BIN_UM), TileDistances.of(other, BIN_UM)])
    assert both is not None
    assert both.record() == TileDistances.of(whole, BIN_UM).record()


def test_of_what_is_not_known_no_sum_is_made() -> None:
    assert merged([]) is merged([TileDistances.of(np.ones(3, np.int64), BIN_UM), None]) is None


def test_an_ensemble_of_cross_validation_knows_the_sum_of_its_rounds(tmp_path: Path) -> None:
    table, folders = LabelTable(plant_cohort(tmp_path, slides=16)), Folders.under(tmp_path)
    how = CrossvalParams(TrainParams("das-mil", learn=LearnParams(epochs=1)), ("das-mil",), folds=2)
    cohort = folded(workflow.labelled(table, folders), how)
    place = Place(folders.feats, folders.distances, tmp_path / "crossval")
    (found,) = crossval(cohort, place, how, torch.device("cpu"))
    rounds = found.ensemble.training["rounds"]
    whole = TileDistances.recorded(found.ensemble.training)
    assert whole is not None
    assert whole.pairs.sum() == sum(sum(one["distances"]["pairs"]) for one in rounds) > 0
