"""The stream: batches of one shape from many slides, failures that cost what they must, and threads that end."""

import queue
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import numpy as np
import pytest
import torch

from wsi_mil import devices
from wsi_mil.encoders import load_encoder
from wsi_mil.errors import EncoderError, OptionError, SlideError
from wsi_mil.progress import Progress
from wsi_mil.streaming import Pace, Tiles, Told, Work, opening, stream
from wsi_mil.streaming.stream import _Encoding as Encoding

SIDE = 8
SOON = 60.0  # seconds in which what does not hang is done, on any machine


class Values:
    """An encoder whose features are a tile's first pixel; it fails on tiles that it is told of."""

    dim, tile_px, precision, mpp = 3, SIDE, "fp32", None
    preprocessing, network, weights, weights_sha256 = {}, {}, "none", "0" * 64

    def __init__(self, name: str = "values", bad: tuple[int, ...] = (), pause: float = 0.0) -> None:
        self.name, self.bad, self.pause = name, bad, pause
        self.shapes: list[tuple[int, ...]] = []

    def encode(self, tiles):
        self.shapes.append(tuple(tiles.shape))
        time.sleep(self.pause)
        values = torch.as_tensor(tiles)[:, 0, 0].float()
        if set(values[:, 0].tolist()) & set(self.bad):
            raise EncoderError("a tile that I cannot take")
        return values


class Column:
    def __init__(self, encoder, count: int) -> None:
        self.encoder, self.error, self.rows = encoder, None, np.full((count, encoder.dim), np.nan, np.float32)

    def fill(self, start: int, features: torch.Tensor) -> None:
        assert np.isnan(self.rows[start : start + len(features)]).all()  # each tile once
        self.rows[start : start + len(features)] = features


class Slide:
    """Tiles that are told apart by their pixels: the slide's number, and the tile's."""

    def __init__(self, number: int, count: int, encoders, side: int = SIDE, *, fails_at: int | None = None) -> None:
        self.number, self.count, self.encoders, self.side, self.fails_at = number, count, encoders, side, fails_at
        self.is_open, self.reads, self.lock = False, [], threading.Lock()
        self.columns: list[Column] = []

    def open(self) -> Tiles:
        if self.fails_at == -1:
            raise SlideError(f"{self.number} does not open")
        self.is_open = True
        self.columns = [Column(encoder, self.count) for encoder in self.encoders]
        return Tiles(self.columns, self.count, self.side, self.read, self.close)

    def read(self, start: int, stop: int) -> np.ndarray:
        assert self.is_open
        with self.lock:
            self.reads.extend(range(start, stop))
        if self.fails_at is not None and stop > self.fails_at:
            raise SlideError(f"{self.number} is truncated")
        tiles = np.zeros((stop - start, self.side, self.side, 3), np.uint8)
        tiles[..., 0], tiles[..., 1] = self.number, np.arange(start, stop)[:, None, None]
        assert self.is_open
        return tiles

    def close(self) -> None:
        assert self.is_open
        self.is_open = False

    @property
    def expected(self) -> np.ndarray:
        return np.stack([np.full(self.count, self.number), np.arange(self.count), np.zeros(self.count)], 1)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def put(slides, encoders, batch: int = 4, threads: int = 2, track: Progress | None = None) -> list[Work]:
    """Everything that comes out of the stream; what hangs fails."""
    with ThreadPoolExecutor(1) as pool:
        works = stream(iter(slides), encoders, Pace(batch, threads), track or Progress())
        return pool.submit(list, works).result(SOON)


