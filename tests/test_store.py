import contextlib
import errno
import json
import multiprocessing
import os
import signal
import stat
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wsi_mil import publishing, store
from wsi_mil.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from wsi_mil.guards import hdf5


def example() -> store.Artifact:
    coords = np.arange(6, dtype=np.int64).reshape(3, 2)
    attrs = {"mpp_x": 0.5, "status": "done", "params": json.dumps({"k": 1})}
    return store.Artifact({"coords": coords}, attrs, {"coords": {"patch_size": 224, "name": "a.b"}})


def test_an_artifact_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.b.h5"
    store.write(path, example())
    back = store.read(path)
    assert (back.arrays["coords"] == example().arrays["coords"]).all()
    assert back.arrays["coords"].dtype == np.int64
    assert back.array_attrs == example().array_attrs
    assert back.params == {"k": 1}
    assert back.attrs["format_version"] == store.FORMAT_VERSION
    assert store.read_attrs(path) == back.attrs


def test_datasets_are_contiguous(tmp_path: Path) -> None:
    store.write(tmp_path / "a.h5", example())
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["coords"].chunks is None


def test_the_same_artifact_is_the_same_bytes(tmp_path: Path) -> None:
    store.write(tmp_path / "a.h5", example())
    time.sleep(1.1)  # HDF5 times have whole seconds
    store.write(tmp_path / "b.h5", example())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_nothing_stays_behind_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        store.write(tmp_path / "a.h5", store.Artifact({"coords": np.array([object()])}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "of_folders", "passes"),
    [
        (errno.EINVAL, True, True),
        (errno.ENOTSUP, True, True),
        (errno.EIO, True, False),
        (errno.EINVAL, False, False),
        (errno.ENOTSUP, False, False),
    ],
)
def test_a_disk_may_be_unable_to_make_folders_durable_but_nothing_else(
    code: int, of_folders: bool, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def failing(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folders:
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    told = contextlib.nullcontext if passes else partial(pytest.raises, OSError, match=os.strerror(code))
    with told():
        publishing.write_bytes(tmp_path / "a.txt", b"new")
    with told(), publishing.replacing_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_text("new")
    if passes:
        assert (tmp_path / "a.txt").read_bytes() == b"new"
        assert (tmp_path / "folder/inner/b.txt").read_text() == "new"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    publishing.write_bytes(path, b"old")
    with pytest.raises(UnicodeEncodeError), publishing.replacing_text(path) as file:
        file.write("new \udc80")
    assert path.read_bytes() == b"old"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"nowhere\.h5 does not exist"):
        store.read(tmp_path / "nowhere.h5")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.h5"
    store.write(path, example())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ArtifactCorrupt, match=r"a\.h5 is damaged.*--overwrite"):
        store.read(path)


def test_attributes_that_are_no_text_are_refused_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    store.write(path, example())
    with h5py.File(path, "r+") as file:
        file.attrs["status"] = np.bytes_(b"\xff\xfe")
    for read in (store.read, store.read_attrs):
        with pytest.raises(ArtifactCorrupt, match=r"a\.h5 is damaged"):
            read(path)


def test_a_flipped_bit_in_the_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    store.write(path, example())
    with h5py.File(path, "r+") as file:
        file["coords"][1, 1] ^= 4
    with pytest.raises(ArtifactCorrupt, match="does not match its checksum"):
        store.read(path)


def test_a_changed_attribute_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    store.write(path, example())
    with h5py.File(path, "r+") as file:
        file["coords"].attrs["patch_size"] = 256
    with pytest.raises(ArtifactCorrupt, match="does not match its checksum"):
        store.read(path)


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.zeros((3, 2))
    with pytest.raises(ArtifactCorrupt, match="no checksum"):
        store.read(tmp_path / "a.h5")


@given(
    array=arrays.arrays(
        st.sampled_from([np.int64, np.float16, np.float32, np.uint8]),
        arrays.array_shapes(min_dims=1, max_dims=3, min_side=0),
    ),
    attrs=st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text("aä µ")),
    ),
)
@settings(max_examples=50, deadline=None)
def test_any_array_and_attribute_come_back(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, attrs: dict
) -> None:
    path = tmp_path_factory.mktemp("store") / "a.h5"
    store.write(path, store.Artifact({"array": array}, attrs))
    back = store.read(path)
    np.testing.assert_array_equal(back.arrays["array"], array)
    assert back.arrays["array"].dtype == array.dtype
    assert {key: back.attrs[key] for key in attrs} == attrs


