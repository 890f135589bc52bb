"""What the product does with each kind of file, end to end. Each function may raise nothing but errors of ours."""

from pathlib import Path

import numpy as np
import torch
from seeds import IDENTITY, SLIDES

from wsi_mil import checkpoint, distances, regions, runs, store, weights
from wsi_mil.bags import Bag, bag_items, collate, read_bag
from wsi_mil.cohort import CohortParams, Seen, read_cohort, read_resolutions, read_slides_table
from wsi_mil.cohort.owners import read_patients
from wsi_mil.contact_sheet import write_contact_sheet
from wsi_mil.encoders import cache
from wsi_mil.errors import ResolutionError, WsiMilError
from wsi_mil.evaluation.record import require_own
from wsi_mil.evaluation.runs import answers_in
from wsi_mil.explain import Facts, Places, read_manifest
from wsi_mil.explain.places import read_places
from wsi_mil.explain.writing import is_explained
from wsi_mil.geometry import read_drawing
from wsi_mil.inspection import inspect, lines
from wsi_mil.interop import PeerOptions
from wsi_mil.interop.importing import ImportParams, ImportStage
from wsi_mil.interop.telling import told_of
from wsi_mil.learning import resume
from wsi_mil.slides import find_slides, open_slide, slide_fingerprint
from wsi_mil.stage import Item
from wsi_mil.tile_distances import TileDistances

_BAG = Bag("a", torch.zeros(1, 3), torch.zeros(1, 2), {"fingerprint": "f"})
_FACTS = Facts(
    classes=("neg", "pos"),
    predicted="neg",
    model="m",
    places=Places(np.zeros((1, 2), np.int64), (1, 1), (1.0, 1.0), {}),
    method={"partners": 3},
)
_SEEN = Seen(set(SLIDES) - {"dead"}, {"dead": "cannot be read"}, {})


def _each(*tries) -> None:
    """Let each reader have a go, whatever the others say of the file."""
    refused = None
    for read in tries:
        try:
            read()
        except WsiMilError as error:
            refused = error
    if refused:
        raise refused


def features(path: Path) -> None:
    _each(
        lambda: _learn(path),
        lambda: lines(inspect(path)),
        lambda: read_places(path),
        lambda: regions.read_labels(store.read(path)),
        lambda: runs.write_tables(path.parent, []),
        lambda: bag_items(path.parent),
        lambda: distances.DistanceStage(distances.DistanceParams(), path.parent).measure(Item("a", path)),
        lambda: store.survey(path),
    )


def _learn(path: Path) -> None:
    bag = read_bag(path)
    checkpoint.Recipe.of(bag.attrs)
    collate([bag])


def folder_of_tiles(path: Path) -> None:
    runs.write_tables(path.parent, [])
    write_contact_sheet(path.parent)
    _each(lambda: lines(inspect(path)), lambda: store.read(path), lambda: regions.read_labels(store.read(path)))


def distances_of(path: Path) -> None:
    feats = path.parents[1] / "feats"
    _each(
        lambda: lines(inspect(path)),
        lambda: distances.quantile(distances.merge([distances.read_histogram(path)]), 0.5),
        lambda: distances.histograms([Item("a", feats / "a.h5")], path.parent),
        lambda: distances.write_summary(path.parent),
    )


def peer(path: Path) -> None:
    def convert(mpp: float | None) -> None:
        item = Item(path.stem, path)
        stage = ImportStage(ImportParams(None), told_of([item], PeerOptions(mpp=mpp)))
        stage.upstream(item)
        stage.convert(item)

    _each(lambda: convert(None), lambda: convert(0.25), lambda: lines(inspect(path)))


def peer_beside(path: Path) -> None:
    peer(path.parents[1] / "pt_files" / "a.pt")


def labels(path: Path) -> None:
    _each(
        lambda: read_cohort(path, _SEEN),
        lambda: read_cohort(path, _SEEN, CohortParams(unit="patient", groups=("site",))),
        lambda: read_patients(path, list(SLIDES)),
    )


def slides_table(path: Path) -> None:
    _each(
        lambda: read_slides_table(path, SLIDES, ("min_coverage",)),
        lambda: read_resolutions(path, SLIDES),
        lambda: read_patients(path, list(SLIDES)),
    )


def run_tables(path: Path) -> None:
    folder = path.parents[1]
    _each(lambda: runs.failures(folder), lambda: runs.write_tables(folder, []))


def predictions(path: Path) -> None:
    answers_in(path)


def drawing(path: Path) -> None:
    found = read_drawing(path)
    coords = np.array([[x, y] for x in range(0, 1000, 100) for y in range(0, 800, 100)])
    regions.label_tiles(found.areas, coords, (100, 100))


def model(path: Path) -> None:
    def rebuild() -> None:
        made = checkpoint.load(path)
        made.model()
        made.trained_on("a")
        made.decide([1 / len(made.classes)] * len(made.classes))
        TileDistances.recorded(made.training)

    _each(rebuild, lambda: lines(inspect(path)))


def interrupted(path: Path) -> None:
    resume.load(path.parent, IDENTITY)


def weight_file(path: Path) -> None:
    _each(lambda: weights.read_state(path), lambda: weights.read_tensor(path), lambda: lines(inspect(path)))


def explanation(path: Path) -> None:
    _each(lambda: is_explained(path.parent, _BAG, _FACTS, True), lambda: read_manifest(path.parent))


def record(path: Path) -> None:
    _each(lambda: require_own(path.parent, {"command": "evaluate"}, False), cache.everything_kept)


def idx(path: Path) -> None:
    from collage_data import _read_idx

    _read_idx(path)


def slide(path: Path) -> None:
    _each(lambda: _look(path), lambda: slide_fingerprint(path), lambda: find_slides(path.parent))


def slide_beside(path: Path) -> None:
    """The slide that a file belongs to."""
    folder = path.parent if path.suffix in (".jpg", ".vms") else path.parents[1]
    slide(folder / ("v.vms" if path.suffix in (".jpg", ".vms") else "m.mrxs"))


def _look(path: Path) -> None:
    try:
        opened = open_slide(path)
    except ResolutionError:
        opened = open_slide(path, 0.5)
    with opened:
        width, height = opened.l0_size
        corners = np.array([(0, 0), (width // 2, height // 2), (max(0, width - 128), max(0, height - 128))])
        _each(
            lambda: opened.read_tiles(corners, (128, 128), (64, 64)),
            lambda: opened.read(width // 3, 0, (200, 200), (50, 50)),
            lambda: opened.thumbnail(8.0),
        )
