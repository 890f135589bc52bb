"""Text in pictures: one font, which is Pillow's own, so that a picture looks the same on every machine."""

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
    keep = len(text) - 1
    while keep > 2 and letters.getlength(_without_middle(text, keep)) > width:
        keep -= 1
    return _without_middle(text, keep)


def _without_middle(text: str, keep: int) -> str:
    return f"{text[: -(-keep // 2)]}...{text[len(text) - keep // 2 :]}"
