"""The recipes as the authors published them, typed from their pages and papers a second time, to check the table by.

Columns: what the weights are and where, who may have them, how they are run, and what they are fed.
"""

from typing import NamedTuple

IN = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
HOPT = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
ND, APACHE, KAIKO = "CC-BY-NC-ND-4.0", "Apache-2.0", "Kaiko non-commercial"
PT, ST = "pytorch_model.bin", "model.safetensors"
KAIKO_HUB = "kaiko_ai_towards_large_pathology_fms"


class Published(NamedTuple):
    hub_id: str
    hub_file: str
    gated: bool
    licence: str
    dim: int
    pooling: str
    layout: str
    resize: str
    """"224 bilinear", "256 bicubic, 224": side, filter, what is cut from the middle."""
    normalise: tuple[tuple[float, float, float], tuple[float, float, float]]
    tile_um: float | None
    precision: str
    norm_eps: float | None
    """Of the last LayerNorm of the network; None where it has none."""


S, B, L = "vit_small_patch", "vit_base_patch", "vit_large_patch14_reg4_dinov2"
PUBLISHED = {
    "ctranspath": Published("1aurent/swin_tiny_patch4_window7_224.CTransPath", ST, False, "GPL-3.0, non-commercial", 768, "model", "swin-old", "224 bilinear", IN, 256, "fp32", 1e-5),
    "chief-ctranspath": Published("", "CHIEF_CTransPath.pth", False, "AGPL-3.0", 768, "model", "swin-old", "224 bilinear", IN, 256, "fp32", 1e-5),
    "uni": Published("MahmoodLab/UNI", PT, True, ND, 1024, "model", "timm", "224 bilinear", IN, 128, "fp16", 1e-6),
    "uni2-h": Published("MahmoodLab/UNI2-h", PT, True, ND, 1536, "model", "timm", "224 bilinear", IN, 128, "bf16", 1e-6),
    "virchow": Published("paige-ai/Virchow", ST, True, "Apache-2.0 and terms", 2560, "cls+mean", "timm", "224 bicubic", IN, 112, "fp16", 1e-6),
    "virchow-cls": Published("paige-ai/Virchow", ST, True, "Apache-2.0 and terms", 1280, "cls", "timm", "224 bicubic", IN, 112, "fp16", 1e-6),
    "virchow2": Published("paige-ai/Virchow2", ST, True, ND, 2560, "cls+mean", "timm", "224 bicubic", IN, 112, "fp16", 1e-6),
    "virchow2-cls": Published("paige-ai/Virchow2", ST, True, ND, 1280, "cls", "timm", "224 bicubic", IN, 112, "fp16", 1e-6),
    "h-optimus-0": Published("bioptimus/H-optimus-0", PT, False, APACHE, 1536, "model", "timm", "224 bicubic", HOPT, 112, "fp16", 1e-6),
    "h-optimus-1": Published("bioptimus/H-optimus-1", PT, True, ND, 1536, "model", "timm", "224 bicubic", HOPT, 112, "fp16", 1e-6),
    "h0-mini": Published("bioptimus/H0-mini", PT, True, ND, 1536, "cls+mean", "timm", "224 bicubic", HOPT, 112, "fp16", 1e-6),
    "h0-mini-cls": Published("bioptimus/H0-mini", PT, True, ND, 768, "cls", "timm", "224 bicubic", HOPT, 112, "fp16", 1e-6),
    "gigapath": Published("prov-gigapath/prov-gigapath", PT, True, "Apache-2.0, research only", 1536, "model", "timm", "256 bicubic, 224", IN, 128, "fp16", 1e-6),
    "kaiko-vits8": Published(f"1aurent/{S}8_224.{KAIKO_HUB}", ST, False, KAIKO, 384, "model", "dinov2", "224 bilinear", HALF, 128, "fp32", 1e-6),
    "kaiko-vits16": Published(f"1aurent/{S}16_224.{KAIKO_HUB}", ST, False, KAIKO, 384, "model", "dinov2", "224 bilinear", HALF, 128, "fp32", 1e-6),
    "kaiko-vitb8": Published(f"1aurent/{B}8_224.{KAIKO_HUB}", ST, False, KAIKO, 768, "model", "dinov2", "224 bilinear", HALF, 128, "fp32", 1e-6),
    "kaiko-vitb16": Published(f"1aurent/{B}16_224.{KAIKO_HUB}", ST, False, KAIKO, 768, "model", "dinov2", "224 bilinear", HALF, 128, "fp32", 1e-6),
    "kaiko-vitl14": Published(f"1aurent/{L}.{KAIKO_HUB}", ST, False, KAIKO, 1024, "model", "dinov2", "224 bilinear", HALF, 128, "fp32", 1e-6),
    "lunit-vits8": Published(f"1aurent/{S}8_224.lunit_dino", ST, False, "Lunit research only", 384, "model", "timm", "224 bicubic", LUNIT, 112, "fp32", 1e-6),
    "lunit-vits16": Published(f"1aurent/{S}16_224.lunit_dino", ST, False, "Lunit research only", 384, "model", "timm", "224 bicubic", LUNIT, 112, "fp32", 1e-6),
    "gpfm": Published("majiabo/GPFM", "GPFM.pth", False, ND, 1024, "model", "dinov2", "224 bicubic", IN, 112, "fp16", 1e-6),
    "phikon": Published("owkin/phikon", ST, False, "Owkin non-commercial", 768, "cls", "hf-vit", "224 bilinear", IN, 112, "fp32", 1e-12),
    "phikon-v2": Published("owkin/phikon-v2", ST, False, "Owkin non-commercial", 1024, "cls", "hf-dinov2", "224 bilinear", IN, 112, "fp32", 1e-6),
    "midnight-12k": Published("kaiko-ai/midnight", ST, False, "MIT", 3072, "cls+mean", "hf-dinov2", "224 bilinear", HALF, 112, "fp16", 1e-6),
    "midnight-12k-cls": Published("kaiko-ai/midnight", ST, False, "MIT", 1536, "cls", "hf-dinov2", "224 bilinear", HALF, 112, "fp16", 1e-6),
    "hibou-b": Published("histai/hibou-b", ST, False, APACHE, 768, "cls", "hf-dinov2", "224 bicubic", HIBOU, 112, "fp32", 1e-6),
    "hibou-l": Published("histai/hibou-L", ST, True, APACHE, 1024, "cls", "hf-dinov2", "224 bicubic", HIBOU, 112, "fp32", 1e-6),
    "resnet50": Published("timm/resnet50.tv_in1k", ST, False, "BSD-3-Clause", 2048, "model", "timm", "224 bilinear", IN, None, "fp32", None),
    "resnet50-layer3": Published("timm/resnet50.tv_in1k", ST, False, "BSD-3-Clause", 1024, "map", "timm", "224 bilinear", IN, None, "fp32", None),
    "dinov2-small": Published("timm/vit_small_patch14_dinov2.lvd142m", ST, False, APACHE, 384, "model", "timm-resampled", "224 bicubic", IN, None, "fp32", 1e-6),
    "dinov2-base": Published("timm/vit_base_patch14_dinov2.lvd142m", ST, False, APACHE, 768, "model", "timm-resampled", "224 bicubic", IN, None, "fp32", 1e-6),
    "dinov2-large": Published("timm/vit_large_patch14_dinov2.lvd142m", ST, False, APACHE, 1024, "model", "timm-resampled", "224 bicubic", IN, None, "fp32", 1e-6),
    "dinov2-giant": Published("timm/vit_giant_patch14_dinov2.lvd142m", ST, False, APACHE, 1536, "model", "timm-resampled", "224 bicubic", IN, None, "fp32", 1e-6),
    "dinov3-small": Published("timm/vit_small_patch16_dinov3.lvd1689m", ST, False, "DINOv3 License", 384, "model", "timm", "256 bicubic", IN, None, "fp32", 1e-5),
    "dinov3-base": Published("timm/vit_base_patch16_dinov3.lvd1689m", ST, False, "DINOv3 License", 768, "model", "timm", "256 bicubic", IN, None, "fp32", 1e-5),
    "dinov3-large": Published("timm/vit_large_patch16_dinov3.lvd1689m", ST, False, "DINOv3 License", 1024, "model", "timm", "256 bicubic", IN, None, "fp32", 1e-5),
    "conch": Published("MahmoodLab/conch", PT, True, ND, 512, "model", "timm", "448 bicubic", CLIP, 128, "fp32", None),
    "conch-v1.5": Published("MahmoodLab/conchv1_5", "pytorch_model_vision.bin", True, ND, 768, "model", "timm", "448 bilinear", IN, 256, "fp16", None),
    "musk": Published("xiangjx/musk", ST, True, ND, 2048, "model", "timm", "384 bicubic", HALF, 192, "fp16", None),
    "plip": Published("vinid/plip", PT, False, "research only", 512, "model", "timm", "224 bicubic", CLIP, None, "fp32", None),
}  # fmt: skip
SHA256 = {
    "ctranspath": "7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539",
    "chief-ctranspath": "1646f23001214f74cf432ef0e80b808ee6605143802ae6ed53a87564ddc4924a",
}
"""Of the authors' own files, at these pages."""
PAGES = {
    "ctranspath": "https://drive.google.com/file/d/1DoDx_70_TLj98gTf6YTXnu4tFhsFocDX",
    "chief-ctranspath": "https://drive.google.com/file/d/1_vgRF1QXa8sPCOpJ1S9BihwZhXQMOVJc",
}
