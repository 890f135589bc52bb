"""Encoders: one contract for all, exact preprocessing, strict weights, and a built-in that tells tissue apart."""

import socket
import subprocess
import sys
import time

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from safetensors.torch import save_file

from wsi_mil import devices
from wsi_mil.encoders import Encoder, find_encoder, load_encoder, preprocess
from wsi_mil.encoders._hub import hub_file
from wsi_mil.encoders._timm import import_timm
from wsi_mil.encoders.preprocess import normalise
from wsi_mil.encoders.resize import resize
from wsi_mil.encoders.table import EncoderSpec
from wsi_mil.errors import EncoderError, OptionError, WeightsError
from wsi_mil.weights import file_sha256

TINY = "timm:test_vit"
RNG = np.random.default_rng(0)


pytestmark = pytest.mark.usefixtures("no_hub")


@pytest.fixture(scope="module")
def tiny():
    return load_encoder(TINY, "random:0")


def noise(tiles=3, px=64) -> np.ndarray:
    return RNG.integers(0, 256, (tiles, px, px, 3), dtype=np.uint8)


# ---------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize(
    ("name", "weights"), [("morphology", None), (TINY, "random:3"), ("timm:test_resnet", "random:3")]
)
def test_every_encoder_keeps_the_contract(name, weights):
    encoder = load_encoder(name, weights)
    assert isinstance(encoder, Encoder)
    tiles = noise(5)
    features = encoder.encode(tiles)
    assert features.shape == (5, encoder.dim)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    assert torch.equal(features, encoder.encode(torch.from_numpy(tiles)))  # arrays and tensors alike, twice the same
    single = torch.cat([encoder.encode(tile[None]) for tile in tiles])
    assert torch.allclose(single, features, atol=1e-4)
    assert encoder.encode(tiles[:0]).shape == (0, encoder.dim)
    assert len(encoder.weights_sha256) == 64
    again = load_encoder(name, encoder.weights)  # what is recorded with features loads the same encoder
    assert again.weights_sha256 == encoder.weights_sha256
    (features * torch.ones(1, requires_grad=True)).sum().backward()  # what comes out can be computed with


@pytest.mark.parametrize("encoder", ["morphology", TINY])
@pytest.mark.parametrize(
    "tiles",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        torch.zeros(2, 8, 8, 3),
        np.zeros((2, 0, 8, 3), np.uint8),
    ],
)
def test_what_is_not_8_bit_rgb_is_refused(encoder, tiles):
    with pytest.raises(EncoderError, match=r"give (uint8|tiles of one pixel)"):
        load_encoder(encoder, None if encoder == "morphology" else "random:0").encode(tiles)


# ------------------------------------------------------------------------------------------------- importing timm


def test_torchvision_is_cured_only_where_it_is_ill(tmp_path):
    """A torchvision that dies as the CUDA build does beside a CPU torch, one that is sound, and one ill otherwise.

    Each is imported in a process of its own, a fork of one that has torch already.
    """
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("import torchvision\n")
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "half.py").write_text("seen = []\n")
    script = """
import os, sys, torch
from wsi_mil.encoders import _timm
def exists():
    return hasattr(torch.ops.torchvision, "nms")
def tried():
    before = exists()
    try:
        _timm.import_timm(); _timm.import_timm()
        print(before, exists(), len(_timm._declared), sorted(name for name in sys.modules if "torchvision" in name))
    except RuntimeError as error:
        print("raised", error)
sys.path.insert(0, sys.argv[1])
for init in sys.argv[2:]:
    with open(f"{sys.argv[1]}/torchvision/__init__.py", "w") as file:
        file.write(init)
    if not os.fork():
        tried()
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""
    ill = """
