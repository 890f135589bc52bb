"""Fixtures that several test files use."""

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
from huggingface_hub import constants
from painting import slide_of_a_disc

from wsi_mil import workflow
from wsi_mil.report import training
from wsi_mil.stage import RunOptions
from wsi_mil.synthetic import SyntheticParams, make_cohort
from wsi_mil.tiling import TileParams

hypothesis.settings.register_profile("shared machines", deadline=None)  # how long an example takes says nothing there
hypothesis.settings.load_profile("shared machines")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data, which is not part of the project."""
    folder = Path(os.environ.get("WSIMIL_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set WSIMIL_SHARED to the folder of test data")
    return folder


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test finds what the developer keeps, nor leaves anything there."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("WSIMIL_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def cohort(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a small synthetic cohort: slides/, labels.csv and tiles/ of 256 um. Nobody changes it."""
    folder = tmp_path_factory.mktemp("cohort")
    small = {"slides": 8, "near_um": (340.0, 440.0), "far_um": 600.0, "spacing_um": 250.0, "side_um": 1792.0}
    small |= {"radius_um": 96.0, "clearance_um": 66.0}
    make_cohort(folder, replace(SyntheticParams.quick(), **small), 2)
    workflow.tile(folder / "slides", folder / "tiles", TileParams(), RunOptions())
    return folder


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a training draws patients less often: types are checked on every draw here, which makes it slow."""
    monkeypatch.setattr(training, "_RESAMPLES", 100)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's cache of huggingface.co, and nothing of the network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module of examples/ as its scripts do."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    return importlib.import_module


@pytest.fixture
def make_slide(tmp_path: Path) -> Callable[..., Path]:
    """Write a slide of glass with one disc of H&E tissue, in the middle unless told."""

    def make(
        name: str = "slide.tif",
        size: tuple[int, int] = (2048, 1536),
        mpp: float = 1.0,
        radius_um: float = 500,
        seed: int = 0,
    ) -> Path:
        return slide_of_a_disc(tmp_path / name, size, mpp, radius_um, seed)

    return make