def test_each_tile_goes_once_through_every_encoder_in_batches_of_one_shape():
    one, two = Values("one"), Values("two")
    slides = [Slide(number, count, [one, two]) for number, count in enumerate([7, 0, 1, 30, 2, 2])]
    works = put(slides, [one, two], batch=4)
    assert {work.source.number for work in works} == set(range(6))
    assert all(work.error is None and not work.source.is_open for work in works)
    for slide in slides:
        assert sorted(slide.reads) == list(range(slide.count))
        for column in slide.columns:
            assert np.array_equal(column.rows, slide.expected)
    assert one.shapes == two.shapes == [(4, SIDE, SIDE, 3)] * 11  # 42 tiles


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_any_batch_and_any_threads_do(batch, threads):
    encoder = Values()
    slides = [Slide(number, 1 + number * 5 % 17, [encoder]) for number in range(60)]
    works = put(slides, [encoder], batch, threads)
    assert sorted(work.source.number for work in works) == list(range(60))
    assert all(np.array_equal(slide.columns[0].rows, slide.expected) for slide in slides)


def test_tiles_of_another_size_never_share_a_batch():
    encoder = Values()
    slides = [Slide(number, 3, [encoder], side) for number, side in enumerate([SIDE, 16, SIDE, SIDE])]
    put(slides, [encoder], batch=4)
    assert encoder.shapes == [(4, SIDE, SIDE, 3), (4, 16, 16, 3), (4, SIDE, SIDE, 3), (4, SIDE, SIDE, 3)]
    assert all(np.array_equal(slide.columns[0].rows, slide.expected) for slide in slides)


def test_an_encoder_is_not_asked_for_batches_that_nobody_wants_of_it():
    one, two = Values("one"), Values("two")
    slides = [Slide(0, 8, [one]), Slide(1, 8, [two]), Slide(2, 8, [one, two])]
    put(slides, [one, two], batch=4)
    assert (len(one.shapes), len(two.shapes)) == (4, 4)


@pytest.mark.parametrize("fails_at", [-1, 0, 5, 12])
def test_a_slide_that_cannot_be_read_costs_itself_alone(fails_at):
    encoder = Values()
    slides = [Slide(number, 13, [encoder], fails_at=fails_at if number == 1 else None) for number in range(4)]
    works = put(slides, [encoder], batch=4)
    failed = [work for work in works if work.error]
    assert [(work.source.number, type(work.error)) for work in failed] == [(1, SlideError)]
    assert len(works) == 4
    assert not any(slide.is_open for slide in slides)
    assert all(np.array_equal(slide.columns[0].rows, slide.expected) for slide in slides if slide.number != 1)


def test_what_is_truncated_is_not_read_to_its_end():
    encoder = Values(pause=0.02)
    slides = [Slide(0, 255, [encoder], fails_at=10), Slide(1, 9, [encoder])]
    put(slides, [encoder], batch=4)
    assert len(slides[0].reads) < 100


def test_an_encoder_that_fails_on_a_mixed_batch_costs_the_slides_that_are_at_fault():
    picky, sound = Values("picky", bad=(1,)), Values("sound")
    slides = [Slide(number, 3, [picky, sound]) for number in range(4)]
    works = put(slides, [picky, sound], batch=8)
    assert all(work.error is None for work in works)
    for slide in slides:
        spoilt, whole = slide.columns
        assert (spoilt.error is not None) == (slide.number == 1)
        assert np.array_equal(whole.rows, slide.expected)
        assert slide.number == 1 or np.array_equal(spoilt.rows, slide.expected)
    assert set(picky.shapes) == {(8, SIDE, SIDE, 3)}  # the parts alone, too


def test_an_encoder_that_forgets_rows_of_some_tiles_costs_the_slides_that_are_at_fault():
    class Forgetful(Values):
        def encode(self, tiles):
            values = super().encode(tiles)
            return values[1:] if (values[:, 0] == 1).any() else values

    encoder = Forgetful("forgetful")
    slides = [Slide(number, 3, [encoder]) for number in range(4)]
    put(slides, [encoder], batch=8)
    for slide in slides:
        column = slide.columns[0]
        if slide.number == 1:
            assert re.search(r"forgetful returned \(7, 3\) for 8 tiles", str(column.error))
        else:
            assert column.error is None
            assert np.array_equal(column.rows, slide.expected)


