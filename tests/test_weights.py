"""Weight files: what is not one is refused with a line that says so, and what is one is loaded whole or not at all."""

import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from wsi_mil.errors import WeightsError
from wsi_mil.weights import (
    file_sha256,
    load_strictly,
    load_tensors,
    read_state,
    save_tensors,
    sniff,
    state_sha256,
)

STATE = {"a": torch.arange(600.0).reshape(20, 30), "b.c": torch.tensor([1, 2], dtype=torch.int64)}


def torch_bytes(value, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def safetensors_bytes(tmp_path) -> bytes:
    save_file(STATE, tmp_path / "whole.safetensors")
    return (tmp_path / "whole.safetensors").read_bytes()


class Evil:
    def __reduce__(self):
        return print, ("I ran",)


BAD = {
    "empty": (b"", "is empty"),
    "html": (b"<!DOCTYPE html><html><title>Sign in</title>", "web page"),
    "html after a byte order mark": (b"\xef\xbb\xbf \n<HTML>", "web page"),
    "xml of a refusing store": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "web page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-LFS pointer"),
    "other": (b"\x89HDF\r\n\x1a\n" + bytes(100), "neither safetensors nor a torch file"),
    "text": (b"Not found\n", "neither safetensors nor a torch file"),
    "truncated torch": (torch_bytes(STATE)[:1500], "truncated"),
    "truncated old torch": (torch_bytes(STATE, _use_new_zipfile_serialization=False)[:-300], "truncated|more than"),
    "code": (torch_bytes({"a": Evil()}), "more than tensors"),
    "bare pickle of code": (pickle.dumps(Evil()), "pickle that torch did not write"),
    "bare pickle of code that looks older": (pickle.dumps(Evil(), protocol=2), "more than tensors|truncated"),
    "a whole module": (torch_bytes(nn.Linear(2, 2)), "more than tensors"),
    "a wrapper": (torch_bytes({"model": STATE, "epoch": 3}), "holds model, epoch instead of tensors"),
    "one tensor": (torch_bytes(torch.zeros(3)), "holds Tensor instead of tensors by name"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_weight_file_is_refused_in_one_clear_line(kind, tmp_path, capsys):
    content, message = BAD[kind]
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_state(path)
    assert "weights.bin" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "I ran" not in capsys.readouterr().out


def test_truncated_safetensors_is_refused(tmp_path):
    path = tmp_path / "half.safetensors"
    whole = safetensors_bytes(tmp_path)
    for length in (40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="truncated"):
            read_state(path)


def test_what_is_missing_or_a_folder_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        sniff(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        sniff(tmp_path)
    (tmp_path / "a.pth").write_bytes(torch_bytes(STATE))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("new", [True, False])
def test_torch_files_are_read(new, tmp_path):
    (tmp_path / "a.pth").write_bytes(torch_bytes(STATE, _use_new_zipfile_serialization=new))
    read = read_state(tmp_path / "a.pth")
    assert state_sha256(read) == state_sha256(STATE)


@given(metadata=st.dictionaries(st.text(min_size=1), st.text(), max_size=3))
def test_tensors_and_metadata_come_back_and_give_the_same_bytes(metadata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensors")
    strided = {"t": torch.arange(12.0).reshape(3, 4).T, **STATE}
    save_tensors(folder / "one.safetensors", strided, metadata)
    save_tensors(folder / "two.safetensors", dict(reversed(strided.items())), dict(reversed(metadata.items())))
    tensors, read = load_tensors(folder / "one.safetensors")
    assert read == metadata
    assert all(torch.equal(tensors[name], value) for name, value in strided.items())
    assert file_sha256(folder / "one.safetensors") == file_sha256(folder / "two.safetensors")
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_state_sha256_follows_names_values_shapes_and_types_but_not_order():
    same = state_sha256(STATE)
    assert state_sha256(dict(reversed(STATE.items()))) == same
    others = [
        {**STATE, "a": STATE["a"] + 1e-3},
        {**STATE, "a": STATE["a"].reshape(30, 20)},
        {**STATE, "b.c": STATE["b.c"].to(torch.int32)},
        {"a2": STATE["a"], "b.c": STATE["b.c"]},
    ]
    assert len({same, *map(state_sha256, others)}) == 5
    assert state_sha256({"x": torch.zeros(0), "s": torch.tensor(1.0)}) != state_sha256({})


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_model_is_loaded_whole_or_not_touched():
    source, target = model(), model()
    before = state_sha256(target.state_dict())
    state = source.state_dict()
    cases = {
        r"1 missing \(0.bias\)": {name: value for name, value in state.items() if name != "0.bias"},
        r"1 unexpected \(head.weight\)": {**state, "head.weight": torch.zeros(1)},
        r"1 of another shape \(0.weight \(9, 3\) instead of \(4, 3\)\)": {**state, "0.weight": torch.zeros(9, 3)},
        r"9 missing \(0.bias, 0.weight, 1.bias, ...\); 1 unexpected \(x\)": {"x": torch.zeros(1)},
    }
    for message, wrong in cases.items():
        with pytest.raises(WeightsError, match=f"some.pth does not fit the model: {message}"):
            load_strictly(target, wrong, "some.pth")
        assert state_sha256(target.state_dict()) == before
    load_strictly(target, state, "some.pth")
    assert state_sha256(target.state_dict()) == state_sha256(state)


def test_conversion_may_rename_but_not_resample():
    target, state = model(), model().state_dict()
    old = {name.replace("0.", "first."): value for name, value in state.items()}

    def rename(state):
        return {name.replace("first.", "0."): value for name, value in state.items()}

    load_strictly(target, old, "some.pth", rename)
    assert state_sha256(target.state_dict()) == state_sha256(state)

    def shrink(state):
        return {**state, "0.weight": state["0.weight"][:4]}

    with pytest.raises(WeightsError, match="of another shape"):
        load_strictly(target, {**state, "0.weight": torch.zeros(9, 3)}, "some.pth", shrink)

    def stumble(state):
        raise KeyError("mask_token")

    with pytest.raises(WeightsError, match="1 unexpected"):
        load_strictly(target, {**state, "x": torch.zeros(1)}, "some.pth", stumble)
