"""The page about clusters and the SLURM script cannot lie either: their commands exist, and what can run here does."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker

from wsi_mil.cli import app
from wsi_mil.stage import artifact_items

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cluster.md").read_text()
SLURM = ROOT / "examples" / "slurm.sh"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def commands(text: str, program: str) -> list[list[str]]:
    """The commands of a program in a script, variables as they stand, also those within quotes."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in joined.splitlines() if not line.lstrip().startswith("#")]
    found = re.findall(rf"\b{program} [a-z]+ ?(?:'[^']*'|[^&;'\n])*", "\n".join(lines))
    return [shlex.split(one.replace('\\"', "'").replace('"', "")) for one in found]


def require_wsimil(words: list[str]) -> None:
    """Parse a command as `wsimil` does, without running it."""
    command = typer.main.get_command(app).commands[words[1]]
    command.make_context(words[1], words[2:])


def require_dask(words: list[str]) -> None:
    main = {"scheduler": dask_scheduler, "worker": dask_worker}[words[1]]
    known = {name for param in main.params for name in (*param.opts, *param.secondary_opts)}
    assert not [word for word in words[2:] if word.startswith("--") and word not in known], words


def test_commands_of_the_page_exist() -> None:
    text = "\n".join(blocks("bash"))
    subprocess.run(["bash", "-n", "-c", text], check=True)
    ours, theirs = commands(text, "wsimil"), commands(text, "dask")
    assert {words[1] for words in ours} == {"tile", "extract", "distances"}
    assert len(theirs) >= 5
    for words in ours:
        require_wsimil(words)
    for words in theirs:
        require_dask(words)
    for code in blocks("python"):
        compile(code, "docs/cluster.md", "exec")
    (manifest,) = [yaml.safe_load(block) for block in blocks("yaml")]
    for part in ("worker", "scheduler"):
        (container,) = manifest["spec"][part]["spec"]["containers"]
        require_dask(container["args"])


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """A PATH with an `sbatch` that writes down what it is given."""
    script = tmp_path / "bin" / "sbatch"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/bash\nfor word in "$@"; do printf "%s\\n" "$word"; done >> told\n'
        'case "$*" in *--wrap*) ;; *) cat >> told;; esac\necho 17\n'
    )
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("how", ["array", "dask"])
def test_the_slurm_script_submits_commands_that_exist(how: str, tmp_path: Path, stub: dict[str, str]) -> None:
    subprocess.run(["bash", "-n", SLURM], check=True)
    environment = {**stub, "MODEL": "uni", "WEIGHTS": "/shared/my weights/uni.bin"}
    subprocess.run(["bash", SLURM, how, "my slides/", "4"], cwd=tmp_path, env=environment, check=True)
    told = (tmp_path / "told").read_text()
    # sbatch refuses GPUs of each task where it is not told of tasks, and gives a node's tasks --mem together.
    assert told.count("--ntasks=") == told.count("--mem-per-cpu=4G") == {"array": 4, "dask": 1}[how]
    if how == "dask":
        assert "srun --cpus-per-task=8 dask worker" in told
        job = tmp_path / "job.sh"
        job.write_text(told[told.index("#!") :])
        subprocess.run(["bash", "-n", job], check=True)
        assert [words[1] for words in commands(told, "dask")] == ["scheduler", "worker"]
    else:
        assert told.count("--array=1-4") == 3
        assert told.count("--dependency=afterany:17") == 3
        assert told.count("--shard $SLURM_ARRAY_TASK_ID/4") == 3
        told = told.replace("$SLURM_ARRAY_TASK_ID", "1")
    ours = commands(told, "wsimil")
    assert [words[1] for words in ours] == ["tile", "extract", "distances", "train"]
    assert "my slides/" in ours[0]
    assert "/shared/my weights/uni.bin" in ours[1]
    for words in ours:
        require_wsimil(words)
    for words in commands(told, "dask"):
        require_dask(words)


def test_the_slurm_script_refuses_another_way(tmp_path: Path, stub: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", SLURM, "ssh", "slides"], cwd=tmp_path, env=stub, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "give array or dask" in done.stderr) == (2, True)


@pytest.mark.slow
def test_the_block_for_one_machine_runs_as_written(tmp_path: Path, make_slide: Callable[..., Path]) -> None:
    for seed in range(2):
        make_slide(f"slides/{seed}.tif", (700, 800), radius_um=300, seed=seed)
    for name, module in (("wsimil", "wsi_mil"), ("dask", "dask")):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-ec", blocks("bash")[0]],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(artifact_items(tmp_path / "distances")) == 2
    assert "2 done: see distances/summary.csv" in done.stdout


@pytest.mark.slow
def test_the_bench_compares_bytes_and_times() -> None:
    command = [sys.executable, ROOT / "examples" / "bench_cluster.py", "--slides", "6", "--side-um", "4096"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert [(row[0], row[-1]) for row in rows] == [(name, "equal") for name in ("tile", "extract", "distances")]
    assert all(float(cell) > 0 for row in rows for cell in row[1:-1])


def test_a_scheduler_that_does_not_start_ends_the_job(tmp_path: Path, stub: dict[str, str]) -> None:
    subprocess.run(["bash", SLURM, "dask", "slides", "2"], cwd=tmp_path, env=stub, check=True)
    told = (tmp_path / "told").read_text()
    (tmp_path / "job.sh").write_text(told[told.index("#!") :])
    dask = tmp_path / "bin" / "dask"
    dask.write_text("#!/bin/bash\nexit 1\n")
    dask.chmod(0o755)
    environment = {**stub, "SLURM_JOB_ID": "1"}
    assert subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, timeout=60, check=False).returncode == 1
