"""Raw slides: what is encoded, what is found in the cache, and when weights are looked at."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from painting import EOSIN, disc, flat
from PIL import Image
from test_encoders_weights import trained_on

from wsi_mil import checkpoint, store
from wsi_mil.asked import slides_at
from wsi_mil.encoders import LateEncoder, load_encoder
from wsi_mil.errors import WeightsError
from wsi_mil.predict import PredictOptions, predict_slides
from wsi_mil.predictions import Prediction

TINY = "timm:test_vit"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The encoders whose weights are read, as it happens."""
    loaded, load = [], LateEncoder.load
    monkeypatch.setattr(LateEncoder, "load", lambda self: (self._loaded or loaded.append(self.name), load(self))[1])
    return loaded


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return trained_on(tmp_path / "checkpoint.safetensors", load_encoder(TINY, "random:0"))


def rows_of(model: Path, source: Path, out: Path) -> dict[str, Prediction]:
    return {row.slide_id: row for row in predict_slides(model, slides_at([source]), PredictOptions(out))}


def test_weights_are_read_only_if_a_slide_needs_them(
    model: Path, tmp_path: Path, make_slide: Callable[..., Path], loads: list[str]
) -> None:
    make_slide("new/a.tif", (1024, 1024))
    (tmp_path / "new" / "broken.svs").write_bytes(b"no slide")
    first = rows_of(model, tmp_path / "new", tmp_path / "out")
    assert loads == [TINY]
    assert {name: row.status for name, row in first.items()} == {"a": "done", "broken": "failed"}
    again = rows_of(model, tmp_path / "new", tmp_path / "out")
    assert loads == [TINY]  # nor for the slide that failed before its turn
    assert again["a"].probabilities == first["a"].probabilities
    assert (first["a"].seconds or 0) > (again["a"].seconds or 0)
    make_slide("new/b.tif", (1024, 1024), radius_um=300)
    assert rows_of(model, tmp_path / "new", tmp_path / "out")["b"].status == "done"
    assert loads == [TINY] * 2


def test_cached_features_of_other_weights_are_made_again(
    model: Path, tmp_path: Path, make_slide: Callable[..., Path], loads: list[str]
) -> None:
    slide = make_slide("a.tif", (1024, 1024))
    rows_of(model, slide, tmp_path / "out")
    other = trained_on(tmp_path / "other.safetensors", load_encoder(TINY, "random:1"))
    options = PredictOptions(tmp_path / "out", overwrite=False)
    (tmp_path / "out" / "predictions.csv").unlink()
    (row,) = predict_slides(other, slides_at([slide]), options)
    assert loads == [TINY] * 2
    cached = store.read_attrs(tmp_path / "out" / "cache" / "feats" / "a.h5")
    assert cached["encoder_weights_sha256"] == checkpoint.load(other).recipe.encoder_weights_sha256
    assert cached["encoder_weights"] == "random:1"
    assert row.status == "done"


def test_a_model_of_slides_that_one_reader_alone_read_predicts_on_other_formats(model: Path, tmp_path: Path) -> None:
    made = checkpoint.load(model)
    checkpoint.save(model, dataclasses.replace(made, tile_params={**made.tile_params, "reader": "direct"}))
    image = flat(1024, 1024)
    disc(image, 512, 512, 400, EOSIN)
    Image.fromarray(image).save(tmp_path / "plain.png")
    (row,) = predict_slides(model, slides_at([tmp_path / "plain.png"]), PredictOptions(tmp_path / "out"), mpp=1.0)
    assert (row.status, row.error) == ("done", "")


def test_weights_that_cannot_be_had_are_named_before_any_slide_is_tiled(
    model: Path, tmp_path: Path, make_slide: Callable[..., Path]
) -> None:
    slide, made = make_slide("a.tif", (1024, 1024)), checkpoint.load(model)
    checkpoint.save(model, dataclasses.replace(made, encoder_weights=str(tmp_path / "gone.pth")))
    with pytest.raises(WeightsError, match=r"gone.pth is not there any more"):
        rows_of(model, slide, tmp_path / "out")
    assert not (tmp_path / "out").exists()
