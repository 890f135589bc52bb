"""Where the weights of encoders come from: found, verified before they are opened, kept, and found again."""

import argparse
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from wsi_mil import checkpoint, cli
from wsi_mil.aggregators import build
from wsi_mil.asked import slides_at
from wsi_mil.checkpoint import Checkpoint, Part, Recipe
from wsi_mil.encoders import add_weights, cache, find_encoder, from_timm, load_encoder, pretrained, sources
from wsi_mil.encoders._hub import hub_file
from wsi_mil.encoders._timm import import_timm
from wsi_mil.errors import EncoderError, IncompatibleError, OptionError, WeightsError
from wsi_mil.predict import PredictOptions, predict_slides
from wsi_mil.weights import file_sha256, load_tensors

TINY = "timm:test_vit"
SPEC = replace(find_encoder(TINY), hub_id="lab/tiny", hub_file="tiny.safetensors")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """An empty cache, an empty cache of the hub, and no network."""
    monkeypatch.setenv("WSIMIL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_encoder(TINY, "random:0").model.state_dict().items()}


def other(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "norm.bias": state["norm.bias"] + 1}


@pytest.fixture
def file(state, tmp_path) -> Path:
    save_file(state, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


# ------------------------------------------------------------------------------------------------------- bad files


class Evil:
    def __reduce__(self):
        return print, ("I ran",)


def saved(content, **options):
    return lambda path, state: torch.save(content(state) if callable(content) else content, path, **options)


def raw(content: bytes):
    return lambda path, state: path.write_bytes(content)


def cut(write, length):
    def write_part(path, state):
        write(path, state)
        path.write_bytes(path.read_bytes()[:length])

    return write_part


def tensors(change):
    return lambda path, state: save_file(change(dict(state)), path)


def folder(*names):
    def write(path, state):
        path.mkdir()
        for name in names:
            (path / name).write_bytes(b"")

    return write


BAD = {
    "not there": (lambda path, state: None, "does not exist: name a weight file"),
    "web page": (raw(b"<!DOCTYPE html><title>Sign in"), "is a web page.*fetch the file itself"),
    "lfs pointer": (raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "run `git lfs pull`"),
    "empty": (raw(b""), "is empty: fetch it again"),
    "json": (raw(b'{"error": "gated"}'), "is JSON text.*fetch the weight file itself"),
    "text": (raw(b"403 Forbidden"), "is neither safetensors nor a torch file"),
    "random bytes": (raw(np.random.default_rng(1).bytes(9999)), "is neither safetensors nor a torch file"),
    "truncated zip": (cut(saved(lambda state: state), 9000), "is truncated .*fetch it again"),
    "truncated old pickle": (
        cut(saved(lambda state: state, _use_new_zipfile_serialization=False), -9000),
        "is truncated or damaged .*fetch it again",
    ),
    "truncated safetensors": (cut(tensors(lambda state: state), 99_999), "is truncated or damaged .*fetch it again"),
    "absurd header": (raw((2**60).to_bytes(8, "little") + b"{}"), "(?i)is truncated or damaged .*header.*large"),
    "header of no json": (raw((9).to_bytes(8, "little") + b"{nonsense"), "(?i)is truncated or damaged .*header"),
    "code": (saved({"model": Evil()}), r"holds more than tensors .*print.*add --trust-checkpoint"),
    "old code": (
        saved({"model": Evil()}, _use_new_zipfile_serialization=False),
        r"holds more than tensors .*print.*add --trust-checkpoint",
    ),
    "bare pickle": (raw(pickle.dumps(Evil())), "is a Python pickle that torch did not write: save the state dict"),
    "whole module": (
        saved(lambda state: nn.Linear(2, 2)),
        "holds more than tensors .*Linear.*save the state dict alone",
    ),
    "numpy scalar": (saved(lambda state: {"model": state, "loss": np.float64(1)}), "more than tensors .*numpy"),
    "arguments": (saved(lambda state: {"model": state, "args": argparse.Namespace()}), "more than tensors .*Namespace"),
    "optimiser alone": (saved({"optimizer": {"lr": 1}}), "holds optimizer instead of tensors by name"),
    "one tensor": (saved(torch.zeros(3)), "holds Tensor instead of tensors by name: save the state dict alone"),
    "another model": (
        lambda path, state: save_file(import_timm().create_model("test_resnet").state_dict(), path),
        r"does not fit the model: \d+ missing .*; \d+ unexpected .*: name the weights of timm:test_vit, from https",
    ),
    "another width": (tensors(lambda state: {**state, "norm.bias": torch.zeros(7)}), "1 of another shape"),
    "missing names": (tensors(lambda state: {n: t for n, t in state.items() if n != "norm.bias"}), "1 missing"),
    "layer scale": (tensors(lambda state: {**state, "blocks.0.ls9.gamma": torch.ones(1)}), "1 unexpected"),
    "empty folder": (folder("readme.md"), "holds no weight file .*: name a file, or another folder"),
    "folder of several": (folder("a.pth", "b.bin"), r"holds several weight files \(a.pth, b.bin\): name one of them"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_weight_file_is_one_clear_line_and_never_runs(kind, state, tmp_path, capsys):
    write, message = BAD[kind]
    path = tmp_path / "bad.safetensors"
    write(path, state)
    with pytest.raises(WeightsError, match=message) as caught:
        load_encoder(TINY, str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match=message):
        add_weights(TINY, path)
    assert cache.everything_kept() == []
    assert "I ran" not in capsys.readouterr().out


def test_the_table_of_bad_files_is_long_enough():
    assert len(BAD) >= 12


# ------------------------------------------------------------------------------------------------------ good files


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"teacher": state, "student": other(state), "epoch": 3},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}, "optimizer": {"lr": 1}},
        lambda state: {
            "teacher": {f"backbone.{name}": value for name, value in state.items()}
            | {"dino_head.last.weight": torch.zeros(1), "backbone.mask_token": torch.zeros(1)},
        },
        lambda state: {"state_dict": {**state, "head.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)}},
    ],
)
def test_what_training_runs_save_is_unwrapped(wrap, state, file, tmp_path):
    torch.save(wrap(state), tmp_path / "run.pth")
    tiles = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    assert torch.equal(
        load_encoder(TINY, str(tmp_path / "run.pth")).encode(tiles), load_encoder(TINY, str(file)).encode(tiles)
    )


def test_trust_reaches_the_file(state, tmp_path, caplog):
    torch.save({"model": state, "loss": np.float64(1)}, tmp_path / "w.pth")
    encoder = load_encoder(TINY, str(tmp_path / "w.pth"), trust=True)
    assert encoder.weights_sha256 == file_sha256(tmp_path / "w.pth")
    assert "is trusted" in caplog.text


def test_a_folder_gives_its_published_file_or_its_only_one(file, tmp_path, monkeypatch):
    found = sources.find(SPEC, str(file.parent))
    assert (found.path, found.source, found.sha256) == (file, str(file), file_sha256(file))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / SPEC.hub_file).write_bytes(file.read_bytes())
    assert sources.find(SPEC, str(file.parent)).path == tmp_path / SPEC.hub_file
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.find(SPEC, "~/w.safetensors").path == file