def test_a_fingerprint_follows_everything_that_decides() -> None:
    base = store.fingerprint("tile", 1, {"tile_px": 224, "a": 1}, "up")
    assert base == store.fingerprint("tile", 1, {"a": 1, "tile_px": 224}, "up")
    others = [
        store.fingerprint("extract", 1, {"tile_px": 224, "a": 1}, "up"),
        store.fingerprint("tile", 2, {"tile_px": 224, "a": 1}, "up"),
        store.fingerprint("tile", 1, {"tile_px": 256, "a": 1}, "up"),
        store.fingerprint("tile", 1, {"tile_px": 224, "a": 1}, "down"),
    ]
    assert len({base, *others}) == 5


def _hang_while_writing(path: Path) -> None:
    with publishing.replacing(path) as temporary, publishing.replacing_folder(path.with_suffix("")) as folder:
        (folder / "half.csv").write_text("half")
        temporary.write_bytes(b"half")
        time.sleep(60)


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hang_while_writing, args=(tmp_path / "a.h5",))
    process.start()
    while not list(tmp_path.glob(".a.h5.*.tmp")):
        time.sleep(0.05)
    publishing.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "a.h5").exists()
    publishing.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_takes_the_place_of_another(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with publishing.replacing_folder(tmp_path / "a" / "b") as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / f"{text}.txt").write_text(text)
            assert (tmp_path / "a" / "b").exists() == (text == "second")
        assert [path.name for path in (tmp_path / "a" / "b" / "deep").iterdir()] == [f"{text}.txt"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def _fail_while_writing(path: Path) -> None:
    with publishing.replacing_folder(path) as temporary:
        (temporary / "x").write_text("half")
        raise ZeroDivisionError


def test_a_folder_that_fails_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    with publishing.replacing_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("kept")
    with pytest.raises(ZeroDivisionError):
        _fail_while_writing(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "kept"


@pytest.mark.parametrize(
    "value",
    ["", "ü", "x" * 60_000, np.array("a", h5py.string_dtype("ascii")), np.bytes_(b"fixed"), True, np.bool_(False)]
    + [np.array(1, kind) for kind in ("<i8", ">i4", "u1", "<u8", "<f2", ">f8", "<f4", "c16")]
    + [np.nan, np.zeros(0), np.arange(3), np.array(["x", "y"], h5py.string_dtype()), h5py.Empty("f4")],
    ids=repr,
)
def test_attributes_are_read_as_h5py_gives_them(value: object, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.zeros(3)
        for place in (file, file["data"]):
            place.attrs["ö"] = value
            found, given = hdf5.attributes(place)["ö"], hdf5.plain(place.attrs["ö"])
            assert type(found) is type(given)
            assert repr(found) == repr(given)


@pytest.mark.parametrize("groups", ["", "a/b/"])
def test_where_data_lie_is_known_and_all_else_is_searched_for_heaps(groups: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file[f"{groups}whole"] = np.frombuffer(b"GCOL" + bytes(60), np.uint8)  # data may look like a heap
        file.create_dataset(f"{groups}parts", data=np.frombuffer(b"GCOL" + bytes(60), np.uint8), chunks=(16,))
        file[f"{groups}again"] = h5py.SoftLink(f"/{groups}whole")
        file.attrs["told"] = "x"
    with h5py.File(path) as file:
        places = dict(hdf5.places_of_data(path, file))
    assert sorted(places.values()) == [16, 16, 16, 16, 64]
    data = path.read_bytes()
    assert all(data[at : at + 4] == b"GCOL" for at, count in places.items() if count == 64)
    assert store.read_attrs(path) == {"told": "x"}
    heap = next(at for at in range(len(data)) if data.startswith(b"GCOL\1", at))
    path.write_bytes(data[: heap + 16] + bytes(16) + data[heap + 32 :])
    with pytest.raises(ArtifactCorrupt, match="does not add up"):
        store.read_attrs(path)


def test_texts_and_names_may_hold_the_letters_that_a_heap_begins_with(tmp_path: Path) -> None:
    texts = {f"GCOL {index}": "x" * (index % 16) + "GCOL" + "-0001" * (index // 16 % 2) for index in range(600)}
    for path in (tmp_path / "a.h5", tmp_path / "b.h5"):
        if path.stem == "a":
            store.write(path, store.Artifact({"GCOL": np.arange(3)}, texts, {"GCOL": texts}))
        else:  # at another place for each letter, where words of eight bytes begin and end
            with h5py.File(path, "w") as file:
                file.create_group("a/GCOL").create_dataset("GCOL", data=np.arange(3))
                for name, text in texts.items():
                    file.attrs[name] = text
                    file.attrs[f"{name} fixed"] = np.bytes_(text)
        assert path.read_bytes().count(b"GCOL") > 1200
        assert store.read_attrs(path).items() >= texts.items()
    back = store.read(tmp_path / "a.h5")
    assert back.array_attrs["GCOL"] == texts


def heap_of(path: Path) -> int:
    """Where the heap begins in a file with two texts; written anew."""
    with h5py.File(path, "w") as file:
        file.attrs["a"], file.attrs["b"] = "x" * 5000, "y" * 100
    return path.read_bytes().index(b"GCOL\1")


@pytest.mark.parametrize("bit", [0, 1, 4, 7])
@pytest.mark.parametrize("at", [4, *range(8, 16)])
def test_a_heap_whose_head_is_damaged_is_refused_by_name_whoever_sees_it_first(
    tmp_path: Path, at: int, bit: int
) -> None:
    heap = heap_of(tmp_path / "a.h5")
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[heap + at] ^= 1 << bit
    (tmp_path / "a.h5").write_bytes(data)
    with pytest.raises(ArtifactCorrupt, match=r"a\.h5 is damaged"):
        store.read_attrs(tmp_path / "a.h5")


def test_a_heap_hidden_in_a_text_of_another_is_walked_too(tmp_path: Path) -> None:
    heap = heap_of(tmp_path / "a.h5")
    data = bytearray((tmp_path / "a.h5").read_bytes())
    hidden = b"GCOL\1\0\0\0" + (4096).to_bytes(8, "little") + bytes(4080)  # HDF5 would stay at its first object
    data[heap + 100 : heap + 100 + len(hidden)] = hidden
    (tmp_path / "a.h5").write_bytes(data)
    with pytest.raises(ArtifactCorrupt, match=f"its text at byte {heap + 100:,} does not add up"):
        store.read_attrs(tmp_path / "a.h5")


def test_a_heap_of_sizes_of_other_bytes_than_eight_is_walked_whatever_its_head_says(tmp_path: Path) -> None:
    made = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    made.set_sizes(8, 4)
    with h5py.File(h5py.h5f.create(bytes(tmp_path / "a.h5"), h5py.h5f.ACC_TRUNC, made)) as file:
        file.attrs["a"] = "x" * 100
    assert store.read_attrs(tmp_path / "a.h5") == {"a": "x" * 100}
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[data.index(b"GCOL\1") + 12] = 1  # nothing to HDF5, of whose size this is no part
    (tmp_path / "a.h5").write_bytes(data)
    with pytest.raises(ArtifactCorrupt, match="does not add up"):
        store.read_attrs(tmp_path / "a.h5")


@pytest.mark.parametrize("kind", ["list", "reference"])
def test_attributes_at_which_hdf5_may_end_the_process_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        if kind == "list":
            lists = np.array([np.arange(2), np.arange(3)], dtype=object)
            file.attrs.create("stamp_version", lists, dtype=h5py.vlen_dtype(np.int64))
        else:
            file.attrs["stamp_version"] = file.ref
    with pytest.raises(ArtifactCorrupt, match="its attribute stamp_version holds a list or a reference"):
        store.survey(path)


def test_a_shortage_of_the_system_is_not_told_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    store.write(path, example())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as short:
        short.setattr(h5py, "File", refuse)
        with pytest.raises(ArtifactError, match=r"a\.h5 cannot be read now \(Too many open files\)") as told:
            store.read_attrs(path)
        assert not isinstance(told.value, ArtifactCorrupt)  # which overwriting would make anew
    assert store.read_attrs(path)


def test_what_another_program_wrote_is_told_by_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.zeros((3, 2))
    with pytest.raises(ArtifactError, match=r"a\.h5 is no artifact of wsimil, as it says no fingerprint: take it out"):
        store.read_fingerprint(tmp_path / "a.h5")
