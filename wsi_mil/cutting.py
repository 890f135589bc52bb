"""Stage 1 as a command asks for it: which slides, what each has of its own, and where drawings of them lie."""

import logging
from collections.abc import Mapping
from pathlib import Path

from wsi_mil.cohort import read_slides_table, some_names
from wsi_mil.contact_sheet import write_contact_sheet
from wsi_mil.errors import OptionError
from wsi_mil.regions import Drawings, RegionParams
from wsi_mil.remote import Url
from wsi_mil.runs import Report
from wsi_mil.slides import Place, find_slides, require_mpp
from wsi_mil.stage import Item, RunOptions, run
from wsi_mil.tiling import SETTINGS, TileParams, TileStage

log = logging.getLogger(__name__)


def tile(
    slides: Path | Url,
    out: Path,
    params: TileParams,
    options: RunOptions,
    table: Path | None = None,
    mpp: float | None = None,
    drawings: Drawings | None = None,
) -> Report:
    """Run stage 1 over a folder of slides, or over those that ``slides.csv`` names.

    Args:
        slides: a folder of slides, or one slide; or the address of either.
        out: where the artifacts go.
        params: what decides the tiles.
        options: how to run.
        table: ``slides.csv``, with a column mpp for slides whose files do not tell it, and one for each parameter that
            some slides have of their own.
        mpp: mpp of every slide for which the table has none.
        drawings: folders of regions and annotations.

    Raises:
        OptionError: a file that was named would be written over, or ``mpp`` makes no sense.
    """
    stage, items = tile_plan(slides, out, params, options, table, mpp, drawings)
    report = run(stage, items, out, options)
    write_contact_sheet(out)
    return report


def tile_plan(
    slides: Path | Url,
    out: Path,
    params: TileParams,
    options: RunOptions,
    table: Path | None = None,
    mpp: float | None = None,
    drawings: Drawings | None = None,
) -> tuple[TileStage, list[Item]]:
    """What `tile` would run, and over which slides; everything that can be refused beforehand is refused here."""
    require_mpp("--slide-mpp", mpp)
    found = {slide.slide_id: slide.path for slide in find_slides(slides, options.cache, out)}
    drawings = (drawings or Drawings()).among(found)
    _refuse_overwriting(out, drawings, found)
    chosen = read_slides_table(table, found, SETTINGS) if table else {slide_id: {} for slide_id in found}
    _tell_left_out(slides, table, sorted(found.keys() - chosen.keys()))
    resolutions = {slide_id: value for slide_id, own in chosen.items() if (value := own.pop("mpp", mpp)) is not None}
    for slide_id, own in chosen.items():
        _require_settings(table, slide_id, own, params)
    drawings.tell_missing(list(chosen))
    drawings.require_classes(chosen, RegionParams(params.include, params.exclude))
    drawings = drawings.absolute() if options.scheduler else drawings
    stage = TileStage(params, options.threads, resolutions, chosen, drawings)
    return stage, [Item(slide_id, found[slide_id]) for slide_id in chosen]


def _refuse_overwriting(out: Path, drawings: Drawings, slides: Mapping[str, Place]) -> None:
    """Refuse to write outlines over regions or annotations, or a preview over its slide."""
    elsewhere = "keep those that you edited in a folder of their own, or give another --out"
    for option, folder in (("--regions", drawings.regions), ("--annotations", drawings.annotations)):
        if folder and folder.resolve() == out.resolve():
            raise OptionError(f"{option} {folder} is --out, where outlines are written anew: {elsewhere}")
    for slide_id, path in slides.items():
        outline, preview = out / f"{slide_id}.geojson", out / f"{slide_id}.jpg"
        for option, file in drawings.files(slide_id) if outline.exists() else ():
            if outline.samefile(file):
                raise OptionError(f"{option}: {file} is where the outline of {slide_id} is written anew: {elsewhere}")
        if isinstance(path, Path) and path.suffix.lower() == ".jpg" and preview.exists() and preview.samefile(path):
            raise OptionError(f"--out {out}: the preview of {path} would be written over it: give another --out")


def _tell_left_out(slides: Path | Url, table: Path | None, left_out: list[str]) -> None:
    """Say which slides a table does not choose: it may have been meant to give some of them a resolution only."""
    if left_out:
        count, are = ("1 slide", "is") if len(left_out) == 1 else (f"{len(left_out)} slides", "are")
        log.warning("%s of %s %s not in %s and %s left out: %s", count, slides, are, table, are, some_names(left_out))


def _require_settings(table: Path | None, slide_id: str, own: dict[str, float], params: TileParams) -> None:
    """Refuse a setting that makes no sense before any work."""
    try:
        params.changed(own)
    except OptionError as error:
        raise OptionError(f"{table}, {slide_id}: {error}") from error
