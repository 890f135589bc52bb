"""Aggregators of other packages, by entry points: the example of one goes through every stage."""

import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch
from planted import plant_cohort
from typer.testing import CliRunner

from wsi_mil.aggregators import AGGREGATORS, Aggregator, aggregator_class, build, plugins
from wsi_mil.bags import Bag, collate
from wsi_mil.checkpoint import load as load_checkpoint
from wsi_mil.cli import app
from wsi_mil.errors import IncompatibleError, OptionError
from wsi_mil.predictions import read_predictions

Install = Callable[..., None]


@dataclass(frozen=True)
class NoDefault:
    width: int


class Silent(Aggregator):
    """Says nothing of itself."""


class Undefaulted(Aggregator):
    uses_position = "none"
    Params = NoDefault


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Give this process entry points: name and value of each."""

    def entry_points(*entries: tuple[str, str]) -> None:
        found = [EntryPoint(name, value, plugins.GROUP) for name, value in entries]
        monkeypatch.setattr(plugins, "entry_points", lambda group: found if group == "wsi_mil.aggregators" else [])

    return entry_points


@pytest.fixture
def example(load: Callable[[str], ModuleType], install: Install) -> ModuleType:
    """The example's module, whose model is installed as top-mean."""
    module = load("custom_aggregator")
    install(("top-mean", "custom_aggregator:TopMean"))
    return module


def test_the_example_of_an_own_aggregator_runs(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("custom_aggregator")
    monkeypatch.setattr(sys, "argv", ["custom_aggregator.py"])
    runpy.run_path(str(module.__file__), run_name="__main__")
    told = re.search(r"AUROC on 200 bags that it never saw: ([\d.]+)", capsys.readouterr().out)
    assert told
    assert float(told[1]) > 0.95


def test_the_example_keeps_the_contract(example: ModuleType) -> None:
    torch.manual_seed(0)
    model = build("top-mean", 5, 3, top=4).eval()
    bags = [Bag(str(tiles), torch.randn(tiles, 5), torch.rand(tiles, 2), {}) for tiles in (2, 9, 30)]
    together = model(collate(bags))
    for row, bag in enumerate(bags):
        alone, order = model(collate([bag])), torch.randperm(len(bag.features))
        turned = model(collate([bag._replace(features=bag.features[order], coords_um=bag.coords_um[order])]))
        torch.testing.assert_close(together.logits[row], alone.logits[0])
        torch.testing.assert_close(turned.logits, alone.logits)
        torch.testing.assert_close(turned.attention[0], alone.attention[0, order])
        assert alone.attention.sum().item() == pytest.approx(1)
        assert not together.attention[row, len(bag.features) :].any()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(collate(bags)).logits.float(), together.logits, atol=0.05, rtol=0.05)
    with pytest.raises(OptionError, match=r"^--option top 0, hidden 32: give positive numbers"):
        build("top-mean", 5, 3, top=0)


def test_it_is_trained_judged_and_asked_as_any_other(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_cohort(tmp_path, slides=16)
    monkeypatch.chdir(tmp_path)
    model = ["--aggregator", "top-mean", "--option", "top=3", "--epochs", "2", "--bags", "feats"]
    for command in (
        ["train", *model],
        ["crossval", *model, "--folds", "2", "--resamples", "100"],
        ["predict", "--bags", "feats"],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    made = load_checkpoint(Path("model/checkpoint.safetensors"))
    assert (made.aggregator, made.options["top"]) == ("top-mean", 3)
    assert isinstance(made.members()[0], example.TopMean)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(plugins, "entry_points", lambda group: [])
        with pytest.raises(
            IncompatibleError, match="the aggregator top-mean, which no package here brings along: inst"
        ):
            made.members()
    assert len(read_predictions(Path("predictions/predictions.csv"))[0]) == 16


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], r"unknown, choose one of das-mil, .*transmil-paper$"),
        ([("other", "x:Y")], "unknown, choose one of das-mil, .*transmil-paper, other$"),
        ([("mine", "no_such_package:Model")], "entry point mine: .*no_such_package.*repair or uninstall it"),
        ([("mine", f"{__name__}:NoDefault")], "gives NoDefault, which is no subclass of Aggregator"),
        ([("mine", f"{__name__}:Silent")], "Silent does not say its Params .* and uses_position"),
        ([("mine", f"{__name__}:Undefaulted")], "width has no default, and every option needs one"),
        ([("mine", "a:B"), ("mine", "c:D")], "package a:B and c:D, .*there are several of that name"),
    ],
)
def test_what_is_wrong_is_told_by_name(entries: list[tuple[str, str]], message: str, install: Install) -> None:
    install(*entries)
    with pytest.raises(OptionError, match=f"--aggregator mine: .*{message}"):
        build("mine", 4, 2)


def test_a_name_of_the_registry_is_not_taken_over(install: Install) -> None:
    install(("max", f"{__name__}:Silent"))
    assert aggregator_class("max") is AGGREGATORS["max"]
