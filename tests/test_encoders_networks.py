"""What a network records of itself, and how it behaves on a device that is short of memory or rounds by itself."""

import functools
import json

import numpy as np
import pytest
import torch
from torch import nn

from wsi_mil.encoders import EncoderSpec, list_encoders, load_encoder
from wsi_mil.errors import EncoderError

TINY = EncoderSpec("tiny", dim=64, tile_px=160, tile_um=160.0, licence="", arch="test_vit")
TILES = np.zeros((2, 160, 160, 3), np.uint8)


@pytest.mark.parametrize("spec", list_encoders(), ids=lambda spec: spec.name)
def test_a_record_tells_its_network_as_json_gives_it_back(spec):
    assert json.loads(json.dumps(spec.network)) == spec.network
    assert spec.network["dim"] == spec.dim


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"act_layer": nn.GELU}, {"act_layer": "torch.nn.modules.activation.GELU"}),
        (
            {"norm_layer": functools.partial(nn.LayerNorm, eps=1e-3)},
            {"norm_layer": {"partial": f"{nn.LayerNorm.__module__}.LayerNorm", "args": [], "keywords": {"eps": 1e-3}}},
        ),
        ({"num_heads": (1, 2)}, {"num_heads": [1, 2]}),
    ],
)  # fmt: skip
def test_classes_and_tuples_are_told_too(kwargs, told):
    spec = EncoderSpec("tiny", 64, 160, 160.0, "", arch="test_vit", arch_kwargs=kwargs)
    assert spec.network["arch_kwargs"] == told


def test_what_says_nothing_of_itself_is_refused():
    spec = EncoderSpec("tiny", 64, 160, 160.0, "", arch="test_vit", arch_kwargs={"act_layer": object()})
    with pytest.raises(EncoderError, match="tiny: an argument of test_vit is a object: name a class instead"):
        load_encoder(spec, "random:0")


def test_convolutions_are_not_rounded_while_an_encoder_runs():
    encoder, seen = load_encoder(TINY, "random:0"), []
    encoder.model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    encoder.encode(TILES)
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_full_memory_names_what_to_do(monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    encoder = load_encoder(TINY, "random:0")
    encoder.model.forward = full
    with pytest.raises(EncoderError, match="2 tiles at once are too much for the memory of cpu: give a sm"):
        encoder.encode(TILES)
    monkeypatch.setattr(nn.Module, "to", full)
    with pytest.raises(EncoderError, match="tiny does not fit on cpu: give --device cpu, or another GPU"):
        load_encoder(TINY, "random:0")
