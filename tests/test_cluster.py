"""The loop on a cluster: a real one of two worker processes, which share nothing with the test but the disk."""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from distributed.client import ClosedClientError
from planted import untrained
from test_cli import call
from toy_stage import ToyCrew, ToyParams, ToyStage, items

from wsi_mil import executors, workflow
from wsi_mil.crew import Crew, Task, _Shared, portable, stream_of
from wsi_mil.dispatch import each
from wsi_mil.distances import DistanceParams
from wsi_mil.encoding import Encoding
from wsi_mil.errors import ArtifactStale, ClusterError, OptionError, SlideUnreadable
from wsi_mil.executors import cluster as door
from wsi_mil.executors import connection
from wsi_mil.executors.worker import Need, Seen
from wsi_mil.items import Item, Output, Published, Result, origin_of
from wsi_mil.predictions import read_predictions
from wsi_mil.progress import Progress
from wsi_mil.runs import Report
from wsi_mil.stage import RunOptions, artifact_items, run
from wsi_mil.tiling import TileParams

TESTS = Path(__file__).parent
TRIES = 2


TWO = ("--nworkers", "2", "--nthreads", "1")


class Started(NamedTuple):
    """A cluster that runs."""

    file: str
    """That tells where its scheduler is."""
    scheduler: "subprocess.Popen[bytes]"


@contextmanager
def cluster_of(folder: Path, *workers: Sequence[str]) -> Iterator[Started]:
    """A cluster as a user starts it, with the output of all in ``folder/log``; a slide may cost two workers their life.

    Args:
        folder: where it writes.
        workers: the options of each `dask worker`.
    """
    file = folder / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = str(TRIES - 1)
    dask, words = [sys.executable, "-m", "dask"], ["--scheduler-file", str(file), "--no-dashboard"]
    commands = [["scheduler", *words, "--host", "127.0.0.1", "--port", "0"]]
    commands += [["worker", *words, *own, "--local-directory", str(folder)] for own in workers]
    with (folder / "log").open("w") as log, ExitStack() as stack:
        running = []
        for command in commands:
            running.append(subprocess.Popen([*dask, *command], cwd=folder, env=environment, stdout=log, stderr=log))
            stack.callback(running[-1].wait)
            stack.callback(running[-1].terminate)
            while not file.exists() or not file.read_text():
                assert running[-1].poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        yield Started(str(file), running[0])


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[str]:
    """A cluster of two worker processes of one thread: the file that tells where its scheduler is."""
    with cluster_of(tmp_path_factory.mktemp("cluster"), TWO) as started:
        yield started.file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    for index in range(5):
        (folder / "sub" / f"s{index}.b").write_bytes(b"x" * (index + 1))
    (folder / "void").write_bytes(b"")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Artifacts and the files beside them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".csv"
    }


