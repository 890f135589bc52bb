"""The table of encoders: complete, true to what was published, built offline, listed without loading anything."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from encoders_published import PAGES, PUBLISHED, SHA256, Published
from huggingface_hub import constants
from torch.overrides import TorchFunctionMode

from wsi_mil import cli
from wsi_mil.encoders import EncoderSpec, find_encoder, list_encoders, load_encoder
from wsi_mil.encoders.building import build_network
from wsi_mil.encoders.layouts import LAYOUTS
from wsi_mil.encoders.pooling import POOLINGS
from wsi_mil.errors import EncoderError, WeightsError

pytestmark = pytest.mark.usefixtures("no_hub")
TINY = "timm:test_vit"
NETWORKS: dict[str, list[EncoderSpec]] = {}  # some records share one, which is built once for all of them
for one in list_encoders():
    if one.arch and not one.package:
        NETWORKS.setdefault(f"{one.arch} {one.arch_kwargs}", []).append(one)
NAMES = """
    morphology ctranspath chief-ctranspath phikon phikon-v2 uni uni2-h virchow virchow-cls virchow2 virchow2-cls
    h-optimus-0 h-optimus-1 h0-mini h0-mini-cls gigapath midnight-12k midnight-12k-cls hibou-b hibou-l kaiko-vits8
    kaiko-vits16 kaiko-vitb8 kaiko-vitb16 kaiko-vitl14 lunit-vits8 lunit-vits16 gpfm resnet50 resnet50-layer3
    dinov2-small dinov2-base dinov2-large dinov2-giant dinov3-small dinov3-base dinov3-large
    conch conch-v1.5 musk plip
"""


def test_the_table_has_what_it_should() -> None:
    assert sorted(spec.name for spec in list_encoders()) == sorted(NAMES.split())


class ValuesUnset(TorchFunctionMode):
    """Leaves out what sets the values of weights, which have none on torch's meta device: it takes half of a build."""

    NAMES = ("normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_")
    SETS = frozenset(getattr(torch.Tensor, name) for name in NAMES)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func in self.SETS else func(*args, **(kwargs or {}))


@pytest.mark.parametrize("specs", NETWORKS.values(), ids=lambda specs: ", ".join(spec.name for spec in specs))
def test_every_network_is_built_offline_and_is_the_published_one(specs: list[EncoderSpec]) -> None:
    """By its parameters, the shape of its features, and the epsilon of its last norm; without any memory."""
    with torch.device("meta"), ValuesUnset():
        model = build_network(specs[0]).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    norms = [module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    if hasattr(model, "blocks"):
        model.blocks = model.blocks[:: len(model.blocks) - 1]  # all alike: the first and the last tell the shape
    for spec in specs:
        assert find_encoder(spec.name) is spec
        with torch.device("meta"):
            features = POOLINGS[spec.pooling](model, torch.zeros(2, 3, spec.tile_px, spec.tile_px))
        assert tuple(features.shape) == (2, spec.dim)
        assert spec.parameters is not None
        digits = len(str(spec.parameters).partition(".")[2])
        assert round(parameters, digits) == pytest.approx(spec.parameters, abs=10**-digits / 2)
        assert (norms[-1] if norms else None) == PUBLISHED[spec.name].norm_eps


@pytest.mark.parametrize("spec", list_encoders(), ids=lambda spec: spec.name)
def test_every_record_says_what_is_needed(spec: EncoderSpec) -> None:
    assert spec.layout in LAYOUTS
    assert spec.pooling in POOLINGS
    assert spec.precision in ("fp32", "bf16", "fp16")
    assert spec.interpolation in ("bilinear", "bicubic")
    assert spec.licence
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))
    assert spec.resize_px is None or spec.resize_px > spec.tile_px
    assert not spec.arch or spec.hub_id or spec.page
    assert not spec.gated or spec.hub_id
    assert re.fullmatch("([0-9a-f]{64})?", spec.sha256)
    assert spec.page.startswith("https://") or not spec.page
    assert spec.source.startswith("hub:") == bool(spec.hub_id)
    assert re.fullmatch("[a-z0-9.-]+", spec.name)


