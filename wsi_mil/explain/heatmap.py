"""What a model looked at and what each tile spoke for, drawn over the slide."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from wsi_mil.bags import Bag
from wsi_mil.errors import SlideError
from wsi_mil.explain.figure import Backdrop, backdrop, colour_bar, framed, picture_of, png_of
from wsi_mil.explain.places import Places
from wsi_mil.explain.raster import painted
from wsi_mil.explain.scales import Scale, attention_scale, contribution_scale
from wsi_mil.slides import Slide


def attention_png(slide: Slide, bag: Bag, attention: Float[np.ndarray, " tiles"], side_px: int = 1000) -> bytes:
    """Draw the attention of each tile over the slide, with a scale bar and a key but no title, as a PNG.

    Args:
        slide: the slide.
        bag: its tiles.
        attention: one weight per tile.
        side_px: about the longer side of the slide in the picture.

    Raises:
        SlideError: the bag is of several slides, which lie in no one picture.
    """
    require_one_slide(bag)
    places = _places_um(slide, bag)
    return png_of(attention_picture(backdrop(slide, side_px), places, attention))


def attention_picture(
    ground: Backdrop, places: Places, attention: Float[np.ndarray, " tiles"], title: str = "", subtitle: str = ""
) -> Image.Image:
    """Attention over a slide, framed."""
    scale = attention_scale(attention)
    middle, top = f"{scale.high / 2:.2g}", _end(f"{scale.high:.2g}", scale)
    key = colour_bar("attention of a tile (all tiles: 1)", scale, [["0"], [middle], [top]])
    return framed(_over(ground, places, attention, scale), ground.um_per_px, key, title, subtitle)


def contribution_picture(
    ground: Backdrop,
    places: Places,
    contribution: Float[np.ndarray, " tiles"],
    ends: tuple[str, str],
    title: str = "",
    subtitle: str = "",
) -> Image.Image:
    """What each tile gave to the evidence for a class, over a slide, framed.

    Args:
        ground: the slide.
        places: its tiles.
        contribution: of each.
        ends: what values below and above 0 mean, such as ("for far", "for near") or ("against near", "for near").
        title: see `framed`.
        subtitle: see `framed`.
    """
    scale = contribution_scale(contribution)
    low, high = (_end(f"{value:+.2g}", scale) for value in (scale.low, scale.high))
    key = colour_bar("contribution of a tile to the evidence", scale, [[low, ends[0]], ["0"], [high, ends[1]]])
    return framed(_over(ground, places, contribution, scale), ground.um_per_px, key, title, subtitle)


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


def png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encode an image as PNG."""
    return png_of(Image.fromarray(image))


def slide_png(slide: Slide, side_px: int = 1000) -> bytes:
    """The whole slide, as a PNG."""
    longest_um = max(slide.l0_size[0] * slide.mpp_x, slide.l0_size[1] * slide.mpp_y)
    return png(slide.thumbnail(longest_um / side_px).image)


def _over(ground: Backdrop, places: Places, values: Float[np.ndarray, " tiles"], scale: Scale) -> Image.Image:
    width, height = ground.size_px
    field = painted(values.astype(float), ground.boxes(places), (0, height), width)
    return picture_of(scale.over(ground.image, field))


def _end(text: str, scale: Scale) -> str:
    """The label of an end that values may lie beyond."""
    return f"{text} or more" if scale.clipped and not text.startswith("-") else text


def _places_um(slide: Slide, bag: Bag) -> Places:
    """The tiles of a bag as near as micrometres tell: a bag may know no more."""
    mpp = np.array([slide.mpp_x, slide.mpp_y])
    l0_tile: Sequence[int] = np.maximum(1, (bag.attrs["tile_um"] / mpp).round()).astype(int).tolist()
    corners = (bag.coords_um.numpy() / mpp - np.array(l0_tile) / 2).round().astype(np.int64)
    return Places(corners, (l0_tile[0], l0_tile[1]), (slide.mpp_x, slide.mpp_y), {})
