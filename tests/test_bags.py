import numpy as np
import pytest
import torch

from wsi_mil import store
from wsi_mil.bags import Bag, collate, read_bag
from wsi_mil.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, IncompatibleError

GEOMETRY = {"mpp_x": 0.5, "mpp_y": 0.5, "l0_tile_width": 512, "l0_tile_height": 512}


def write_features(path, coords, features=None, **attrs):
    features = np.arange(3 * len(coords)).reshape(-1, 3) / 4 if features is None else features
    store.write(
        path,
        store.Artifact(
            {"features": np.asarray(features, dtype=np.float16), "coords": np.asarray(coords, dtype=np.int64)},
            {"stage": "extract", "slide_id": path.stem, **GEOMETRY, **attrs},
        ),
    )
    return path


def bag(tiles, dim=3, slide_id="a"):
    return Bag(slide_id, torch.rand(tiles, dim) + 1, torch.rand(tiles, 2) + 1, {})


def test_coordinates_become_tile_centres_in_micrometres(tmp_path):
    read = read_bag(write_features(tmp_path / "s.h5", [(0, 0), (512, 1024)]))
    assert read.coords_um.tolist() == [[128, 128], [384, 640]]


def test_each_axis_has_its_own_resolution_and_tile_side(tmp_path):
    path = write_features(tmp_path / "s.h5", [(1000, 1000)], mpp_x=0.25, mpp_y=0.5, l0_tile_width=1024)
    assert read_bag(path).coords_um.tolist() == [[(1000 + 512) * 0.25, (1000 + 256) * 0.5]]


def test_the_same_tissue_scanned_twice_as_fine_has_the_same_coordinates(tmp_path):
    coords = np.array([(0, 512), (4096, 70_000)])
    coarse = read_bag(write_features(tmp_path / "coarse.h5", coords))
    finer = {"mpp_x": 0.25, "mpp_y": 0.25, "l0_tile_width": 1024, "l0_tile_height": 1024}
    fine = read_bag(write_features(tmp_path / "fine.h5", 2 * coords, **finer))
    assert torch.equal(coarse.coords_um, fine.coords_um)


def test_features_are_float32_and_unchanged_and_the_artifact_says_who_made_them(tmp_path):
    read = read_bag(write_features(tmp_path / "s.h5", [(0, 0)], [[0.5, -2, 1000]], encoder="morphology"))
    assert (read.slide_id, read.attrs["encoder"]) == ("s", "morphology")
    assert read.features.dtype == torch.float32
    assert read.features.tolist() == [[0.5, -2, 1000]]


def test_a_slide_without_tiles_is_an_empty_bag(tmp_path):
    read = read_bag(write_features(tmp_path / "s.h5", np.zeros((0, 2)), np.zeros((0, 3)), status="empty"))
    assert read.features.shape == (0, 3)
    assert read.coords_um.shape == (0, 2)


def test_tiles_are_no_features_and_the_message_says_how_to_make_them(tmp_path):
    path = write_features(tmp_path / "s.h5", [(0, 0)], stage="tile")
    with pytest.raises(ArtifactError, match=r"s\.h5.*tile.*wsimil extract"):
        read_bag(path)


def test_an_artifact_that_is_absent_or_lacks_its_geometry_is_refused(tmp_path):
    with pytest.raises(ArtifactMissing):
        read_bag(tmp_path / "absent.h5")
    store.write(tmp_path / "bare.h5", store.Artifact({"coords": np.zeros((1, 2))}, {"stage": "extract"}))
    with pytest.raises(ArtifactCorrupt, match="l0_tile_width"):
        read_bag(tmp_path / "bare.h5")


def test_collate_pads_with_zeros_that_the_mask_names():
    bags = [bag(2), bag(5), bag(1)]
    batch = collate(bags)
    assert batch.features.shape == (3, 5, 3)
    assert batch.mask.sum(dim=1).tolist() == [2, 5, 1]
    assert not batch.features[~batch.mask].any()
    assert not batch.coords_um[~batch.mask].any()
    for row, one in enumerate(bags):
        assert torch.equal(batch.features[row, batch.mask[row]], one.features)
        assert torch.equal(batch.coords_um[row, batch.mask[row]], one.coords_um)


def test_collate_refuses_bags_that_cannot_be_one_batch():
    with pytest.raises(ArtifactError, match="hollow"):
        collate([bag(2), bag(0, slide_id="hollow")])
    with pytest.raises(IncompatibleError, match=r"3 in a, 4 in b"):
        collate([bag(2), bag(2, dim=4, slide_id="b")])


def test_a_batch_moves_with_all_its_parts():
    batch = collate([bag(2)])._replace(slide=torch.zeros(1, 2, dtype=torch.long))
    moved = batch.to("meta")
    assert all(tensor.device.type == "meta" for tensor in moved)
    assert collate([bag(2)]).to("cpu").slide is None
