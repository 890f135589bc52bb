"""What a model looked at, drawn over the slide."""

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from wsi_mil.bags import Bag
from wsi_mil.errors import SlideError
from wsi_mil.slides import Slide

# Dark blue, violet, orange, yellow: ordered in lightness, so that it also reads in grey and to the colour-blind.
_RAMP = np.array([[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]], float)


def attention_png(slide: Slide, bag: Bag, attention: Float[np.ndarray, " tiles"], side_px: int = 1000) -> bytes:
    """Draw the attention of each tile over the slide, as a PNG.

    Args:
        slide: the slide.
        bag: its tiles.
        attention: one weight per tile; the largest gets the top of the colour scale, and covers most.
        side_px: about the longer side of the picture.

    Raises:
        SlideError: the bag is of several slides, which lie in no one picture.
    """
    require_one_slide(bag)
    longest_um = max(slide.l0_size[0] * slide.mpp_x, slide.l0_size[1] * slide.mpp_y)
    thumbnail = slide.thumbnail(longest_um / side_px)
    picture = thumbnail.image.astype(float)
    um_per_px = np.array([thumbnail.mpp_x, thumbnail.mpp_y])
    half = bag.attrs["tile_um"] / 2
    strength = attention / max(float(attention.max()), 1e-12)
    centres = bag.coords_um.numpy()
    corners = (np.hstack([centres - half, centres + half]) / np.tile(um_per_px, 2)).round().astype(int)
    opacity = 0.15 + 0.6 * strength  # what the model passed over stays visible as tissue
    for (left, top, right, bottom), share, colour in zip(corners, opacity, colours(strength), strict=True):
        window = picture[max(top, 0) : bottom, max(left, 0) : right]
        window[:] = (1 - share) * window + share * colour
    return png(picture.round().astype(np.uint8))


def require_one_slide(bag: Bag) -> None:
    """Refuse a bag of several slides, for what looks at the pixels of one.

    Raises:
        SlideError: names the slides.
    """
    if bag.slide is not None:
        raise SlideError(
            f"{bag.slide_id} is a bag of {len(bag.attrs['slide_ids'])} slides ({', '.join(bag.attrs['slide_ids'])}):"
            " draw each from its own bag, with its share of the attention"
        )


def colours(strength: Float[np.ndarray, " tiles"]) -> Float[np.ndarray, "tiles 3"]:
    """RGB colours, 0 to 255, of strengths between 0 and 1."""
    stops = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(strength, stops, channel) for channel in _RAMP.T], axis=1)


def png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def slide_png(slide: Slide, side_px: int = 1000) -> bytes:
    """The whole slide, as a PNG."""
    longest_um = max(slide.l0_size[0] * slide.mpp_x, slide.l0_size[1] * slide.mpp_y)
    return png(slide.thumbnail(longest_um / side_px).image)
