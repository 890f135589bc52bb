"""The frame of a picture of a slide: what it is above, a scale bar and the key to its colours below."""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from wsi_mil.explain.places import Places
from wsi_mil.explain.raster import boxes
from wsi_mil.explain.scales import Scale, rgba
from wsi_mil.lettering import fitted, font
from wsi_mil.slides import Slide

INK, FAINT, PAPER = (29, 35, 48), (92, 100, 116), (255, 255, 255)
TITLE_PX, TEXT_PX, MARGIN = 26, 18, 24
_LEAST_WIDTH = 760  # of what is inside the margins, so that scale bar and key lie side by side
_KEY_WIDTH, _BAR_PX = 400, 20
_LABEL_SHARE = 0.48  # of the key's width that a label may take: two on a line never touch
_GREY = np.array([0.299, 0.587, 0.114])
_FADED = 0.72  # of the slide's contrast under colours


class Backdrop(NamedTuple):
    """A slide, small and without colour, to draw upon: on pink tissue no colour scale can be read."""

    image: Float[np.ndarray, "height width 3"]
    l0_size: tuple[int, int]
    um_per_px: float

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height)."""
        return self.image.shape[1], self.image.shape[0]

    def boxes(self, places: Places) -> np.ndarray:
        """Where tiles lie in it (`wsi_mil.explain.raster.boxes`)."""
        return boxes(places, self.l0_size, self.size_px)


def backdrop(slide: Slide, side_px: int) -> Backdrop:
    """A slide whose longer side is about ``side_px``."""
    longest_um = max(slide.l0_size[0] * slide.mpp_x, slide.l0_size[1] * slide.mpp_y)
    thumbnail = slide.thumbnail(longest_um / side_px)
    return Backdrop(faded(thumbnail.image), slide.l0_size, thumbnail.mpp_x)


def faded(image: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 3"]:
    """An image in pale greys."""
    grey = 255 - _FADED * (255 - image @ _GREY)
    return np.repeat(grey[..., None], 3, axis=2)


def framed(
    picture: Image.Image, um_per_px: float, key: Image.Image, title: str = "", subtitle: str = ""
) -> Image.Image:
    """Put a picture of a slide into its frame; nothing of it is covered.

    Args:
        picture: of the slide.
        um_per_px: micrometres per pixel of it.
        key: what its colours or lines mean.
        title: above it, in large letters; too long a one loses its middle.
        subtitle: below that.
    """
    width = max(picture.width, _LEAST_WIDTH) + 2 * MARGIN
    top = MARGIN + (TITLE_PX + 10 if title else 0) + (TEXT_PX + 12 if subtitle else 0)
    bar = _scale_bar(picture.width, um_per_px)
    below = top + picture.height + MARGIN
    page = Image.new("RGB", (width, below + max(key.height, bar.height) + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for text, side, y, colour in (
        (title, TITLE_PX, MARGIN - 6, INK),
        (subtitle, TEXT_PX, top - TEXT_PX - 14, FAINT),
    ):
        draw.text((MARGIN, y), fitted(text, font(side), width - 2 * MARGIN), fill=colour, font=font(side))
    page.paste(picture, ((width - picture.width) // 2, top))
    page.paste(bar, (MARGIN, below))
    page.paste(key, (width - MARGIN - key.width, below))
    return page


def nice_length_um(most_um: float) -> float:
    """The longest of 1, 2 and 5 times a power of ten that is no longer than ``most_um``."""
    power = 10.0 ** math.floor(math.log10(most_um))
    return max(step * power for step in (1, 2, 5) if step * power <= most_um * (1 + 1e-9))


def _scale_bar(width_px: int, um_per_px: float) -> Image.Image:
    """At most a quarter of the picture long."""
    length_um = nice_length_um(max(width_px / 4, 60) * um_per_px)
    length_px = round(length_um / um_per_px)
    text, letters = f"{length_um / 1000:g} mm", font(TEXT_PX)
    image = Image.new("RGB", (max(length_px, math.ceil(letters.getlength(text))) + 2, 22 + TEXT_PX + 8), PAPER)
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 7, length_px - 1, 12], fill=INK)
    for x in (0, length_px - 2):
        draw.rectangle([x, 0, x + 1, 19], fill=INK)
    draw.text((0, 26), text, fill=INK, font=letters)
    return image


def colour_bar(caption: str, scale: Scale, labels: Sequence[Sequence[str]]) -> Image.Image:
    """A key: a bar of a scale's colours as they look on pale tissue, lines of text under its ends and between.

    Args:
        caption: what the values are.
        scale: the colours.
        labels: the lines of text, spread evenly from the low end to the high one.
    """
    letters, line = font(TEXT_PX), TEXT_PX + 6
    lines = max(map(len, labels))
    image = Image.new("RGB", (_KEY_WIDTH, line + _BAR_PX + 10 + lines * line), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((0, 0), fitted(caption, letters, _KEY_WIDTH), fill=INK, font=letters)
    colours = rgba(scale, np.linspace(scale.low, scale.high, _KEY_WIDTH))
    bar = 232 + (colours[:, :3] - 232) * colours[:, 3:]
    image.paste(Image.fromarray(np.tile(bar.round().astype(np.uint8), (_BAR_PX, 1, 1))), (0, line))
    draw.rectangle([0, line, _KEY_WIDTH - 1, line + _BAR_PX - 1], outline=FAINT)
    for index, texts in enumerate(labels):
        place = index / max(1, len(labels) - 1)
        x = round(place * (_KEY_WIDTH - 1))
        draw.line([x, line + _BAR_PX, x, line + _BAR_PX + 4], fill=FAINT)
        anchor = "la" if index == 0 else "ra" if index == len(labels) - 1 else "ma"
        for number, text in enumerate(texts):
            shown = fitted(text, letters, round(_KEY_WIDTH * _LABEL_SHARE))
            draw.text((x, line + _BAR_PX + 7 + number * line), shown, fill=INK, font=letters, anchor=anchor)
    return image


def picture_of(pixels: Float[np.ndarray, "height width 3"]) -> Image.Image:
    """An image of colours from 0 to 255."""
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def png_of(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")  # trying harder takes five times as long for a twentieth of the size
    return buffer.getvalue()