import torch, torchvision.half as half
half.seen.append(1)
assert len(half.seen) == 1, "left behind"
torch.library.register_fake("torchvision::nms")(lambda *a: None)
"""
    inits = (ill, "", "raise RuntimeError('something else')")
    command = [sys.executable, "-c", script, str(tmp_path), *inits]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "False True 1 ['torchvision', 'torchvision.half']",
        "False False 0 ['torchvision']",
        "raised something else",
    ]


# ------------------------------------------------------------------------------------------------- preprocessing


def recipe(interpolation: str, tile_px: int, resize_px: int | None = None) -> EncoderSpec:
    return EncoderSpec(
        "x", 1, tile_px, None, "", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), interpolation=interpolation,
        resize_px=resize_px,
    )  # fmt: skip


def awkward(height: int, width: int) -> np.ndarray:
    """Tiles that rounding is hard on: noise, black and white by chance and by turns, and values near a half."""
    rng = np.random.default_rng(height * 1000 + width)
    shape = (height, width, 3)
    turns = np.indices((height, width)).sum(0)[..., None] % 2 * np.full(3, 255)
    tiles = [rng.integers(0, 256, shape), rng.integers(0, 2, shape) * 255, turns, rng.integers(127, 129, shape)]
    return np.stack([*tiles, np.full(shape, 255), np.zeros(shape)]).astype(np.uint8)


def by_pillow(tiles: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Columns, then rows: what Pillow up to 12 does in one call, and later ones where rows shrink no more."""
    resample, height = getattr(Image.Resampling, interpolation.upper()), tiles.shape[1]
    images = (Image.fromarray(tile).resize((size[1], height), resample) for tile in tiles)
    return np.stack([np.asarray(image.resize(size[::-1], resample)) for image in images])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (256, 256, (224, 224)), (224, 224, (256, 256)), (224, 224, (448, 448)), (512, 512, (224, 224)),
        (225, 225, (224, 224)), (224, 224, (223, 223)), (31, 31, (48, 48)), (97, 97, (48, 48)), (1, 1, (5, 5)),
        (64, 40, (224, 224)), (40, 300, (64, 480)), (300, 224, (224, 224)), (700, 900, (32, 41)), (2, 3, (224, 336)),
    ],
)  # fmt: skip
def test_resizing_is_pillows_to_the_last_bit(interpolation, height, width, size):
    tiles = awkward(height, width)
    got = resize(torch.from_numpy(tiles), size, interpolation).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(got, by_pillow(tiles, size, interpolation))
    if height == width and size[0] == size[1]:
        resample = getattr(Image.Resampling, interpolation.upper())
        assert np.array_equal(got, [np.asarray(Image.fromarray(tile).resize(size, resample)) for tile in tiles])


@given(
    data=st.data(),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_resizing_is_pillows_whatever_the_size(data, height, width, size, interpolation):
    tiles = data.draw(hnp.arrays(np.uint8, (2, height, width, 3)))
    got = resize(torch.from_numpy(tiles), size, interpolation).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(got, by_pillow(tiles, size, interpolation))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "resize_px"),
    [
        (256, 256, None), (224, 224, None), (100, 100, None), (211, 300, None), (640, 640, None),
        (256, 256, 256), (224, 224, 256), (100, 100, 224), (211, 300, 256), (300, 211, 256), (301, 300, 257),
    ],
)  # fmt: skip
def test_preprocessing_is_what_torchvision_makes_of_pillow_images(interpolation, height, width, resize_px):
    import_timm()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    spec, mode = recipe(interpolation, 224, resize_px), InterpolationMode(interpolation)
    size = [Resize(resize_px, mode), CenterCrop(224)] if resize_px else [Resize((224, 224), mode)]
    published = Compose([*size, ToTensor(), Normalize(spec.mean, spec.std)])
    tiles = awkward(height, width)
    expected = torch.stack([published(Image.fromarray(tile)) for tile in tiles])
    assert torch.equal(normalise(torch.from_numpy(tiles), spec), expected)


