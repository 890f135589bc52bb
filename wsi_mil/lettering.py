"""Text in pictures: one font, which is Pillow's own, so that a picture looks the same on every machine."""

import bisect
import unicodedata

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font(side_px: int) -> Font:
    """The font, letters about ``side_px`` high."""
    return ImageFont.load_default(side_px)


def plain(name: str) -> str:
    """A name on one line in ASCII, which is all that Pillow's own font has: accents go, other letters become "?"."""
    parted = unicodedata.normalize("NFKD", " ".join(name.split()))
    return "".join(letter for letter in parted if not unicodedata.combining(letter)).encode("ascii", "replace").decode()


def fitted(text: str, letters: Font, width: int) -> str:
    """A text in ASCII that is no wider than ``width`` pixels: where it is too long its middle becomes "..."."""
    text = plain(text)
    if letters.getlength(text) <= width:
        return text
    too_long = bisect.bisect_right(
        range(3, len(text)), width, key=lambda keep: letters.getlength(_without_middle(text, keep))
    )
    return _without_middle(text, too_long + 2)


def _without_middle(text: str, keep: int) -> str:
    return f"{text[: -(-keep // 2)]}...{text[len(text) - keep // 2 :]}"
