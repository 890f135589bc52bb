"""What the page of a cross-validation tells beside the figures, read off the folders of its rounds."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from wsi_mil import checkpoint
from wsi_mil.aggregators import Aggregator
from wsi_mil.cohort import Cohort, Member
from wsi_mil.evaluation import Validated
from wsi_mil.report.distance_use import DistanceUse, some_bags
from wsi_mil.report.page import Section
from wsi_mil.report.pictures import SlideFiles, notable, slides_section
from wsi_mil.report.provenance import model_facts
from wsi_mil.train import CHECKPOINT


def rounds_of(cohort: Cohort, out: Path, aggregator: str) -> dict[str, Cohort]:
    """By round, what it learnt from, validated on and tested: the same for every model."""
    return {fold: _round_of(cohort, out / aggregator / f"fold-{fold}" / "splits.csv") for fold in cohort.folds}


def _round_of(cohort: Cohort, table: Path) -> Cohort:
    with table.open(encoding="utf-8", newline="") as file:
        return replace(cohort, members=tuple(Member(**row) for row in csv.DictReader(file)))


def tested_slides(made: Sequence[Validated], cohort: Cohort, out: Path, files: SlideFiles) -> Section:
    """Heat maps of the slides that each model judged best and worst, as the round saw them that tested them."""

    @cache
    def model_of(name: str, fold: str) -> Aggregator:
        return checkpoint.load(out / name / f"fold-{fold}" / CHECKPOINT).model()

    judged = {one.aggregator: notable(one.rows, one.ensemble.classes) for one in made}
    return slides_section(judged, lambda name, row: model_of(name, row.fold), cohort, files)


def distances_of(one: Validated, cohort: Cohort, feats: Path, device: torch.device) -> DistanceUse:
    """What the models of all rounds made of distances, by some slides of the cohort."""
    params = one.ensemble.training["params"]
    read = some_bags(cohort.units, feats, params["train"]["learn"]["seed"])
    model = one.ensemble.model().to(device)
    return DistanceUse.of(model, one.ensemble.training, read, "of the cohort, which most of these models know")


def crossval_facts(made: Sequence[Validated]) -> list[tuple[str, str]]:
    """What decided the trainings; of several models what they share first, then each."""
    told = [dict(model_facts(one.ensemble)) for one in made]
    shared = {what: value for what, value in told[0].items() if all(facts.get(what) == value for facts in told)}
    own = [
        (f"{one.aggregator}: {what}", value)
        for one, facts in zip(made, told, strict=True)
        for what, value in facts.items()
        if what not in shared
    ]
    return [*shared.items(), *own]
