"""Feeding encoders: what a GPU is asked for and in which order, told by a stand-in, and the same answers everywhere."""

import sys
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsi_mil.encoders import DeviceEncoder, Feeder, load_encoder
from wsi_mil.encoders import feeder as feeding
from wsi_mil.encoders.preprocess import normalise
from wsi_mil.errors import EncoderError
from wsi_mil.progress import Progress
from wsi_mil.streaming import Pace, Tiles, stream
from wsi_mil.streaming.reading import Reader

streaming = sys.modules["wsi_mil.streaming.stream"]  # the package's `stream` is the function


class Plain:
    """What a plug-in may be: no more than `encode`."""

    dim, tile_px, precision, mpp = 1, 8, "fp32", None
    preprocessing, network, weights, weights_sha256 = {}, {}, "none", "0" * 64

    def __init__(self, name: str = "plain", log: list | None = None) -> None:
        self.name, self.log = name, [] if log is None else log

    def encode(self, tiles):
        self.log.append(f"{self.name} encodes")
        return torch.as_tensor(tiles).float().mean((1, 2, 3))[:, None]


class OnGpu(Plain):
    """One that can be fed; its "GPU" is this machine."""

    device = torch.device("cpu")
    fails = False

    def embed(self, tiles):
        self.log.append(f"{self.name} embeds")
        if self.fails:
            raise EncoderError("too many tiles at once")
        with torch.inference_mode():
            return tiles.float().mean((1, 2, 3))[:, None]


class Cuda:
    """Streams and events that only say what is asked of them."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.computing = log, SimpleNamespace(name="compute", wait_event=self._wait)
        self.counts = {False: 0, True: 0}

    def _wait(self, event) -> None:
        self.log.append(f"compute waits for {event.name}")

    def Stream(self, device):
        return SimpleNamespace(name="copy")

    @contextmanager
    def stream(self, stream):
        self.log.append(f"on {stream.name}")
        yield

    def current_stream(self, device):
        return self.computing

    def Event(self, enable_timing=False):
        name = f"{'timed' if enable_timing else 'arrived'} {self.counts[enable_timing]}"
        self.counts[enable_timing] += 1
        return SimpleNamespace(
            name=name,
            record=lambda stream: self.log.append(f"{name} on {stream.name}"),
            synchronize=lambda: self.log.append(f"host waits for {name}"),
            elapsed_time=lambda other: 250.0,
        )


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What happens; encoders that can be fed count as on a GPU."""
    monkeypatch.setattr(feeding, "_device", lambda encoder: getattr(encoder, "device", None))
    return []


def tiles(value: int, count: int = 4) -> torch.Tensor:
    return torch.full((count, 8, 8, 3), value, dtype=torch.uint8)


def test_the_next_batch_is_on_its_way_before_the_host_waits_for_the_one_before(log):
    encoder = OnGpu("net", log)
    feeder = Feeder([encoder], Cuda(log))
    feeder.put("one", tiles(1), [encoder])
    assert not feeder.is_full
    feeder.put("two", tiles(2), [encoder])
    assert feeder.is_full
    assert not [line for line in log if line.startswith("host waits")]
    first, second = feeder.get(), feeder.get()
    assert (first.label, second.label, len(feeder)) == ("one", "two", 0)
    assert torch.equal(first.found[0], torch.full((4, 1), 1.0))
    assert torch.equal(second.found[0], torch.full((4, 1), 2.0))
    assert (first.busy_s, second.busy_s) == (0.25, 0.25)
    each = ["on copy", "arrived {0} on copy", "compute waits for arrived {0}", "timed {1} on compute", "net embeds"]
    each.append("timed {2} on compute")
    asked = [line.format(batch, 2 * batch, 2 * batch + 1) for batch in (0, 1) for line in each]
    assert log == [*asked, "host waits for timed 1", "host waits for timed 3"]


def test_several_encoders_share_one_copy_to_the_device_and_others_answer_at_once(log):
    nets, plain = [OnGpu("a", log), OnGpu("b", log)], Plain("c", log)
    feeder = Feeder([*nets, plain], Cuda(log))
    feeder.put("batch", tiles(3), [nets[0], plain, nets[1]])
    assert log.count("on copy") == 1
    assert [line for line in log if line[1:] in (" embeds", " encodes")] == ["a embeds", "c encodes", "b embeds"]
    assert all(torch.equal(found, torch.full((4, 1), 3.0)) for found in feeder.get().found)


def test_an_encoder_that_fails_costs_the_others_nothing_and_what_is_under_way_is_waited_for(log):
    sound, sick = OnGpu("sound", log), OnGpu("sick", log)
    sick.fails = True
    with Feeder([sound, sick], Cuda(log)) as feeder:
        feeder.put("batch", tiles(1), [sick, sound])
        feeder.put("late", tiles(1), [sound])
        error, features = feeder.get().found
        assert isinstance(error, EncoderError)
        assert torch.equal(features, torch.ones(4, 1))
    assert log[-1].startswith("host waits")