def test_a_slide_that_every_encoder_fails_on_is_given_up():
    encoder = Values(bad=(0,), pause=0.01)
    slides = [Slide(0, 255, [encoder]), Slide(1, 5, [encoder])]
    works = put(slides, [encoder], batch=4)
    assert [work.source.number for work in works] == [0, 1]
    assert isinstance(slides[0].columns[0].error, EncoderError)
    assert len(slides[0].reads) < 100
    assert np.array_equal(slides[1].columns[0].rows, slides[1].expected)


def test_a_slide_comes_when_its_last_tile_has_returned_while_others_are_still_to_be_opened():
    encoder, taken = Values(), []

    def endless() -> Iterator[Slide]:
        for number in repeat(0):
            taken.append(number)
            yield Slide(number, 6, [encoder])

    works = stream(endless(), [encoder], Pace(4, 2), Progress())
    for _ in range(10):
        assert next(works).error is None
    works.close()
    assert len(taken) < 10 + 60  # a few ahead, not a cohort


def test_how_much_is_ahead_does_not_depend_on_the_slide():
    encoder = Values()
    slide = Slide(0, 200, [encoder])
    encoder.pause = 0.2
    works = stream(iter([slide, Slide(1, 200, [encoder]), Slide(2, 200, [encoder])]), [encoder], Pace(4, 2), Progress())
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, works)
        time.sleep(0.5)
        ahead = len(slide.reads) - 4 * len(encoder.shapes)
        encoder.pause = 0.0
        first.result(SOON)
    works.close()
    assert ahead <= 6 * 4


def test_threads_end_and_slides_are_closed_when_the_caller_stops():
    encoder = Values(pause=0.01)
    slides = [Slide(number, 50, [encoder]) for number in range(20)]
    works = stream(iter(slides), [encoder], Pace(4, 3), Progress())
    next(works)
    works.close()
    assert not any(slide.is_open for slide in slides)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(slides, encoder)
    assert not any(slide.is_open for slide in slides)


def _interrupted(slides, encoder) -> None:
    works = stream(iter(slides), [encoder], Pace(4, 3), Progress())
    next(works)
    works.throw(KeyboardInterrupt)


def test_slides_that_nobody_takes_wait_without_a_growing_heap():
    encoder = Values()
    slides = [Slide(number, 4, [encoder]) for number in range(200)]
    works = stream(iter(slides), [encoder], Pace(4, 2), Progress())
    next(works)
    time.sleep(0.3)
    assert sum(bool(slide.columns) for slide in slides) < 60
    works.close()


def test_what_is_given_up_ends_though_nobody_takes_what_is_done():
    """As after a second Ctrl-C, which ends the caller's own waiting too."""
    encoder, ended = Values(), queue.Queue(1)
    slides = [Slide(number, 4, [encoder]) for number in range(20)]
    encoding = Encoding(iter(slides), [encoder], Pace(4, 2), ended, Progress(), Told(2))
    thread = threading.Thread(target=encoding.run, daemon=True)
    thread.start()
    until = time.monotonic() + SOON
    while not (ended.full() and len(encoder.shapes) > 1) and time.monotonic() < until:
        time.sleep(0.01)
    encoding.interrupt()
    thread.join(SOON)
    assert not thread.is_alive()
    assert not any(slide.is_open for slide in slides)


def test_an_error_in_the_cohort_itself_reaches_the_caller():
    encoder = Values()

    def broken() -> Iterator[Slide]:
        yield Slide(0, 5, [encoder])
        raise ZeroDivisionError("in the list of slides")

    with pytest.raises(ZeroDivisionError):
        put(broken(), [encoder])


def test_an_error_of_whoever_counts_reaches_the_caller():
    class Broken(Progress):
        def step(self, tiles: int) -> None:
            raise queue.Empty("a bug")

    encoder = Values()
    slides = [Slide(number, 50, [encoder]) for number in range(9)]
    with pytest.raises(queue.Empty, match="a bug"):
        put(slides, [encoder], track=Broken())
    assert not any(slide.is_open for slide in slides)


