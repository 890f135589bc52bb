import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_mil import distances, store
from wsi_mil.distances import BIN_UM, DistanceParams, DistanceStage
from wsi_mil.errors import ArtifactCorrupt, ArtifactError, ArtifactStale, OptionError
from wsi_mil.stage import Item, RunOptions, artifact_items, run

UNIT = np.ones(2)


def grid(rng: np.random.Generator, width: int, height: int, step: int = 224, share: float = 0.6) -> np.ndarray:
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    return (cells[rng.random(len(cells)) < share] * step + 37).astype(np.int64)


def brute_histogram(coords_um: np.ndarray) -> np.ndarray:
    found = [
        float(np.hypot(*(coords_um[i] - coords_um[j])))
        for i in range(len(coords_um))
        for j in range(i + 1, len(coords_um))
    ]
    return np.bincount([int((um + 1e-6) // BIN_UM) for um in found], minlength=0)


@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    um_per_px=st.sampled_from([(1.0, 1.0), (0.5, 0.25), (0.2521, 0.2521)]),
)
@settings(max_examples=40, deadline=None)
def test_the_histogram_of_a_grid_counts_every_pair(seed: int, size: tuple[int, int], um_per_px: tuple) -> None:
    coords, scale = grid(np.random.default_rng(seed), *size), np.array(um_per_px)
    counts = distances.histogram(coords, scale)
    assert counts.tolist() == brute_histogram(coords * scale).tolist()
    assert counts.sum() == len(coords) * (len(coords) - 1) // 2


def test_the_histogram_off_the_grid_counts_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    coords = np.random.default_rng(0).integers(0, 10_000_019, (150, 2))
    monkeypatch.setattr(distances, "_BLOCK", 64)  # several blocks, the last one not full
    assert distances.histogram(coords, UNIT * 1e-3).tolist() == brute_histogram(coords * 1e-3).tolist()


def test_coinciding_tiles_are_pairs_at_distance_zero() -> None:
    coords = np.array([[0, 0], [0, 0], [224, 0]])
    assert distances.histogram(coords, UNIT)[0] == 1
    assert distances.histogram(coords, UNIT).sum() == 3


def test_a_large_grid_needs_no_square_array() -> None:
    coords = grid(np.random.default_rng(0), 316, 316, share=1.1)
    counts = distances.histogram(coords, UNIT)
    assert counts.sum() == 99_856 * 99_855 // 2


def test_neighbours_are_the_nearest_in_a_fixed_order() -> None:
    rng = np.random.default_rng(3)
    coords_um = grid(rng, 12, 9) * 0.5
    index, um = distances.nearest(coords_um, 5)
    square = np.linalg.norm(coords_um[:, None] - coords_um[None], axis=2)
    np.fill_diagonal(square, np.inf)
    np.testing.assert_allclose(um, np.sort(square, axis=1)[:, :5], rtol=1e-6)
    np.testing.assert_array_equal(index, np.argsort(square, axis=1, kind="stable")[:, :5])


@pytest.mark.parametrize(("tiles", "k"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_few_tiles_have_few_neighbours(tiles: int, k: int) -> None:
    index, um = distances.nearest(np.arange(2.0 * tiles).reshape(tiles, 2), 8)
    assert index.shape == um.shape == (tiles, k)


def test_a_quantile_of_merged_histograms_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    slides = [grid(rng, 20, 30), grid(rng, 5, 8)]
    merged = distances.merge([distances.histogram(coords, UNIT) for coords in slides])
    pairs = [np.linalg.norm(c[:, None] - c[None], axis=2)[np.triu_indices(len(c), 1)] for c in slides]
    for q in (0.05, 0.5, 0.95):
        assert distances.quantile(merged, q) == pytest.approx(np.quantile(np.concatenate(pairs), q), abs=BIN_UM)
    with pytest.raises(ArtifactError, match="no slide has two tiles"):
        distances.quantile(np.zeros(3, np.int64), 0.5)


def feats(folder: Path, coords: np.ndarray, slide_id: str = "a", fingerprint: str = "f") -> Item:
    attrs = {"stage": "extract", "fingerprint": fingerprint, "mpp_x": 0.5, "mpp_y": 0.5, "tile_um": 112.0}
    attrs |= {"l0_tile_width": 224, "l0_tile_height": 224}
    attrs |= {"status": "done" if len(coords) else "empty", "reason": "no tissue", "slide_id": slide_id}
    path = folder / f"{slide_id}.h5"
    store.write(path, store.Artifact({"coords": coords, "features": np.zeros((len(coords), 3), np.float16)}, attrs))
    return Item(slide_id, path)


def test_the_stage_writes_um_and_no_square_array(tmp_path: Path) -> None:
    coords = grid(np.random.default_rng(0), 10, 10)
    items = [feats(tmp_path / "feats", coords), feats(tmp_path / "feats", coords[:0], "void")]
    out = tmp_path / "distances"
    report = run(DistanceStage(DistanceParams(k=4), out), items, out)
    assert (report.done, report.empty) == (["a"], ["void"])
    artifact = store.read(out / "a.h5")
    assert set(artifact.arrays) == {"neighbours", "neighbours_um", "histogram"}
    assert artifact.arrays["neighbours_um"].min() == 112.0
    assert artifact.attrs["bin_um"] == BIN_UM
    distances.write_summary(out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["all"]["pairs"] == summary["slides"]["a"]["pairs"] == len(coords) * (len(coords) - 1) // 2
    assert summary["slides"]["void"] == {"pairs": 0}


def test_the_matrix_is_stored_when_asked_for_and_refused_with_its_size_when_it_would_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coords, out = grid(np.random.default_rng(0), 6, 6), tmp_path / "distances"
    item = feats(tmp_path / "feats", coords)
    run(DistanceStage(DistanceParams(dense=True), out), [item], out)
    matrix = store.read(out / "a.h5").arrays["distances"]
    np.testing.assert_allclose(matrix, np.linalg.norm((coords[:, None] - coords[None]) * 0.5, axis=2), rtol=1e-6)
    monkeypatch.setattr(distances, "available_memory", lambda: 20_000_000)
    item = feats(tmp_path / "feats", grid(np.random.default_rng(0), 60, 60, share=1.1), fingerprint="g")
    report = run(DistanceStage(DistanceParams(dense=True), out), [item], out, RunOptions(overwrite=True))
    assert "the matrix of 3,600 tiles takes 52 MB and 10 MB are free" in str(report.failed["a"])
    assert isinstance(report.failed["a"], OptionError)


def test_histograms_are_taken_where_they_are_current_and_made_where_not(tmp_path: Path) -> None:
    rng, out = np.random.default_rng(0), tmp_path / "distances"
    coords = grid(rng, 6, 6)
    item = feats(tmp_path / "feats", coords)
    run(DistanceStage(DistanceParams(k=3), out), [item], out)
    time = (out / "a.h5").stat().st_mtime_ns
    distances.histograms([item], out)
    assert (out / "a.h5").stat().st_mtime_ns == time  # the user's choice of k stays
    expected = distances.histogram(coords, UNIT * 0.5)
    (out / "a.h5").write_bytes(b"broken")
    assert distances.histograms([item], out)[0].tolist() == expected.tolist()
    assert store.read(out / "a.h5").arrays["histogram"].tolist() == expected.tolist()


def test_distances_of_other_features_stay_as_they_are_and_training_counts_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng, out = np.random.default_rng(0), tmp_path / "distances"
    theirs = feats(tmp_path / "theirs", grid(rng, 6, 6))
    run(DistanceStage(DistanceParams(k=3, dense=True), out), [theirs], out)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    ours = [feats(tmp_path / "ours", grid(rng, 7, 7), name, fingerprint=f"of {name}") for name in ("a", "b")]
    for _ in range(2):  # as rounds of a cross-validation ask
        found = distances.histograms(ours, out)
    expected = [distances.histogram(store.read(item.source).arrays["coords"], UNIT * 0.5) for item in ours]
    assert [one.tolist() for one in found] == [one.tolist() for one in expected]
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert caplog.text.count(f"{out} holds distances of other features") == 1
    assert "--distances" in caplog.text


def test_what_holds_no_distances_is_no_folder_of_them(tmp_path: Path) -> None:
    item = feats(tmp_path / "feats", grid(np.random.default_rng(0), 3, 3))
    before = item.source.read_bytes()
    with pytest.raises(ArtifactStale, match=r"a\.h5 holds no distances: name another folder by --distances"):
        distances.histograms([item], tmp_path / "feats")
    assert item.source.read_bytes() == before


def test_features_that_do_not_say_all_are_refused_by_name(tmp_path: Path) -> None:
    item = feats(tmp_path / "feats", grid(np.random.default_rng(0), 3, 3))
    artifact = store.read(item.source)
    store.write(
        item.source, store.Artifact(artifact.arrays, {k: v for k, v in artifact.attrs.items() if k != "tile_um"})
    )
    with pytest.raises(ArtifactCorrupt, match=r"a\.h5 lacks 'tile_um': make it again"):
        DistanceStage(DistanceParams(), tmp_path).measure(item)


@pytest.mark.parametrize("counts", [np.ones(3, np.uint64), np.ones(3, np.float32), -np.ones(3, np.int64)])
def test_what_is_no_count_of_distances_is_refused(counts: np.ndarray, tmp_path: Path) -> None:
    store.write(tmp_path / "a.h5", store.Artifact({"histogram": counts}, {"stage": "distances"}))
    with pytest.raises(ArtifactCorrupt, match="holds no counts of distances"):
        distances.read_histogram(tmp_path / "a.h5")


def test_what_holds_no_features_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    store.write(path, store.Artifact({"coords": np.zeros((1, 2), np.int64)}, {"stage": "tile", "fingerprint": "f"}))
    report = run(DistanceStage(DistanceParams(), tmp_path / "out"), artifact_items(tmp_path), tmp_path / "out")
    assert "wsimil extract" in str(report.failed["a"])


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="--k 0"):
        DistanceParams(k=0)
