"""Encoders trained on histology at companies: the recipes that their authors published.

Where libraries disagree on one, the record follows its authors and its note says what others do. Parameters were
counted for exactly these arguments.
"""

from collections.abc import Mapping
from typing import Any

from wsi_mil.encoders.spec import HALF, SWIGLU, TILE_20X_224PX, TILE_20X_256PX, EncoderSpec, Rgb, sees_224px

_BIOPTIMUS: tuple[Rgb, Rgb] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_HIBOU: tuple[Rgb, Rgb] = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
_LUNIT: tuple[Rgb, Rgb] = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))

_OWKIN = (
    sees_224px(
        "phikon",
        768,
        tile_um=TILE_20X_224PX,
        licence="Owkin non-commercial",
        arch="vit_base_patch16_224",
        arch_kwargs={"norm_eps": 1e-12},
        layout="hf-vit",
        pooling="cls",
        interpolation="bilinear",
        hub_id="owkin/phikon",
        parameters=85.80,
    ),
    sees_224px(
        "phikon-v2",
        1024,
        "its authors name no filter for resizing: the one of phikon is taken",
        tile_um=TILE_20X_224PX,
        licence="Owkin non-commercial",
        arch="vit_large_patch16_224",
        arch_kwargs={"init_values": 1e-5},
        layout="hf-dinov2",
        pooling="cls",
        interpolation="bilinear",
        hub_id="owkin/phikon-v2",
        parameters=303.35,
    ),
)


def _paige(name: str, pooling: str, licence: str, hub_id: str, parameters: float, **kwargs: Any) -> EncoderSpec:
    return sees_224px(
        name,
        2560 if pooling == "cls+mean" else 1280,
        "class token and mean of the patch tokens" if pooling == "cls+mean" else "class token alone",
        tile_um=TILE_20X_224PX,
        licence=licence,
        gated=True,
        arch="vit_huge_patch14_224",
        arch_kwargs={
            **SWIGLU, "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "",
            "dynamic_img_size": True, **kwargs,
        },
        pooling=pooling,
        precision="fp16",
        hub_id=hub_id,
        parameters=parameters,
    )  # fmt: skip


_VIRCHOW: tuple[str, str, float] = ("Apache-2.0 and terms", "paige-ai/Virchow", 631.23)
_VIRCHOW2: tuple[str, str, float] = ("CC-BY-NC-ND-4.0", "paige-ai/Virchow2", 631.24)
_PAIGE = (
    _paige("virchow", "cls+mean", *_VIRCHOW),
    _paige("virchow-cls", "cls", *_VIRCHOW),
    _paige("virchow2", "cls+mean", *_VIRCHOW2, reg_tokens=4),
    _paige("virchow2-cls", "cls", *_VIRCHOW2, reg_tokens=4),
)


def _bioptimus(name: str, dim: int, note: str, **recipe: Any) -> EncoderSpec:
    return sees_224px(
        name,
        dim,
        note,
        tile_um=TILE_20X_224PX,
        mean=_BIOPTIMUS[0],
        std=_BIOPTIMUS[1],
        precision="fp16",
        hub_file="pytorch_model.bin",
        **recipe,
    )


_H_OPTIMUS: Mapping[str, Any] = {
    "arch": "vit_giant_patch14_reg4_dinov2",
    "arch_kwargs": {"img_size": 224, "init_values": 1e-5, "global_pool": "token", "dynamic_img_size": False},
    "parameters": 1134.77,
}
_H0_MINI: Mapping[str, Any] = {
    "licence": "CC-BY-NC-ND-4.0",
    "gated": True,
    "arch": "vit_base_patch14_reg4_dinov2",
    "arch_kwargs": {
        **SWIGLU, "img_size": 224, "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "global_pool": "",
    },
    "hub_id": "bioptimus/H0-mini",
    "parameters": 85.74,
}  # fmt: skip
_INFERRED = "network and file name inferred from its size and its sisters, as its recipe lies on its gated page alone"
_AS_IS = "its authors cut tiles of 224 px and resize none"
_HOPTIMUS = (
    _bioptimus("h-optimus-0", 1536, _AS_IS, licence="Apache-2.0", hub_id="bioptimus/H-optimus-0", **_H_OPTIMUS),
    _bioptimus(
        "h-optimus-1",
        1536,
        _AS_IS,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        hub_id="bioptimus/H-optimus-1",
        **_H_OPTIMUS,
    ),
    _bioptimus(
        "h0-mini", 1536, f"class token and mean of the patch tokens; {_INFERRED}", pooling="cls+mean", **_H0_MINI
    ),
    _bioptimus("h0-mini-cls", 768, f"class token alone, as TRIDENT has it; {_INFERRED}", pooling="cls", **_H0_MINI),
)

