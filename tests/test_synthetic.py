"""The cohort whose label is a distance: what its label says, what nothing else says, and how it looks."""

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
from scipy import stats
from skimage.color import rgb2hed
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wsi_mil.errors import OptionError
from wsi_mil.synthetic import Blob, Layout, SyntheticParams, layout, make_cohort, paint_slide

PARAMS = SyntheticParams()
SMALL = SyntheticParams(slides=20, mpp=8.0, seed=3)
FINER = SyntheticParams(mpp=4.0, seed=3)
TILE_UM, STEP_UM = 256, 16
CELLS = round(PARAMS.side_um / STEP_UM)


@pytest.fixture(scope="module")
def layouts() -> list[Layout]:
    """Layouts of many slides, half near, half far."""
    return [layout(5, index, PARAMS) for index in range(200)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    make_cohort(folder, SMALL, workers=2)
    return folder


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def by_label(layouts: list[Layout], figure) -> tuple[list[float], list[float]]:
    return tuple([figure(one) for one in layouts if one.label == label] for label in ("near", "far"))


def centre_distances(one: tuple[Blob, ...], other: tuple[Blob, ...]) -> list[float]:
    return [float(np.hypot(a.x_um - b.x_um, a.y_um - b.y_um)) for a in one for b in other if a is not b]


def outline(blob: Blob) -> tuple[np.ndarray, np.ndarray]:
    angle = np.arange(len(blob.profile_um)) * (2 * np.pi / len(blob.profile_um))
    return blob.x_um + blob.profile_um * np.cos(angle), blob.y_um + blob.profile_um * np.sin(angle)


def tile_shares(one: Layout) -> np.ndarray:
    """What an ideal encoder sees: the shares of nest, cluster and tissue in each tile of a grid, (3, rows, columns)."""
    axis = (np.arange(CELLS) + 0.5) * STEP_UM
    x_um, y_um = np.meshgrid(axis, axis)

    def cover(blobs: tuple[Blob, ...]) -> np.ndarray:
        covered = np.zeros((CELLS, CELLS), bool)
        for blob in blobs:
            rows, columns = (
                slice(max(int((centre - blob.reach_um) / STEP_UM), 0), int((centre + blob.reach_um) / STEP_UM) + 2)
                for centre in (blob.y_um, blob.x_um)
            )
            covered[rows, columns] |= blob.depth_um(x_um[rows, columns], y_um[rows, columns]) > 0
        return covered

    masks = np.stack([cover(one.nests), cover(one.clusters), cover((one.tissue,)) & ~cover(one.holes)])
    side, cells = round(PARAMS.side_um / TILE_UM), TILE_UM // STEP_UM
    return masks.reshape(3, side, cells, side, cells).mean(axis=(2, 4))


def test_label_is_the_closest_distance_and_nothing_lies_between(layouts):
    for one in layouts:
        closest = min(centre_distances(one.nests, one.clusters))
        assert closest == pytest.approx(one.closest_um)
        if one.label == "near":
            assert PARAMS.near_um[0] <= closest < PARAMS.near_um[1]
        else:
            assert closest >= PARAMS.far_um
    assert [one.label for one in layouts].count("near") == len(layouts) // 2


def test_every_slide_holds_the_same_numbers_in_the_tissue_and_apart(layouts):
    for one in layouts:
        assert (len(one.nests), len(one.clusters)) == (PARAMS.nests, PARAMS.clusters)
        for blob in (*one.nests, *one.clusters):
            assert one.tissue.depth_um(*outline(blob)).min() > 0
        for hole in one.holes:
            assert one.tissue.depth_um(*outline(hole)).min() > 0
        for a, b in itertools.combinations((*one.nests, *one.clusters, *one.holes), 2):
            assert a.depth_um(*outline(b)).max() < 0


@pytest.mark.parametrize(
    "figure",
    [
        lambda one: min(centre_distances(one.nests, one.nests)),
        lambda one: max(centre_distances(one.nests, one.nests)),
        lambda one: min(centre_distances(one.clusters, one.clusters)),
        lambda one: max(centre_distances(one.clusters, one.clusters)),
        lambda one: sum(blob.area_um2 for blob in one.nests),
        lambda one: sum(blob.area_um2 for blob in one.clusters),
        lambda one: one.tissue.area_um2 - sum(hole.area_um2 for hole in one.holes),
        lambda one: float(len(one.holes)),
    ],
    ids=["nests-min", "nests-max", "clusters-min", "clusters-max", "nest-area", "cluster-area", "tissue", "holes"],
)
def test_nothing_but_the_distance_differs_between_labels(layouts, figure):
    assert stats.ks_2samp(*by_label(layouts, figure)).pvalue > 0.01


def test_tiles_without_positions_do_not_betray_the_label_and_with_positions_they_do(layouts):
    rows, gaps = [], []
    for one in layouts:
        nest, cluster, tissue = tile_shares(one)
        kept = tissue >= 0.5
        bag = [nest[kept], cluster[kept]]
        assert not (bag[0] * bag[1]).any(), "a tile touches both a nest and a cluster"
        ranked = [np.sort(share)[::-1][:30] for share in bag]
        moments = [f(share) for share in bag for f in (np.sum, lambda x: (x**2).sum(), lambda x: (x > 0.5).sum())]
        rows.append(np.concatenate([*ranked, moments, [kept.sum(), tissue.sum()]]))
        nests, clusters = (np.argwhere(share > 0.5) for share in (nest, cluster))
        gaps.append(np.linalg.norm(nests[:, None] - clusters, axis=-1).min())
    far = np.array([one.label == "far" for one in layouts])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    guesses = cross_val_predict(model, np.stack(rows), far, cv=5, method="predict_proba")[:, 1]
    assert 0.4 < roc_auc_score(far, guesses) < 0.6
    assert roc_auc_score(far, gaps) > 0.99


def test_nests_and_clusters_dominate_several_tiles(layouts):
    nest, cluster, _ = np.moveaxis(np.stack([tile_shares(one) for one in layouts[:40]]), 1, 0)
    for share in (nest, cluster):
        assert (share > 0.5).sum(axis=(1, 2)).min() >= 2 * PARAMS.nests
        assert (share > 0.5).sum(axis=(1, 2)).mean() >= 2.5 * PARAMS.nests


def test_slide_opens_in_openslide_at_its_resolution(cohort):
    with openslide.OpenSlide(cohort / "slides" / "slide-000.tif") as slide:
        assert slide.dimensions == (SMALL.side_px, SMALL.side_px)
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(SMALL.mpp, rel=1e-4)
        assert slide.level_count > 1


def test_labels_name_every_slide_and_keep_patients_in_one_split(cohort):
    labels = read_table(cohort / "labels.csv")
    assert [row["slide_id"] for row in labels] == sorted(path.stem for path in (cohort / "slides").iterdir())
    for split in ("train", "val", "test"):
        chosen = [row["label"] for row in labels if row["split"] == split]
        assert chosen.count("near") == chosen.count("far") > 0
    of_patient = {row["patient_id"]: (row["split"], row["label"]) for row in labels}
    assert all(of_patient[row["patient_id"]] == (row["split"], row["label"]) for row in labels)
    patients = [row["patient_id"] for row in labels]
    assert {patients.count(patient) for patient in patients} == {1, 2}


def test_truth_names_every_nest_and_cluster(cohort):
    truth = [row for row in read_table(cohort / "truth.csv") if row["slide_id"] == "slide-001"]
    drawn = layout(SMALL.seed, 1, SMALL)
    assert [row["kind"] for row in truth] == ["nest"] * 3 + ["cluster"] * 3
    xs = [blob.x_um for blob in (*drawn.nests, *drawn.clusters)]
    assert [float(row["x_um"]) for row in truth] == pytest.approx(xs, abs=0.06)


def test_same_seed_same_bytes_whatever_the_workers(tmp_path):
    few, one, two = replace(SMALL, slides=6), tmp_path / "one", tmp_path / "two"
    make_cohort(one, few, workers=1)
    make_cohort(two, few, workers=2)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == few.slides + 2
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def test_slides_depend_on_seed_and_number_only():
    same = SyntheticParams(slides=20, mpp=8.0)
    assert (paint_slide(4, same) == paint_slide(4, SyntheticParams(slides=40, mpp=8.0))).all()
    assert (paint_slide(4, same) != paint_slide(5, same)).any()
    assert (paint_slide(4, same) != paint_slide(4, SyntheticParams(slides=20, mpp=8.0, seed=1))).any()


@pytest.mark.parametrize("index", [0, 1])
def test_colours_are_those_of_the_stains(index):
    drawn, image = layout(FINER.seed, index, FINER), paint_slide(index, FINER)
    axis = (np.arange(FINER.side_px) + 0.5) * FINER.mpp
    grid = np.meshgrid(axis, axis)
    haematoxylin = rgb2hed(image)[..., 0]

    def mean(blobs: tuple[Blob, ...]) -> float:
        return float(np.mean([haematoxylin[blob.depth_um(*grid) > 30].mean() for blob in blobs]))

    cells = np.logical_or.reduce([blob.depth_um(*grid) > -30 for blob in (*drawn.nests, *drawn.clusters, *drawn.holes)])
    stroma = haematoxylin[(drawn.tissue.depth_um(*grid) > 30) & ~cells].mean()
    nests, clusters = mean(drawn.nests), mean(drawn.clusters)
    assert nests > 2 * stroma
    assert clusters > 1.2 * nests
    red, green, blue = image[(drawn.tissue.depth_um(*grid) > 30) & ~cells].mean(axis=0)
    assert red > blue > green, "stroma is pink"
    glass = image[drawn.tissue.depth_um(*grid) < -30]
    assert glass.mean(axis=0).min() > 230
    assert 0.1 < glass.std(axis=0).max() < 6, "glass shows the noise of the scanner and nothing else"


def test_slides_differ_in_stain():
    params = SyntheticParams(mpp=8.0)
    images = [paint_slide(index, params) for index in range(6)]
    greens = [image[image[..., 1] < 200][:, 1].mean() for image in images]
    assert 3 < np.ptp(greens) < 60


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"slides": 7}, "--slides 7"),
        ({"slides": 4}, "--slides 4"),
        ({"val_fraction": 0.0}, "--val-fraction 0"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "--test-fraction 0.5"),
        ({"nests": 0}, "--nests 0"),
        ({"clusters": 5}, "--clusters 5"),
        ({"near_um": (900.0, 800.0)}, "--near-um 900 800"),
        ({"far_um": 1000.0}, "--far-um 1000"),
        ({"spacing_um": 100.0}, "--spacing-um 100"),
        ({"mpp": 0.0}, "--mpp 0"),
        ({"clearance_um": -1.0}, "--clearance-um -1"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_nonsense_is_refused_by_name(options, named):
    with pytest.raises(OptionError, match=named):
        SyntheticParams(**options)


def test_quick_slides_keep_the_rule():
    params = SyntheticParams.quick(seed=2)
    drawn = [layout(params.seed, index, params) for index in range(params.slides)]
    near = [one.closest_um for one in drawn if one.label == "near"]
    assert len(near) == params.slides / 2
    assert max(near) < params.near_um[1] < params.far_um <= min(one.closest_um for one in drawn if one.label == "far")
    assert params.side_px < PARAMS.side_px * 2 / 3


def test_what_does_not_fit_is_refused():
    with pytest.raises(OptionError, match="--side-um 2000"):
        layout(0, 0, SyntheticParams(side_um=2000.0))
