"""Weight files: what is not one is refused with a line that says so, and what is one is loaded whole or not at all."""

import argparse
import gzip
import io
import pickle
import struct
import time
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from wsi_mil.errors import OptionError, WeightsError
from wsi_mil.weights import (
    convert,
    file_sha256,
    files,
    load_strictly,
    load_tensors,
    own_part,
    read_state,
    read_tensor,
    read_weights,
    save_tensors,
    sniff,
    state_sha256,
)
from wsi_mil.weights.scanning import require_short_words

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


def zip_bytes(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "/", 1), content)
    return buffer.getvalue()


def header(content: bytes, length: int | None = None) -> bytes:
    """A safetensors file of that header and nothing else."""
    return (len(content) if length is None else length).to_bytes(8, "little") + content


OLD = {"_use_new_zipfile_serialization": False}
BAD = {
    "empty": (b"", "is empty: fetch it again"),
    "html": (b"<!DOCTYPE html><html><title>Sign in</title>", "web page.*accept the terms"),
    "html after a byte order mark": (b"\xef\xbb\xbf \n<HTML>", "web page"),
    "xml of a refusing store": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "web page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "run `git lfs pull`"),
    "json": (b'{"error": "Repository not found"}', "is JSON text.*fetch the weight file itself"),
    "text": (b"Not found\n", "neither safetensors nor a torch file.*fetch the weight file itself"),
    "other": (b"\x89HDF\r\n\x1a\n" + bytes(100), "neither safetensors nor a torch file"),
    "random bytes": (np.random.default_rng(0).bytes(5000), "neither safetensors nor a torch file"),
    "random bytes like a pickle": (b"\x80\x02" + np.random.default_rng(0).bytes(5000), "fetch it again"),
    "compressed": (gzip.compress(torch_bytes(STATE)), "is compressed: unpack it first"),
    "another zip": (zip_bytes(a_npy=b"x"), "a zip archive that torch did not write"),
    "torchscript": (zip_bytes(**{"m_data.pkl": b"", "m_constants.pkl": b""}), "TorchScript program"),
    "truncated torch": (torch_bytes(STATE)[:1500], "truncated.*fetch it again"),
    "truncated old torch": (torch_bytes(STATE, **OLD)[:-300], "truncated.*fetch it again"),
    "old torch without anything": (torch_bytes(STATE, **OLD)[:100], "truncated.*fetch it again"),
    "safetensors without its tensors": (
        header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
        "truncated",
    ),
    "safetensors of bad json": (header(b"{nonsense}"), "truncated or damaged.*fetch it again"),
    "code": (torch_bytes({"a": Evil()}), r"more than tensors \((__builtin__.|builtins.)?print\).*--trust-checkpoint"),
    "old code": (torch_bytes({"a": Evil()}, **OLD), "more than tensors .*print.*--trust-checkpoint"),
    "bare pickle of code": (pickle.dumps(Evil()), "pickle that torch did not write"),
    "bare pickle of code that looks older": (pickle.dumps(Evil(), protocol=2), "more than tensors|truncated"),
    "numpy scalar": (torch_bytes({"model": STATE, "loss": np.float64(1)}), "more than tensors .*numpy.*scalar"),
    "arguments": (torch_bytes({"model": STATE, "args": argparse.Namespace(a=1)}), "more than tensors .*Namespace"),
    "a whole module": (torch_bytes(nn.Linear(2, 2)), "more than tensors .*Linear.*save the state dict"),
    "an optimiser": (torch_bytes({"optimizer": {"state": {0: torch.zeros(1)}}}), "holds optimizer instead of tensors"),
    "tensors and more": (torch_bytes({**STATE, "epoch": 3}), "holds epoch instead of tensors by name: save the state"),
    "numbered": (torch_bytes({0: torch.zeros(1)}), "holds 0 instead of tensors by name"),
    "nothing": (torch_bytes({"model": {}}), "holds model instead of tensors by name"),
    "no tensor": (torch_bytes({}), "holds no tensors"),
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


def test_an_absurd_header_is_refused_where_the_name_promises_safetensors(tmp_path):
    path = tmp_path / "big.safetensors"
    path.write_bytes(header(b"{}", length=2**62))
    with pytest.raises(WeightsError, match=r"truncated or damaged.*fetch it again"):
        read_state(path)


WHOLE = {"zip": torch_bytes(STATE), "old": torch_bytes(STATE, **OLD)}


@pytest.mark.filterwarnings("ignore")  # what torch says about odd pickles
@given(kind=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_damage_is_one_error_or_harmless(kind, data, tmp_path_factory):
    content = bytearray(WHOLE[kind])
    # The pickles are at both ends; in between are numbers, any of which may be meant.
    places = st.integers(0, len(content) - 1).map(lambda at: at if at < 800 else len(content) - 1 - at % 800)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "w.pth"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 300]))])
    with suppress(WeightsError):
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


