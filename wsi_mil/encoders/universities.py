"""Encoders trained on histology at universities: the recipes that their authors published.

Where libraries disagree on one, the record follows its authors and its note says what others do. Parameters were
counted for exactly these arguments.
"""

from typing import Any

from wsi_mil.encoders.spec import SWIGLU, TILE_20X_224PX, TILE_20X_256PX, EncoderSpec, sees_224px


def _ctranspath(name: str, note: str, **source: Any) -> EncoderSpec:
    return sees_224px(
        name,
        768,
        note,
        tile_um=256.0,
        arch="swin_tiny_patch4_window7_224",
        arch_kwargs={"embed_layer": "ConvStem"},
        layout="swin-old",
        interpolation="bilinear",
        parameters=27.52,
        **source,
    )


_CTRANSPATH = (
    _ctranspath(
        "ctranspath",
        "Wang et al. 2022; its authors say 1.0 um/px, others use 5x to 10x; TRIDENT's encoder of this name is "
        "chief-ctranspath",
        licence="GPL-3.0, non-commercial",
        hub_id="1aurent/swin_tiny_patch4_window7_224.CTransPath",
        page="https://drive.google.com/file/d/1DoDx_70_TLj98gTf6YTXnu4tFhsFocDX",
        sha256="7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539",
    ),
    _ctranspath(
        "chief-ctranspath",
        "CTransPath as CHIEF trained it further (Wang et al. 2024): same network, other weights",
        licence="AGPL-3.0",
        hub_file="CHIEF_CTransPath.pth",
        page="https://drive.google.com/file/d/1_vgRF1QXa8sPCOpJ1S9BihwZhXQMOVJc",
        sha256="1646f23001214f74cf432ef0e80b808ee6605143802ae6ed53a87564ddc4924a",
    ),
)

_MAHMOOD = (
    sees_224px(
        "uni",
        1024,
        "Chen et al. 2024; its authors show bilinear resizing, and the hub's bicubic one, which others use",
        tile_um=TILE_20X_256PX,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        arch="vit_large_patch16_224",
        arch_kwargs={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
        interpolation="bilinear",
        precision="fp16",
        hub_id="MahmoodLab/UNI",
        hub_file="pytorch_model.bin",
        parameters=303.35,
    ),
    sees_224px(
        "uni2-h",
        1536,
        tile_um=TILE_20X_256PX,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        arch="vit_giant_patch14_224",
        arch_kwargs={
            **SWIGLU, "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536,
            "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8,
            "dynamic_img_size": True,
        },
        interpolation="bilinear",
        precision="bf16",
        hub_id="MahmoodLab/UNI2-h",
        hub_file="pytorch_model.bin",
        parameters=681.39,
    ),
)  # fmt: skip


_GPFM = (
    sees_224px(
        "gpfm",
        1024,
        tile_um=TILE_20X_224PX,
        licence="CC-BY-NC-ND-4.0",
        arch="vit_large_patch14_dinov2",
        arch_kwargs={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
        layout="dinov2",
        precision="fp16",
        hub_id="majiabo/GPFM",
        hub_file="GPFM.pth",
        parameters=303.23,
    ),
)

UNIVERSITIES: tuple[EncoderSpec, ...] = (*_CTRANSPATH, *_MAHMOOD, *_GPFM)
