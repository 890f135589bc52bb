"""A Dask worker that is killed while it works: the others do what it was at, and the bytes are those of a local run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pipeline import STEPS, Reference, Step, made, visible
from test_campaign import require_recovery, require_whole

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
_LONGEST_S = 60.0


class Cluster:
    """A scheduler and two workers of this machine, each a process that nobody starts again."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.file, self._folder, self._stack = folder / "scheduler.json", folder, stack
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        until(lambda: self.file.exists() and self.file.read_text())
        self.workers = [self._start("worker", "--no-nanny", "--nthreads", "1", "--name", str(at)) for at in range(2)]
        until(lambda: self._log().count("Register worker") >= 2)

    def _start(self, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *words, "--scheduler-file", str(self.file), "--no-dashboard"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self._folder / "log").open("a") as log:
            started = subprocess.Popen(command, cwd=self._folder, env=environment, stdout=log, stderr=log)
        self._stack.callback(started.wait)
        self._stack.callback(started.terminate)
        return started

    def _log(self) -> str:
        return (self._folder / "log").read_text()


def until(happens: Callable[[], object]) -> None:
    """Wait for something."""
    end = time.monotonic() + _LONGEST_S
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        (tmp_path / "cluster").mkdir()
        yield Cluster(tmp_path / "cluster", stack)


@pytest.mark.parametrize("step", [STEPS[name] for name in ("tile", "extract", "distances")], ids=lambda step: step.name)
def test_a_worker_is_killed_at_work(
    reference: Reference, step: Step, cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = reference.working_copy(step, tmp_path / "there")
    words = (*step.typed(reference.folder), "--scheduler", str(cluster.file))
    child = reference.parent.start(words, folder)
    until(lambda: any(path.suffix == ".h5" for path in visible(folder, step)))
    record_property("fault", "Dask worker killed")
    cluster.workers[0].send_signal(signal.SIGKILL)
    ended = reference.parent.wait(child)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    require_whole(reference, step, folder)
    assert sorted(made(folder, step)) == sorted(reference.known[step.name].files)
    require_recovery(reference, step, folder)