@pytest.mark.parametrize("name", [spec.name for spec in list_encoders() if spec.arch])
def test_recipes_are_those_of_the_authors(name: str) -> None:
    spec = find_encoder(name)
    resize = f"{spec.resize_px or spec.tile_px} {spec.interpolation}" + (f", {spec.tile_px}" if spec.resize_px else "")
    recorded = Published(
        spec.hub_id, spec.hub_file, spec.gated, spec.licence, spec.dim, spec.pooling, spec.layout, resize,
        (spec.mean, spec.std), spec.tile_um, spec.precision, PUBLISHED[name].norm_eps if not spec.package else None,
    )  # fmt: skip
    assert recorded == PUBLISHED[name]  # norms are those of networks, which are built above
    assert (spec.sha256, spec.page) == (SHA256.get(name, ""), PAGES.get(name, ""))


def test_the_built_in_encoder_sees_the_default_tiles() -> None:
    spec = find_encoder("morphology")
    assert (spec.mpp, spec.dim, spec.interpolation, spec.precision) == (256 / 224, 60, "bilinear", "fp32")


@pytest.mark.parametrize("name", ["uni", "lunit-vits16"])
def test_encoders_of_histology_refuse_positions_of_another_grid(name: str, tmp_path: Path) -> None:
    spec = replace(find_encoder(name), arch="vit_tiny_patch16_224", dim=192, arch_kwargs={"depth": 1})
    other = replace(spec, arch_kwargs={"depth": 1, "img_size": 448})
    torch.save(build_network(other).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"positions \(pos_embed\) of 785 tokens and the model has 197"):
        load_encoder(spec, tmp_path / "w.pth")
    assert load_encoder(replace(spec, layout="timm-resampled"), tmp_path / "w.pth").dim == 192


def test_the_norms_of_phikon_have_its_own_epsilon() -> None:
    with torch.device("meta"):
        model = build_network(find_encoder("phikon"))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 25
    assert {norm.eps for norm in norms} == {1e-12}


def test_classes_are_named_and_unknown_ones_refused() -> None:
    spec = EncoderSpec("own", 64, 160, None, "", arch="test_vit", arch_kwargs={"mlp_layer": "Magic"})
    with pytest.raises(EncoderError, match=r"own: timm cannot build test_vit with .*'mlp_layer': 'Magic'"):
        build_network(spec)
    with pytest.raises(EncoderError, match="own: timm has no architecture 'magic'"):
        build_network(EncoderSpec("own", 64, 160, None, "", arch="magic"))
    known = EncoderSpec("own", 64, 160, None, "", arch="test_vit", arch_kwargs={"act_layer": "relu"})
    assert isinstance(build_network(known).blocks[0].mlp.act, torch.nn.ReLU)  # a name that timm knows itself


# ------------------------------------------------------------------------------------------------------- the listing


