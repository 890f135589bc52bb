"""Encoders trained on natural images, as timm publishes them: the baselines that every paper compares with."""

from wsi_mil.encoders.spec import EncoderSpec


def _resnet50(name: str, dim: int, pooling: str, note: str) -> EncoderSpec:
    return EncoderSpec(
        name,
        dim,
        224,
        tile_um=None,
        licence="BSD-3-Clause",
        arch="resnet50",
        pooling=pooling,
        interpolation="bilinear",
        hub_id="timm/resnet50.tv_in1k",
        parameters=23.51,
        note=note,
    )


def _dinov2(size: str, dim: int, parameters: float) -> EncoderSpec:
    arch = f"vit_{size}_patch14_dinov2"
    return EncoderSpec(
        f"dinov2-{size}",
        dim,
        224,
        tile_um=None,
        licence="Apache-2.0",
        arch=arch,
        arch_kwargs={"img_size": 224},
        layout="timm-resampled",
        hub_id=f"timm/{arch}.lvd142m",
        parameters=parameters,
        note="trained at 518 px: timm resamples its positions when the weights are loaded",
    )


def _dinov3(size: str, dim: int, parameters: float) -> EncoderSpec:
    arch = f"vit_{size}_patch16_dinov3"
    return EncoderSpec(
        f"dinov3-{size}",
        dim,
        256,
        tile_um=None,
        licence="DINOv3 License",
        arch=arch,
        arch_kwargs={"global_pool": "token"},
        hub_id=f"timm/{arch}.lvd1689m",
        parameters=parameters,
        note="class token, as its authors use it; timm's own default is the mean of the patch tokens",
    )


NATURAL: tuple[EncoderSpec, ...] = (
    _resnet50("resnet50", 2048, "model", "the mean over the last feature map"),
    _resnet50("resnet50-layer3", 1024, "map", "the mean over layer3: what CLAM and TRIDENT call ResNet-50"),
    _dinov2("small", 384, 21.6),
    _dinov2("base", 768, 85.7),
    _dinov2("large", 1024, 303.2),
    _dinov2("giant", 1536, 1134.8),
    _dinov3("small", 384, 21.6),
    _dinov3("base", 768, 85.6),
    _dinov3("large", 1024, 303.1),
)