class Strip:
    """A slide of tiles that are told apart by their value, and the column of its features."""

    def __init__(self, first: int, count: int, encoder) -> None:
        self.first, self.count, self.encoder, self.error = first, count, encoder, None
        self.made = torch.full((count, 1), -1.0)

    def open(self) -> Tiles:
        return Tiles([self], self.count, 8, self.read, lambda: None)

    def read(self, start: int, stop: int) -> np.ndarray:
        return (
            tiles(0, stop - start).numpy()
            + np.arange(self.first + start, self.first + stop, dtype=np.uint8)[:, None, None, None]
        )

    def fill(self, start: int, features: torch.Tensor) -> None:
        self.made[start : start + len(features)] = features


def test_a_stream_keeps_two_batches_on_a_gpu_and_returns_each_row_to_its_slide(log, monkeypatch):
    encoder = OnGpu("net", log)
    monkeypatch.setattr(streaming, "Feeder", partial(Feeder, cuda=Cuda(log)))
    monkeypatch.setattr(Reader, "is_ready", lambda self: bool(self._planned))  # as if the pixels were always there
    slides = [Strip(first, count, encoder) for first, count in ((0, 3), (3, 30), (33, 1), (34, 7))]
    works = list(stream(iter(slides), [encoder], Pace(4, 2), Progress()))
    assert [work.error for work in works] == [None] * 4
    for slide in slides:
        assert torch.equal(slide.made[:, 0], torch.arange(slide.first, slide.first + slide.count).float())
    told = [line.split()[0] for line in log if line.startswith("host waits") or line == "net embeds"]
    under_way = np.cumsum([1 if word == "net" else -1 for word in told])
    assert told.count("net") == 11  # batches of 4, for 41 tiles
    assert max(under_way) == 2


def test_a_network_on_a_gpu_that_fails_now_and_then_costs_the_slides_at_fault(log, monkeypatch):
    class Picky(OnGpu):
        def embed(self, tiles):
            self.fails = bool((tiles == 5).any())
            return super().embed(tiles)

        def encode(self, tiles):
            return self.embed(torch.as_tensor(tiles))

    encoder = Picky("picky", log)
    monkeypatch.setattr(streaming, "Feeder", partial(Feeder, cuda=Cuda(log)))
    slides = [Strip(first, 3, encoder) for first in range(0, 30, 3)]
    list(stream(iter(slides), [encoder], Pace(8, 2), Progress()))
    assert [slide.first for slide in slides if slide.error] == [3]
    for slide in slides:
        assert slide.error or torch.equal(slide.made[:, 0], torch.arange(slide.first, slide.first + 3).float())


def test_without_a_gpu_a_batch_is_done_when_it_is_put():
    encoder = Plain()
    feeder = Feeder([encoder])
    feeder.put("batch", tiles(1), [encoder])
    assert feeder.is_full
    assert encoder.log == ["plain encodes"]
    assert feeder.get().busy_s > 0
    feeder.put("nothing", tiles(1), [])
    assert feeder.get().found == []
    assert not feeder.allocate(10).is_pinned()


@pytest.mark.parametrize("made", [torch.zeros(3, 1), torch.zeros(4, 2), torch.zeros(4)])
def test_what_is_not_one_vector_per_tile_is_refused(made, log):
    plain, fed = Plain("plain", log), OnGpu("fed", log)
    plain.encode = fed.embed = lambda tiles: made
    feeder = Feeder([plain, fed], Cuda(log))
    feeder.put("batch", tiles(1), [plain, fed])
    for error, name in zip(feeder.get().found, ("plain", "fed"), strict=True):
        assert isinstance(error, EncoderError)
        assert f"{name} returned {tuple(made.shape)} for 4 tiles instead of 1 numbers each" in str(error)


def test_networks_of_timm_can_be_fed_and_embed_what_they_encode():
    encoder = load_encoder("timm:test_vit", "random:0")
    assert isinstance(encoder, DeviceEncoder)
    assert not isinstance(load_encoder("morphology"), DeviceEncoder)
    given = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    assert torch.equal(encoder.embed(given), encoder.encode(given))
    assert encoder.embed(given).is_inference()
    assert not encoder.encode(given).is_inference()
    assert torch.equal(normalise(given, encoder.spec), normalise(given, encoder.spec))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_bits_fed_or_not_in_any_row():
    encoder = load_encoder("timm:test_vit", "random:0", "cuda")
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)) for _ in range(6)]
    for row, batch in enumerate(batches):
        batch[row] = batches[0][0]
    with Feeder([encoder]) as feeder:
        memory = feeder.allocate(batches[0].numel())
        assert memory.is_pinned()
        found = []
        for batch in batches:
            feeder.put(batch, batch.pin_memory(), [encoder])
            while feeder.is_full:
                found.append(feeder.get())
        while len(feeder):
            found.append(feeder.get())
    assert [one.label is batch for one, batch in zip(found, batches, strict=True)] == [True] * 6
    for row, one in enumerate(found):
        assert torch.equal(one.found[0], encoder.encode(one.label))
        assert torch.equal(one.found[0][row], found[0].found[0][0])
        assert one.busy_s > 0
