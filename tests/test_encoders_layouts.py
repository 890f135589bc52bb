"""Checkpoints of transformers and of DINOv2's training code, run by timm: every token the same."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsi_mil.encoders import EncoderSpec, load_encoder
from wsi_mil.encoders._timm import import_timm
from wsi_mil.encoders.building import build_network
from wsi_mil.encoders.layouts import convert_layout
from wsi_mil.errors import WeightsError

SIDE, PATCH, DIM = 40, 8, 48
SIZE = {"hidden_size": DIM, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": SIDE, "patch_size": PATCH}
KWARGS = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": DIM, "depth": 3, "num_heads": 3}
GATED = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "mlp_ratio": 128 * 2 / DIM}
REGISTERS = {"reg_tokens": 4, "no_embed_class": True}
KINDS = {
    "vit": ("ViT", {"intermediate_size": 96, "layer_norm_eps": 1e-3}, "hf-vit", {"mlp_ratio": 2, "norm_eps": 1e-3}),
    "dinov2": ("Dinov2", {}, "hf-dinov2", {"init_values": 1.0, "norm_eps": 1e-6}),
    "swiglu": ("Dinov2", {"use_swiglu_ffn": True}, "hf-dinov2", {"init_values": 1.0, **GATED}),
    "registers": ("Dinov2WithRegisters", {"num_register_tokens": 4}, "hf-dinov2", {"init_values": 1.0, **REGISTERS}),
    "registers, swiglu": (
        "Dinov2WithRegisters",
        {"num_register_tokens": 4, "use_swiglu_ffn": True},
        "hf-dinov2",
        {"init_values": 1.0, **REGISTERS, **GATED},
    ),
}
# From what transformers 5 calls tensors back to 4, in which the published files are.
OLDER = (
    (r"^layers\.", "encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.down_proj", "mlp.weights_out"),
)


def published(kind: str) -> tuple[Any, EncoderSpec]:
    """A small model of transformers whose every tensor is drawn, in float64, and the record of its twin."""
    import_timm()  # transformers imports torchvision too, without the cure
    transformers = pytest.importorskip("transformers")
    family, options, layout, kwargs = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**SIZE, **options)
    torch.manual_seed(len(kind))
    model = getattr(transformers, f"{family}Model")(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    spec = EncoderSpec(
        kind, 2 * DIM, SIDE, None, "", arch="vit_base_patch16_224", arch_kwargs={**KWARGS, **kwargs}, layout=layout,
        pooling="cls+mean", mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    return model, spec


def older(state: dict[str, Tensor], vit: bool) -> dict[str, Tensor]:
    """The names of transformers 4."""
    names = {}
    for name, tensor in state.items():
        for pattern, replacement in OLDER:
            name = re.sub(pattern, replacement, name)
        if vit:
            name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        if "mlp.gate_proj" in name:
            up = state[name.replace("gate_proj", "up_proj")]
            name, tensor = name.replace("gate_proj", "weights_in"), torch.cat([tensor, up])
        if "mlp.up_proj" not in name:
            names[name] = tensor
    return names


def twin(spec: EncoderSpec, state: dict[str, Tensor]) -> Any:
    model = build_network(spec).double().eval()
    model.load_state_dict(convert_layout(state, spec.layout, model.state_dict(), "file"), strict=True)
    return model


@pytest.mark.parametrize("names", ["of transformers 5", "of transformers 4"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_that_of_transformers(kind: str, names: str) -> None:
    model, spec = published(kind)
    state = model.state_dict()
    if names.endswith("4"):
        state = older(state, kind == "vit")
        assert any(name.startswith("encoder.layer.0.attention.attention.query") for name in state)
    before = {name: tensor.clone() for name, tensor in state.items()}
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images).last_hidden_state
        got = twin(spec, state).forward_features(images)
    assert got.shape == expected.shape == (2, 1 + 4 * ("registers" in kind) + 25, DIM)
    assert (got - expected).abs().max() < 1e-10
    assert state.keys() == before.keys()  # what was given is left as it is
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_the_epsilon_of_the_norms_counts() -> None:
    model, spec = published("vit")
    other = EncoderSpec(**{**vars(spec), "arch_kwargs": {**spec.arch_kwargs, "norm_eps": 1e-6}})
    images = torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images).last_hidden_state
        assert (twin(other, model.state_dict()).forward_features(images) - expected).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["swiglu", "registers"])
def test_a_file_gives_class_token_and_mean_of_the_patches(kind: str, tmp_path: Path) -> None:
    model, spec = published(kind)
    model.float()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = load_encoder(spec, str(tmp_path / "w.safetensors"))
    tiles = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    with torch.no_grad():
        tokens = model((torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).last_hidden_state
    first_patch = 1 + 4 * (kind == "registers")
    expected = torch.cat([tokens[:, 0], tokens[:, first_patch:].mean(1)], dim=1)
    assert torch.allclose(encoder.encode(tiles), expected, atol=1e-4)
    class_token = EncoderSpec(**{**vars(spec), "pooling": "cls", "dim": DIM})
    assert torch.allclose(
        load_encoder(class_token, str(tmp_path / "w.safetensors")).encode(tiles), tokens[:, 0], atol=1e-4
    )


@pytest.mark.parametrize("kind", ["vit", "registers"])
@pytest.mark.parametrize("in_timms_terms", [False, True])
def test_positions_of_another_grid_are_refused(kind: str, in_timms_terms: bool, tmp_path: Path) -> None:
    model, spec = published(kind)
    state = model.float().state_dict()
    if in_timms_terms:
        state = convert_layout(state, spec.layout, {}, "")
    save_file(state, tmp_path / "w.safetensors")
    larger = EncoderSpec(**{**vars(spec), "tile_px": 64, "arch_kwargs": {**spec.arch_kwargs, "img_size": 64}})
    tokens = (26, 65) if kind == "vit" else (25, 64)
    with pytest.raises(WeightsError, match=r"w.safetensors holds positions .* of {} tokens .* has {}".format(*tokens)):
        load_encoder(larger, str(tmp_path / "w.safetensors"))


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    model, spec = published("dinov2")
    state = model.float().state_dict()
    state["encoder.layer.0.adapter.weight"] = torch.zeros(1)
    del state["encoder.layer.1.attention.k_proj.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing \(blocks.1.attn.qkv.weight\).*blocks.0.adapter.weight"):
        load_encoder(spec, str(tmp_path / "w.safetensors"))


def test_what_training_needs_and_features_do_not_is_left_out() -> None:
    model, spec = published("vit")
    state = {**model.state_dict(), "pooler.dense.weight": torch.zeros(1), "embeddings.mask_token": torch.zeros(1)}
    twin(spec, state)


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("kind", ["dinov2", "swiglu", "registers", "registers, swiglu"])
def test_files_of_dinov2s_training_code_are_taken(kind: str, chunks: int) -> None:
    model, spec = published(kind)
    ours = convert_layout(model.state_dict(), spec.layout, {}, "")
    theirs = {"mask_token": torch.zeros(1, DIM), "dino_head.mlp.0.weight": torch.zeros(1)}
    for name, tensor in ours.items():
        if chunks > 1:
            name = re.sub(r"^blocks\.(\d+)\.", lambda match: f"blocks.{int(match[1]) % chunks}.{match[1]}.", name)
        if "swiglu" in kind:
            name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        theirs[name] = tensor
    if "registers" in kind:
        position = torch.randn(1, 1, DIM, dtype=torch.float64)
        theirs["register_tokens"] = theirs.pop("reg_token")
        theirs["cls_token"] = theirs["cls_token"] - position
        theirs["pos_embed"] = torch.cat([position, theirs["pos_embed"]], dim=1)
    for layout in ("dinov2", "hf-dinov2"):  # hibou publishes both
        converted = convert_layout(theirs, layout, {}, "")
        assert converted.keys() == ours.keys()
        assert all(torch.allclose(converted[name], ours[name], atol=1e-12) for name in ours)
    assert convert_layout(ours, "dinov2", ours, "") == ours  # and what is in timm's terms already
