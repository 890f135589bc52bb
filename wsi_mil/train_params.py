"""What a training is asked for, and how that differs from what another was asked for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wsi_mil.aggregators import params_of
from wsi_mil.changes import changes
from wsi_mil.errors import OptionError
from wsi_mil.learning import LearnParams


@dataclass(frozen=True)
class TrainParams:
    """Everything that decides a training, beside the data."""

    aggregator: str = "das-mil"
    """Name in the registry of aggregators."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the aggregator; what is left out keeps its default."""
    val_fraction: float = 0.2
    """Share of the training patients to validate on, where the table names no "val" split."""
    learn: LearnParams = field(default_factory=LearnParams)
    """How weights are learnt; its seed also decides the split and the initial weights."""

    def __post_init__(self) -> None:
        params_of(self.aggregator, self.options)
        if not 0 < self.val_fraction < 1:
            raise OptionError(f"--val-fraction {self.val_fraction}: give a share between 0 and 1")


def differences(training: Mapping[str, Any], params: TrainParams) -> dict[str, str]:
    """By name, which options a training recorded otherwise than they are now, each in words."""
    # what an earlier version did not ask for was what is the default now
    before = named(TrainParams(params.aggregator)) | _flat(training["params"])
    return changes(before, named(params))


def named(params: TrainParams) -> dict[str, Any]:
    """By name, what was asked for; how weights are learnt among the rest."""
    return _flat(dataclasses.asdict(params))


def _flat(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key != "learn"} | params["learn"]