def test_a_place_that_cannot_be_meant_is_refused():
    with pytest.raises(
        OptionError, match=r"--weights hub:x/y/z: .* comes from hub:lab/tiny/tiny.safetensors; give that"
    ):
        sources.find(SPEC, "hub:x/y/z")
    with pytest.raises(OptionError, match="--weights is empty"):
        load_encoder(TINY, "")


# -------------------------------------------------------------------------------------------------------- the hash


def test_the_published_hash_is_confirmed_and_another_one_warned_of(file, caplog):
    caplog.set_level("INFO", logger="wsi_mil")
    sha256 = file_sha256(file)
    sources.find(replace(SPEC, sha256=sha256), str(file))
    assert f"these are the published weights (sha256 {sha256})" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    sources.find(replace(SPEC, sha256="f" * 64), str(file))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sha256 in warning
    assert "f" * 64 in warning
    assert "loaded" not in warning  # it is not yet


def test_a_file_of_other_weights_than_wanted_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    torch.save({"model": Evil()}, tmp_path / "w.pth")
    monkeypatch.setattr(pretrained, "read_state", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(IncompatibleError, match=r"w.pth holds weights \w{12}, but ffffffffffff are wanted.*--weights"):
        load_encoder(TINY, str(tmp_path / "w.pth"), trust=True, sha256="f" * 64)


@pytest.mark.parametrize(("name", "weights"), [("morphology", None), (TINY, "random:0")])
def test_weights_that_are_no_file_must_have_the_hash_too(name, weights):
    sha256 = load_encoder(name, weights).weights_sha256
    assert load_encoder(name, weights, sha256=sha256).weights_sha256 == sha256
    with pytest.raises(IncompatibleError, match="are wanted"):
        load_encoder(name, weights, sha256="f" * 64)


# ------------------------------------------------------------------------------------------------------- the cache


def test_added_weights_are_found_before_those_of_the_hub(file, state):
    assert cache.kept(find_encoder(TINY)) is None
    entry = add_weights(TINY, file)
    assert entry.path.read_bytes() == file.read_bytes()
    assert (entry.sha256, entry.suffix, entry.origin) == (file_sha256(file), ".safetensors", str(file))
    assert cache.everything_kept() == [entry]
    assert sources.local_file(find_encoder(TINY)) == entry.path == sources.by_sha256(entry.sha256)
    file.unlink()
    encoder = load_encoder(TINY)
    assert (encoder.weights, encoder.weights_sha256) == (str(entry.path), entry.sha256)
    assert torch.equal(encoder.model.state_dict()["norm.bias"], state["norm.bias"])
    assert load_encoder(TINY, encoder.weights).weights_sha256 == entry.sha256


def test_the_last_one_added_is_taken_and_the_others_are_still_found_by_hash(file, state, tmp_path):
    first = add_weights(TINY, file)
    torch.save(other(state), tmp_path / "new.pt")
    second = add_weights(TINY, tmp_path / "new.pt")
    assert second.path.suffix == ".pth"
    assert load_encoder(TINY).weights_sha256 == second.sha256 != first.sha256
    assert sources.by_sha256(first.sha256) == first.path
    assert sources.by_sha256("../" + first.sha256) is None


def test_encoders_of_one_published_file_share_it(file):
    entry = cache.keep(SPEC, file, file_sha256(file))
    assert sources.local_file(replace(SPEC, name="tiny-cls")) == entry.path
    assert sources.local_file(replace(SPEC, hub_file="another.bin")) is None


def test_a_damaged_cache_is_refused_by_name(file):
    spec, entry = find_encoder(TINY), add_weights(TINY, file)
    entry.path.write_bytes(entry.path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="is damaged, its sha256 is not the one in its name: delete"):
        load_encoder(TINY)
    add_weights(TINY, file)
    assert load_encoder(TINY).weights_sha256 == entry.sha256
    entry.path.unlink()
    with pytest.raises(
        WeightsError, match="is gone, the weights that were added for timm:test_vit: `wsimil weights add"
    ):
        load_encoder(TINY)
    cache._record(spec).write_text("{")
    with pytest.raises(WeightsError, match=r"json is damaged .*: delete it, and run `wsimil weights add` again"):
        sources.local_file(spec)


def test_a_file_of_the_users_may_be_called_by_another_hash(state, tmp_path):
    path = tmp_path / f"{'0' * 64}.safetensors"
    save_file(state, path)
    assert load_encoder(TINY, str(path)).weights == str(path)


def test_weights_added_online_are_found_offline(file, state, tmp_path, monkeypatch):
    """A repository that has no safetensors file: offline nobody can tell what its weights are called."""
    config = {"architecture": "test_vit", "num_features": 64, "pretrained_cfg": {"input_size": [3, 96, 96]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(from_timm, "_config_file", lambda repo: tmp_path / "config.json")
    listed = argparse.Namespace(siblings=[argparse.Namespace(rfilename="pytorch_model.bin")])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: listed)
    added = add_weights("hf-hub:lab/vit", file)

    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    assert load_encoder("hf-hub:lab/vit").weights_sha256 == added.sha256


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("morphology", OptionError, "built in and takes no weights"), ("xyzzy", EncoderError, "no encoder 'xyzzy'")],
)
def test_what_takes_no_weights_is_given_none(name, error, message, file):
    with pytest.raises(error, match=message):
        add_weights(name, file)


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert cache.folder() == tmp_path / "home" / "weights"
    monkeypatch.delenv("WSIMIL_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "wsi_mil" / "weights"
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache.folder() == tmp_path / ".cache" / "wsi_mil" / "weights"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OptionError, match="name a folder by WSIMIL_HOME"):
        cache.folder()