def test_slides_are_opened_ahead_but_not_all():
    opener = opening.Opener(iter([Slide(number, 10, [Values()]) for number in range(90)]), tiles=100)
    first = opener.take(wait=True)
    assert first is not None
    until = time.monotonic() + SOON
    while len(opener._opened) < 10 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(opener._opened) in (10, 11)  # 100 tiles, and one that was being opened
    rest = [opener.take(wait=True) for _ in range(89)]
    assert [work.source.number for work in rest] == list(range(1, 90))
    assert opener.take(wait=True) is None
    assert opener.ended
    assert opener.stop() == []


def test_an_impossible_batch_is_refused():
    with pytest.raises(OptionError, match="--batch 0"):
        next(stream(iter([]), [Values()], Pace(0, 1), Progress()))


def test_time_is_shared_among_slides_and_adds_up():
    encoder, told = Values(pause=0.02), Told(2)
    slides = [Slide(number, 6, [encoder]) for number in range(5)]
    began = time.perf_counter()
    works = list(stream(iter(slides), [encoder], Pace(4, 2), Progress(), told))
    wall = time.perf_counter() - began
    assert sum(work.timing.seconds for work in works) == pytest.approx(told.spent.seconds)
    assert sum(work.timing.busy_s for work in works) == pytest.approx(told.spent.busy_s)
    assert sum(work.timing.decode_s for work in works) == pytest.approx(told.spent.decode_s)
    assert told.spent.decode_s > 0
    assert 8 * 0.02 <= told.spent.busy_s <= told.spent.seconds <= wall
    assert told.tiles == 30
    assert "30 tiles in" in str(told)
    assert re.fullmatch(r"reading [\d.]+ CPU s, waiting for tiles \d+%, encoder busy \d+%", told.note)


def test_reading_that_was_in_vain_took_time_too():
    encoder, told = Values(), Told(2)
    slide = Slide(0, 40, [encoder], fails_at=32)
    (work,) = stream(iter([slide]), [encoder], Pace(4, 2), Progress(), told)
    assert isinstance(work.error, SlideError)
    assert told.spent.decode_s == pytest.approx(work.timing.decode_s)
    assert told.spent.decode_s > 0


@pytest.mark.parametrize(
    ("waiting", "busy", "decode", "verdict"),
    [
        (0.1, 0.9, 1.0, "the encoder holds it back"),
        (0.3, 0.7, 1.0, "the encoder holds it back"),
        (0.1, 0.1, 0.0, "neither does"),
        (0.9, 0.1, 0.0, "the disk holds it back"),
        (0.9, 0.1, 9e9, "decoding holds it back"),
    ],
)
def test_the_verdict_names_what_holds_back(waiting, busy, decode, verdict, monkeypatch):
    told = Told(1)
    monkeypatch.setattr(time, "process_time", lambda: told._cpu_began)
    told.add(100, type(told.spent)(10.0, decode, 10 * waiting, 10 * busy))
    assert verdict in str(told)


@pytest.mark.parametrize(("machine", "cores", "used"), [(64, 3, 3), (2, 8, 2)])
def test_torch_uses_no_more_threads_than_there_are_cores(machine, cores, used, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(devices, "available_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: machine)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    encoder = Values()
    put([Slide(0, 3, [encoder])], [encoder])
    assert asked == [used, machine]


# ------------------------------------------------------------------------------------------------------ the same bytes

NETWORKS = ["timm:test_vit", "timm:test_resnet", "timm:test_efficientnet", "timm:test_convnext"]


@pytest.mark.parametrize("name", NETWORKS)
def test_features_of_a_tile_are_the_same_bits_in_any_row_beside_any_neighbours(name):
    encoder = load_encoder(name, "random:0")
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    found = []
    for row in range(8):
        tiles = rng.integers(0, 256, (8, 96, 96, 3), dtype=np.uint8) * np.uint8(row % 2)
        tiles[row] = tile
        found.append(encoder.encode(tiles)[row])
    assert all(torch.equal(one, found[0]) for one in found)
