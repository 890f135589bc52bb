"""Encoders of other packages, by entry points and by a record in hand."""

import re
import runpy
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from wsi_mil import store
from wsi_mil.encoders import EncoderSpec, find_encoder, list_encoders, load_encoder, plugins
from wsi_mil.errors import EncoderError

ROOT = Path(__file__).parents[1]
ONE = EncoderSpec("one", 64, 160, None, "MIT", arch="test_vit")
TWO = EncoderSpec("two", 64, 160, None, "MIT", arch="test_vit")


def several() -> list[EncoderSpec]:
    return [ONE, TWO]


def single() -> EncoderSpec:
    return ONE


def broken() -> EncoderSpec:
    raise RuntimeError("no licence server")


NONSENSE = ["not a record"]
TAKEN = EncoderSpec("uni", 64, 160, None, "MIT", arch="test_vit")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Give this process entry points: name = what this module calls it."""

    def entry_points(**entries: str) -> None:
        found = [
            EntryPoint(name.replace("_", "-"), f"{__name__}:{value}" if value.isidentifier() else value, plugins.GROUP)
            for name, value in entries.items()
        ]
        monkeypatch.setattr(plugins, "entry_points", lambda group: found if group == "wsi_mil.encoders" else [])

    return entry_points


@pytest.mark.parametrize(("value", "names"), [("ONE", ["one"]), ("single", ["one"]), ("several", ["one", "two"])])
def test_an_entry_point_is_a_record_or_gives_some(value: str, names: list[str], install) -> None:
    install(any=value)
    assert [spec.name for spec in list_encoders()][-len(names) :] == names
    for name in names:
        assert find_encoder(name).licence == "MIT"
    assert load_encoder("one", "random:0").name == "one"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("broken", "no licence server"),
        ("NONSENSE", "gives str instead of EncoderSpec"),
        ("no_such_package:SPEC", "No module named 'no_such_package'"),
        ("TAKEN", "there is an encoder uni already"),
    ],
)
def test_a_broken_one_costs_only_itself(value: str, message: str, install, caplog: pytest.LogCaptureFixture) -> None:
    install(bad_one=value, good="ONE")
    assert find_encoder("uni").dim == 1024
    assert find_encoder("one") is ONE
    assert not caplog.text  # nobody asked for the broken one
    assert ONE in list_encoders()
    assert re.search(f"encoders left out: package .*, entry point bad-one: .*{message}", caplog.text)
    with pytest.raises(EncoderError, match=f"package .*entry point bad-one: .*{message}.*repair or uninstall it"):
        find_encoder("bad-one")
    with pytest.raises(EncoderError, match=f"there is no encoder 'three'.*; left out: package .*{message}"):
        find_encoder("three")


def test_no_name_is_given_twice(install) -> None:
    install(a="ONE", b="several")
    found = plugins.read_plugins()
    assert found.specs == {"one": ONE}
    assert "there is an encoder one already" in found.broken["b"]


def test_a_record_in_hand_needs_no_name_that_is_known() -> None:
    encoder = load_encoder(EncoderSpec("mine", 64, 160, 80.0, "MIT", arch="test_vit"), "random:1")
    assert (encoder.name, encoder.dim, encoder.mpp) == ("mine", 64, 0.5)
    with pytest.raises(EncoderError, match="no encoder 'mine'"):
        load_encoder("mine")


def test_the_example_of_an_own_encoder_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["custom_encoder.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "custom_encoder.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "by tiny-vit: 64 numbers" in printed
    assert "by mean-colour: 3 numbers" in printed
    features = store.read(tmp_path / "feats" / "mean-colour" / "slide.h5").arrays["features"]
    assert np.allclose(features.mean(0), np.array((200, 110, 160)) / 255, atol=0.15)  # pink, with some glass