def test_two_at_once_leave_whole_files_and_one_record(state, tmp_path):
    files = []
    for index in range(6):
        files.append(tmp_path / f"{index % 3}-{index}.safetensors")
        save_file({**state, "norm.bias": state["norm.bias"] + index % 3}, files[-1])
    start = threading.Barrier(len(files))

    def add(file):
        start.wait()
        cache.keep(SPEC, file, file_sha256(file))

    threads = [threading.Thread(target=add, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [path for path in cache.folder().iterdir() if path.suffix != ".json"]
    assert sorted(path.stem for path in kept) == sorted({file_sha256(path) for path in files})
    assert all(file_sha256(path) == path.stem for path in kept)
    assert cache.kept(SPEC).path in kept


def run_script(code: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)


def test_a_copy_that_was_killed_is_never_taken_for_whole(file):
    code = """
import os, signal, sys
from pathlib import Path
from wsi_mil.encoders import cache, find_encoder
def half(source, target):
    target.write_bytes(source.read_bytes()[:5000])
    os.kill(os.getpid(), signal.SIGKILL)
cache._copy = half
cache.keep(find_encoder("resnet50"), Path(sys.argv[1]), sys.argv[2])
"""
    assert run_script(code, file, file_sha256(file)).returncode == -signal.SIGKILL
    spec = find_encoder("resnet50")
    (left,) = cache.folder().iterdir()
    assert left.name.endswith(".tmp")
    assert sources.local_file(spec) is None is sources.by_sha256(file_sha256(file))
    assert cache.everything_kept() == []
    cache.keep(spec, file, file_sha256(file))
    assert not left.exists()  # the next one cleans up
    assert sources.local_file(spec)


def test_a_full_disk_is_one_error_and_leaves_nothing(file):
    # Without bytecode: Python publishes what was cut off by such a limit, and everybody would stumble over it.
    code = "import sys; sys.dont_write_bytecode = True; from wsi_mil.cli import main; main(sys.argv[1:])"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))  # noqa: E731
    done = run_script(code, "weights", "add", TINY, file, preexec_fn=limit)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "w.safetensors cannot be copied to" in line
    assert "make room there, or name another folder by WSIMIL_HOME" in line
    assert list(cache.folder().iterdir()) == []