# ------------------------------------------------------------------------------------- what a training run saved


def numbered(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2,), value)}


@pytest.mark.parametrize(
    ("content", "chosen", "left_out"),
    [
        ({"student": numbered(0), "teacher": numbered(1), "epoch": 3}, ["teacher"], ["student", "epoch"]),
        (
            {"model": numbered(0), "model_ema": numbered(1), "optimizer": {"lr": 1}},
            ["model_ema"],
            ["model", "optimizer"],
        ),
        ({"state_dict": {"teacher": numbered(1), "x": 2}, "y": 3}, ["state_dict", "teacher"], ["y", "state_dict.x"]),
        ({"model": numbered(1), "loss": torch.zeros(1)}, ["model"], ["loss"]),
        ({"teacher": None, "encoder": numbered(1)}, ["encoder"], ["teacher"]),
        ({"teacher": {}, "student": numbered(1)}, ["student"], ["teacher"]),
        (numbered(1), [], []),
    ],
)
def test_wrappers_are_taken_off_the_teacher_before_the_student(content, chosen, left_out, tmp_path, caplog):
    torch.save(content, tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth")
    assert (read.chosen, read.left_out) == (chosen, left_out)
    assert torch.equal(read.state["a"], torch.ones(2))
    assert ("those of a student only" in caplog.text) == (chosen == ["student"])


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("backbone.", "teacher."), ("backbone.", "teacher.backbone."), ("encoder.", "teacher."),
        ("module.", "teacher.module."), ("student.", "teacher.backbone."),
        ("student.backbone.", "teacher.module.backbone."), ("model.student.", "model.teacher."), ("", "teacher."),
    ],
)  # fmt: skip
def test_of_two_whole_networks_in_one_table_the_teacher_is_taken(student, teacher, caplog):
    state = {f"{student}{name}": torch.zeros(1) for name in NAMES} | {
        f"{teacher}{name}": torch.ones(1) for name in NAMES
    }
    assert own_part(state, NAMES) == {name: torch.ones(1) for name in NAMES}
    assert "student only" not in caplog.text


def test_half_a_teacher_is_no_reason_to_take_the_student():
    state = {f"student.{name}": torch.zeros(1) for name in NAMES} | {f"teacher.{NAMES[0]}": torch.ones(1)}
    assert list(own_part(state, NAMES)) == NAMES[:1]


@pytest.mark.parametrize("content", [
    {"student": {"backbone": dict.fromkeys(["blocks.0.weight"], torch.zeros(1))}},
    {"state_dict": {"student.backbone.blocks.0.weight": torch.zeros(1)}},
    {"student.blocks.0.weight": torch.zeros(1)},
])  # fmt: skip
def test_a_student_alone_is_taken_with_a_warning(content, tmp_path, caplog):
    torch.save(content, tmp_path / "w.pth")
    assert list(own_part(read_state(tmp_path / "w.pth"), ["blocks.0.weight"])) == ["blocks.0.weight"]
    assert caplog.text.count("those of a student only") == 1


def test_averaged_weights_go_before_those_of_the_optimiser(tmp_path):
    for averaged, moved in (("ema", "model"), ("target_encoder", "encoder")):
        torch.save({moved: numbered(0), averaged: numbered(1)}, tmp_path / "w.pth")
        assert read_weights(tmp_path / "w.pth").chosen == [averaged]


NAMES = ["blocks.0.weight", "blocks.1.weight", "norm.bias"]


