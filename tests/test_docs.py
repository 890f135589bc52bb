"""The docs cannot lie: README blocks and examples run, the reference is generated, names and versions agree."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from test_cli import call
from test_encoders_ctranspath import old_layout

from wsi_mil import __version__, store, synthetic
from wsi_mil.aggregators import AGGREGATORS, build
from wsi_mil.bags import Bag
from wsi_mil.distances import DistanceStage
from wsi_mil.encoders import find_encoder
from wsi_mil.encoders.building import build_network
from wsi_mil.encoders.table import ENCODERS
from wsi_mil.explain import LookOptions, learnt_distances, look
from wsi_mil.extract import ExtractStage
from wsi_mil.interop.exporting import ExportStage
from wsi_mil.interop.importing import ImportStage
from wsi_mil.predictions import read_predictions
from wsi_mil.report import DISTANCE_FILES
from wsi_mil.report.prediction import _DRAWN
from wsi_mil.slides import write_pyramid
from wsi_mil.stage import artifact_items
from wsi_mil.tiling import TileStage

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALL = {
    "nests": 1,
    "clusters": 1,
    "radius_um": 40.0,
    "near_um": (120.0, 160.0),
    "far_um": 200.0,
    "spacing_um": 110.0,
    "clearance_um": 20.0,
    "side_um": 800.0,
    "slides": 6,
}
"""Slides of a few tiles, which CTransPath gets through on a CPU."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A PATH on which ``wsimil`` is this very package."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "wsimil"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m wsi_mil "$@"\n')
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def shell(code: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-ec", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def ctranspath(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which weights of CTransPath, random ones in the published layout, were added by hand."""
    folder = tmp_path_factory.mktemp("ctranspath")
    state = old_layout(build_network(find_encoder("ctranspath")).state_dict())
    torch.save({"model": state}, folder / "ctranspath.pth")
    home = {"WSIMIL_HOME": str(folder / "home")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSIMIL_HOME", home["WSIMIL_HOME"])
        assert call("weights", "add", "ctranspath", folder / "ctranspath.pth") == 0
    return home


def test_the_blocks_of_the_readme_run_as_written_in_a_folder_with_slides_and_labels(
    tmp_path: Path, environment: dict[str, str], ctranspath: dict[str, str]
) -> None:
    synthetic.make_cohort(tmp_path, synthetic.SyntheticParams(**{**SMALL, "side_um": 620.0}))
    environment = {**environment, **ctranspath}
    shutil.copy(min((tmp_path / "slides").iterdir()), tmp_path / "slide.tif")
    for block in blocks("bash"):
        lines = [line for line in block.splitlines() if not line.startswith("make ") and "needs: network" not in line]
        shell("\n".join(lines), tmp_path, environment)
    for block in blocks("python"):
        shell(f"{sys.executable} - <<'E'\n{block}\nE", tmp_path, environment)
    for made in ("tiles", "feats", "distances", "model/checkpoint.safetensors", "model/report.html", "predictions"):
        assert (tmp_path / made).exists()


def test_the_make_targets_of_the_readme_exist() -> None:
    named = set(re.findall(r"^make ([a-z-]+)", "\n".join(blocks("bash")), flags=re.MULTILINE))
    assert named == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    for target in (*named, "check", "docs", "test-all", "gpu-check"):
        assert f"\n{target}:" in makefile


def test_the_readme_names_every_aggregator() -> None:
    assert not [name for name in AGGREGATORS if f"`{name}`" not in README]


@pytest.mark.parametrize(
    ("page", "mark", "names"), [("aggregators", "## {}\n", AGGREGATORS), ("encoders", "| {} |", ENCODERS)]
)
def test_the_page_of_what_there_is_to_choose_from_is_made_anew(
    page: str, mark: str, names: Iterable[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(ROOT / "docs" / f"{page}.py"), run_name="__main__")
    made = capsys.readouterr().out
    assert made == (ROOT / "docs" / f"{page}.md").read_text(), "run `make docs`"
    assert all(mark.format(name) in made for name in names)


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    done = shell(f"bash {ROOT / 'examples' / 'pipeline.sh'} --quick", tmp_path, environment)
    assert "predictions/predictions.csv" in done.stdout


CAMELYON16 = f"bash {ROOT / 'examples' / 'camelyon16.sh'}"


@pytest.mark.slow
def test_camelyon16_is_tiled_normalised_trained_on_and_predicted_without_the_three_slides(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    params = synthetic.SyntheticParams(**SMALL)
    names = [f"training/{kind}/{kind}_00{number}" for kind in ("normal", "tumor") for number in (1, 2)]
    names += ["testing/images/test_002", "testing/images/test_003"]
    refused = "testing/images/test_001"
    for index, name in enumerate([*names, refused]):
        image = synthetic.paint_slide(index, params)
        if name == refused:  # haematoxylin only
            density = -np.log(np.maximum(image, 1) / 240).mean(axis=2, keepdims=True)
            image = (240 * np.exp(-density * np.array([1.3, 1.4, 0.6]))).clip(0, 255).astype(np.uint8)
        write_pyramid(tmp_path / "data" / f"{name}.tif", image, params.mpp)
    for name in ("training/normal/normal_086", "training/normal/normal_144", "testing/images/test_049"):
        shutil.copy(tmp_path / "data" / f"{names[0]}.tif", tmp_path / "data" / f"{name}.tif")
    table = "test_001,Tumor,IDC,Macro\ntest_002,Tumor,IDC,Macro\ntest_003,Normal,DCIS,None\n"
    (tmp_path / "data/reference.csv").write_text(table)
    done = shell(f"{CAMELYON16} data data/reference.csv --quick", tmp_path, environment)
    assert f"failed: {refused}: --stain macenko cannot be fitted to " in done.stderr
    assert f"{refused}: labelled, but left out: --stain macenko cannot be fitted to " in " ".join(done.stderr.split())
    attrs = {item.slide_id: store.read_attrs(item.source) for item in artifact_items(tmp_path / "feats")}
    assert sorted(attrs) == sorted(names)
    for made in attrs.values():
        params = json.loads(made["params"])
        assert (params["encoder"], params["stain"]["method"]) == ("ctranspath", "macenko")
        assert (made["status"], made["tile_um"], made["tile_px"]) == ("done", 256.0, 224)
    trained, classes, _ = read_predictions(tmp_path / "model" / "predictions.csv")
    splits = {row.slide_id: (row.label, row.split) for row in trained}
    assert classes == ("normal", "tumor")
    assert {name for name, (_, split) in splits.items() if split == "test"} == set(names[-2:])
    assert splits["testing/images/test_002"] == ("tumor", "test")
    (raw,), _, _ = read_predictions(tmp_path / "predictions" / "predictions.csv")
    (same,) = (row for row in trained if row.slide_id == "testing/images/test_002")
    assert raw.slide_id == "test_002"
    assert raw.probabilities == pytest.approx(same.probabilities, abs=1e-4)


@pytest.mark.parametrize("layout", ["training/{kind}/{name}.tif", "images/{name}.tif"])
def test_camelyon16_has_its_official_split(
    layout: str, tmp_path: Path, shared: Path, environment: dict[str, str]
) -> None:
    official = {"normal": range(1, 161), "tumor": range(1, 112), "test": range(1, 131)}
    for kind, numbers in official.items():
        for number in numbers:
            path = tmp_path / "data" / layout.format(kind=kind, name=f"{kind}_{number:03d}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "data/masks").mkdir()
    (tmp_path / "data/masks/tumor_001_mask.tif").touch()
    command = tmp_path / "bin" / "wsimil"  # what is tested here are the tables
    command.parent.mkdir()
    command.write_text('#!/bin/sh\necho "wsimil $*"\n')
    command.chmod(0o755)
    environment = environment | {"PATH": f"{command.parent}:{environment['PATH']}"}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/predictions.csv").write_text("")
    reference = shared / "data/labels/camelyon16_test_reference.csv"
    told = shell(f"{CAMELYON16} data {reference}", tmp_path, environment).stdout
    for line in (
        "train normal: 158 of 158",
        "train tumor: 111 of 111",
        "test normal: 80 of 80",
        "test tumor: 49 of 49",
    ):
        assert f"{line} slides\n" in told
    assert "wsimil extract --model ctranspath --stain macenko\n" in told
    rows = (tmp_path / "labels.csv").read_text().splitlines()
    assert (rows[0], len(rows)) == ("slide_id,label,patient_id,split", 1 + 269 + 129)
    assert layout.format(kind="test", name="test_001").removesuffix(".tif") + ",tumor,test_001,test" in rows
    assert not [row for row in rows if any(name in row for name in ("normal_086", "normal_144", "test_049", "mask"))]
    assert (tmp_path / "slides.csv").read_text().splitlines() == ["slide", *(row.split(",")[0] for row in rows[1:])]
    (tmp_path / "labels.csv").write_text("\n".join(rows[:-1]) + "\n")
    assert "of 49 slides" not in shell(f"{CAMELYON16} data {reference}", tmp_path, environment).stdout
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == len(rows) - 1  # what was taken out stays out
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "other.csv").write_text("normal_001,Normal\n")
    failed = subprocess.run(
        ["bash", "-c", f"{CAMELYON16} data other.csv"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert "other.csv does not tell whether test_001 is Normal or Tumor" in failed.stderr
    assert (failed.stdout, (tmp_path / "labels.csv").exists()) == ("", False)


EXTRACT_SAYS = {
    "a slide failed": ("1 done, 1 failed: see feats/summary.csv", 1, True),
    "no weights": ("", 1, False),
    "an option": ("", 2, False),
    "all were done": ("2 done: see feats/summary.csv", 0, True),
}


@pytest.mark.parametrize(("told", "status", "goes_on"), EXTRACT_SAYS.values(), ids=EXTRACT_SAYS)
def test_camelyon16_goes_on_without_slides_that_have_no_stain_and_stops_at_other_errors(
    told: str, status: int, goes_on: bool, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "labels.csv").write_text("")  # made already
    (tmp_path / "model").mkdir()
    header = "slide_id,status,predicted,p_normal,p_tumor,tiles,label,split,error,model"
    rows = ["normal_001,done,normal,0.9,0.1,5,normal,train,,this", "test_002,done,tumor,0.1,0.9,5,tumor,test,,this"]
    (tmp_path / "model/predictions.csv").write_text("\n".join([header, *rows]) + "\n")
    command = tmp_path / "bin" / "wsimil"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "wsimil $*"\n[ "$1" != extract ] || {{ echo "{told}"; exit {status}; }}\n')
    command.chmod(0o755)
    environment = environment | {"PATH": f"{command.parent}:{environment['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", f"{CAMELYON16} data reference.csv"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert told in done.stdout
    assert ("going on without the slides that failed" in done.stdout) == (goes_on and status == 1)
    assert ("wsimil train " in done.stdout, "wsimil predict data/test_002.tif\n" in done.stdout) == (goes_on, goes_on)
    assert done.returncode == (0 if goes_on else status)


def test_the_reference_is_generated_anew(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "typer", "wsi_mil.cli", "utils", "docs", "--name", "wsimil"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (ROOT / "docs" / "cli.md").read_text().strip(), "run `make docs`"


def test_the_page_about_explaining_says_of_each_model_what_it_tells() -> None:
    text = (ROOT / "docs" / "explaining.md").read_text()
    said = {row[0]: row[1:] for row in re.findall(r"^\| `(\S+)` \| (\S+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE)}
    torch.manual_seed(0)
    bag = Bag("a", torch.randn(9, 4), 256.0 * torch.stack([torch.arange(9) % 3, torch.arange(9) // 3], dim=1), {})
    tells = {}
    for name in AGGREGATORS:
        model = build(name, 4, 2).eval()
        seen = look(model, bag, LookOptions(occlusions=0))
        each = seen.contribution is not None, seen.pairs is not None, bool(learnt_distances(model))
        tells[name] = tuple("yes" if one else "–" for one in each)
    assert said == tells


def test_the_page_about_explaining_names_every_file() -> None:
    text = (ROOT / "docs" / "explaining.md").read_text()
    overlays = "overlay.ome.tif", "overlay_contribution.ome.tif"
    for name in (*overlays, "tissue.geojson", "pairs.csv", *DISTANCE_FILES[::2], *(f"{kind}.png" for kind in _DRAWN)):
        assert f"`{name}`" in text, name


def test_the_changelog_knows_this_version() -> None:
    """While something is unreleased, the version is one in the making, after the latest that was released."""
    latest, *others = re.findall(r"^## \[([^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    if latest != "Unreleased":
        assert __version__ == latest
    else:
        assert Version(others[0]) < Version(__version__)
        assert Version(__version__).is_devrelease


def test_links_and_pictures_of_the_docs_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_and_contributing_stay_short() -> None:
    assert len(README.splitlines()) < 130
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60


def test_the_versions_of_artifacts_are_those_of_the_stages() -> None:
    kinds = (TileStage, ExtractStage, ImportStage, DistanceStage, ExportStage)
    stages = {kind.name: kind.version for kind in kinds}
    told = re.search(r"now (`tile` .*?) \|", (ROOT / "docs" / "format.md").read_text())
    assert told
    assert {name: int(version) for name, version in re.findall(r"`(\w+)` (\d+)", told[1])} == stages