def test_a_file_that_changes_while_it_is_copied_is_refused(file):
    with pytest.raises(WeightsError, match="changed while it was copied"):
        cache.keep(SPEC, file, "0" * 64)
    assert list(cache.folder().iterdir()) == []


# --------------------------------------------------------------------------------------------------------- the hub


def in_hub_cache(spec, content: bytes) -> Path:
    """Lay a file where the hub's library keeps it."""
    repository = Path(constants.HF_HUB_CACHE) / f"models--{spec.hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("1234")
    path = repository / "snapshots" / "1234" / spec.hub_file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_what_the_hub_left_on_this_machine_is_found_offline(file):
    assert sources.local_file(SPEC) is None
    path = in_hub_cache(SPEC, file.read_bytes())
    assert sources.local_file(SPEC) == path
    found = sources.find(SPEC)
    assert (found.path, found.source) == (path, "hub:lab/tiny/tiny.safetensors")
    own = cache.keep(SPEC, file, file_sha256(file))
    assert sources.find(SPEC).path == own.path  # what the user added goes before
    assert sources.find(SPEC, SPEC.source).path == path  # unless the hub is named


def test_a_rehost_of_the_hub_has_its_own_hash_without_a_warning(file, caplog):
    caplog.set_level("INFO", logger="wsi_mil")
    in_hub_cache(SPEC, file.read_bytes())
    sources.find(replace(SPEC, sha256="f" * 64, page="https://a.b"))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "f" * 64 in caplog.text


