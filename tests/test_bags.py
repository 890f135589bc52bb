import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_mil import distances, store
from wsi_mil.bags import Bag, collate, join_bags, read_bag
from wsi_mil.checkpoint import Recipe
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


# ---- several slides


def slides_of(counts, dim=3):
    return [bag(tiles, dim, f"slide-{index}") for index, tiles in enumerate(counts)]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
def test_joined_slides_keep_their_tiles_and_each_its_own_frame(counts):
    slides = slides_of(counts)
    joined = join_bags(slides, "patient")
    filled = [one for one in slides if len(one.features)]
    assert joined.slide_id == "patient"
    assert joined.attrs["slide_ids"] == tuple(one.slide_id for one in filled)
    assert joined.attrs["empty_slide_ids"] == tuple(one.slide_id for one in slides if not len(one.features))
    numbers = torch.zeros(sum(counts)) if joined.slide is None else joined.slide
    assert (joined.slide is None) == (len(filled) == 1)
    for number, one in enumerate(filled):
        assert torch.equal(joined.features[numbers == number], one.features)
        assert torch.equal(joined.coords_um[numbers == number], one.coords_um)
    assert len(joined.features) == len(joined.coords_um) == sum(counts)


def test_one_slide_joined_is_the_slide_under_another_name():
    (alone,) = slides_of([4])
    alone = alone._replace(attrs={"slide_path": "a.svs", "encoder": "e"})
    joined = join_bags([alone, bag(0, slide_id="hollow")], "patient")
    assert joined.slide is None
    assert joined.features is alone.features
    assert joined.attrs == alone.attrs | {"slide_ids": ("slide-0",), "empty_slide_ids": ("hollow",)}


def test_a_joined_bag_says_how_features_were_made_and_nothing_that_is_true_of_one_slide_only(tmp_path):
    made = {"encoder": "e", "encoder_weights": "hub:e", "encoder_weights_sha256": "0", "tile_px": 224, "status": "done"}
    made |= {"params": "{}", "tile_params": "{}"}
    paths = [
        write_features(tmp_path / f"{name}.h5", [(0, 0)], tile_um=um, slide_path=f"{name}.svs", mpp_x=mpp, **made)
        for name, um, mpp in (("a", 256.0, 0.25), ("b", 257.0, 0.5))  # as nominal magnifications make them
    ]
    first, second = map(read_bag, paths)
    attrs = join_bags([first, second], "patient").attrs
    assert Recipe.of(attrs) == Recipe.of(first.attrs)
    assert (attrs["status"], attrs["mpp_y"], attrs["encoder_weights"]) == ("done", 0.5, "hub:e")
    assert not {"slide_id", "slide_path", "mpp_x"} & attrs.keys()
    assert first.attrs["slide_path"] == "a.svs"


@pytest.mark.parametrize(
    ("slides", "error", "named"),
    [
        ([], ArtifactError, "patient: none of its slides .it has none. has tiles"),
        (slides_of([0, 0]), ArtifactError, r"patient: none of its slides \(slide-0, slide-1\) has tiles"),
        ([*slides_of([1]), *slides_of([2])], ArtifactError, "patient: slide-0 is there twice"),
        ([join_bags(slides_of([1, 1]), "other")], ArtifactError, "patient: other is several slides already"),
        ([bag(2), bag(2, dim=4, slide_id="b")], IncompatibleError, "dimension in patient: 3 in a, 4 in b"),
    ],
)
def test_what_cannot_be_one_bag_is_refused_by_name(slides, error, named):
    with pytest.raises(error, match=named):
        join_bags(slides, "patient")


@pytest.mark.parametrize("key", ["encoder", "encoder_weights_sha256", "tile_px"])
def test_slides_whose_features_were_made_otherwise_are_refused_by_name(key):
    slides = [one._replace(attrs={key: made}) for one, made in zip(slides_of([1, 2, 1]), "xxy", strict=True)]
    with pytest.raises(IncompatibleError, match=f"patient: {key} is y in slide-2 and x in slide-0; extract"):
        join_bags(slides, "patient")
    assert len(join_bags([*slides[:2], slides[2]._replace(attrs={})], "patient").features) == 4


def test_bags_of_several_slides_and_of_one_are_one_batch():
    joined, alone = join_bags(slides_of([2, 3]), "patient"), bag(7)
    batch = collate([alone, joined])
    assert batch.slide.tolist() == [[0] * 7, [0, 0, 1, 1, 1, 0, 0]]
    assert batch.slide.shape == batch.mask.shape
    assert torch.equal(batch.features[1, batch.mask[1]], joined.features)
    assert torch.equal(collate([joined]).slide[0], joined.slide)
    assert collate([alone, join_bags(slides_of([4]), "patient")]).slide is None


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 999))
def test_distances_in_a_joined_bag_are_those_that_the_slides_histograms_count(counts, seed):
    """So length scales are the same for slides and for patients: they come of merged histograms of slides."""
    rng, slides, found = np.random.default_rng(seed), [], []
    for one in slides_of(counts):
        coords = 224 * rng.integers(0, 9, (len(one.features), 2))
        slides.append(one._replace(coords_um=torch.from_numpy((coords + 112) * 0.5).float()))
        found.append(distances.histogram(coords, np.array([0.5, 0.5])))
    joined = join_bags(slides, "patient")
    slide = torch.zeros(sum(counts)) if joined.slide is None else joined.slide
    um = torch.cdist(joined.coords_um.double(), joined.coords_um.double(), compute_mode="donot_use_mm_for_euclid_dist")
    pairs = (slide[:, None] == slide) & torch.ones(len(slide), len(slide)).triu(1).bool()
    merged = distances.merge(found)
    bins = ((um[pairs] + 1e-6) / distances.BIN_UM).long()
    assert torch.bincount(bins, minlength=len(merged)).tolist() == merged.tolist()
