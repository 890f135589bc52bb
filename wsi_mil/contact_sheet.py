"""``tiles/index.html``: every slide of a folder at a glance, those that should be looked at first on top."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from wsi_mil import publishing, store
from wsi_mil.errors import ArtifactError, one_line
from wsi_mil.guards import parse_json
from wsi_mil.guards.kinds import COUNT, NUMBER, TABLE, WORD, require_kinds
from wsi_mil.pages import render
from wsi_mil.runs import failures
from wsi_mil.stage import artifact_items
from wsi_mil.tiling import TileStage

_LITTLE_MM2, _FEW_TILES = 1.0, 10
_WIDE_INK_MM2 = 1.0  # so much, and twice as much as is usual in the folder, where a stain may have that colour
_MUCH_INK, _MUCH_TISSUE, _MUCH_EXCLUDED = 0.02, 0.9, 0.5
_MUCH_BEYOND = 0.1
_SAID = dict.fromkeys(
    ("tissue_mm2", "tissue_share", "tissue_tiled_share", "tissue_beyond_share", "ink_share", "wide_ink_mm2",
     "sharpness", "mpp_x", "mpp_y", "enlargement"), NUMBER,
) | {"status": WORD, "mpp_source": WORD, "reason": WORD, "excluded": TABLE, "tiles": COUNT, "level0_width": COUNT,
     "level0_height": COUNT}  # fmt: skip
_OLD = "its tiles are of another version: run `wsimil tile --overwrite`"
_DULL = 0.5  # of the median sharpness of the folder
_SMOOTH = 30.0  # the median of bare glass is 3 to 21, of stained tissue in focus hundreds and more


class Card(NamedTuple):
    """What the page says of one slide."""

    slide_id: str
    picture: str
    """Where its preview lies, as a link from the page; "" where there is none."""
    facts: dict[str, str]
    doubts: list[str]
    """Why it should be looked at."""
    badness: int
    """3: failed or damaged, 2: empty, 1: doubtful, 0: none of these."""


def write_contact_sheet(folder: Path) -> Path:
    """Write the page of a folder of tiles, from the artifacts in it and the failures told of, and return its path."""
    cards = [Card(slide_id, "", {}, [reason], 3) for slide_id, reason in failures(folder).items()]
    known: dict[str, dict[str, Any]] = {}
    for item in artifact_items(folder):
        try:
            attrs = store.read_attrs(item.source, {*_SAID, "stage", "stage_version"})
            if attrs.get("stage") != TileStage.name:
                continue
            if attrs.get("stage_version") == TileStage.version:
                _require_sound(attrs)
                known[item.slide_id] = attrs
            else:
                cards.append(Card(item.slide_id, "", {}, [_OLD], 3))
        except (ArtifactError, KeyError, ValueError) as error:
            cards.append(Card(item.slide_id, "", {}, [f"its artifact is damaged: {one_line(error)}"], 3))
    tiled = [attrs for attrs in known.values() if attrs["tiles"]]
    usual = {
        "sharpness": statistics.median([attrs["sharpness"] for attrs in tiled] or [0.0]),
        "wide_ink_mm2": statistics.median_low([attrs["wide_ink_mm2"] for attrs in tiled]) if len(tiled) > 2 else 0.0,
    }
    cards += [_card(folder, slide_id, attrs, usual) for slide_id, attrs in known.items()]
    cards.sort(key=lambda card: (-card.badness, -len(card.doubts), card.slide_id))
    publishing.write_bytes(folder / "index.html", render("contact_sheet.html", cards=cards, folder=folder.name))
    return folder / "index.html"


def _require_sound(attrs: Mapping[str, Any]) -> None:
    """Refuse what a card cannot be made of.

    Raises:
        KeyError, ValueError: something is missing, or is of another kind.
    """
    require_kinds(attrs, _SAID)
    if missing := [name for name in _SAID if name not in attrs and name != "reason"]:
        raise KeyError(missing[0])
    require_kinds(parse_json(attrs["excluded"]), dict.fromkeys(parse_json(attrs["excluded"]), COUNT))
    if attrs["status"] == "empty" and "reason" not in attrs:
        raise KeyError("reason")


def _card(folder: Path, slide_id: str, attrs: Mapping[str, Any], usual: Mapping[str, float]) -> Card:
    doubts = [attrs["reason"]] if attrs["status"] == "empty" else _doubts(attrs, usual)
    badness = 2 if attrs["status"] == "empty" else int(bool(doubts))
    picture = f"{quote(slide_id)}.jpg" if (folder / f"{slide_id}.jpg").exists() else ""
    excluded = parse_json(attrs["excluded"])
    facts = {
        "tiles": f"{attrs['tiles']:,}",
        "left out": ", ".join(f"{count:,} {reason}" for reason, count in excluded.items()) or "none",
        "tissue": f"{attrs['tissue_mm2']:.3g} mm2, {attrs['tissue_share']:.0%} of the slide",
        "in tiles": f"{attrs['tissue_tiled_share']:.0%} of the tissue; {attrs['tissue_beyond_share']:.1%} of it lies"
        " beyond the last whole row and column"
        if attrs["tissue_mm2"]
        else "-",
        "ink": f"{attrs['ink_share']:.1%}",
        "sharpness": f"{attrs['sharpness']:.3g}" if attrs["tiles"] else "-",
        "um/px": f"{attrs['mpp_x']:.4g} ({attrs['mpp_source']})",
        "size": f"{attrs['level0_width']:,} x {attrs['level0_height']:,} px",
    }
    return Card(slide_id, picture, facts, doubts, badness)


def _doubts(attrs: Mapping[str, Any], usual: Mapping[str, float]) -> list[str]:
    """What is unusual about a slide that has tiles."""
    excluded = {reason: count for reason, count in parse_json(attrs["excluded"]).items() if reason != "max_tiles"}
    share = sum(excluded.values()) / (sum(excluded.values()) + attrs["tiles"])
    beyond, wide = attrs["tissue_beyond_share"], attrs["wide_ink_mm2"]
    found = {
        "nearly all of it is tissue: is there no glass?": attrs["tissue_share"] > _MUCH_TISSUE,
        f"less than {_LITTLE_MM2:g} mm2 of tissue": attrs["tissue_mm2"] < _LITTLE_MM2,
        f"{beyond:.0%} of the tissue lies beyond the last whole row and column of tiles": beyond >= _MUCH_BEYOND,
        f"fewer than {_FEW_TILES} tiles": attrs["tiles"] < _FEW_TILES,
        f"written on: {attrs['ink_share']:.1%} is ink": attrs["ink_share"] > _MUCH_INK,
        f"{share:.0%} of the tiles were left out": share > _MUCH_EXCLUDED,
        f"{wide:.3g} mm2 have the colour of ink: a stain, or strokes over 2 mm?": (
            wide > max(_WIDE_INK_MM2, 2 * usual["wide_ink_mm2"])
        ),
        "much less sharp than the others": attrs["sharpness"] < _DULL * usual["sharpness"],
        "as smooth as bare glass: is it tissue, and in focus?": attrs["tiles"] and attrs["sharpness"] < _SMOOTH,
        "its um/px is only known from the objective": attrs["mpp_source"] == "objective-power",
        f"enlarged {attrs['enlargement']:.2f} times": attrs["enlargement"] > 1.01,
    }
    return [doubt for doubt, holds in found.items() if holds]
