import csv
import dataclasses
import io
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
import toy_stage
from rich.console import Console
from toy_stage import ToyParams, ToyStage, items

from wsi_mil import executors, runs, store
from wsi_mil import progress as progressing
from wsi_mil.errors import ArtifactCorrupt, ArtifactStale, OptionError, SlideUnreadable
from wsi_mil.progress import Progress
from wsi_mil.stage import Item, Result, RunOptions, Stage, artifact_items, run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "one").write_bytes(b"123")
    (folder / "sub" / "two.b").write_bytes(b"4567")
    (folder / "void").write_bytes(b"")
    return folder


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open() as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def test_every_slide_gets_an_artifact_that_says_what_made_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert isinstance(ToyStage(), Stage)
    report = run(ToyStage(), items(source), out)
    assert sorted(report.done) == ["one", "sub/two.b"]
    assert report.empty == ["void"]
    attrs = store.read(out / "sub" / "two.b.h5").attrs
    assert (attrs["stage"], attrs["slide_id"], attrs["tiles"], attrs["status"]) == ("toy", "sub/two.b", 4, "done")
    assert (out / "sub" / "two.b.txt").read_bytes() == b"beside"
    assert [item.slide_id for item in artifact_items(out)] == ["one", "sub/two.b", "void"]


def test_where_time_went_is_told_by_stages_that_know_and_older_tables_are_read(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(ToyStage(), items(source), out)
    new = ("tiles_per_s", "decode_s", "waiting_share", "busy_share")
    assert [summary(out)["one"][name] for name in new] == [""] * 4
    old = "slide_id,status,tiles,tissue_mm2,seconds,error,excluded\none,done,3,3.0,12.500,,\nlost,failed,,,,gone,\n"
    (out / "runs" / "20990101T000000.csv").write_text(old)
    known = "99,1.500,0.250,0.750\n"
    header = ",".join(runs.Row._fields)
    (out / "runs" / "20990101T000001.csv").write_text(f"{header}\nsub/two.b,done,4,4.0,2.000,,,{known}")
    runs.write_tables(out, [])
    rows = summary(out)
    assert (rows["one"]["seconds"], rows["one"]["decode_s"]) == ("12.500", "")
    assert (rows["lost"]["status"], rows["lost"]["error"]) == ("failed", "gone")
    assert [rows["sub/two.b"][name] for name in new] == ["99.000", "1.500", "0.250", "0.750"]


def test_times_add_up_and_are_shared() -> None:
    half = runs.Timing(10.0, 1.0, 2.0, 6.0) * 0.5
    assert half + half == runs.Timing(10.0, 1.0, 2.0, 6.0)
    assert half.shares == (0.2, 0.6)
    assert runs.Timing().shares == (0.0, 0.0)


def test_summary_and_run_table_name_every_slide(source: Path, tmp_path: Path) -> None:
    (source / "wrong").write_bytes(b"bad")
    run(ToyStage(), items(source), tmp_path / "out")
    rows = summary(tmp_path / "out")
    assert {slide_id: row["status"] for slide_id, row in rows.items()} == {
        "one": "done",
        "sub/two.b": "done",
        "void": "empty",
        "wrong": "failed",
    }
    assert (rows["one"]["tiles"], rows["one"]["tissue_mm2"]) == ("3", "3.000")
    assert "cannot be read" in rows["wrong"]["error"]
    (table,) = (tmp_path / "out" / "runs").glob("*.csv")
    assert len(table.read_text().splitlines()) == 5


def test_a_rerun_skips_what_is_finished(source: Path, tmp_path: Path) -> None:
    run(ToyStage(), items(source), tmp_path / "out")
    before = {item: item.source.stat().st_mtime_ns for item in artifact_items(tmp_path / "out")}
    report = run(ToyStage(), items(source), tmp_path / "out")
    assert sorted(report.skipped) == ["one", "sub/two.b", "void"]
    assert {item: item.source.stat().st_mtime_ns for item in artifact_items(tmp_path / "out")} == before


def test_changed_options_are_refused_by_name_and_nothing_is_touched(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(ToyStage(), items(source), out)
    (source / "three").write_bytes(b"3")
    with pytest.raises(ArtifactStale, match=r"factor was 1, now 2\. Add --overwrite .* or --out"):
        run(ToyStage(ToyParams(2)), items(source), out)
    assert not (out / "three.h5").exists()
    assert len(run(ToyStage(ToyParams(2)), items(source), out, RunOptions(overwrite=True)).done) == 3


def test_a_changed_input_is_refused_and_refreshed_when_asked(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(ToyStage(), items(source), out)
    (source / "one").write_bytes(b"124")
    with pytest.raises(ArtifactStale, match=r"one\.h5 was made otherwise: its input has changed\. Add"):
        run(ToyStage(), items(source), out)
    report = run(ToyStage(), items(source), out, RunOptions(refresh=True))
    assert (report.done, sorted(report.skipped)) == (["one"], ["sub/two.b", "void"])


def test_a_slide_that_fails_stops_no_other_and_leaves_no_file(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source / "a-wrong").write_bytes(b"bad")
    (source / "b-bug").write_bytes(b"bug")
    report = run(ToyStage(), items(source), tmp_path / "out")
    assert len(report.done) == 2
    assert isinstance(report.failed["a-wrong"], SlideUnreadable)
    assert isinstance(report.failed["b-bug"], ZeroDivisionError)
    assert not list((tmp_path / "out").glob("a-wrong*"))
    assert "b-bug: ZeroDivisionError: two lines" in caplog.messages
    assert set(runs.failures(tmp_path / "out")) == {"a-wrong", "b-bug"}


def test_a_slide_mended_later_is_no_failure_any_more(source: Path, tmp_path: Path) -> None:
    (source / "one").write_bytes(b"bad")
    run(ToyStage(), items(source), tmp_path / "out")
    (source / "one").write_bytes(b"good")
    assert run(ToyStage(), items(source), tmp_path / "out").done == ["one"]
    assert runs.failures(tmp_path / "out") == {}
    assert summary(tmp_path / "out")["one"]["status"] == "done"


def test_a_failure_of_a_slide_that_was_deleted_is_gone_but_not_one_of_a_disk_that_is_not_mounted(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (source / "wrong").write_bytes(b"bad")
    run(ToyStage(), items(source), out)

    def told() -> str:
        runs.write_tables(out, [])
        return summary(out)["wrong"]["status"]

    source.rename(tmp_path / "away")
    assert (told(), list(runs.failures(out))) == ("failed", ["wrong"])
    source.mkdir()  # a place to mount
    (source / ".hidden").touch()
    assert told() == "failed"
    (source / ".hidden").unlink()
    source.rmdir()
    (tmp_path / "away").rename(source)
    (source / "wrong").unlink()
    (source / "wrong").symlink_to(tmp_path / "unmounted")
    assert told() == "failed"
    (source / "wrong").unlink()
    assert (told(), runs.failures(out)) == ("gone", {})
    reason = runs.failures(out, gone=True)["wrong"]
    assert reason.startswith(f"{source / 'wrong'} is gone; before: ")
    assert reason.endswith("cannot be read")
    (source / "wrong").write_bytes(b"bad")
    assert told() == "failed"
    assert len(run(ToyStage(), items(source), out).failed) == 1


def test_a_damaged_artifact_fails_by_name_until_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(ToyStage(), items(source), out)
    (out / "one.h5").write_bytes((out / "one.h5").read_bytes()[:3000])
    report = run(ToyStage(), items(source), out)
    assert isinstance(report.failed["one"], ArtifactCorrupt)
    assert "--overwrite" in str(report.failed["one"])
    assert summary(out)["one"]["status"] == "damaged"
    assert not run(ToyStage(), items(source), out, RunOptions(overwrite=True)).failed
    assert summary(out)["one"]["status"] == "done"


def test_overwriting_makes_again_what_is_stale_or_damaged_and_leaves_the_rest(source: Path, tmp_path: Path) -> None:
    """So that a run with --overwrite that was interrupted goes on by the same words."""
    out, anew = tmp_path / "out", RunOptions(overwrite=True)
    run(ToyStage(), items(source), out)
    run(ToyStage(ToyParams(2)), items(source)[:1], out, anew)  # interrupted after the first
    report = run(ToyStage(ToyParams(2)), items(source), out, anew)
    assert (report.skipped, report.done, report.empty) == (["one"], ["sub/two.b"], ["void"])
    with h5py.File(out / "one.h5", "r+") as file:  # damage that attributes do not show
        name = next(iter(file))
        file[name][...] = file[name][()] + 1
    before = (out / "sub" / "two.b.h5").stat().st_mtime_ns
    assert run(ToyStage(ToyParams(2)), items(source), out).done == []
    assert run(ToyStage(ToyParams(2)), items(source), out, anew).done == ["one"]
    store.read(out / "one.h5")
    assert (out / "sub" / "two.b.h5").stat().st_mtime_ns == before


def test_a_slide_that_fails_when_made_again_leaves_nothing_of_other_options(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(ToyStage(), items(source), out)
    (source / "one").write_bytes(b"bad")
    report = run(ToyStage(ToyParams(2)), items(source), out, RunOptions(overwrite=True))
    assert list(report.failed) == ["one"]
    assert not list(out.glob("one.*"))  # nor what lay beside it
    assert (out / "sub" / "two.b.txt").exists()
    assert summary(out)["one"]["status"] == "failed"
    assert "one" in runs.failures(out)


def test_a_slide_that_vanished_is_not_left_with_other_options_than_the_rest(source: Path, tmp_path: Path) -> None:
    out, cohort = tmp_path / "out", items(source)
    run(ToyStage(), cohort, out)
    (source / "one").unlink()
    run(ToyStage(), cohort, out, RunOptions(overwrite=True))
    assert (out / "one.h5").exists()  # made with these very options
    run(ToyStage(ToyParams(2)), cohort, out, RunOptions(overwrite=True))
    assert [item.slide_id for item in artifact_items(out)] == ["sub/two.b", "void"]


def test_a_failure_to_make_the_very_same_again_keeps_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(ToyStage(), items(source), out)
    before = (out / "one.h5").read_bytes()
    monkeypatch.setattr(ToyStage, "work", lambda self, item: 1 / 0)
    run(ToyStage(), items(source), out, RunOptions(overwrite=True))
    assert (out / "one.h5").read_bytes() == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_stage_or_program_made_is_never_replaced(source: Path, tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with h5py.File(out / "one.h5", "w") as file:
        file["features"] = [1.0]
    store.write(out / "void.h5", store.Artifact({}, {"stage": "other", "tiles": 0, "status": "done"}))
    before = [(out / name).read_bytes() for name in ("one.h5", "void.h5")]
    report = run(ToyStage(), items(source), out, RunOptions(overwrite=overwrite))
    assert "made by another program, not by `toy`: give another --out" in str(report.failed["one"])
    assert "made by `other`, not by `toy`" in str(report.failed["void"])
    assert [(out / name).read_bytes() for name in ("one.h5", "void.h5")] == before
    assert report.done == ["sub/two.b"]


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"--out .*file"):
        run(ToyStage(), items(source), tmp_path / "file" / "out")


def test_a_table_of_somebody_else_among_the_runs_is_passed_over(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "runs").mkdir(parents=True)
    (tmp_path / "out" / "runs" / "notes.csv").write_text("a,b\n1,2\n")
    run(ToyStage(), items(source), tmp_path / "out")
    assert len(summary(tmp_path / "out")) == 3


def test_a_vanished_input_fails_alone(source: Path, tmp_path: Path) -> None:
    report = run(ToyStage(), [*items(source), Item("gone", source / "gone")], tmp_path / "out")
    assert len(report.done) == 2
    assert "gone" in report.failed


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_share_nothing_and_miss_nothing(source: Path, tmp_path: Path, count: int) -> None:
    made = []
    for index in range(1, count + 1):
        report = run(ToyStage(), items(source), tmp_path / "out", RunOptions(shard=f"{index}/{count}"))
        made += report.done + report.empty
        assert not report.skipped
    assert sorted(made) == ["one", "sub/two.b", "void"]
    assert len(summary(tmp_path / "out")) == 3


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "-1/2", "²/3"])
def test_a_wrong_shard_is_refused(shard: str) -> None:
    with pytest.raises(OptionError, match="--shard"):
        RunOptions(shard=shard)


def test_an_interrupt_keeps_what_is_done(source: Path, tmp_path: Path) -> None:
    class Interrupted(ToyStage):
        def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
            item = next(items)
            yield item, self.work(item)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(), items(source), tmp_path / "out")
    assert list(summary(tmp_path / "out")) == ["one"]
    assert sorted(run(ToyStage(), items(source), tmp_path / "out").skipped) == ["one"]


def test_progress_lines_are_logged_off_a_terminal(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "wsi_mil"):
        run(ToyStage(), items(source), tmp_path / "out")
    assert any(message.startswith("toy: 3 of 3") for message in caplog.messages)


def test_what_a_stage_tells_stands_on_the_line_of_progress(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "wsi_mil"), progressing.progress("extract", 1) as track:
        track.step(1000)
        track.tell("waiting for tiles 12%")
        track.advance("one")
    assert re.search(r"extract: 1 of 1, [\d,]+ tiles/s, waiting for tiles 12%, 0 s left", caplog.text)
    shown = io.StringIO()
    monkeypatch.setattr(progressing, "console", Console(file=shown, force_terminal=True, width=200))
    with progressing.progress("extract", 1) as track:
        track.tell("waiting for tiles 12%")
        track.step(1000)
    assert re.search(r"[\d,]+ tiles/s, waiting for tiles 12%", shown.getvalue())


@pytest.mark.parametrize(("affinity", "quota", "cores"), [(8, None, 8), (8, 3, 3), (2, 3, 2), (1, 0, 1)])
def test_cores_are_those_of_the_process(
    affinity: int, quota: int | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(executors, "_cgroup_quota", lambda: quota)
    assert executors.available_cores() == cores
    monkeypatch.setattr(os, "process_cpu_count", lambda: 1, raising=False)
    assert executors.available_cores() == 1


def _contents(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.suffix in (".h5", ".txt", ".tmp")
    }


def test_killing_a_run_at_random_moments_leaves_nothing_that_a_rerun_takes_for_whole(tmp_path: Path) -> None:
    source, undisturbed, out = tmp_path / "source", tmp_path / "undisturbed", tmp_path / "out"
    source.mkdir()
    for index in range(40):
        (source / f"s{index:02d}").write_bytes(b"x" * (index + 1))
    run(ToyStage(), items(source), undisturbed)
    moments = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}"}
    killed = 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, toy_stage.__file__, source, out], env=environment)
        while process.poll() is None and not out.exists():
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        for item in artifact_items(out):
            store.read(item.source)  # whatever exists is whole
    assert killed >= 3
    run(ToyStage(), items(source), out)
    assert _contents(out) == _contents(undisturbed)


def test_a_stage_with_other_version_makes_other_fingerprints(source: Path, tmp_path: Path) -> None:
    run(ToyStage(), items(source), tmp_path / "out")
    with pytest.raises(ArtifactStale):
        run(dataclasses.replace(ToyStage(), version=2), items(source), tmp_path / "out")


def test_parts_of_a_cohort_are_put_together_by_links_and_loops_end(source: Path, tmp_path: Path) -> None:
    run(ToyStage(), items(source), tmp_path / "site")
    names = [item.slide_id for item in artifact_items(tmp_path / "site")]
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "a").symlink_to(tmp_path / "site")
    (tmp_path / "all" / "loop").symlink_to(tmp_path / "all")
    assert names
    assert [item.slide_id for item in artifact_items(tmp_path / "all")] == [f"a/{name}" for name in names]
