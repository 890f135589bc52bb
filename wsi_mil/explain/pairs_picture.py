"""Which tiles a model looked at together, as lines over the slide: figure 3 of the DAS-MIL paper (arXiv 2305.10552)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from wsi_mil.explain.annotations import class_colour
from wsi_mil.explain.figure import FAINT, INK, PAPER, TEXT_PX, Backdrop, framed, picture_of
from wsi_mil.explain.looking import Pairs
from wsi_mil.explain.places import Places
from wsi_mil.lettering import Font, font

TILES, PARTNERS, TOLD = 6, 5, 6
"""How many tiles are drawn, how many partners of each, and of how many pairs the distance is written."""
_FINE = 3  # lines are drawn so many times larger, then averaged down
_WIDEST = 7.0  # px
_KEY_WIDTH, _LINE_PX, _ABREAST = 400, TEXT_PX + 8, 3
_LETTERS = "ABCDEF"
_DISC_PX = 16  # radius
_AROUND = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, -1), (-1, 1), (1, 1), (-2, 0), (2, 0)]
"""Where a letter may lie, in its own sizes from its tile; where all is taken, on the tile."""
_Box = tuple[float, float, float, float]


class _Line(NamedTuple):
    """One pair, in pixels of the picture."""

    start: tuple[float, float]
    end: tuple[float, float]
    strength: float
    """Its weight, as a share of the largest that is drawn."""
    distance_um: float
    owner: int


def pairs_picture(ground: Backdrop, places: Places, pairs: Pairs, title: str = "", subtitle: str = "") -> Image.Image:
    """Draw the first tiles with their strongest partners, framed.

    A tile has a letter and a colour, its partners an empty square of that colour; the wider and less transparent a
    line, the more attention is paid. The strongest lines say how long they are.
    """
    centres = (places.coords + np.array(places.l0_tile) / 2) * ground.size_px / np.array(ground.l0_size)
    lines, most = _lines(pairs, centres)
    picture = picture_of(ground.image)
    _stroked(picture, lines)
    draw = ImageDraw.Draw(picture)
    side = max(9.0, places.l0_tile[0] * ground.size_px[0] / ground.l0_size[0])
    for line in lines:
        _square(draw, line.end, side - 6, class_colour(line.owner))
    lettered = pairs.tiles[:TILES].tolist()
    for index, tile in enumerate(lettered):
        _square(draw, tuple(centres[tile].tolist()), side, class_colour(index), 4)
    taken: list[_Box] = []
    for index, tile in enumerate(lettered):
        _letter(draw, tuple(centres[tile].tolist()), _LETTERS[index], class_colour(index), taken)
    _distances(draw, picture.size, lines, taken)
    return framed(picture, ground.um_per_px, _key(most, lettered), title, subtitle)


def _lines(pairs: Pairs, centres: Float[np.ndarray, "tiles 2"]) -> tuple[list[_Line], float]:
    """The pairs to draw, weakest first, and the largest weight."""
    found = [
        (float(pairs.weights[row, place]), row, int(pairs.partners[row, place]), float(pairs.distance_um[row, place]))
        for row in range(min(TILES, len(pairs.tiles)))
        for place in range(min(PARTNERS, pairs.partners.shape[1]))
        if pairs.partners[row, place] >= 0
    ]
    most = max((weight for weight, *_ in found), default=0.0) or 1.0
    ends = [(tuple(centres[pairs.tiles[row]]), tuple(centres[partner])) for _, row, partner, _ in found]
    lines = [
        _Line(start, end, weight / most, distance_um, row)
        for (start, end), (weight, row, _, distance_um) in zip(ends, found, strict=True)
    ]
    return sorted(lines, key=lambda line: line.strength), most


def _stroked(picture: Image.Image, lines: list[_Line]) -> None:
    """Draw lines into a picture, smooth, on a white seam that parts them from the tissue."""
    for line in lines:
        margin = round(_WIDEST) + 2
        left, top = (max(0, int(min(ends)) - margin) for ends in zip(line.start, line.end, strict=True))
        right, bottom = (int(max(ends)) + margin for ends in zip(line.start, line.end, strict=True))
        points = [((x - left) * _FINE, (y - top) * _FINE) for x, y in (line.start, line.end)]
        for colour, extra, opacity in ((PAPER, 2.0, 0.6), (class_colour(line.owner), 0.0, 1.0)):
            mask = Image.new("L", ((right - left) * _FINE, (bottom - top) * _FINE))
            width = round(_FINE * (_width(line.strength) + extra))
            ImageDraw.Draw(mask).line(points, fill=round(255 * opacity * _opacity(line.strength)), width=width)
            small = mask.reduce(_FINE)
            picture.paste(colour, (left, top, left + small.width, top + small.height), small)


def _width(strength: float) -> float:
    return 1.5 + (_WIDEST - 1.5) * strength


def _opacity(strength: float) -> float:
    return 0.45 + 0.5 * strength


def _square(
    draw: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    side: float,
    colour: tuple[int, int, int],
    line: int = 2,
) -> None:
    x, y = centre
    for grow, fill, width in ((1, PAPER, line + 2), (0, colour, line)):
        half = side / 2 + grow
        draw.rectangle([x - half, y - half, x + half, y + half], outline=fill, width=width)


def _letter(
    draw: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    taken: list[_Box],
) -> None:
    """A disc with a letter on a tile, or tied to it where another letter lies there already."""
    side = 2 * _DISC_PX + 6
    places = [(centre[0] + side * right, centre[1] + side * down) for right, down in _AROUND]
    x, y = next((place for place in places if not _meets(_around(place), taken)), centre)
    draw.line([*centre, x, y], fill=colour, width=3)
    for radius, fill in ((_DISC_PX, PAPER), (_DISC_PX - 2, colour)):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
    draw.text((x, y), text, fill=PAPER, font=font(TEXT_PX), anchor="mm")
    taken.append(_around((x, y)))


def _around(place: tuple[float, float]) -> _Box:
    x, y = place
    return x - _DISC_PX, y - _DISC_PX, x + _DISC_PX, y + _DISC_PX


def _meets(box: _Box, taken: list[_Box]) -> bool:
    left, top, right, bottom = box
    return any(left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in taken)


def _distances(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    lines: list[_Line],
    taken: list[_Box],
) -> None:
    """Write the length of the strongest lines, each where there is room along it, if anywhere."""
    letters, told = font(TEXT_PX - 2), 0
    for line in reversed(lines):
        if told == TOLD or not np.isfinite(line.distance_um):
            continue
        text = f"{line.distance_um:,.0f} um"
        box = _room(draw, letters, text, line, size, taken)
        if box is not None:
            draw.rounded_rectangle(box, 4, fill=PAPER, outline=class_colour(line.owner), width=1)
            draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), text, fill=INK, font=letters, anchor="mm")
            taken.append(box)
            told += 1


def _room(
    draw: ImageDraw.ImageDraw,
    letters: Font,
    text: str,
    line: _Line,
    size: tuple[int, int],
    taken: list[_Box],
) -> _Box | None:
    """A box for a text near the middle of a line that no other takes; None where there is none."""
    half = np.array([draw.textlength(text, font=letters) / 2 + 6, TEXT_PX / 2 + 4])
    start, end = np.array(line.start), np.array(line.end)
    for share in (0.5, 0.62, 0.38, 0.74, 0.26):
        middle = np.clip(start + share * (end - start), half, np.array(size) - half - 1)
        (left, top), (right, bottom) = (middle - half).tolist(), (middle + half).tolist()
        if not _meets((left, top, right, bottom), taken):
            return left, top, right, bottom
    return None


def _key(most: float, lettered: list[int]) -> Image.Image:
    """What the width of lines means, and which tiles the letters are."""
    rows = -(-len(lettered) // _ABREAST)
    image = Image.new("RGB", (_KEY_WIDTH, (2 + rows) * _LINE_PX + 16), PAPER)
    draw, letters = ImageDraw.Draw(image), font(TEXT_PX)
    draw.text((0, 0), "attention that a lettered tile pays to another", fill=INK, font=letters)
    for index, share in enumerate((1.0, 0.5, 0.1)):
        x, y = index * _KEY_WIDTH // 3, _LINE_PX + TEXT_PX // 2 + 6
        draw.line([x, y, x + 36, y], fill=FAINT, width=round(_width(share)))
        draw.text((x + 46, y), f"{share * most:.2g}", fill=INK, font=letters, anchor="lm")
    for index, tile in enumerate(lettered):
        x, y = index % _ABREAST * _KEY_WIDTH // _ABREAST, (2 + index // _ABREAST) * _LINE_PX + 26
        draw.ellipse([x, y - 11, x + 22, y + 11], fill=class_colour(index))
        draw.text((x + 11, y), _LETTERS[index], fill=PAPER, font=font(TEXT_PX - 3), anchor="mm")
        draw.text((x + 30, y), f"tile {tile}", fill=INK, font=letters, anchor="lm")
    return image
