"""CTransPath on today's timm computes what the library did that it was trained with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_cli import call
from torch.nn import functional

from wsi_mil import store
from wsi_mil.encoders import EncoderSpec, find_encoder, load_encoder
from wsi_mil.encoders.building import build_network
from wsi_mil.encoders.ctranspath import ConvStem
from wsi_mil.errors import WeightsError
from wsi_mil.slides import write_pyramid

TINY = EncoderSpec(
    "tiny-ctranspath",
    dim=64,
    tile_px=224,
    tile_um=256.0,
    licence="",
    arch="swin_tiny_patch4_window7_224",
    arch_kwargs={"embed_layer": "ConvStem", "embed_dim": 8, "num_heads": (1, 2, 4, 8)},
    layout="swin-old",
)
BLOCKS = [f"layers.{stage}.blocks.{block}" for stage, depth in enumerate((2, 2, 6, 2)) for block in range(depth)]
SHIFTED = ["layers.0.blocks.1", "layers.1.blocks.1", "layers.2.blocks.1", "layers.2.blocks.3", "layers.2.blocks.5"]


def scrambled(seed: int = 3) -> torch.nn.Module:
    """A network whose every tensor is drawn, so that none can be left out unnoticed."""
    model = build_network(TINY)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn * 0.3 + (tensor.ndim == 1))
    return model.eval()


def old_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state as timm 0.5.4 saved it."""
    old = dict(state)
    for stage in (1, 2, 3):  # patches were merged at the end of a stage
        for name in ("norm.weight", "norm.bias", "reduction.weight"):
            old[f"layers.{stage - 1}.downsample.{name}"] = old.pop(f"layers.{stage}.downsample.{name}")
    for block in BLOCKS:  # what was saved beside the weights
        old[f"{block}.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    for block in SHIFTED:
        old[f"{block}.attn_mask"] = torch.zeros(4, 49, 49)
    return old


def tiles(count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["old", "today's", "old, with a head"])
def test_both_layouts_give_the_features_of_the_model_that_wrote_them(layout: str, tmp_path: Path) -> None:
    model = scrambled()
    state = dict(model.state_dict())
    assert len(state) == 183
    if layout != "today's":
        state = old_layout(state)
        assert len(state) == 200
    if layout.endswith("head"):
        state |= {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}
    save_file(state, tmp_path / "w.safetensors")
    encoder = load_encoder(TINY, str(tmp_path / "w.safetensors"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[name], tensor), name
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TINY.mean, TINY.std))
    with torch.no_grad():
        tokens = model.forward_features((torch.from_numpy(tiles()).permute(0, 3, 1, 2) / 255 - mean) / std)
    assert tokens.shape == (2, 7, 7, 64)
    assert torch.allclose(encoder.encode(tiles()), tokens.mean((1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layers.2.downsample.norm.bias"), r"missing \(layers.3.downsample.norm.bias\)"),
        (lambda state: state.pop("patch_embed.proj.4.running_var"), "missing"),
        (lambda state: state.update({"extra": torch.zeros(1)}), r"unexpected \(extra\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message, tmp_path: Path) -> None:
    state = old_layout(scrambled().state_dict())
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_encoder(TINY, str(tmp_path / "w.safetensors"))


def test_the_stem_is_two_strided_convolutions_and_one_of_a_point() -> None:
    stem = ConvStem(img_size=(16, 16), embed_dim=16, norm_layer=torch.nn.LayerNorm).eval()
    images = torch.randn(2, 3, 16, 16)
    expected = images
    for conv, norm in ((stem.proj[0], stem.proj[1]), (stem.proj[3], stem.proj[4])):
        expected = functional.conv2d(expected, conv.weight, stride=2, padding=1)
        expected = functional.batch_norm(expected, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
    expected = torch.einsum("tchw,dc->thwd", expected, stem.proj[6].weight[..., 0, 0]) + stem.proj[6].bias
    expected = functional.layer_norm(expected, (16,))
    assert torch.allclose(stem(images), expected, atol=1e-5)
    assert [tuple(stem.proj[index].weight.shape) for index in (0, 3, 6)] == [(2, 3, 3, 3), (4, 2, 3, 3), (16, 4, 1, 1)]
    with pytest.raises(ValueError, match="images of"):
        stem(torch.zeros(1, 3, 20, 20))
    for wrong in ({"patch_size": 8}, {"embed_dim": 12}, {"output_fmt": "NCHW"}):
        with pytest.raises(ValueError, match="ConvStem"):
            ConvStem(**wrong)


def test_a_file_as_published_is_extracted_with_in_silence_and_the_same_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).normal((200, 110, 160), 20, (640, 640, 3)).clip(0, 255).astype(np.uint8)
    write_pyramid(tmp_path / "slides" / "a.tif", image, 1.0)
    torch.save({"model": old_layout(build_network(find_encoder("ctranspath"), seed=1).state_dict())}, "ctranspath.pth")
    assert call("tile", "slides") == 0
    for out in ("once", "twice"):
        assert call("extract", "--model", "ctranspath", "--weights", "ctranspath.pth", "--out", out) == 0
    assert "um/px" not in capsys.readouterr().err
    assert Path("once/a.h5").read_bytes() == Path("twice/a.h5").read_bytes()
    features = store.read(Path("once/a.h5")).arrays["features"]
    assert features.shape == (len(store.read(Path("tiles/a.h5")).arrays["coords"]), 768)
    assert len(features) > 1
    assert np.isfinite(features).all()
    assert features.std(axis=0).max() > 0


def test_the_golden_case_of_the_original_library_is_met(shared: Path, tmp_path: Path) -> None:
    golden = np.load(shared / "golden" / "ctranspath" / "ctranspath_tiny_golden.npz")
    state = {name[3:]: torch.from_numpy(golden[name].copy()) for name in golden.files if name.startswith("sd/")}
    assert len(state) == 200
    save_file(state, tmp_path / "old.safetensors")
    encoder = load_encoder(TINY, str(tmp_path / "old.safetensors"))
    assert np.abs(encoder.encode(golden["input_uint8"]).numpy() - golden["expected"]).max() <= 1e-5
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TINY.mean, TINY.std))
    with torch.no_grad():
        images = (torch.from_numpy(golden["input_uint8"]).permute(0, 3, 1, 2) / 255 - mean) / std
        tokens = encoder.model.forward_features(images)
    assert np.abs(tokens.reshape(2, 49, 64).numpy() - golden["expected_norm_tokens"]).max() <= 1e-5
