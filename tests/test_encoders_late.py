import dataclasses

import numpy as np
import pytest

from wsi_mil.encoders import DeviceEncoder, Encoder, LateEncoder, find_encoder, late, load_encoder
from wsi_mil.errors import IncompatibleError, OptionError
from wsi_mil.extract import ExtractParams

TINY = "timm:test_vit"


@pytest.fixture(scope="module")
def loaded() -> Encoder:
    return load_encoder(TINY, "random:0")


def late_encoder(loaded: Encoder, **told: str) -> LateEncoder:
    known = {"weights": "random:0", "sha256": loaded.weights_sha256, "device": "cpu", "precision": "fp32"}
    return LateEncoder(find_encoder(TINY), **(known | told))


def test_it_records_what_the_encoder_that_it_loads_would_and_loads_nothing_for_that(
    loaded: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "load_encoder", None)
    encoder = late_encoder(loaded)
    assert ExtractParams.of(encoder) == ExtractParams.of(loaded)
    for name in ("name", "dim", "tile_px", "mpp", "weights"):
        assert getattr(encoder, name) == getattr(loaded, name)
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, DeviceEncoder)


def test_it_encodes_as_the_encoder_does_which_it_loads_once(loaded: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(late, "load_encoder", lambda *args, **kwargs: calls.append(args) or loaded)
    encoder, tiles = late_encoder(loaded), np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for _ in range(2):
        np.testing.assert_array_equal(encoder.encode(tiles), loaded.encode(tiles))
    assert len(calls) == 1


def test_other_weights_than_were_told_are_refused_when_they_are_loaded(loaded: Encoder) -> None:
    with pytest.raises(IncompatibleError, match="holds weights"):
        late_encoder(loaded, weights="random:1").encode(np.zeros((1, 32, 32, 3), np.uint8))


def test_an_encoder_that_does_not_do_what_its_record_says_is_refused(loaded: Encoder) -> None:
    encoder = late_encoder(loaded)
    encoder.preprocessing = {**encoder.preprocessing, "resize_px": 1}
    with pytest.raises(IncompatibleError, match="does not do what its record says of preprocessing"):
        encoder.load()


def test_what_makes_no_sense_is_refused_at_once(loaded: Encoder) -> None:
    with pytest.raises(OptionError, match="--precision fp16"):
        late_encoder(loaded, precision="fp16")
    spec = dataclasses.replace(find_encoder(TINY), interpolation="nearest")
    from wsi_mil.errors import EncoderError

    with pytest.raises(EncoderError, match="resizes its tiles by nearest"):
        LateEncoder(spec, "random:0", loaded.weights_sha256, "cpu", "fp32")
