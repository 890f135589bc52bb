"""The slide that features were made of: where it lies now, and open again."""

import logging
from collections.abc import Mapping
from pathlib import Path

from wsi_mil import store
from wsi_mil.bags import Bag
from wsi_mil.errors import ResolutionError, SlideError
from wsi_mil.interop import OF_TILES
from wsi_mil.remote import CacheParams, is_url
from wsi_mil.slides import Place, Slide, find_again, open_slide, slide_fingerprint

log = logging.getLogger(__name__)


def slide_path(bag: Bag, moved: Mapping[str, Place], cache: CacheParams | None) -> Place | None:
    """Where a slide lies that is believed to be that of a bag; None where there is none. See `find_slide`."""
    if bag.attrs.get("mpp_source") == OF_TILES:
        return None
    if path := moved.get(bag.slide_id):
        return path if not isinstance(path, Path) or path.exists() else None
    recorded = bag.attrs.get("slide_path")
    if not recorded or (cache is None and is_url(recorded)):
        return None
    return find_again(recorded, cache or CacheParams())


def find_slide(
    bag: Bag, tiles: Path | None, moved: Mapping[str, Place], cache: CacheParams | None = None
) -> Place | None:
    """Where the slide of a bag lies; None, which the log says, where it is not at hand.

    Args:
        bag: its features.
        tiles: the artifact of its tiles, which knows its fingerprint; None = a slide of that name is believed.
        moved: by slide_id, where the user says that slides lie, which goes before what was recorded.
        cache: where slides that were recorded far away are staged; None = they are not fetched.

    Raises:
        SlideError: another slide lies there.
        RemoteError: it was recorded far away, and the server does not say whether it is there.
    """
    path = slide_path(bag, moved, cache)
    if path is None and bag.attrs.get("mpp_source") == OF_TILES:
        log.warning("%s: its features do not tell which pixels of the slide they describe: no pictures", bag.slide_id)
        return None
    if path is None:
        recorded = moved.get(bag.slide_id) or bag.attrs.get("slide_path")
        where = f"{recorded} is not there" if recorded else "its features do not tell where the slide is"
        log.warning("%s: %s, so there are no pictures: name the folder of slides by --slides DIR", bag.slide_id, where)
        return None
    if tiles is not None:
        made_of = str(store.read_attr(tiles, "upstream")).partition(" ")[0]
        if slide_fingerprint(path) != made_of:
            raise SlideError(
                f"{path} is not the slide that the tiles of {bag.slide_id} were made from: name the folder of the right"
                " one by --slides DIR"
            )
    return path


def open_again(path: Place, bag: Bag) -> Slide:
    """Open the slide of a bag as it was opened for its tiles: at the micrometres per pixel of then."""
    # Reading at level-0 coordinates needs no resolution, but a file that tells none is not opened without.
    mpp = float(bag.attrs["mpp_x"])
    if bag.attrs.get("mpp_source") == "option":
        return open_slide(path, mpp)
    try:
        return open_slide(path)
    except ResolutionError:  # the features know it from elsewhere, such as the program that made them
        return open_slide(path, mpp)