def test_another_file_than_the_published_one_at_the_hub_is_warned_of(file, caplog):
    in_hub_cache(SPEC, file.read_bytes())
    sources.find(replace(SPEC, sha256="f" * 64))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "f" * 64 in caplog.text
    assert file_sha256(file) in caplog.text


def test_a_transfer_that_breaks_off_is_one_error(monkeypatch):
    def broken(*args, local_files_only=False, **options):
        raise OSError if local_files_only else RuntimeError("Data processing error: CAS service error")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **options: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(
        WeightsError, match=r"the transfer from huggingface.co failed \(RuntimeError: Data processing error"
    ):
        hub_file(SPEC)


def test_a_record_that_names_no_repository_is_one_error():
    with pytest.raises(WeightsError, match="'a b/c' is no repository of the hub: mend its record"):
        hub_file(replace(SPEC, hub_id="a b/c"))


def test_a_revision_is_asked_for_and_recorded(monkeypatch):
    asked = []

    def download(repo, name, revision, local_files_only=False):
        asked.append((repo, name, revision))
        return "/there"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    spec = replace(SPEC, revision="v2")
    assert str(hub_file(spec)) == "/there"
    assert asked == [(spec.hub_id, spec.hub_file, "v2")]
    assert spec.source == f"hub:{spec.hub_id}@v2/{spec.hub_file}"


def test_weights_that_lie_elsewhere_are_asked_for_by_their_page():
    with pytest.raises(
        WeightsError, match=r"the weights of x come from https://a.b: fetch them and run `wsimil weights add x FILE`"
    ):
        hub_file(replace(SPEC, name="x", hub_id="", page="https://a.b"))


