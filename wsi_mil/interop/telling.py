"""What a user, or the slide itself, says of slides whose bags another program made."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from wsi_mil.cohort import read_resolutions
from wsi_mil.errors import OptionError, ResolutionError, SlideError, SlideUnreadable
from wsi_mil.interop.bag import REMEDY
from wsi_mil.slides import Place, find_slides, open_slide
from wsi_mil.slides.resolution import Resolution, checked, require_mpp
from wsi_mil.stage import Item


@dataclass(frozen=True)
class PeerOptions:
    """What the user knows of bags that their files do not say."""

    slides: Path | None = None
    """Folder of the slides, whose files tell their resolution."""
    table: Path | None = None
    """``slides.csv``, with the um/px of each slide."""
    mpp: float | None = None
    """Level-0 um/px of all slides that the table does not name."""
    encoder: str | None = None
    """What the encoder is called, or which of AtlasPatch's it is; None = as the files say."""

    def __post_init__(self) -> None:
        require_mpp("--mpp", self.mpp)
        if self.encoder == "":
            raise OptionError("--encoder is empty: give a name, or leave the option out")


class Told(NamedTuple):
    """What is known of a slide beside its bag."""

    resolution: Resolution | None
    """None: neither the user nor the slide says it, so the bag may."""
    slide: Place | None = None
    """Where it is."""
    l0_size: tuple[int, int] | None = None
    """Its width and height, level-0 px."""


def told_of(items: list[Item], peers: PeerOptions, bags: Collection[str] = ()) -> dict[str, Told | Exception]:
    """What the user, or the slide itself, says of each slide; of its resolution the first that says anything.

    Args:
        items: the bags of the slides.
        peers: what the user says.
        bags: slide_ids of the bags that the table may name, if there are more than these.
    """
    names = [item.slide_id for item in items]
    table = read_resolutions(peers.table, bags or names) if peers.table else {}
    slides = {slide.slide_id: slide.path for slide in find_slides(peers.slides)} if peers.slides else {}
    told: dict[str, Told | Exception] = {}
    for slide_id in names:
        mpp = table.get(slide_id, peers.mpp)
        try:
            given = None if mpp is None else checked(slide_id, Resolution(mpp, mpp, "option"), REMEDY)
            path = _slide_of(slide_id, slides)
            if path:
                told[slide_id] = _look_at(path, given)
            elif given:
                told[slide_id] = Told(given)
        except SlideError as error:
            told[slide_id] = error
    return told


def _look_at(path: Place, given: Resolution | None) -> Told:
    """What a slide says of itself; the resolution that the user gives goes first.

    Raises:
        SlideUnreadable: it cannot be opened, and the user gives no resolution either.
    """
    try:
        with open_slide(path, given.mpp_x if given else None) as slide:
            return Told(Resolution(slide.mpp_x, slide.mpp_y, slide.mpp_source), path, slide.l0_size)
    except ResolutionError:
        with open_slide(path, 1.0) as slide:  # only to be let in: it is not told
            return Told(None, path, slide.l0_size)
    except SlideUnreadable:
        if given is None:
            raise
        return Told(given, path)


def _slide_of(slide_id: str, slides: Mapping[str, Place]) -> Place | None:
    """The slide of a bag; other programs leave out its folder."""
    if slide_id in slides:
        return slides[slide_id]
    name = PurePosixPath(slide_id).name
    found = sorted(other for other in slides if PurePosixPath(other).name == name)
    if len(found) > 1:
        raise SlideError(f"{slide_id} may be any of {', '.join(found)}: give a table slide,mpp by --slides-csv")
    return slides[found[0]] if found else None
