"""The docs cannot lie: README blocks and examples run, the reference is generated, names and versions agree."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_encoders_ctranspath import old_layout

from wsi_mil import __version__, synthetic
from wsi_mil.aggregators import AGGREGATORS
from wsi_mil.encoders import find_encoder
from wsi_mil.encoders.building import build_network
from wsi_mil.encoders.table import ENCODERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


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
    command = [sys.executable, "-m", "wsi_mil", "weights", "add", "ctranspath", folder / "ctranspath.pth"]
    subprocess.run(command, env={**os.environ, **home, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    return home


def test_the_blocks_of_the_readme_run_as_written_in_a_folder_with_slides_and_labels(
    tmp_path: Path, environment: dict[str, str], ctranspath: dict[str, str]
) -> None:
    small = {"slides": 8, "near_um": (340.0, 440.0), "far_um": 600.0, "spacing_um": 250.0, "side_um": 1792.0}
    small |= {"radius_um": 96.0, "clearance_um": 66.0}
    synthetic.make_cohort(tmp_path, dataclasses.replace(synthetic.SyntheticParams.quick(), **small))
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


def test_the_page_of_aggregators_is_made_anew() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "docs" / "aggregators.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert made == (ROOT / "docs" / "aggregators.md").read_text(), "run `make docs`"
    assert all(f"## {name}\n" in made for name in AGGREGATORS)


def test_the_page_of_encoders_is_made_anew(environment: dict[str, str]) -> None:
    command = [sys.executable, ROOT / "docs" / "encoders.py"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / "encoders.md").read_text(), "run `make docs`"
    assert all(f"| {name} |" in made for name in ENCODERS)


def test_the_example_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    done = shell(f"bash {ROOT / 'examples' / 'pipeline.sh'} --quick", tmp_path, environment)
    assert "predictions/predictions.csv" in done.stdout


def test_the_reference_is_generated_anew(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "typer", "wsi_mil.cli", "utils", "docs", "--name", "wsimil"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (ROOT / "docs" / "cli.md").read_text().strip(), "run `make docs`"


def test_the_changelog_knows_this_version() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == __version__


def test_links_and_pictures_of_the_docs_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_and_contributing_stay_short() -> None:
    assert len(README.splitlines()) < 120
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60
