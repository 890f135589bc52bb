"""The encoders that wsimil knows by name: one record each, with the recipe that its authors published.

The recipe lives here and not in timm's ``pretrained_cfg``, because that belongs to the generic architecture: for
``vit_large_patch16_224`` it says mean 0.5, which is not what UNI was trained with. Only ``timm:<name>`` takes it,
since there the name says which weights are meant.
"""

import difflib

from wsi_mil.encoders._timm import import_timm
from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import EncoderError


def _dinov2(size: str, dim: int) -> EncoderSpec:
    arch = f"vit_{size}_patch14_dinov2"
    hub_id = f"timm/{arch}.lvd142m"
    return EncoderSpec(f"dinov2-{size}", dim, 224, None, "Apache-2.0", False, arch, {"img_size": 224}, hub_id=hub_id)


ENCODERS: dict[str, EncoderSpec] = {
    spec.name: spec
    for spec in (
        EncoderSpec("morphology", dim=60, tile_px=224, tile_um=256.0, licence="Apache-2.0"),
        EncoderSpec(
            "resnet50",
            dim=2048,
            tile_px=224,
            tile_um=None,
            licence="BSD-3-Clause",
            arch="resnet50",
            interpolation="bilinear",
            hub_id="timm/resnet50.tv_in1k",
        ),
        _dinov2("small", 384),
        _dinov2("base", 768),
        _dinov2("large", 1024),
        EncoderSpec(
            "uni",
            dim=1024,
            tile_px=224,
            tile_um=128.0,  # 256 px at 0.5 um/px
            licence="CC-BY-NC-ND-4.0",
            gated=True,
            arch="vit_large_patch16_224",
            arch_kwargs={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
            interpolation="bilinear",
            hub_id="MahmoodLab/UNI",
            hub_file="pytorch_model.bin",
        ),
    )
}


def list_encoders() -> list[EncoderSpec]:
    """The encoders of the table; beside them, ``timm:<name>`` takes any model of timm."""
    return list(ENCODERS.values())


def find_encoder(name: str) -> EncoderSpec:
    """Return the record of an encoder, for ``timm:<name>`` made of what timm knows about it.

    Raises:
        EncoderError: nobody knows the name.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith("timm:"):
        return _of_timm(name.removeprefix("timm:"))
    raise EncoderError(f"there is no encoder {name!r}{_nearest(name, list(ENCODERS))}: see `wsimil encoders`")


def _of_timm(name: str) -> EncoderSpec:
    import torch  # here, since the table is also read by those who load nothing

    timm = import_timm()
    published = timm.list_models(pretrained=True)
    if not (timm.is_model(name) and ("." not in name or name in published)):
        near = _nearest(name, [*timm.list_models(), *published])
        raise EncoderError(f"timm has no model {name!r}{near}: see `wsimil encoders`, or timm.list_models()")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    config = model.pretrained_cfg
    return EncoderSpec(
        name=f"timm:{name}",
        dim=getattr(model, "head_hidden_size", model.num_features),
        tile_px=config["input_size"][-1],
        tile_um=None,
        licence=config.get("license") or "unknown",
        arch=name,
        mean=config["mean"],
        std=config["std"],
        interpolation=config["interpolation"],
        hub_id=config.get("hf_hub_id") or "",
    )


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