_GIGAPATH = (
    sees_224px(
        "gigapath",
        1536,
        "its authors resize to 256 px and cut 224 px from the middle; the hub's configuration does not",
        tile_um=TILE_20X_256PX,
        licence="Apache-2.0, research only",
        gated=True,
        arch="vit_giant_patch14_dinov2",
        arch_kwargs={
            "img_size": 224, "in_chans": 3, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24,
            "mlp_ratio": 5.33334,
        },
        resize_px=256,
        precision="fp16",
        hub_id="prov-gigapath/prov-gigapath",
        hub_file="pytorch_model.bin",
        parameters=1134.95,
    ),
)  # fmt: skip


def _midnight(name: str, dim: int, pooling: str, note: str) -> EncoderSpec:
    return sees_224px(
        name,
        dim,
        note,
        tile_um=TILE_20X_224PX,
        licence="MIT",
        arch="vit_giant_patch14_dinov2",
        arch_kwargs={"img_size": 224},
        layout="hf-dinov2",
        pooling=pooling,
        mean=HALF[0],
        std=HALF[1],
        interpolation="bilinear",
        precision="fp16",
        hub_id="kaiko-ai/midnight",
        parameters=1134.77,
    )


def _kaiko(size: str, patch: int, dim: int, parameters: float) -> EncoderSpec:
    # The large one was trained at 518 px: its positions are resampled to the image whenever it runs.
    arch, img_size = ("vit_large_patch14_reg4_dinov2", 518) if patch == 14 else (f"vit_{size}_patch{patch}_224", 224)
    return sees_224px(
        f"kaiko-vit{size[0]}{patch}",
        dim,
        tile_um=TILE_20X_256PX,
        licence="Kaiko non-commercial",
        arch=arch,
        arch_kwargs={"img_size": img_size, "dynamic_img_size": True},
        layout="dinov2",
        mean=HALF[0],
        std=HALF[1],
        interpolation="bilinear",
        hub_id=f"1aurent/{arch}.kaiko_ai_towards_large_pathology_fms",
        parameters=parameters,
    )


_KAIKO = (
    _midnight("midnight-12k", 3072, "cls+mean", "class token and mean of the patch tokens"),
    _midnight("midnight-12k-cls", 1536, "cls", "class token alone, which is what TRIDENT's code returns"),
    _kaiko("small", 8, 384, 21.67),
    _kaiko("small", 16, 384, 21.67),
    _kaiko("base", 8, 768, 85.81),
    _kaiko("base", 16, 768, 85.80),
    _kaiko("large", 14, 1024, 304.37),
)


def _hibou(name: str, size: str, dim: int, mlp_ratio: float, parameters: float, **source: Any) -> EncoderSpec:
    return sees_224px(
        name,
        dim,
        "run by timm, not by the code on its hub page, which transformers 5 cannot run; its authors name no um/px: "
        "that of nearly all others is taken",
        tile_um=TILE_20X_224PX,
        licence="Apache-2.0",
        arch=f"vit_{size}_patch14_reg4_dinov2",
        arch_kwargs={**SWIGLU, "img_size": 224, "mlp_ratio": mlp_ratio},
        layout="hf-dinov2",
        pooling="cls",
        mean=_HIBOU[0],
        std=_HIBOU[1],
        parameters=parameters,
        **source,
    )


def _lunit(patch: int) -> EncoderSpec:
    arch = f"vit_small_patch{patch}_224"
    return sees_224px(
        f"lunit-vits{patch}",
        384,
        "normalised as its authors' release notes say; TRIDENT and the hub's configuration use ImageNet's numbers",
        tile_um=TILE_20X_224PX,
        licence="Lunit research only",
        arch=arch,
        mean=_LUNIT[0],
        std=_LUNIT[1],
        hub_id=f"1aurent/{arch}.lunit_dino",
        parameters=21.67,
    )


_HIBOU_LUNIT = (
    # 2 x 2048 and 2 x 2736 hidden units: two thirds of 4 x dim, rounded up to a multiple of 8.
    _hibou("hibou-b", "base", 768, 5.33334, 85.7, hub_id="histai/hibou-b"),
    _hibou("hibou-l", "large", 1024, 5.34375, 303.7, hub_id="histai/hibou-L", gated=True),
    _lunit(8),
    _lunit(16),
)

COMPANIES: tuple[EncoderSpec, ...] = (*_OWKIN, *_PAIGE, *_HOPTIMUS, *_GIGAPATH, *_KAIKO, *_HIBOU_LUNIT)
