"""How tokens and maps become one vector: each pooling against the same done by hand."""

import numpy as np
import pytest
import torch

from wsi_mil.encoders import EncoderSpec, find_encoder, load_encoder
from wsi_mil.encoders.building import build_network
from wsi_mil.encoders.pooling import POOLINGS

SIDE = 56
REGISTERS = {
    "img_size": SIDE, "patch_size": 14, "embed_dim": 48, "depth": 2, "num_heads": 3, "global_pool": "",
}  # fmt: skip


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    """A network none of whose tensors is zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def vit() -> torch.nn.Module:
    """A transformer with a class token, four registers and 16 patches, that pools nothing itself."""
    spec = EncoderSpec("vit", 48, SIDE, None, "", arch="vit_base_patch14_reg4_dinov2", arch_kwargs=REGISTERS)
    return drawn(build_network(spec))


def test_the_class_token_and_the_mean_of_the_patches_leave_registers_out(vit: torch.nn.Module) -> None:
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        tokens = vit(images)
        assert tokens.shape == (2, 1 + 4 + 16, 48)
        assert torch.equal(POOLINGS["cls"](vit, images), tokens[:, 0])
        both = POOLINGS["cls+mean"](vit, images)
    assert torch.equal(both[:, :48], tokens[:, 0])
    assert torch.allclose(both[:, 48:], tokens[:, 5:].mean(1), atol=1e-6)
    assert not torch.allclose(both[:, 48:], tokens[:, 1:].mean(1), atol=1e-3)


def test_means_are_taken_in_float32(vit: torch.nn.Module) -> None:
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert POOLINGS["cls+mean"](vit, images).dtype == torch.float32


def test_resnet50_layer3_is_the_mean_over_layer3() -> None:
    encoder = load_encoder("resnet50-layer3", "random:0")
    seen = []
    hook = encoder.model.layer3.register_forward_hook(lambda module, inputs, output: seen.append(output))
    last = encoder.model.layer4.register_forward_hook(lambda module, inputs, output: pytest.fail("layer4 was run"))
    features = encoder.encode(np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8))
    hook.remove()
    last.remove()
    assert seen[0].shape == (2, 1024, 14, 14)
    assert torch.equal(features, seen[0].mean((2, 3)))


def test_the_token_of_dinov3_is_taken_and_not_the_mean() -> None:
    with torch.device("meta"):
        assert build_network(find_encoder("dinov3-small")).global_pool == "token"
