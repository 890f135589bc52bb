"""The patch embedding of CTransPath (Wang et al. 2022, "Transformer-based unsupervised contrastive learning for
histopathological image classification"): three convolutions where a Swin transformer has one.

The rest of the network is Swin-T as timm has it. Its files come in the layout of timm 0.5.4: see `layouts`.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

_PATCH_PX = 4


class ConvStem(nn.Module):
    """From an image to one vector per 4 x 4 px, through two convolutions of stride 2 and one of 1 x 1.

    It takes what timm gives every patch embedding, and refuses what CTransPath is not.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = _PATCH_PX,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Any = None,
        **timm: Any,
    ) -> None:
        """Build the convolutions and the norm after them.

        Args:
            img_size: height and width of the image, px, or its side: no other is accepted later.
            patch_size: 4.
            in_chans: channels of the image.
            embed_dim: length of a vector, a multiple of 8.
            norm_layer: of the vectors; None for none.
            timm: ``output_fmt`` must be "NHWC"; ``device`` and ``dtype`` are those of torch, and the size is always
                strict, whatever ``strict_img_size``.

        Raises:
            ValueError: another patch size or format, or a length that is no multiple of 8.
        """
        super().__init__()
        if patch_size != _PATCH_PX or embed_dim % 8 or timm.get("output_fmt", "NHWC") != "NHWC":
            raise ValueError(f"ConvStem: no patch of {patch_size} px with {embed_dim} numbers as {timm}")
        where: dict[str, Any] = {key: timm.get(key) for key in ("device", "dtype")}
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = (height, width)
        self.patch_size = (_PATCH_PX, _PATCH_PX)
        self.grid_size = (height // _PATCH_PX, width // _PATCH_PX)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        channels = in_chans
        for wider in (embed_dim // 8, embed_dim // 4):
            layers += [
                nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False, **where),
                nn.BatchNorm2d(wider, **where),
                nn.ReLU(),
            ]
            channels = wider
        self.proj = nn.Sequential(*layers, nn.Conv2d(channels, embed_dim, 1, **where))
        self.norm = norm_layer(embed_dim, **where) if norm_layer else nn.Identity()

    def forward(self, images: Float[Tensor, "tiles 3 height width"]) -> Float[Tensor, "tiles rows columns dim"]:
        """Embed images of exactly ``img_size``, channels last, as timm's Swin blocks take them."""
        if tuple(images.shape[2:]) != self.img_size:
            raise ValueError(f"ConvStem: images of {tuple(images.shape[2:])} px instead of {self.img_size}")
        return self.norm(self.proj(images).permute(0, 2, 3, 1))