@pytest.mark.parametrize(
    ("prefix", "beside", "names", "message"),
    [
        ("", [], NAMES, ""),
        ("module.", [], NAMES, "took the tensors under module."),
        ("module.model.backbone.", [], NAMES, "under module.model.backbone."),
        ("visual.trunk.", ["text.weight"], NAMES, "left out text.weight"),
        ("teacher.backbone.", [f"student.backbone.{name}" for name in NAMES], NAMES, "took the tensors under teacher."),
        ("", ["head.weight", "fc.bias", "mask_token", "dino_head.a", "ibot_head.b"], NAMES, "what only training needs"),
        ("backbone.", ["backbone.head.weight"], [*NAMES, "head.weight"], "under backbone."),  # the model has a head
        ("encoder.layer.", [], ["other"], ""),  # nothing fits better without the prefix
    ],
)
def test_prefixes_and_training_heads_are_taken_off(prefix, beside, names, message, caplog):
    caplog.set_level("INFO", logger="wsi_mil")
    state = {f"{prefix}{name}": torch.zeros(1) for name in NAMES} | dict.fromkeys(beside, torch.ones(1))
    found = own_part(state, names)
    assert list(found) == (names if "other" not in names else list(state))
    assert all(torch.equal(value, torch.full((1,), float("head" in name))) for name, value in found.items())
    assert message in caplog.text


def test_names_that_only_look_like_a_training_head_stay():
    state = {"norm.bias": torch.zeros(1), "header.weight": torch.zeros(1), "neck.head.weight": torch.zeros(1)}
    assert own_part(state, ["norm.bias"]) == state


# ---------------------------------------------------------------------------------------------- trusted pickles


def test_a_pickle_that_holds_more_is_opened_only_when_trusted_and_after_a_warning(tmp_path, caplog, capsys):
    path = tmp_path / "w.pth"
    torch.save({"model": STATE, "loss": np.float64(1), "code": Evil()}, path)
    with pytest.raises(WeightsError, match="--trust-checkpoint"):
        read_state(path)
    assert "I ran" not in capsys.readouterr().out
    assert state_sha256(read_state(path, trust=True)) == state_sha256(STATE)
    assert "I ran" in capsys.readouterr().out
    assert "whatever code it holds runs now" in caplog.text


def test_trust_runs_no_code_where_none_is_needed(tmp_path, caplog):
    torch.save(STATE, tmp_path / "w.pth")
    read_state(tmp_path / "w.pth", trust=True)
    assert caplog.text == ""


def test_a_trusted_module_gives_its_state_dict(tmp_path):
    module = nn.Linear(2, 2)
    torch.save({"model": module}, tmp_path / "w.pth")
    assert state_sha256(read_state(tmp_path / "w.pth", trust=True)) == state_sha256(module.state_dict())


@pytest.mark.parametrize("content", [b"cno_such_package\nThing\n.", b"\x80\x02junk"])
def test_a_trusted_pickle_that_cannot_be_opened_is_one_error(content, tmp_path):
    (tmp_path / "w.pth").write_bytes(zip_bytes(**{"m_data.pkl": content, "m_version": b"3\n"}))
    with pytest.raises(WeightsError, match=r"w.pth (cannot be opened, trusted or not|is truncated or damaged) \(.*\):"):
        read_state(tmp_path / "w.pth", trust=True)


# --------------------------------------------------------------------------------------------------- conversion