def test_preprocessing_is_the_same_in_any_batch_and_with_any_threads():
    spec, tiles = recipe("bicubic", 96), torch.from_numpy(noise(40, 160))
    whole, threads = normalise(tiles, spec), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(torch.cat([normalise(tile[None], spec) for tile in tiles]), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_preprocessing_is_the_same_on_a_gpu():
    for spec in (recipe("bicubic", 224), recipe("bilinear", 224), recipe("bicubic", 224, 256)):
        for height, width in ((256, 256), (224, 224), (300, 211), (700, 700)):
            tiles = torch.from_numpy(awkward(height, width))
            assert torch.allclose(normalise(tiles.cuda(), spec).cpu(), normalise(tiles, spec), rtol=0, atol=1e-6)


def test_recipes_that_cannot_be_followed_are_refused():
    tiles = torch.from_numpy(noise(1, 64))
    with pytest.raises(EncoderError, match="x cuts 48 px from 32"):
        normalise(tiles, recipe("bicubic", 48, 32))
    with pytest.raises(EncoderError, match="x resizes its tiles by lanczos, and wsimil only by bilinear or bicubic"):
        preprocess.recipe(recipe("lanczos", 48))


@pytest.mark.parametrize("change", [lambda tiles: tiles[:, ::-1], lambda tiles: tiles[:, :, ::2], np.asfortranarray])
def test_arrays_of_any_layout_and_read_only_ones_are_taken(change, tiny):
    tiles = change(noise(3))
    expected = tiny.encode(tiles.copy())
    tiles.flags.writeable = False
    assert torch.equal(tiny.encode(tiles), expected)


def test_tiles_of_the_right_size_are_only_normalised():
    tiles = noise(2, 48)
    got = normalise(torch.from_numpy(tiles), recipe("bicubic", 48)).permute(0, 2, 3, 1).numpy()
    expected = (tiles / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
    assert np.abs(got - expected).max() < 1e-5


def test_features_are_those_of_the_network_on_what_was_preprocessed(tiny):
    tiles = noise(3, 160)
    model = import_timm().create_model("test_vit", num_classes=0).eval()
    model.load_state_dict(tiny.model.state_dict())
    with torch.no_grad():
        expected = model((torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    assert torch.allclose(tiny.encode(tiles), expected, atol=1e-5)


def test_lower_precision_is_near_and_comes_back_as_float32(tiny, caplog):
    tiles = noise(4, 160)
    exact, rough = tiny.encode(tiles), load_encoder(TINY, "random:0", precision="bf16").encode(tiles)
    assert ("this CPU does not compute in bf16" in caplog.text) == (not devices.cpu_has_bf16())
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert torch.nn.functional.cosine_similarity(rough, exact).min() > 0.999


def test_the_precision_is_the_authors_own_on_a_gpu_and_fp32_on_a_cpu(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert [devices.pick_precision("auto", own, gpu) for own in devices.PRECISIONS] == list(devices.PRECISIONS)
    assert [devices.pick_precision("auto", own, cpu) for own in devices.PRECISIONS] == ["fp32"] * 3
    assert [devices.pick_precision(name, "fp32", gpu) for name in devices.PRECISIONS] == list(devices.PRECISIONS)
    assert load_encoder(TINY, "random:0", precision="auto").precision == "fp32"
    for has, like in ((True, ["fp32", "bf16", "fp32"]), (False, ["fp32"] * 3)):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda has=has: has)
        assert [devices.precision_like(trained, cpu) for trained in devices.PRECISIONS] == like
        assert [devices.precision_like(trained, gpu) for trained in devices.PRECISIONS] == list(devices.PRECISIONS)


# ------------------------------------------------------------------------------------------------------- weights


def test_random_weights_follow_their_seed_and_say_so(caplog):
    tiles = noise()
    torch.manual_seed(1)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    one, same, other = (load_encoder(TINY, f"random:{seed}") for seed in (7, 7, 8))
    assert torch.equal(torch.rand(3), drawn)  # building encoders draws nothing from others
    assert one.weights == "random:7"
    assert one.weights_sha256 == same.weights_sha256 != other.weights_sha256
    assert torch.equal(one.encode(tiles), same.encode(tiles))
    assert not torch.allclose(one.encode(tiles), other.encode(tiles))
    assert "random weights (random:7): its features mean nothing" in caplog.text


@pytest.mark.parametrize("form", ["model.safetensors", "model.pth", "old.pth"])
def test_a_weight_file_gives_the_features_of_the_model_that_wrote_it(form, tiny, tmp_path):
    path, state = tmp_path / form, tiny.model.state_dict()
    if form.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form != "old.pth")
    loaded = load_encoder(TINY, str(path))
    tiles = noise()
    assert torch.equal(loaded.encode(tiles), tiny.encode(tiles))
    assert loaded.weights == str(path)
    assert loaded.weights_sha256 == file_sha256(path)


def test_a_published_classifier_is_left_out_but_nothing_else_is(tmp_path):
    whole = import_timm().create_model("test_resnet")
    state = whole.state_dict()
    assert "fc.weight" in state
    save_file(state, tmp_path / "a.safetensors")
    assert load_encoder("timm:test_resnet", str(tmp_path / "a.safetensors")).dim == find_encoder("timm:test_resnet").dim
    save_file({**state, "neck.weight": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match=r"b.safetensors does not fit the model: 1 unexpected \(neck.weight\)"):
        load_encoder("timm:test_resnet", str(tmp_path / "b.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.bias"), r"1 missing \(norm.bias\)"),
        (lambda state: state.update({"extra": torch.zeros(2)}), r"1 unexpected \(extra\)"),
        (lambda state: state.update({"norm.bias": torch.zeros(7)}), r"1 of another shape \(norm.bias \(7,\)"),
        # timm would resample a patch embedding of another size without a word, and the features would be wrong
        (lambda state: state.update({"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)}), "1 of another shape"),
        (lambda state: [state.pop(name) for name in list(state) if "blocks" in name], "missing .*, ..."),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message, tiny, tmp_path):
    state = dict(tiny.model.state_dict())
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=f"w.safetensors does not fit the model: .*{message}"):
        load_encoder(TINY, str(tmp_path / "w.safetensors"))


def test_position_embeddings_of_another_grid_are_resampled_as_timm_does(tmp_path, caplog):
    caplog.set_level("INFO", logger="wsi_mil")
    timm = import_timm()
    published = timm.create_model("test_vit", img_size=96, num_classes=0)
    save_file(published.state_dict(), tmp_path / "w.safetensors")
    loaded = load_encoder(TINY, str(tmp_path / "w.safetensors"))
    grid = loaded.model.patch_embed.grid_size
    expected = timm.layers.resample_abs_pos_embed(published.pos_embed, new_size=grid)
    assert torch.equal(loaded.model.pos_embed, expected)
    assert "position embeddings resampled from 37 to 101 tokens" in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("morphology", {"weights": "random:1"}, "morphology is built in"),
        (TINY, {"weights": "random:x"}, "give random:SEED"),
        (TINY, {"weights": "random:0", "precision": "int8"}, "--precision int8: give auto, fp32, bf16, fp16"),
        (TINY, {"weights": "random:0", "precision": "fp16"}, "--precision fp16: on a CPU it is slower than fp32"),
        ("morphology", {"precision": "bf16"}, "morphology is built in and knows only fp32"),
        ("morphology", {"device": "gpu"}, "--device gpu: give auto, cpu"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(OptionError, match=message):
        load_encoder(name, **options)


# --------------------------------------------------------------------------------------------------------- the hub


class Response:
    def __init__(self, status: int) -> None:
        self.status_code = status


def refusing(status: int | None = None):
    """Stands for a hub that refuses, or for no network at all."""

    def ask(*args, **kwargs):
        error = OSError("Client Error") if status else huggingface_hub.errors.HTTPError("[Errno -2]")
        if status:
            error.response = Response(status)
        raise error

    return ask


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "wants a login: accept the terms on https://huggingface.co/MahmoodLab/UNI and type `hf auth login`"),
        (403, "wants a login"),
        (404, "answered 404"),
        (None, "cannot be reached"),
    ],
)
def test_without_the_hub_the_file_and_the_command_are_named(status, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refusing(status))
    with pytest.raises(WeightsError, match=message) as caught:
        load_encoder("uni")
    text = str(caught.value)
    assert "fetch pytorch_model.bin from https://huggingface.co/MahmoodLab/UNI" in text
    assert "`wsimil weights add uni pytorch_model.bin`, or name the file by --weights" in text
    assert "\n" not in text


def test_the_page_of_the_hub_is_named_for_the_file_of_the_hub(monkeypatch):
    """CTransPath's authors have their own page, with another file."""
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refusing(404))
    with pytest.raises(WeightsError) as caught:
        load_encoder("ctranspath")
    assert "fetch model.safetensors from https://huggingface.co/1aurent/swin_tiny" in str(caught.value)


def test_offline_it_says_so_at_once():
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE is set.*`wsimil weights add resnet50 model.safetensors`"):
        load_encoder("resnet50")
    assert time.monotonic() - started < 5


def test_a_model_that_was_never_published_needs_a_file():
    with pytest.raises(WeightsError, match=r"timm:own were never published, .* `wsimil weights add timm:own FILE`"):
        hub_file(EncoderSpec("timm:own", 1, 1, None, "", arch="own"))


def test_weights_that_timm_has_a_link_to_are_published_there():
    with pytest.raises(WeightsError, match=r"of timm:gcvit_tiny.in1k come from https://.*\.pth: fetch them"):
        hub_file(find_encoder("timm:gcvit_tiny.in1k"))


def test_a_seed_beyond_what_torch_takes_is_refused():
    with pytest.raises(OptionError, match="give random:SEED with a whole number"):
        load_encoder("timm:test_vit", f"random:{1 << 64}")


def test_what_the_hub_gives_is_loaded_strictly(monkeypatch, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(import_timm().create_model("test_resnet").state_dict(), file)
    asked = []

    def download(repo, name, revision=None, local_files_only=False):
        asked.append((repo, name, local_files_only))
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    encoder = load_encoder("timm:test_resnet")
    repo = find_encoder("timm:test_resnet").hub_id
    assert asked == [(repo, "model.safetensors", True), (repo, "model.safetensors", False)]
    assert encoder.weights == f"hub:{repo}/model.safetensors"
    assert encoder.weights_sha256 == file_sha256(file)


@pytest.mark.network
def test_the_real_hub_gives_resnet50(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        socket.create_connection(("huggingface.co", 443), timeout=5).close()
    except OSError:
        pytest.skip("huggingface.co cannot be reached")
    assert load_encoder("resnet50").encode(noise(1, 224)).shape == (1, 2048)
