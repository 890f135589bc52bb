"""A small cohort of painted slides whose label is a distance: the demo, and the tests of everything positional.

Every slide holds tumour nests and lymphocyte clusters in the same numbers and sizes. It is ``near`` when some nest
lies close to a cluster, and ``far`` when none does, so a model without positions cannot beat chance. `layout` says how
that is kept so, `paint` how a layout becomes an image.

Example::

    params = SyntheticParams(slides=20, mpp=4.0)
    make_cohort(Path("demo"), params)               # demo/slides/slide-000.tif ..., demo/labels.csv, demo/truth.csv
    layout(params.seed, 0, params).closest_um       # what the label of slide-000 is about
"""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wsi_mil import publishing
from wsi_mil.errors import TableError
from wsi_mil.executors import available_cores, map_unordered
from wsi_mil.progress import progress
from wsi_mil.slides import write_pyramid
from wsi_mil.synthetic.layouts import LABELS, Blob, Layout, label_of, layout
from wsi_mil.synthetic.painting import paint
from wsi_mil.synthetic.palettes import palette
from wsi_mil.synthetic.params import SyntheticParams

__all__ = ["LABELS", "Blob", "Layout", "SyntheticParams", "layout", "make_cohort", "paint_slide", "slide_id"]

_LABEL_COLUMNS = ("slide_id", "label", "patient_id", "split")
_MOST_WORKERS = 8  # a slide in the making takes about 0.4 GB
_QUALITY = 85


def make_cohort(folder: Path, params: SyntheticParams, workers: int = 0) -> None:
    """Paint a whole cohort; the same one painted before is painted anew.

    Writes ``slides/<slide_id>.tif`` (tiled, pyramidal), ``labels.csv`` (slide_id, label, patient_id, split) and
    ``truth.csv`` (slide_id, kind, x_um, y_um, radius_um: where each nest and cluster lies, by its centre and mean
    radius, from the slide's top left corner). The tables come last: where they are, the slides are complete.

    Args:
        folder: where to; made if need be.
        params: what the cohort is like. The same params give the same bytes.
        workers: threads; 0 = the cores this process may use.

    Raises:
        OptionError: the nests, clusters and distances wanted do not fit the slides.
        TableError: the folder holds the labels of another cohort, perhaps a real one; nothing is touched then.
    """
    rows = list(_labels(params))
    _refuse_other_cohort(folder / "labels.csv", rows)
    palette(params.mpp)  # made here once, so that the threads do not all make it

    drawn: dict[int, Layout] = {}

    def make(index: int) -> None:
        drawn[index] = layout(params.seed, index, params)
        image = _painted(drawn[index], index, params)
        write_pyramid(folder / "slides" / f"{slide_id(index)}.tif", image, params.mpp, quality=_QUALITY)

    with progress("paint", params.slides) as track:
        for index, _ in map_unordered(make, range(params.slides), min(workers or available_cores(), _MOST_WORKERS)):
            track.advance(slide_id(index))
    _write_table(folder / "truth.csv", ("slide_id", "kind", "x_um", "y_um", "radius_um"), _truth(drawn))
    _write_table(folder / "labels.csv", _LABEL_COLUMNS, rows)


def paint_slide(index: int, params: SyntheticParams) -> np.ndarray:
    """Paint slide number ``index``: uint8 RGB, ``params.side_px`` pixels square."""
    return _painted(layout(params.seed, index, params), index, params)


def _painted(drawn: Layout, index: int, params: SyntheticParams) -> np.ndarray:
    return paint(drawn, params, np.random.default_rng([params.seed, index, 3]))


def slide_id(index: int) -> str:
    """Name of slide number ``index``."""
    return f"slide-{index:03d}"


def _refuse_other_cohort(path: Path, rows: list[tuple[str, ...]]) -> None:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        found = [tuple(row) for row in csv.reader(file)]
    if found != [_LABEL_COLUMNS, *rows]:
        raise TableError(f"{path} is there and tells of other slides: name a folder of its own for the painted ones")


def _truth(drawn: dict[int, Layout]) -> Iterable[tuple[str, ...]]:
    for index, one in sorted(drawn.items()):
        for blob in (*one.nests, *one.clusters):
            yield slide_id(index), blob.kind, *(f"{um:.1f}" for um in (blob.x_um, blob.y_um, blob.radius_um))


def _labels(params: SyntheticParams) -> Iterable[tuple[str, ...]]:
    """One row per slide. In each split and class every fifth patient or so has two slides, as in life."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index in range(params.slides):
        split, label = _split_of(index, params), label_of(params.seed, index)
        group = groups.setdefault((split, label), [])
        group.append(index)
        owner = group[-2] if len(group) % 5 == 4 else index
        yield slide_id(index), label, f"patient-{owner:03d}", split


def _split_of(index: int, params: SyntheticParams) -> str:
    """The splits follow each other; slides 2k and 2k + 1, one of each label, stay together, so each is balanced."""
    train, val, _ = params.split_pairs
    return "train" if index // 2 < train else "val" if index // 2 < train + val else "test"


def _write_table(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with publishing.replacing_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
