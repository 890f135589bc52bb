"""Staging through a bounded cache: what is in it is whole and verified, its bound holds, and trouble has one line."""

import base64
import hashlib
import http.server
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from far import BUCKET, in_memory, noise, s3_server, slide_at, taken, write
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsi_mil.errors import OptionError, RemoteError, SlideError, SlideUnreadable, StorageError
from wsi_mil.guards import redacted
from wsi_mil.remote import (
    Ahead,
    CacheParams,
    RemoteSlide,
    Url,
    facts_of,
    hold,
    list_files,
    parse_place,
    parse_size,
    require_local,
    servers,
    show_size,
    staging,
    sums,
    trouble,
)
from wsi_mil.remote.room import admit
from wsi_mil.remote.staging import fetch
from wsi_mil.remote.sums import digest
from wsi_mil.remote.trouble import Interrupted, Waiting
from wsi_mil.slides import find_again, find_slides, open_slide, recorded, slide_fingerprint

KB = 1000
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody waits long, and memory is as empty as before."""
    monkeypatch.setattr(trouble, "FIRST_WAIT_S", 0.01)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    servers.forget_hosts()
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.mark.parametrize(
    ("text", "size"),
    [("200GB", 200 * 10**9), ("1.5TiB", 3 * 2**39), ("5", 5), ("7 kb", 7000), (".5M", 500_000), ("2ki", 2048)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GB", "-1GB", "1e9", "1XB", "200 GB of", "0.1", "1IB", "nan"])
def test_what_is_no_size_is_refused_by_the_option(text: str) -> None:
    with pytest.raises(OptionError, match="--cache-size"):
        CacheParams(size=text)


@given(st.integers(1, 10**15))
def test_sizes_are_shown_as_they_are_read(size: int) -> None:
    assert parse_size(show_size(size).replace(" bytes", "")) == pytest.approx(size, rel=6e-3)


def test_places_and_addresses_are_told_apart() -> None:
    assert parse_place("slides/a.svs") == Path("slides/a.svs")
    assert parse_place("file:///data/my%20slides") == Path("/data/my slides")
    assert parse_place("s3://b/a%20b?c.svs") == Url("s3://b/a%20b?c.svs")  # a key may be called so
    for wrong in ("s3://", "simplecache::s3://b/a", "https:///"):
        place = parse_place(wrong) if "::" in wrong and not wrong.startswith("s3") else None
        if place is None:
            with pytest.raises(OptionError):
                parse_place(wrong)
    with pytest.raises(OptionError, match="nothing is written to servers"):
        require_local("gs://bucket/tiles")


def test_no_key_is_shown() -> None:
    signed = "https://me:secret@host/a.svs?X-Amz-Signature=secret&X-Amz-Credential=AKIAABCDEFGHIJKLMNOP"
    url = Url(signed)
    assert "secret" not in f"{url} {url!r} {redacted(signed)} {redacted(f'403, url={signed!r}')}"
    assert url.name == "a.svs"
    assert url.is_signed
    assert "secret" not in redacted("GET /a.svs?x-amz-signature=secret failed")
    assert redacted("s3://bucket/a.svs is not there") == "s3://bucket/a.svs is not there"
    assert str(Url("s3://bucket/a?1.svs")) == "s3://bucket/a?1.svs"  # a name may have a question mark
    for told in ("gs://b/a?access_token=secret", "webdav://h/a?x&password=secret", "s3://b/a?versionId=secret"):
        assert "secret" not in f"{Url(told)} {redacted(told)}"


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 400 * KB])
def test_a_slide_is_the_same_wherever_it_lies(size: int, tmp_path: Path, cache: Path) -> None:
    data = noise(size)
    (tmp_path / "a.svs").write_bytes(data)
    there = in_memory("far/a.svs", data, cache)
    assert slide_fingerprint(there) == slide_fingerprint(tmp_path / "a.svs")
    held = hold(there)
    assert held.path.read_bytes() == data
    assert slide_fingerprint(held.path) == slide_fingerprint(there)
    held.release()


names = st.lists(
    st.sampled_from(["a", "b", ".c", "runs", "tiles"]).flatmap(lambda part: st.just(part)), min_size=0, max_size=2
)
files = st.lists(
    st.tuples(names, st.sampled_from(["a", "A", "b.x"]), st.sampled_from([".svs", ".tif", ".ome.tif", ".h5", ".jpg"])),
    max_size=6,
)

WRITTEN = {"stage": ("summary.csv", "runs/1.csv"), "explanation": ("explanation.json", "tiles.csv", "heatmap.png")}


@settings(max_examples=40)
@example([(["tiles", "a"], "a", ".h5"), (["tiles", "a"], "a", ".jpg")], "", "stage")
@example([(["tiles", "a"], "a", ".jpg"), (["b"], "a", ".tif")], "tiles/a", "explanation")
@given(files, st.sampled_from(["", "tiles", "a"]), st.sampled_from(["", *WRITTEN]))
def test_the_same_folder_has_the_same_slides_here_and_far_away(
    tmp_path_factory: pytest.TempPathFactory, files: list[Any], place_of_ours: str, kind: str
) -> None:
    folder, MemoryFileSystem.store = tmp_path_factory.mktemp("found"), {}
    told = [("/".join([*parents, name]) + suffix, b"x") for parents, name, suffix in files]
    told += [(f"{place_of_ours}/{name}".lstrip("/"), b"") for name in WRITTEN.get(kind, ())]
    for name, data in told:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        write(f"memory://found/{name}", data)
    found = []
    for place in (folder, Url("memory://found")):
        try:
            found.append([(slide.slide_id, str(slide.path).rpartition("found")[2]) for slide in find_slides(place)])
        except SlideError as error:
            found.append([(type(error).__name__, "")])
    here, far = ([(name, path.lstrip("-0123456789/")) for name, path in one] for one in found)
    assert [name for name, _ in here] == [name for name, _ in far]


def test_pictures_that_wsimil_wrote_far_away_are_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    MemoryFileSystem.store = {}
    for name in ("a.tif", *(f"told/a/{name}" for name in WRITTEN["explanation"])):
        write(f"memory://found/{name}", b"x")
    find_slides(Url("memory://found"))
    assert not caplog.messages
    find_slides(Url("memory://found"), out=Path("out"))
    (told,) = caplog.messages
    assert told.endswith("no slides, and passed over: told/a")


def test_the_least_recently_used_leave_and_the_bound_holds(cache: Path) -> None:
    slides = [in_memory(f"s/{name}.svs", noise(300 * KB, name), cache, "1MB") for name in range(4)]
    for name in (0, 1, 2):
        hold(slides[name]).release()
        time.sleep(0.01)
    hold(slides[0]).release()  # used again
    time.sleep(0.01)
    hold(slides[3]).release()
    assert {slide.key for slide in slides if (cache / "staged" / slide.key).exists()} == {
        slides[name].key for name in (0, 2, 3)
    }
    assert taken(cache) <= 1000 * KB
    assert not list((cache / "staged").glob(f"{slides[1].key}*"))


def test_what_is_in_use_stays_and_who_needs_room_waits_for_it(cache: Path) -> None:
    first, second = (in_memory(f"s/{name}.svs", noise(700 * KB, name), cache, "1MB") for name in range(2))
    held, done = hold(first), threading.Event()
    waiter = threading.Thread(target=lambda: (hold(second).release(), done.set()))
    waiter.start()
    assert not done.wait(0.4)
    assert held.path.exists()
    held.release()
    waiter.join(10)
    assert done.is_set()
    assert not held.path.exists()


def test_a_slide_larger_than_the_cache_is_one_error_with_both_sizes(cache: Path) -> None:
    with pytest.raises(RemoteError, match=r"a\.svs has 300 kB, more than the whole cache of 200 kB: give a larger"):
        hold(in_memory("s/a.svs", noise(300 * KB), cache, "200kB"))
    assert taken(cache) == 0


def test_a_disk_that_has_no_room_is_said_before_anything_is_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_mil.remote.room._free", lambda cache: 1000)
    with pytest.raises(RemoteError, match=r"has 1 kB free"):
        hold(in_memory("s/a.svs", noise(300 * KB), cache))
    assert taken(cache) == 0


def test_a_disk_that_fills_up_is_one_error_and_leaves_nothing(cache: Path) -> None:
    slide = in_memory("s/a.svs", noise(3000 * KB), cache)
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def limited() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sys.dont_write_bytecode = True  # it would be cut off, and published so
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * KB, 1000 * KB))
        try:
            hold(slide)
        except RemoteError as error:
            told.put(str(error))
        else:
            told.put("no error")

    child = context.Process(target=limited)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert "is full (File too large): give a smaller --cache-size, or --cache on another disk" in told.get()
    assert taken(cache) == 0
    hold(slide).release()


def test_what_was_damaged_in_the_cache_is_fetched_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = noise(300 * KB)
    slide = in_memory("s/a.svs", data, cache)
    held = hold(slide)
    held.release()
    for damaged in (data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        held.path.write_bytes(damaged)
        monkeypatch.setattr(staging, "_verified", set())  # as in another process
        again = hold(slide)
        assert again.path.read_bytes() == data
        again.release()
    record = held.path.parents[1] / "entry.json"
    assert json.loads(record.read_text())["url"] == "memory://s/a.svs"
    record.write_text("[" * 5)
    monkeypatch.setattr(staging, "_verified", set())
    hold(slide).release()
    assert caplog.text.count("is damaged: it is fetched anew") == 3


def test_a_slide_is_fetched_once_for_all_who_want_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide, reads, read = in_memory("s/a.svs", noise(300 * KB), cache), [], servers.read_parts
    monkeypatch.setattr(servers, "read_parts", lambda *args: (time.sleep(0.05), reads.append(args), read(*args))[2])
    threads = [threading.Thread(target=lambda: hold(slide).release()) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(reads) == 1


def flaky(monkeypatch: pytest.MonkeyPatch, fault: Callable[[int, list[bytes]], list[bytes]]) -> list[int]:
    """Let each reading of memory pass through ``fault``, which is told its number."""
    counts, ranges = itertools.count(1), MemoryFileSystem.cat_ranges
    asked: list[int] = []

    def cat_ranges(self: MemoryFileSystem, *args: Any, **options: Any) -> list[bytes]:
        asked.append(next(counts))
        return fault(asked[-1], ranges(self, *args, **options))

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", cat_ranges)
    return asked


def fails_before(last: int) -> Callable[[int, list[bytes]], list[bytes]]:
    def fault(number: int, parts: list[bytes]) -> list[bytes]:
        if number < last:
            raise ConnectionResetError("reset by peer, https://host/a?X-Amz-Signature=secret")
        return parts

    return fault


def test_trouble_that_passes_costs_nothing_but_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = in_memory("s/a.svs", noise(300 * KB), cache)
    asked = flaky(monkeypatch, fails_before(trouble.TRIES))
    hold(slide).release()
    assert len(asked) == trouble.TRIES


def test_trouble_that_stays_is_one_error_without_secrets(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    slide = in_memory("s/a.svs", noise(300 * KB), cache)
    asked = flaky(monkeypatch, fails_before(10**6))
    with pytest.raises(RemoteError, match=r"memory://s/a.svs cannot be read, after 4 tries: ConnectionRes") as caught:
        hold(slide)
    assert len(asked) == trouble.TRIES
    assert caught.value.__suppress_context__
    assert "secret" not in f"{caught.value} {caplog.text}"
    assert taken(cache) == 0


def test_a_download_that_is_cut_short_is_no_slide(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = in_memory("s/a.svs", noise(300 * KB), cache)
    flaky(monkeypatch, lambda _number, parts: [part[:-1] for part in parts])
    with pytest.raises(RemoteError, match=r"299999 bytes came of 300000 from byte 0 on"):
        hold(slide)
    assert taken(cache) == 0


def test_a_slide_that_changes_or_vanishes_is_not_mixed(cache: Path) -> None:
    slide = in_memory("s/a.svs", noise(300 * KB), cache)
    time.sleep(0.01)
    write("memory://s/a.svs", noise(300 * KB, 1))
    with pytest.raises(RemoteError, match="was replaced while it was worked on"):
        hold(slide)
    write("memory://s/a.svs", noise(200 * KB))
    with pytest.raises(RemoteError, match="has 200000 bytes now, and had 300000"):
        hold(slide)
    fsspec.filesystem("memory").rm("/s/a.svs")
    with pytest.raises(RemoteError, match=r"memory://s/a.svs is not there, or not any more"):
        hold(slide)
    assert find_again("memory://s/a.svs", slide.cache) is None


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_what_a_listing_names_is_what_is_fetched_then(scheme: str, tmp_path: Path, cache: Path) -> None:
    """A listing may tell times in another form than a question about one file does."""
    url = "memory://listed" if scheme == "memory" else f"file://{tmp_path / 'listed'}"
    (tmp_path / "listed").mkdir()
    write(f"{url}/a.svs", noise(100))
    [found] = find_slides(Url(url), CacheParams(cache))
    held = hold(found.path)
    assert held.path.read_bytes() == noise(100)
    held.release()


def test_times_are_one_moment_in_any_form() -> None:
    told = ("2026-11-26T17:29:12.5+00:00", datetime(2026, 11, 26, 17, 29, 12, 500_000, tzinfo=UTC), 1795714152.5)
    assert {servers._moment(one) for one in told} == {"1795714152.500000"}
    assert servers._moment("Thu, 26 Nov 2026 17:29:12 GMT") == servers._moment(1795714152)
    assert servers._moment("of another age") == "of another age"


def test_names_that_lead_out_of_the_cache_are_no_slides(cache: Path) -> None:
    write("memory://s/a.mrxs", b"x")
    MemoryFileSystem.store["/s/a/../../../out.dat"] = MemoryFileSystem.store["/s/a.mrxs"]
    MemoryFileSystem.store["/s/../b.svs"] = MemoryFileSystem.store["/s/a.mrxs"]
    (found,) = find_slides(Url("memory://s"), CacheParams(cache))
    assert found.slide_id == "a"
    assert isinstance(found.path, RemoteSlide)
    assert [file.name for file in found.path.files] == ["a.mrxs"]


def test_a_slide_that_is_open_stays_and_messages_name_its_address(cache: Path, make_slide: Callable[..., Path]) -> None:
    data = make_slide(size=(512, 512)).read_bytes()
    size = f"{len(data) + 10}"
    slide, other = in_memory("s/a.tif", data, cache, size), in_memory("s/b.tif", b"no slide", cache, size)
    with open_slide(slide) as opened:
        assert recorded(opened.place) == "memory://s/a.tif"
        waiting = Waiting()
        waiting.stop()
        with pytest.raises(Interrupted):
            hold(in_memory("s/c.tif", data, cache, size), waiting)
        assert opened.path.exists()
        assert opened.thumbnail(8.0).image.shape[2] == 3
    with pytest.raises(SlideUnreadable, match=r"memory://s/b\.tif") as caught:
        open_slide(other)
    assert str(cache) not in str(caught.value)
    hold(in_memory("s/c.tif", data, cache, size)).release()  # so nobody holds the others
    assert pickle.loads(pickle.dumps(slide)) == slide


def test_slides_are_fetched_before_their_turn_and_in_their_order(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slides = [in_memory(f"s/{name}.svs", noise(300 * KB, name), cache, "1MB") for name in range(8)]
    order, admitted = [], admit
    monkeypatch.setattr(
        "wsi_mil.remote.ahead.admit", lambda slide, waiting: (order.append(str(slide)), admitted(slide, waiting))[1]
    )
    seen = []
    with Ahead(iter(slides), str, lambda slide: slide, count=2) as ahead:
        for slide in ahead.items():
            with ahead.use(slide):
                held = hold(slide)
                seen.append(held.path.read_bytes())
                assert taken(cache) <= 1000 * KB
                held.release()
            if len(seen) == 1:
                time.sleep(0.3)
                assert len(order) == 3  # the first one and the two that come next
    assert seen == [noise(300 * KB, name) for name in range(8)]
    assert order == [str(slide) for slide in slides]


def test_a_slide_that_cannot_be_had_fails_alone(cache: Path) -> None:
    slides = [in_memory(f"s/{name}.svs", noise(10 * KB, name), cache) for name in range(3)]
    fsspec.filesystem("memory").rm("/s/1.svs")
    became = []
    with Ahead(iter([*slides, Path("here.svs")]), str, lambda slide: slide) as ahead:
        for slide in ahead.items():
            try:
                with ahead.use(slide):
                    became.append("done")
            except RemoteError as error:
                became.append(str(error))
    assert became == ["done", "memory://s/1.svs is not there, or not any more", "done", "done"]


def test_whoever_stops_waits_for_no_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slides = [in_memory(f"s/{name}.svs", noise(700 * KB, name), cache, "1MB") for name in range(4)]
    elsewhere = hold(slides[3])  # no room for the others
    with Ahead(iter(slides), str, lambda slide: slide) as ahead:
        items = ahead.items()
        first = next(items)
        threading.Timer(0.2, items.close).start()
        with pytest.raises(Interrupted), ahead.use(first):
            pass
    elsewhere.release()
    hold(slides[0]).release()


def _take_turns(slides: list[RemoteSlide], told: Any) -> None:
    with Ahead(iter(slides), str, lambda slide: slide, count=2) as ahead:
        for slide in ahead.items():
            with ahead.use(slide):
                held = hold(slide)
                told.put(hashlib.md5(held.path.read_bytes()).hexdigest())
                held.release()


def test_processes_that_share_a_small_cache_end_well(cache: Path) -> None:
    slides = [in_memory(f"s/{name}.svs", noise(300 * KB, name), cache, "700kB") for name in range(6)]
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    children = [context.Process(target=_take_turns, args=(part, told)) for part in (slides, slides[::-1], slides[2:])]
    for child in children:
        child.start()
    most = 0
    while any(child.is_alive() for child in children):
        most = max(most, _bytes_now(cache))
        time.sleep(0.005)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    expected = {hashlib.md5(noise(300 * KB, name)).hexdigest() for name in range(6)}
    assert {told.get() for _ in range(16)} == expected
    assert most <= 700 * KB


def _bytes_now(cache: Path) -> int:
    try:
        return taken(cache)
    except FileNotFoundError:  # evicted between listing and asking
        return 0


@contextmanager
def slow_child(slide: RemoteSlide) -> Iterator[Any]:
    """A process that is in the middle of a slide."""
    context = multiprocessing.get_context("fork")
    begun = context.Event()

    def crawl() -> None:
        mark = admit(slide, Waiting())
        part = slide.cache.place / "staged" / f"{slide.key}.part" / "files"
        part.mkdir(parents=True)
        (part / "half.svs").write_bytes(b"0" * 1000)
        begun.set()
        time.sleep(60)
        fetch(slide, mark, Waiting())

    child = context.Process(target=crawl)
    child.start()
    assert begun.wait(30)
    yield child
    child.kill()
    child.join()


def test_what_a_killed_process_held_is_nobodys(cache: Path) -> None:
    slide, other = (in_memory(f"s/{name}.svs", noise(700 * KB, name), cache, "1MB") for name in range(2))
    with slow_child(slide) as child:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        hold(other).release()  # its room was free at once
        assert not (cache / "staged" / f"{slide.key}.part").exists()
        hold(slide).release()


def test_a_mark_without_a_size_does_not_let_its_slide_in_unseen(cache: Path) -> None:
    slide, other = (in_memory(f"s/{name}.svs", noise(700 * KB, name), cache, "1MB") for name in range(2))
    hold(other).release()
    (cache / "staged" / f"{slide.key}.mark").touch()
    hold(slide).release()
    assert taken(cache) == 700 * KB


def test_s3_is_checked_by_the_checksums_that_it_tells(s3: str, cache: Path) -> None:
    import boto3

    data, client = noise(20 * KB), boto3.client("s3")
    options = {"plain": {}, "sha": {"ChecksumAlgorithm": "SHA256"}, "crc": {"ChecksumAlgorithm": "CRC32"}}
    for name, option in options.items():
        client.put_object(Bucket=BUCKET, Key=f"sums/{name}.svs", Body=data, **option)
    told = {name: facts_of(Url(f"s3://{BUCKET}/sums/{name}.svs")).checksums for name in options}
    assert all(one["md5"] == hashlib.md5(data).hexdigest() for one in told.values())
    assert told["sha"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert "crc32" in told["crc"]
    for name in options:
        hold(slide_at(f"s3://{BUCKET}/sums/{name}.svs", cache)).release()
    client.close()


@pytest.mark.parametrize(
    ("name", "check"), [("crc32", "cbf43926"), ("crc32c", "e3069283"), ("crc64nvme", "ae8b14860a799888")]
)
def test_crcs_are_those_of_their_catalogue_however_the_bytes_come(name: str, check: str) -> None:
    one = digest(name)
    one.update(b"123456789")
    assert one.hexdigest() == check
    data = noise(300 * KB)
    for cuts in ((), (1,), (0, 7, 1023, 1024, 1025, 5000, 262_144)):
        other, several = digest(name), digest(name)
        for byte in range(0, len(data), 50_000):
            other.update(data[byte : byte + 50_000])
        for start, stop in itertools.pairwise((0, *cuts, len(data))):
            several.update(data[start:stop])
        assert other.hexdigest() == several.hexdigest()
    assert digest("sha1").hexdigest() == hashlib.sha1().hexdigest()


def test_crcs_are_those_of_bit_after_bit() -> None:
    for name, (polynomial, bits) in sums._POLYNOMIALS.items():
        data, value = noise(3000), (1 << bits) - 1
        for byte in data:
            value ^= byte
            for _ in range(8):
                value = value >> 1 ^ (polynomial if value & 1 else 0)
        quick = digest(name)
        quick.update(data)
        assert int(quick.hexdigest(), 16) == value ^ ((1 << bits) - 1)


def test_a_slide_that_came_to_s3_in_parts_is_checked_as_a_whole(s3: str, cache: Path) -> None:
    import boto3

    data, client = noise(6 << 20), boto3.client("s3")
    key = {"Bucket": BUCKET, "Key": "sums/parts.svs"}
    kind = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
    upload = client.create_multipart_upload(**key, **kind)["UploadId"]
    parts = [data[: 5 << 20], data[5 << 20 :]]
    tags = [
        client.upload_part(**key, UploadId=upload, PartNumber=number, Body=part)["ETag"]
        for number, part in enumerate(parts, 1)
    ]
    told = {"Parts": [{"ETag": tag, "PartNumber": number} for number, tag in enumerate(tags, 1)]}
    client.complete_multipart_upload(**key, UploadId=upload, MultipartUpload=told)
    client.close()
    assert "md5" not in facts_of(Url(f"s3://{BUCKET}/sums/parts.svs")).checksums
    hold(slide_at(f"s3://{BUCKET}/sums/parts.svs", cache)).release()


def test_checksums_of_each_service_are_those_of_the_whole_content() -> None:
    def coded(digits: str) -> str:
        return base64.b64encode(bytes.fromhex(digits)).decode()

    def of(**info: Any) -> dict[str, str]:
        return dict(servers._facts({"size": 1, **info}).checksums)

    crc, long, md5 = "e3069283", "ae8b14860a799888", "01" * 16
    whole = {"ETag": f'"{md5}-2"', "ChecksumCRC64NVME": coded(long), "ChecksumType": "FULL_OBJECT"}
    assert of(**whole) == {"crc64nvme": long}
    assert of(ChecksumCRC32C=coded(crc)) == {"crc32c": crc}
    assert not of(ChecksumCRC32C=coded(crc), ChecksumType="COMPOSITE")
    assert not of(ChecksumCRC32C=f"{coded(crc)}-2")
    assert of(crc32c=coded(crc), etag="x", generation="3") == {"crc32c": crc}  # GCS, composed: it tells no md5
    for said in (md5, "not base 64", "", coded(crc)):  # of a web server: digits, nonsense, something else
        assert not of(**{"Content-MD5": said})
    assert of(**{"Content-MD5": coded(md5)}) == {"md5": md5}
    azure = SimpleNamespace(content_md5=bytearray(b"\1" * 16))
    assert of(etag="0x8D", content_settings=azure) == {"md5": md5}
    assert not of(etag="0x8D", content_settings=SimpleNamespace(content_md5=None))
    assert servers._facts({"size": 1, "last_modified": datetime(2026, 1, 1, tzinfo=UTC)}).version


def test_etags_that_are_no_md5_are_not_taken_for_one() -> None:
    head = {"ContentLength": 1, "size": 1, "ETag": f'"{"0" * 32}"'}
    assert servers._facts(head).checksums == {"md5": "0" * 32}
    assert not servers._facts(head | {"ServerSideEncryption": "aws:kms"}).checksums
    assert not servers._facts(head | {"SSECustomerAlgorithm": "AES256"}).checksums
    assert not servers._facts(head | {"ETag": f'"{"0" * 32}-2"'}).checksums
    assert not servers._facts(head | {"bucket": "slides--use1-az4--x-s3"}).checksums  # which has no MD5s
    assert not servers._facts({"size": 1, "ETag": f'"{"0" * 32}"'}).checksums  # a listing does not tell how it is kept
    of_parts = base64.b64encode(b"0" * 32).decode()
    assert not servers._facts({"size": 1, "ETag": "x", "ChecksumSHA256": f"{of_parts}-3"}).checksums
    gcs = servers._facts({"size": 1, "etag": "x", "md5Hash": base64.b64encode(b"\1" * 16).decode()})
    assert gcs.checksums == {"md5": "01" * 16}


def test_a_wrong_checksum_fetches_once_more_and_then_fails_by_name(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, facts = in_memory("s/a.svs", noise(20 * KB), cache), servers.facts_of
    told: dict[str, str] = {"crc32": "00000000"}
    monkeypatch.setattr(servers, "facts_of", lambda *args: servers.Facts(facts(*args).size, facts(*args).version, told))
    asked = flaky(monkeypatch, lambda _number, parts: parts)
    with pytest.raises(RemoteError, match=r"memory://s/a.svs: what came, twice, has crc32 \w{8}, not 00000000 as its"):
        hold(slide)
    assert len(asked) == 2
    assert taken(cache) == 0


class _Web(http.server.BaseHTTPRequestHandler):
    """Serves parts of one file; what it does to others, the first part of the path says."""

    data = noise(300 * KB)
    dying = itertools.count()

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        kind = self.path.split("/")[1]
        if kind in ("401", "403", "404", "418", "503"):
            self.send_error(int(kind))
            return
        whole, asked = self.data, self.headers.get("Range")
        if asked and kind != "whole":
            start, stop = map(int, asked.removeprefix("bytes=").split("-"))
            part = whole[start : stop + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(whole)}")
        else:
            part = whole
            self.send_response(200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if body:
            self.wfile.write(part[:100] if kind == "dies" and len(part) > 1 else part)
            self.close_connection = True


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_one_slide_of_a_web_server_by_its_signed_address(web: str, cache: Path) -> None:
    (found,) = find_slides(Url(f"{web}/ok/my%20a.svs?X-Amz-Signature=secret"), CacheParams(cache))
    assert found.slide_id == "my a"
    assert recorded(found.path) == f"{web}/ok/my%20a.svs"
    held = hold(found.path)
    assert held.path.read_bytes() == _Web.data
    held.release()
    assert not any(b"secret" in path.read_bytes() for path in cache.rglob("*") if path.is_file())
    assert slide_fingerprint(found.path) == slide_fingerprint(held.path)


def test_a_cache_that_cannot_keep_a_fingerprint_is_told_of_and_costs_nothing_else(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise StorageError("no room is left")

    (tmp_path / "a.svs").write_bytes(noise(KB))
    there = in_memory("far/a.svs", noise(KB), cache)
    assert there.has_versions
    monkeypatch.setattr("wsi_mil.slides.far.write_bytes", full)
    assert slide_fingerprint(there) == slide_fingerprint(tmp_path / "a.svs")
    assert f"{there}: the next run will read samples of it again (no room is left)" in caplog.text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("403/a.svs?sig=secret", r"access is denied \(403\): its address may have expired: ask for a new one$"),
        ("401/a.svs", r"access is denied \(401\)"),
        ("418/a.svs", r"the server refuses it \(418\)"),
        ("503/a.svs", r"cannot be read, after 4 tries: ClientResponseError: 503"),
        ("whole/a.svs", r"sends no parts of files \(ranges\): download the slide yourself"),
        ("dies/a.svs", r"cannot be read, after 4 tries: "),
        ("404/a.svs", r"no folders are listed over http://: name one slide"),
        ("ok", r"no folders are listed over http://: name one slide"),
        ("ok/a.mrxs", r"a .mrxs slide may be several files"),
    ],
)
def test_web_servers_fail_in_one_line(web: str, cache: Path, path: str, said: str) -> None:
    def fetched() -> None:
        (found,) = find_slides(Url(f"{web}/{path}"), CacheParams(cache))
        assert isinstance(found.path, RemoteSlide)
        hold(found.path)

    with pytest.raises((RemoteError, OptionError), match=said) as caught:
        fetched()
    assert "secret" not in str(caught.value)
    assert f"{web}/{path.partition('?')[0]}" in str(caught.value)


def test_a_server_that_is_gone_is_one_line(cache: Path) -> None:
    with pytest.raises(RemoteError, match=r"http://127.0.0.1:9/a.svs cannot be read, after 4 tries"):
        find_slides(Url("http://127.0.0.1:9/a.svs"), CacheParams(cache))


def test_protocols_that_nobody_installed_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteError, match=r"slides at gs:// need a package that is not installed: pip install gcsfs"):
        list_files(Url("gs://bucket/slides"))
    with pytest.raises(RemoteError, match=r"nothing:// is no protocol of fsspec"):
        list_files(Url("nothing://bucket/slides"))


def test_denied_and_anonymous_access_say_what_to_set() -> None:
    class NoCredentialsError(Exception):
        pass

    class ClientError(Exception):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self.response = {"ResponseMetadata": {"HTTPStatusCode": 403}}

    def fail(error: Exception) -> Callable[[], None]:
        def ask() -> None:
            raise error

        return ask

    for error in (PermissionError("Forbidden"), ClientError("AKIAABCDEFGHIJKLMNOP"), NoCredentialsError("none")):
        with pytest.raises(RemoteError, match=r"s3://b/a: access is denied.*AWS_PROFILE") as caught:
            trouble.patiently(Url("s3://b/a"), fail(error))
        assert "ABCDEFG" not in str(caught.value)


def test_slides_in_the_cache_are_the_users_alone(cache: Path) -> None:
    slide, before = in_memory("s/a.svs", noise(KB), cache), os.umask(0o022)
    try:
        hold(slide).release()
    finally:
        os.umask(before)
    assert [stat.S_IMODE(place.stat().st_mode) for place in (cache, cache / "staged")] == [0o700, 0o700]


def test_a_mark_that_is_a_link_is_not_followed(cache: Path, tmp_path: Path) -> None:
    slide = in_memory("s/a.svs", noise(KB), cache)
    (cache / "staged").mkdir(parents=True)
    (tmp_path / "mine").write_text("mine")
    (cache / "staged" / f"{slide.key}.mark").symlink_to(tmp_path / "mine")
    with pytest.raises(RemoteError, match="--cache"):
        hold(slide)
    assert (tmp_path / "mine").read_text() == "mine"
