"""Faults that cost little: at every step of publication, in every part of a file. `test_campaign` has the others."""

import errno
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import sabotage
import torch

from wsi_mil import publishing, runs, store
from wsi_mil.errors import ArtifactCorrupt, StorageError, WeightsError
from wsi_mil.weights import load_tensors, save_tensors

OLD, NEW = b"old" * 1000, b"new" * 1000


def publish_file(root: Path, data: bytes) -> None:
    publishing.write_bytes(root / "thing", data)


def publish_folder(root: Path, data: bytes) -> None:
    with publishing.replacing_folder(root / "thing") as temporary:
        (temporary / "a").write_bytes(data)
        (temporary / "b").write_bytes(data)


def read(root: Path) -> set[bytes]:
    """What is in the thing: one content, or it is in pieces; nothing, if it is not there."""
    thing = root / "thing"
    if thing.is_dir():
        assert {path.name for path in thing.iterdir()} == {"a", "b"}
    return {path.read_bytes() for path in (thing.iterdir() if thing.is_dir() else [thing]) if path.exists()}


def forked(work: Callable[[], None]) -> int:
    """Exit status of a child that does this; a negative signal where that killed it."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("publish", [publish_file, publish_folder])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_of_publication_the_old_or_the_new_is_there(
    publish: Callable[[Path, bytes], None], after: bool, tmp_path: Path
) -> None:
    found, step, code = list[set[bytes]](), 0, -9
    while code:
        root = tmp_path / str(step)
        publish(root, OLD)

        def work(root: Path = root, at: int = step) -> None:
            sabotage.die(at, after)
            publish(root, NEW)

        code = forked(work)
        assert code in {0, -9}
        assert len(read(root)) <= 1
        publishing.sweep(root)
        assert [path.name for path in root.iterdir()] == ["thing"]
        found.append(read(root))
        step += 1
    assert step > 5
    assert {OLD} in found
    assert found[-1] == {NEW}
    assert found == sorted(found, key=lambda one: one == {NEW})  # never back again


def test_a_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_folder(tmp_path, OLD)
    rename, count = os.rename, iter(range(9))

    def failing(source: Path, target: Path) -> None:
        if next(count) == 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        publish_folder(tmp_path, NEW)
    assert read(tmp_path) == {OLD}
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_write_one_folder_at_once_end_well(tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(10):
            publish_folder(tmp_path, str(os.getpid()).encode())
            publishing.sweep(tmp_path)

    def both() -> None:
        other = os.fork()
        work()
        if not other:
            os._exit(0)
        assert os.waitpid(other, 0)[1] == 0

    assert forked(both) == 0
    assert len(read(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_what_was_moved_aside_is_removed_where_another_lies(tmp_path: Path) -> None:
    publish_folder(tmp_path, NEW)
    aside = tmp_path / f".thing.{publishing._here()}-999999999-ab.old.tmp"
    shutil.copytree(tmp_path / "thing", aside)
    publishing.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_what_cannot_be_written_is_named_with_what_to_do(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_file(tmp_path, OLD)

    def failing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(StorageError, match=rf"thing cannot be written \({os.strerror(number)}\): .*same command again"):
        publish_file(tmp_path, NEW)
    monkeypatch.undo()
    assert read(tmp_path) == {OLD}
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("most", [1000, 3000, 8000])
def test_hdf5_that_finds_no_room_ends_with_our_error_and_says_nothing_itself(
    most: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, found = tmp_path / "a.h5", tmp_path / "told"
    whole = store.Artifact({"features": np.ones((100, 40), np.float16)}, {"told": "x" * 2000})

    def work() -> None:
        told = os.open(found, os.O_CREAT | os.O_WRONLY)
        sabotage.limit_files(most)
        try:
            store.write(path, whole)
        except StorageError as error:
            os.write(told, str(error).encode())

    assert forked(work) == 0
    assert "a.h5 cannot be written (File too large): make room there" in found.read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["told"]
    assert capfd.readouterr().err == ""


def test_an_error_of_what_is_read_meanwhile_is_not_taken_for_one_of_writing(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), publishing.replacing(tmp_path / "thing"):
        raise PermissionError(errno.EACCES, "Permission denied", "slide.tif")


def test_a_flipped_bit_anywhere_in_an_artifact_is_noticed_or_changes_nothing(tmp_path: Path, seed: int) -> None:
    rng, path = np.random.default_rng(seed), tmp_path / "a.h5"
    arrays = {"features": rng.normal(size=(40, 30)).astype(np.float16), "coords": np.arange(80).reshape(40, 2)}
    store.write(path, store.Artifact(arrays, {"stage": "toy", "tiles": 40}, {"coords": {"patch_size": 224}}))
    before, data, told = store.read(path), path.read_bytes(), list[str]()
    for place in rng.integers(0, len(data), 100):
        harmed = bytearray(data)
        harmed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(harmed)
        try:
            found = store.read(path)
        except ArtifactCorrupt as error:
            told.append(str(error))
        else:
            assert store.checksum(found) == store.checksum(before)
        store._verified.clear()  # the clock is too coarse to tell the next harm from this one
    assert len(told) > 15
    assert all("a.h5" in line and ("--overwrite" in line or "copy" in line) for line in told)


def test_a_flipped_bit_anywhere_in_a_file_of_tensors_is_noticed_or_changes_nothing(tmp_path: Path, seed: int) -> None:
    rng, path = np.random.default_rng(seed), tmp_path / "a.safetensors"
    tensors = {"a.weight": torch.arange(200.0).reshape(20, 10), "b": torch.ones(7)}
    save_tensors(path, tensors, {"told": "[1, 2]"})
    data, refusals = path.read_bytes(), list[str]()
    for place in rng.integers(0, len(data), 300):
        harmed = bytearray(data)
        harmed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(harmed)
        try:
            found, told = load_tensors(path)
        except WeightsError as error:
            refusals.append(str(error))
        else:
            assert all(torch.equal(found[name], tensors[name]) for name in tensors)
            assert told.get("told") == "[1, 2]"
    assert len(refusals) > 200
    assert all("a.safetensors" in line and ("again" in line or "fetch" in line) for line in refusals)


def test_tensors_without_a_checksum_are_read_as_other_programs_write_them(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    assert load_tensors(tmp_path / "a.safetensors")[1] == {}
    save_tensors(tmp_path / "b.safetensors", {"a": torch.ones(3)}, {})
    assert load_tensors(tmp_path / "b.safetensors")[1] == {}


def test_the_latest_failure_is_told_though_the_clock_went_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        days = 40

        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=cls.days)

    monkeypatch.setattr(runs, "datetime", Clock)
    for Clock.days, why in ((40, "first"), (0, "second"), (1, "third")):
        runs.write_tables(tmp_path, [runs.Row("s", "failed", error=why)])
        assert runs.failures(tmp_path) == {"s": why}
    assert len(list((tmp_path / "runs").iterdir())) == 3