def test_the_listing_loads_no_timm() -> None:
    code = (
        "import sys; from wsi_mil.cli import main\n"
        "try: main(['encoders'])\n"
        "except SystemExit: pass\n"
        "sys.exit(','.join(name for name in ('timm', 'torchvision') if name in sys.modules) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    for name in NAMES.split():
        assert re.search(rf"│ {re.escape(name)} +│", done.stdout), f"{name} is broken over lines"


def test_the_listing_as_json_says_which_weights_are_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cache(tmp_path, "owkin/phikon", {"model.safetensors": "weights"})
    run_cli("encoders", "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == set(NAMES.split())
    assert rows["phikon"].items() >= {
        "name": "phikon", "dim": 768, "tile_um": 112.0, "mpp": 0.5, "licence": "Owkin non-commercial", "gated": False,
        "weights": str(path / "model.safetensors"), "hub_id": "owkin/phikon", "tile_px": 224, "precision": "fp32",
    }.items()  # fmt: skip
    assert rows["morphology"]["weights"] == "built-in"
    assert rows["uni"]["gated"] is True
    assert rows["uni"]["weights"] is None


def run_cli(*words: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    assert not left.value.code


def cache(folder: Path, repo: str, files: dict[str, str]) -> Path:
    """The cache of huggingface.co with some files of a repository in it."""
    home = folder / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    for name, text in files.items():
        (snapshot / name).write_text(text)
    return snapshot


# ----------------------------------------------------------------------------------------- timm: and hf-hub: names


def test_timm_names_bring_their_own_recipe() -> None:
    spec = find_encoder("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert (spec.dim, spec.tile_px, spec.interpolation, spec.resize_px) == (192, 224, "bicubic", None)
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert spec.hub_id == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert find_encoder(TINY).dim == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("morfology", "did you mean morphology.*wsimil encoders"),
        ("virchow-2", "did you mean virchow2"),
        ("xyzzy", "no encoder 'xyzzy': see `wsimil encoders`"),
        ("timm:resnet5", "timm has no model 'resnet5' .*resnet50"),
        ("timm:resnet50.no_such_tag", "timm has no model 'resnet50.no_such_tag'"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(name: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder(name)


CONFIG = {
    "architecture": "test_vit", "num_classes": 0, "num_features": 64, "global_pool": "avg",
    "model_args": {"img_size": 96, "init_values": 1e-5},
    "pretrained_cfg": {
        "input_size": [3, 96, 96], "mean": [0.7, 0.6, 0.5], "std": [0.1, 0.2, 0.3], "interpolation": "bilinear",
        "crop_pct": 0.875, "license": "mit",
    },
}  # fmt: skip


def test_a_model_on_the_hub_brings_its_recipe_in_its_config(tmp_path: Path) -> None:
    snapshot = cache(tmp_path, "lab/vit", {"config.json": json.dumps(CONFIG), "pytorch_model.bin": ""})
    spec = find_encoder("hf-hub:lab/vit")
    assert (spec.name, spec.arch, spec.dim, spec.tile_px) == ("hf-hub:lab/vit", "test_vit", 64, 96)
    assert (spec.mean, spec.std) == ((0.7, 0.6, 0.5), (0.1, 0.2, 0.3))
    assert (spec.interpolation, spec.resize_px, spec.licence) == ("bilinear", 109, "mit")
    assert spec.source == "hub:lab/vit/pytorch_model.bin"
    model = build_network(spec)
    assert model.global_pool == "avg"
    assert model.blocks[0].ls1.gamma.shape == (64,)
    torch.save(model.state_dict(), snapshot / "pytorch_model.bin")
    assert load_encoder("hf-hub:lab/vit").weights == spec.source


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "describes no model of timm"),
        ([1], "describes no model of timm"),
        ("<html>", "config.json is damaged"),
        ({**CONFIG, "architecture": "magic"}, "no architecture"),
        ({**CONFIG, "model_args": {"magic": 1}}, "timm cannot build test_vit with"),
    ],
)
def test_what_is_no_model_of_timm_is_refused(config: object, message: str, tmp_path: Path) -> None:
    cache(tmp_path, "lab/vit", {"config.json": config if isinstance(config, str) else json.dumps(config)})
    with pytest.raises(EncoderError, match=f"hf-hub:lab/vit.*{message}"):
        find_encoder("hf-hub:lab/vit")


def test_offline_a_model_on_the_hub_is_refused_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(EncoderError, match=r"hf-hub:lab/vit: its config.json .*type `hf download lab/vit`"):
        find_encoder("hf-hub:lab/vit")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("repo", ["lab/a/b", "", "lab/vit tiny", "../secrets", "bla"])
def test_what_is_no_repository_is_refused(repo: str) -> None:
    with pytest.raises(EncoderError, match=r"give the owner and the repository, such as hf-hub:timm/resnet50.a1_in1k"):
        find_encoder(f"hf-hub:{repo}")


@pytest.mark.parametrize(("status", "message"), [(403, "a login is wanted: accept the terms"), (None, "no route")])
def test_the_hub_is_asked_one_quick_question(status: int | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, timeout: float) -> None:
        assert timeout <= 5
        error = OSError("no route")
        if status:
            error.response = type("Response", (), {"status_code": status})()  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(EncoderError, match=message):
        find_encoder("hf-hub:lab/vit")


def test_a_repository_that_the_table_knows_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache(tmp_path, "paige-ai/Virchow2", {"config.json": json.dumps(CONFIG), "model.safetensors": ""})
    find_encoder("hf-hub:paige-ai/Virchow2")
    assert "--model virchow2 or virchow2-cls is the same with the recipe of its authors" in caplog.text


def test_weights_that_nobody_may_fetch_are_got_by_hand() -> None:
    assert find_encoder("chief-ctranspath").source == "by hand"
    with pytest.raises(WeightsError, match="wsimil weights add chief-ctranspath FILE"):
        load_encoder("chief-ctranspath")
