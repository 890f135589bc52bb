"""Folders, tables and models far away become local ones: whole, as they are now, within the bound of the cache."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from far import noise, taken, write
from fsspec.implementations.memory import MemoryFileSystem
from peers import bag, trident
from planted import plant_cohort
from test_cli import call

from wsi_mil.errors import RemoteError
from wsi_mil.remote import CacheParams, Url, bring, by_address, hold, is_brought, origin, servers, staging
from wsi_mil.remote.trouble import Waiting
from wsi_mil.slides import find_slides

KB = 1000


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """Memory is as empty as before."""
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def cache(tmp_path: Path) -> CacheParams:
    """A small cache."""
    return CacheParams(tmp_path / "cache", "1MB")


def folder(name: str, size: int, files: int = 2) -> Url:
    """A folder in fsspec's memory, of so many bytes in all."""
    for number in range(files):
        write(f"memory://b/{name}/deep/{number}.h5", noise(size // files, number))
    return Url(f"memory://b/{name}")


def test_a_folder_keeps_its_name_and_all_that_lies_below_it(cache: CacheParams) -> None:
    brought = bring(folder("feats", 200 * KB), cache)
    assert brought.path.name == "feats"
    assert (brought.path / "deep" / "1.h5").read_bytes() == noise(100 * KB, 1)
    within = brought.path / "deep" / "1.h5"
    assert is_brought(within)
    assert origin(within) == "memory://b/feats/deep/1.h5"
    assert by_address(f"{within} is damaged") == "memory://b/feats/deep/1.h5 is damaged"
    assert bring(folder("feats", 200 * KB), cache).path != brought.path  # written anew, so it has another version
    brought.release()
    brought.release()
    assert not is_brought(within)
    assert origin(within) == str(within)


def test_a_command_that_would_wait_for_itself_is_refused(cache: CacheParams) -> None:
    first = bring(folder("feats", 600 * KB), cache)
    with pytest.raises(RemoteError, match=r"600 kB, more than the whole cache of 1 MB, 600 kB of which are what this"):
        bring(folder("tiles", 600 * KB), cache)
    write("memory://slides/a.svs", noise(500 * KB))
    ((_, slide),) = find_slides(Url("memory://slides"), cache)
    with pytest.raises(RemoteError, match="600 kB of which"):
        hold(slide)
    first.release()
    hold(slide).release()
    bring(folder("tiles", 600 * KB), cache).release()
    assert taken(cache.place) <= 1000 * KB


def test_commands_that_keep_something_do_not_wait_for_each_other_for_ever(
    cache: CacheParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_mil.remote.bringing._WAITS_S", 0.3)
    monkeypatch.setattr("wsi_mil.remote.bringing.reserved", lambda cache: 1)  # as of another process, both times
    monkeypatch.setattr("wsi_mil.remote.room.reserved", lambda cache: 0)
    first = bring(folder("feats", 600 * KB), cache)
    with pytest.raises(RemoteError, match=r"finds no room in .* until other commands have ended"):
        bring(folder("tiles", 600 * KB), cache)
    first.release()


def test_where_a_server_tells_no_versions_what_is_there_now_is_read(
    cache: CacheParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_MARKS", ())
    monkeypatch.setattr(servers, "_TIMES", ())
    for text in (b"a,0\n", b"a,1\n"):
        write("memory://b/labels.csv", text)
        brought = bring(Url("memory://b/labels.csv"), cache)
        assert brought.path.name == "labels.csv"
        assert brought.path.read_bytes() == text
        brought.release()


def test_where_one_file_fails_the_others_are_not_waited_for(
    cache: CacheParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are those that somebody who gives up does not want any more."""
    url, begun = folder("feats", 80 * KB, files=4), threading.Barrier(4)

    def slow(url: Url, spans: object, waiting: Waiting) -> list[bytes]:
        begun.wait(10)
        if url.name == "2.h5":
            raise RemoteError("gone")
        waiting.pause(60)
        raise AssertionError("waited")

    monkeypatch.setattr(staging.servers, "read_parts", slow)
    started = time.monotonic()
    with pytest.raises(RemoteError, match="gone"):
        bring(url, cache)
    assert time.monotonic() - started < 20
    assert taken(cache.place) == 0


@pytest.mark.parametrize(
    "command",
    [
        ("distances", "--bags"),
        ("extract", "--model", "morphology", "--tiles"),
        ("tile", "slides", "--regions"),
        ("predict", "a.svs", "--model"),
        ("explain", "--model", "model", "--bags"),
    ],
)
def test_workers_elsewhere_do_not_see_what_is_brought_here(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/checkpoint.safetensors").touch()
    assert call(*command, "memory://b/feats", "--scheduler", "tcp://127.0.0.1:1") == 2
    assert "memory://b/feats with --scheduler" in " ".join(capsys.readouterr().err.split())


def test_a_slide_that_fails_is_told_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plant_cohort(tmp_path, slides=2)
    for path in Path("feats").glob("*.h5"):
        write(f"memory://b/feats/{path.name}", path.read_bytes())
    write(f"memory://b/feats/{path.name}", path.read_bytes()[:-200])
    assert call("distances", "--bags", "memory://b/feats", "--cache", "cache") == 1
    told = capsys.readouterr()
    assert f"memory://b/feats/{path.name}" in told.err
    assert "staged" not in " ".join(line for line in told.err.splitlines() if "is read from" not in line)
    assert "staged" not in Path("distances/summary.csv").read_text()


def test_bags_of_other_programs_are_imported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    features, coords = bag()
    made = trident(tmp_path / "theirs" / "a.h5", features, coords)
    write("memory://b/features_uni_v1/a.h5", made.read_bytes())
    Path("labels.csv").write_text("slide_id,label\na,pos\n")
    assert call("train", "--bags", "memory://b/features_uni_v1", "--cache", "cache") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "`wsimil import memory://b/features_uni_v1 --out feats/` first" in told
    assert call("import", "memory://b/features_uni_v1", "--cache", "cache") == 0
    assert Path("feats/a.h5").is_file()