def test_conversion_keeps_every_tensor_and_gives_the_same_bytes(tmp_path):
    tied = torch.arange(6.0)
    state = {"b": tied, "a": tied[2:], "c": torch.ones(2, 3).T, "n": torch.tensor(3), "h": torch.ones(2).bfloat16()}
    torch.save({"student": numbered(0), "teacher": state}, tmp_path / "w.pth")
    read = convert(tmp_path / "w.pth", tmp_path / "one.safetensors")
    assert (read.chosen, read.left_out) == (["teacher"], ["student"])
    convert(tmp_path / "w.pth", tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    tensors, metadata = load_tensors(tmp_path / "one.safetensors")
    assert state_sha256(tensors) == state_sha256(state)
    assert metadata == {"format": "pt", "source_sha256": file_sha256(tmp_path / "w.pth")}


def test_a_file_that_is_replaced_while_it_is_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    path, checksum_of, asked = tmp_path / "resume.safetensors", files._checksum_of, []
    save_tensors(path, {"a": torch.zeros(3)}, {})

    def meanwhile(of, key):
        asked.append(of)
        if len(asked) == 1:
            save_tensors(path, {"a": torch.ones(3)}, {})
        return checksum_of(of, key)

    monkeypatch.setattr(files, "_checksum_of", meanwhile)
    assert load_tensors(path)[0]["a"].tolist() == [1.0, 1.0, 1.0]
    assert len(asked) == 2


def test_conversion_refuses_what_it_would_overwrite_or_cannot_write(tmp_path):
    source, target = tmp_path / "w.pth", tmp_path / "w.safetensors"
    torch.save(STATE, source)
    with pytest.raises(OptionError, match=r"call it out\.safetensors"):
        convert(source, tmp_path / "out.pth")
    convert(source, target)
    with pytest.raises(OptionError, match=r"w.safetensors is there already: add --overwrite"):
        convert(source, target)
    convert(source, target, overwrite=True)
    torch.save({"a": torch.eye(2).to_sparse()}, source)
    with pytest.raises(WeightsError, match="holds tensors that safetensors cannot"):
        convert(source, target, overwrite=True)
    assert state_sha256(load_tensors(target)[0]) == state_sha256(STATE)


WORD = b"x" * 60_000  # the search in torch's message takes 4 s for each of these, and grows with the square
SLOW = {
    "a name": b"c" + WORD + b"\nname\n)R",
    "a name beyond ASCII": b"c" + "ü".encode() * 30_000 + b"\nname\n)R",
    "a text that is called": b"X" + struct.pack("<I", len(WORD)) + WORD + b"q\x00h\x00)R",
    "a text that is built": b"X" + struct.pack("<I", len(WORD)) + WORD + b")\x81",
    "a tuple that is called": b"(X" + struct.pack("<I", len(WORD)) + WORD + b"t)R",
}


@pytest.mark.parametrize("options", [{}, OLD], ids=["zip", "old"])
@pytest.mark.parametrize("kind", SLOW)
def test_damage_that_becomes_a_long_word_is_refused_at_once(kind, options, tmp_path):
    path, pickled = tmp_path / "w.pth", b"\x80\x02" + SLOW[kind] + b"."
    whole = torch_bytes(STATE, **options)
    if options:  # the first of five pickles
        path.write_bytes(pickled + whole)
    else:
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w") as new:
            for part in old.infolist():
                new.writestr(part, pickled if part.filename.endswith("data.pkl") else old.read(part))
    started = time.process_time()
    for read in (read_state, read_tensor):
        with pytest.raises(WeightsError, match=r"w\.pth (is damaged, or|holds more than a tensor)") as caught:
            read(path)
        assert len(str(caught.value)) < 500
    assert time.process_time() - started < 1


def test_what_torch_writes_is_looked_through_and_read(tmp_path):
    parameter = nn.Parameter(torch.ones(2))
    views = torch.arange(6.0)
    state = {"p": parameter, "a": views[:3], "b": views[3:], "half": torch.ones(2, dtype=torch.bfloat16)}
    text = "x" * 100_000  # long texts are no fault
    for options in ({}, OLD):
        path = tmp_path / "w.pth"
        path.write_bytes(torch_bytes({"state_dict": state, "told": [text, {"k": (1, 2.5, None, text)}]}, **options))
        require_short_words(path)
        assert read_state(path).keys() == state.keys()


def test_an_archive_whose_directory_points_before_its_beginning_is_refused(tmp_path):
    data = torch_bytes(STATE)
    path = tmp_path / "w.pth"
    path.write_bytes(data[:40] + data[400:])
    with pytest.raises(WeightsError, match=r"w\.pth is truncated.*fetch it again"):
        read_state(path)


def test_what_other_programs_call_a_checksum_is_not_ours(tmp_path) -> None:
    for theirs in ("crc32:deadbeef", "d41d8cd98f00b204e9800998ecf8427e"):
        save_file({"w": torch.ones(2)}, tmp_path / "theirs.safetensors", {"checksum": theirs})
        tensors, metadata = load_tensors(tmp_path / "theirs.safetensors")
        assert tensors["w"].tolist() == [1, 1]
        assert metadata == {"checksum": theirs}


@pytest.mark.parametrize("key", ["wsi_mil", "source_sha256", "history"])
def test_files_of_before_are_verified_under_their_name_for_a_checksum(key: str, tmp_path, monkeypatch) -> None:
    path = tmp_path / "w.safetensors"
    monkeypatch.setattr(files, "_CHECKSUM", "checksum")
    save_tensors(path, {"a": torch.zeros(3)}, {key: "x"})
    monkeypatch.undo()
    assert load_tensors(path)[1] == {key: "x"}
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(WeightsError, match="does not match its checksum"):
        load_tensors(path)