def test_a_cluster_makes_the_same_bytes_and_the_same_report(
    scheduler: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (source / "bad").write_bytes(b"bad")
    (source / "bug").write_bytes(b"bug")
    (source / "odd").write_bytes(b"odd")
    here, there = tmp_path / "here", tmp_path / "there"
    local = run(ToyStage(), items(source), here)
    monkeypatch.chdir(tmp_path)  # workers are elsewhere: relative paths must become absolute
    with caplog.at_level(logging.INFO, "wsi_mil"):
        remote = run(ToyStage(), items(Path("source")), Path("there"), RunOptions(scheduler=scheduler))
    assert (sorted(remote.done), remote.empty) == (sorted(local.done), local.empty)
    assert {name: type(error) for name, error in remote.failed.items()} == {
        "bad": SlideUnreadable,
        "bug": ZeroDivisionError,
    }
    assert contents(there) == contents(here)
    assert "odd is odd" in caplog.messages  # what a worker warns of is said here
    assert any("tiles/s" in message for message in caplog.messages)
    again = run(ToyStage(), items(source), there, RunOptions(scheduler=scheduler))
    assert (len(again.skipped), again.done) == (7, [])
    with pytest.raises(ArtifactStale):
        run(ToyStage(ToyParams(2)), items(source), there, RunOptions(scheduler=scheduler))
    half = run(ToyStage(ToyParams(2)), items(source), there, RunOptions(True, shard="1/2", scheduler=scheduler))
    assert len(half.done) + len(half.empty) + len(half.failed) == 5


def test_an_interrupt_drops_what_has_not_begun(
    scheduler: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(30):
        (source / f"t{index:02d}").write_bytes(b"y" * (index + 1))

    def interrupt(self: Report, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Report, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(ToyStage(pause=0.3), items(source), tmp_path / "out", RunOptions(scheduler=scheduler))
    time.sleep(2)
    assert len(artifact_items(tmp_path / "out")) < 12
    report = run(ToyStage(), items(source), tmp_path / "out", RunOptions(scheduler=scheduler))
    assert len(report.skipped) + len(report.done) + len(report.empty) == 36


def test_tiles_features_and_distances_of_a_cluster_are_those_of_one_process(
    scheduler: str, tmp_path: Path, make_slide: Callable[..., Path]
) -> None:
    for seed, name in enumerate(("a", "sub/b", "c.d")):
        make_slide(f"slides/{name}.tif", (700, 800), radius_um=300, seed=seed)
    encoding = Encoding({"timm:test_vit": "random:0"}, batch=4)
    for out, options in ((tmp_path / "here", RunOptions()), (tmp_path / "there", RunOptions(scheduler=scheduler))):
        folders = workflow.Folders.under(out)
        params = TileParams(tile_um=128.0, tile_px=64)
        assert len(workflow.tile(tmp_path / "slides", folders.tiles, params, options).done) == 3
        made = workflow.extract_features(folders.tiles, folders.feats, encoding, options, None)
        assert len(made[folders.feats].done) == 3
        assert len(workflow.measure_distances(folders.feats, folders.distances, DistanceParams(), options).done) == 3
    made = contents(tmp_path / "there")
    assert {name.split("/")[0] for name in made} == {"tiles", "feats", "distances"}
    assert made == contents(tmp_path / "here")


@pytest.mark.slow
def test_answers_and_reasons_of_a_cluster_are_those_of_one_process(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_slide: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_slide("slides/a.tif", (1024, 1024), radius_um=450)
    make_slide("slides/sub/b.tif", (1024, 1024), radius_um=400, seed=1)
    (tmp_path / "slides" / "broken.svs").write_bytes(b"no slide")
    workflow.tile(Path("slides"), Path("tiles"), TileParams(64, 256.0), RunOptions())
    encoding = Encoding({"timm:test_vit": "random:0"}, batch=4)
    workflow.extract_features(Path("tiles"), Path("feats"), encoding, RunOptions(), None)
    untrained(tmp_path / "model", Path("feats/a.h5"))
    brief = ("--top", 4, "--partners", 3, "--occlusions", 2, "--batch", 4)
    assert call("explain", "slides", "--out", "here", *brief, "--device", "cpu") == 1
    assert call("explain", "slides", "--out", "there", *brief, "--scheduler", scheduler) == 1
    rows = [
        # Workers name slides by their whole paths.
        [
            row._replace(seconds=None, error=row.error.replace(f"{tmp_path}/", ""))
            for row in read_predictions(Path(out) / "predictions.csv")[0]
        ]
        for out in ("here", "there")
    ]
    assert rows[0] == rows[1]
    assert [row.status for row in rows[0]] == ["done", "failed", "done"]
    for part in ("cache", "explanations"):
        made = contents(tmp_path / "there" / part)
        assert len(made) > 4
        assert made == contents(tmp_path / "here" / part)


def test_a_slide_that_kills_its_workers_fails_by_name_and_the_others_are_done(
    scheduler: str, source: Path, tmp_path: Path
) -> None:
    (source / "deadly").write_bytes(b"kill")
    report = run(ToyStage(), items(source), tmp_path / "out", RunOptions(scheduler=scheduler))
    assert len(report.done) + len(report.empty) >= 5  # one that was at work beside it may be suspected, too
    assert f"{TRIES} workers died at work on it" in str(report.failed["deadly"])
    assert "--memory-limit" in str(report.failed["deadly"])
    assert not list((tmp_path / "out").rglob(".*.tmp"))


@pytest.mark.slow
def test_a_scheduler_that_is_killed_ends_the_run_with_one_line_and_the_rerun_ends_well(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_slide: Callable[..., Path]
) -> None:
    slide = make_slide("slides/s00.tif", (600, 600), radius_um=250)
    for index in range(1, 40):
        shutil.copy(slide, slide.with_name(f"s{index:02d}.tif"))
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "wsi_mil", "tile", "slides", "--scheduler"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    (tmp_path / "lost").mkdir()
    with cluster_of(tmp_path / "lost", TWO) as lost:
        process = subprocess.Popen([*command, lost.file], stderr=subprocess.PIPE, env=environment, text=True)
        while not list(Path("tiles").glob("*.h5")):
            assert process.poll() is None
            time.sleep(0.01)
        lost.scheduler.kill()
        began = time.monotonic()
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert time.monotonic() - began < 20
    assert len([line for line in told.splitlines() if line.startswith("error: the scheduler at")]) == 1, told
    assert "went away" in told
    assert "type the same command again" in told
    assert not [word for word in ("Traceback", "distributed", "tornado") if word in told], told
    assert len(artifact_items(Path("tiles"))) < 40
    again = subprocess.run([*command, lost.file], capture_output=True, env=environment, text=True, check=False)
    assert again.returncode == 1
    assert "no Dask scheduler answers there" in again.stderr
    assert "Traceback" not in again.stderr
    (tmp_path / "another").mkdir()
    with cluster_of(tmp_path / "another", TWO) as other:
        assert call("tile", "slides", "--scheduler", other.file) == 0
    assert call("tile", "slides", "--out", "here") == 0
    made, here = contents(Path("tiles")), contents(Path("here"))
    assert {name for name in made if made[name] != here.get(name)} == {"index.html"}  # which names its folder
    assert made.keys() == here.keys()


@pytest.mark.slow
def test_gpus_take_four_tasks_at_once_of_one_crew_and_other_workers_none(home: Path, tmp_path: Path) -> None:
    with_gpu = ("--nworkers", "1", "--nthreads", "6", "--resources", "GPU=1")
    with cluster_of(tmp_path, with_gpu, TWO) as started, connection.connected(started.file) as cluster:
        while cluster._threads_for("cpu") < 8:
            time.sleep(0.05)
        assert cluster._threads_for("cuda") == 6
        job = door.Job(partial(ToyCrew, tmp_path), cluster.device("auto"))
        assert job.device == "cuda"
        answers = [answer for _, answer in cluster.map_unordered(job, "work", range(24))]
        assert len({process for process, _ in answers}) == 1
        assert max(at_once for _, at_once in answers) == 4
        assert len(list(tmp_path.glob("made-*"))) == 1
        everywhere = door.Job(partial(ToyCrew, tmp_path), "cpu", token="another run")
        assert len({answer[0] for _, answer in cluster.map_unordered(everywhere, "work", range(24))}) == 3


def test_that_no_gpu_is_left_is_said_though_other_workers_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "_TELL_S", 0.0)
    workers = {"a": {"resources": {"GPU": 1.0}}, "b": {"resources": {}}}
    client = SimpleNamespace(
        nthreads=lambda: dict.fromkeys(workers, 8), scheduler_info=lambda n_workers: {"workers": workers}
    )
    assert door.Cluster(client, "tcp://a:1")._room("cuda", 0) == 16
    del workers["a"]
    assert not caplog.messages
    assert door.Cluster(client, "tcp://a:1")._room("cpu", 0) == 16
    assert door.Cluster(client, "tcp://a:1")._room("cuda", 0) == 2
    (told,) = caplog.messages
    assert told.startswith("no worker that declares a GPU is at tcp://a:1: waiting for one")
    assert '--resources "GPU=1"' in told


def test_a_worker_that_leaves_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "_LOOK_S", -1.0)
    threads = {"tcp://b:1": 2, "tcp://c:1": 2}
    cluster = door.Cluster(SimpleNamespace(nthreads=lambda: dict(threads)), "tcp://a:1")
    assert cluster._room("cpu", 0) == 8
    del threads["tcp://c:1"]
    assert [cluster._room("cpu", 0) for _ in range(3)] == [4, 4, 4]
    assert caplog.messages == ["worker tcp://c:1 left: what it was at goes to others"]


def test_a_worker_that_leaves_while_it_is_asked_is_no_error_and_one_that_cannot_answer_is() -> None:
    here, left = Seen("1", (), 0.0), OSError("Timed out during handshake")
    asked = iter([{"a": left}, {"a": left, "b": here}, {"b": ImportError("no wsi_mil")}])
    client = SimpleNamespace(nthreads=lambda: {"b": 1}, run=lambda *_, on_error: next(asked))
    cluster = door.Cluster(client, "tcp://a:1")
    assert cluster._look(Need("1")) == {"b": here}
    with pytest.raises(ClusterError, match=r"worker b cannot run wsimil \(ImportError: no wsi_mil\): pip install"):
        cluster._look(Need("1"))


@pytest.mark.parametrize(
    "error", [ConnectionResetError("closed"), ClosedClientError("Client is closed"), CancelledError("lost")]
)
def test_a_scheduler_that_is_gone_is_one_error_whatever_is_asked(error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    cluster = door.Cluster(SimpleNamespace(nthreads=fail, submit=fail, replicate=fail), "tcp://a:1")
    job = door.Job(print)
    for ask in (
        lambda: cluster.device("cuda"),
        lambda: cluster.check(job),
        lambda: cluster._recipe(b"x" * (door._SMALL_RECIPE + 1)),
        lambda: cluster._sender(job, "work")("x"),
        lambda: cluster._room("cpu", 0),
        lambda: cluster._outcome(SimpleNamespace(status="finished", result=fail)),
        lambda: cluster._outcome(SimpleNamespace(status="cancelled")),
    ):
        with pytest.raises(ClusterError, match=r"the scheduler at tcp://a:1 went away.*type the same command again"):
            ask()


def test_a_worker_of_another_version_or_that_sees_another_disk_is_named_before_any_work(
    scheduler: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(door, "__version__", "99.0")
        with pytest.raises(ClusterError, match=r"worker tcp://\S+ has wsimil \S+ and 99\.0 asks for work: install"):
            run(ToyStage(), items(source), tmp_path / "out", RunOptions(scheduler=scheduler))
    gone = tmp_path / "of another machine"
    with pytest.raises(ClusterError, match=r"worker tcp://\S+ does not see .*of another machine"):
        list(each(scheduler, "cpu", print, [gone], [1]))
    assert not artifact_items(tmp_path / "out")


def test_a_gpu_that_no_worker_declares_is_asked_for_in_vain(scheduler: str) -> None:
    with connection.connected(scheduler) as cluster:
        assert (cluster.device("auto"), cluster.device("cpu")) == ("cpu", "cpu")
        with pytest.raises(ClusterError, match=r'--device cuda: no worker .* declares a GPU.*--resources "GPU=1"'):
            cluster.device("cuda")
        with pytest.raises(OptionError, match="--device cuda:1: with --scheduler"):
            cluster.device("cuda:1")
        both = {"a": Seen("1", (), 0.0), "b": Seen("1", (), 1.0)}
        cluster._client = SimpleNamespace(nthreads=lambda: {"a": 1}, run=lambda *_, on_error: both)
        assert (cluster.device("auto"), cluster.device("cuda")) == ("cuda", "cuda")


def test_tasks_of_gpus_ask_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    client = SimpleNamespace(submit=lambda *_, resources=None, **__: asked.append(resources))
    for device in ("cpu", "cuda"):
        door.Cluster(client, "tcp://a:1")._sender(door.Job(print, device), "work")("x")
    assert asked == [None, {"GPU": 0.25}]


@pytest.mark.parametrize(("told", "undone"), [("65536", True), ("1000000", False), (None, False)])
def test_workers_keep_the_memory_that_dask_would_give_back(
    told: str | None, undone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    if told:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", told)
    assert door.worker.keep_memory() is undone


def test_small_recipes_go_with_tasks_and_large_ones_lie_on_every_worker() -> None:
    kept, replicated = [], []
    client = SimpleNamespace(submit=lambda _, data, **__: kept.append(data) or "future", replicate=replicated.extend)
    cluster = door.Cluster(client, "tcp://a:1")
    assert cluster._recipe(b"small") == b"small"
    assert cluster._recipe(b"x" * (door._SMALL_RECIPE + 1)) == "future"
    assert (len(kept), replicated) == (1, ["future"])


@pytest.mark.parametrize(
    ("version", "absent", "word"), [("0", (), "has wsimil 0 and 1"), ("1", ("/x",), "does not see /x"), ("1", (), "")]
)
def test_what_a_worker_lacks_is_said(version: str, absent: tuple[str, ...], word: str) -> None:
    fault = Seen(version, absent, 0.0).fault(Need("1", ("/x",)))
    assert word in fault
    assert bool(word) == bool(fault)


def test_without_scheduler_or_dask_one_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connection, "_CONNECT_S", 1.0)
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers there .*dask scheduler"):
        run(ToyStage(), [], tmp_path, RunOptions(scheduler="tcp://127.0.0.1:9"))
    assert time.monotonic() - began < 10
    with pytest.raises(ClusterError, match=r"--scheduler nowhere\.json"):
        run(ToyStage(), [], tmp_path, RunOptions(scheduler="nowhere.json"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OptionError, match=r"pip install 'wsi-mil\[cluster\]'"):
        run(ToyStage(), [], tmp_path, RunOptions(scheduler="tcp://127.0.0.1:9"))


def test_the_command_line_imports_no_dask() -> None:
    code = "import sys; from wsi_mil import cli, stage; sys.exit(bool({'dask', 'distributed'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(TESTS.parent)}, check=True)


def test_a_worker_uses_the_cores_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_granted", [])
    executors.grant_cores(1)
    assert executors.available_cores() == 1


def test_one_stream_serves_all_threads_of_a_worker_and_its_errors_reach_who_waits() -> None:
    together, names = [], [f"s{index}" for index in range(20)]

    def stream(tasks, track):
        together.append(0)
        for item, (output,) in tasks:
            together[-1] += 1
            time.sleep(0.01)
            if item.slide_id == "s7":
                raise MemoryError("full")
            yield item, output, SlideUnreadable(item.slide_id)

    output = Output(ToyStage(), Path())
    shared = _Shared(stream)

    def do(name: str) -> str:
        try:
            ((_, _, outcome),) = shared.do(Item(name, Path()), [output])
        except MemoryError as error:
            return str(error)
        return str(outcome)

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(do, names))
    assert [one for one in told if one != "full"] == [
        name for name, one in zip(names, told, strict=True) if one != "full"
    ]
    assert told[7] == "full"
    assert max(together) > 1
    assert sum(together) == 20
    assert threading.active_count() < 20


def test_a_crew_refuses_to_make_something_else_and_leaves_what_is_there(source: Path, tmp_path: Path) -> None:
    stage, item = ToyStage(), Item("void", source / "void")
    crew = Crew([Output(stage, tmp_path)], stream_of(Output(stage, tmp_path)))
    assert crew.params() == [stage.params]
    (made,) = crew.work(Task(item, (origin_of(stage, item),)))
    before = (tmp_path / "void.h5").stat().st_mtime_ns
    (again,) = crew.work(Task(item, (origin_of(stage, item),)))  # its worker died before it could tell
    assert isinstance(made, Published)
    assert isinstance(again, Published)
    assert (again.attrs["fingerprint"], again.meanwhile) == (made.attrs["fingerprint"], "")
    assert (tmp_path / "void.h5").stat().st_mtime_ns == before
    assert crew.work(Task(item, (None,))) == (None,)
    with pytest.raises(ClusterError, match="would not make what was asked for"):
        crew.work(Task(item, (origin_of(ToyStage(ToyParams(2)), item),)))


def test_errors_that_cannot_be_sent_are_told() -> None:
    class Local(Exception):
        pass

    kept = SlideUnreadable("x")
    assert portable(kept) is kept
    assert str(portable(Local("why"))) == "Local: why"


def test_two_runs_over_one_folder_at_once_end_well(source: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    for index in range(30):
        (source / f"t{index:02d}").write_bytes(b"y" * (index + 1))
    run(ToyStage(), items(source), alone)
    code = (
        "import sys; from pathlib import Path; from toy_stage import *; import logging\n"
        "logging.basicConfig(level=20, format='%(message)s')\n"
        "run(ToyStage(pause=0.03), items(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, "-c", code, str(source), str(out)]
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = "".join(process.communicate()[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert "Traceback" not in told
    assert contents(out) == contents(alone)
    with (out / "summary.csv").open() as file:
        names = [line.split(",")[0] for line in file][1:]
    assert names == sorted({item.slide_id for item in artifact_items(alone)})
    assert "another run made" in told


def test_work_that_was_done_twice_is_said_in_the_log(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Overtaken(ToyStage):
        """Another run makes the first slide while this one is at it, and the last before its turn."""

        def stream(self, pending: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
            first = next(pending)
            run(ToyStage(), [first, items(source)[-1]], tmp_path / "out")
            yield first, self.work(first)
            for item in pending:
                yield item, self.work(item)

    with caplog.at_level(logging.INFO, "wsi_mil"):
        report = run(Overtaken(), items(source), tmp_path / "out")
    first, last = items(source)[0].slide_id, items(source)[-1].slide_id
    assert f"{first}: another run made the same meanwhile, so this was done twice" in caplog.messages
    assert f"{last}: another run made it meanwhile: left as it is" in caplog.messages
    assert (first in report.done, report.skipped) == (True, [last])
    caplog.clear()
    run(ToyStage(), items(source), tmp_path / "out", RunOptions(overwrite=True))
    assert "another run" not in caplog.text