def test_a_full_disk_of_the_hubs_cache_is_called_that(monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", full)
    with pytest.raises(WeightsError, match="the disk of the hub's cache is full, name another folder by HF_HOME"):
        hub_file(SPEC)


# ------------------------------------------------------------------------------------------------------ found again


def test_weights_are_found_again_where_they_were_then_by_hash_then_on_the_hub(file, state, tmp_path, caplog):
    sha256, recorded = file_sha256(file), str(file)
    in_hub_cache(SPEC, file.read_bytes())
    assert sources.again(SPEC, recorded, sha256) == recorded
    content = file.read_bytes()
    save_file(other(state), file)  # another file under the recorded name
    assert sources.again(SPEC, recorded, sha256) == SPEC.source
    assert "w.safetensors holds other weights now, nor is a file of its sha256" in caplog.text
    (tmp_path / "copy.safetensors").write_bytes(content)
    entry = cache.keep(SPEC, tmp_path / "copy.safetensors", sha256)
    assert sources.again(SPEC, recorded, sha256) == str(entry.path)
    assert sources.again(SPEC, SPEC.source, sha256) == str(entry.path)
    file.unlink()
    assert sources.again(SPEC, recorded, sha256) == str(entry.path)
    entry.path.unlink()
    assert sources.again(SPEC, recorded, sha256) == SPEC.source
    assert sources.again(SPEC, SPEC.source, sha256) == SPEC.source
    for source in ("random:3", "built-in"):
        assert sources.again(SPEC, source, sha256) == source
    with pytest.raises(
        WeightsError, match=r"is not there any more, nor .*: name it by --weights, or run `wsimil weights"
    ):
        sources.again(replace(SPEC, hub_id=""), recorded, sha256)


def trained_on(path: Path, encoder) -> Path:
    """A checkpoint of a model that was trained on an encoder's features."""
    network = build("mean", encoder.dim, 2)
    made = Checkpoint(
        aggregator="mean",
        parts=(Part({}),),
        dim=encoder.dim,
        classes=("neg", "pos"),
        recipe=Recipe(encoder.name, encoder.weights_sha256, 256.0, 160),
        encoder_weights=encoder.weights,
        tile_params={"tile_px": 160, "tile_um": 256.0, "min_coverage": 0.5},
        extract_params={"encoder": encoder.name, "weights_sha256": encoder.weights_sha256, "precision": "fp32"},
        training={},
        state=network.state_dict(),
    )
    checkpoint.save(path, made)
    return path


def test_predict_finds_the_weights_of_training_again(file, state, tmp_path, make_slide):
    slides = slides_at([make_slide(size=(1024, 1024))])
    model = trained_on(tmp_path / "checkpoint.safetensors", load_encoder(TINY, str(file)))
    (expected,) = predict_slides(model, slides, PredictOptions(tmp_path / "a"))
    assert expected.status == "done"
    moved = file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(WeightsError, match=r"w.safetensors is not there any more.*wsimil weights add.*--weights"):
        predict_slides(model, slides, PredictOptions(tmp_path / "b"))
    (named,) = predict_slides(model, slides, PredictOptions(tmp_path / "c", weights=str(moved)))
    add_weights(TINY, moved)
    (cached,) = predict_slides(model, slides, PredictOptions(tmp_path / "d"))
    assert [row._replace(seconds=None) for row in (named, cached)] == [expected._replace(seconds=None)] * 2
    save_file(other(state), file)
    (cached,) = predict_slides(model, slides, PredictOptions(tmp_path / "e"))  # what lies there now is not taken
    assert cached.probabilities == expected.probabilities
    with pytest.raises(IncompatibleError, match=r"w.safetensors holds weights \w{12}, but \w{12} are wanted"):
        predict_slides(model, slides, PredictOptions(tmp_path / "f", weights=str(file)))


# ---------------------------------------------------------------------------------------------------- the commands


def call(*arguments: object) -> int:
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_the_commands_add_list_and_name_weights(file, capsys):
    assert call("weights", "list") == 0
    assert f"{cache.folder()} holds no weights: `wsimil weights add NAME FILE`" in capsys.readouterr().out
    assert call("weights", "path", "morphology") == 2
    assert "morphology is built in and has no weights" in capsys.readouterr().err
    assert call("weights", "path", TINY) == 1
    assert f"`wsimil weights add {TINY} FILE`" in capsys.readouterr().err
    assert call("weights", "add", TINY, file) == 0
    sha256 = file_sha256(file)
    assert f"(sha256 {sha256})" in capsys.readouterr().out
    assert call("weights", "path", TINY) == 0
    assert capsys.readouterr().out.strip() == str(cache.folder() / f"{sha256}.safetensors")
    assert call("weights", "list") == 0
    assert sha256[:12] in capsys.readouterr().out
    (cache.folder() / f"{sha256}.safetensors").unlink()
    assert call("weights", "list") == 0
    assert "gone" in capsys.readouterr().out


def test_the_command_converts_and_says_what_it_left_out(state, tmp_path, capsys):
    torch.save({"teacher": state, "student": other(state), "epoch": 3}, tmp_path / "w.pth")
    target = tmp_path / "w.safetensors"
    assert call("weights", "convert", tmp_path / "w.pth", target) == 0
    said = capsys.readouterr().out
    assert f"{target}: {len(state)} tensors of teacher" in said
    assert "left out: student, epoch" in said
    assert load_tensors(target)[0].keys() == state.keys()
    assert call("weights", "convert", tmp_path / "w.pth", target) == 2
    assert "add --overwrite" in capsys.readouterr().err
    torch.save({"teacher": state, "loss": np.float64(1)}, tmp_path / "w.pth")
    assert call("weights", "convert", tmp_path / "w.pth", target, "--overwrite") == 1
    assert "--trust-checkpoint" in capsys.readouterr().err
    assert call("weights", "convert", tmp_path / "w.pth", target, "--overwrite", "--trust-checkpoint") == 0


def test_records_are_read_by_people_too(file):
    add_weights(TINY, file)
    (record,) = cache.folder().glob("*.json")
    assert json.loads(record.read_text()) == {
        "encoder": TINY,
        "sha256": file_sha256(file),
        "suffix": ".safetensors",
        "origin": str(file),
    }
