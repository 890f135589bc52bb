"""Optional encoders: refused by name without their package, called by the recipe of their authors with it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsi_mil.encoders import load_encoder
from wsi_mil.encoders._timm import import_timm
from wsi_mil.errors import EncoderError, OptionError, WeightsError

pytestmark = pytest.mark.usefixtures("no_hub")
INSTALL = {
    "conch": "pip install git+https://github.com/mahmoodlab/CONCH.git",
    "conch-v1.5": "pip install git+https://github.com/mahmoodlab/TRIDENT.git",
    "musk": "pip install fairscale git+https://github.com/lilab-stanford/MUSK",
    "plip": "pip install transformers",
}
MODULES = {
    "conch": "conch.open_clip_custom",
    "conch-v1.5": "trident.patch_encoder_models.model_zoo.conchv1_5.conchv1_5",
    "musk": "musk.modeling",
    "plip": "transformers.models.clip.modeling_clip",
}


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """Put a module into sys.modules, and the packages that it lies in."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    vars(sys.modules[name]).update(contents)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def tiles(px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, px, px, 3), dtype=np.uint8)


class Sums(nn.Module):
    """A network whose features are the sums of its images, ``width`` times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.asked = width, {}

    def forward(self, images: Tensor) -> Tensor:
        return images.sum((1, 2, 3))[:, None].expand(-1, self.width)


class Conch(Sums):
    """Like conch: a tower for images, and one for text."""

    def __init__(self) -> None:
        super().__init__(512)
        parts = {"trunk": nn.Linear(2, 3), "attn_pool_contrast": nn.Linear(3, 2), "ln_contrast": nn.LayerNorm(2)}
        self.visual, self.text = nn.ModuleDict(parts), nn.Linear(2, 2)
        parts["trunk"].pos_embed = nn.Parameter(torch.randn(1, 5, 2))

    def encode_image(self, images: Tensor, **options: bool) -> Tensor:
        self.asked.update(options)
        return self(images)


class Musk(Sums):
    """Like musk: the towers for images (A) and for text (B) are one."""

    def __init__(self) -> None:
        super().__init__(2048)
        layers = nn.ModuleDict({"A": nn.Linear(2, 2), "B": nn.Linear(2, 2)})
        parts = {"vision_embed": nn.Linear(2, 2), "text_embed": nn.Embedding(2, 2), "encoder": layers}
        self.beit3 = nn.ModuleDict(parts)

    def forward(self, image: Tensor, **options: bool) -> tuple[Tensor]:
        self.asked.update(options)
        return (super().forward(image),)


def loosely(path: str, model: nn.Module, *_: str) -> None:
    """Load as the packages of conch and musk do: what is missing is passed over, positions are resampled."""
    own, state = model.state_dict(), load_file(path)
    if (found := state.get("visual.trunk.pos_embed")) is not None:
        state["visual.trunk.pos_embed"] = found[:, : own["visual.trunk.pos_embed"].shape[1]]
    fitting = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    model.load_state_dict(fitting, strict=False)


def saved(state: dict[str, Tensor], path: Path) -> Path:
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    return path


def load_conch(path: str) -> tuple[nn.Module, None]:
    model = Conch()
    loosely(path, model)
    return model, None


@pytest.mark.parametrize("name", INSTALL)
def test_without_its_package_an_encoder_is_refused_with_the_line_that_installs_it(
    name: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[name].partition(".")[0], None)  # as if it were not installed
    for weights in (None, str(file), "random:0"):
        with pytest.raises(EncoderError, match=f"^{name} is run by the package of its authors") as caught:
            load_encoder(name, weights)
        assert f"type `{INSTALL[name]}`" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_conch_is_asked_for_what_lies_before_its_projection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, file = [], saved(Conch().state_dict(), tmp_path / "w.safetensors")

    def create(*arguments: str) -> tuple[nn.Module, None]:
        loaded.append(arguments)
        return load_conch(arguments[1])

    stand_in(monkeypatch, MODULES["conch"], create_model_from_pretrained=create)
    encoder = load_encoder("conch", str(file))
    assert encoder.encode(tiles(448)).shape == (2, 512)
    assert encoder.model.network.asked == {"proj_contrast": False, "normalize": False}
    assert loaded == [("conch_ViT-B-16", str(file))]
    assert (encoder.weights, len(encoder.weights_sha256)) == (str(file), 64)


def test_what_a_package_passes_over_is_not_left_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, MODULES["conch"], create_model_from_pretrained=lambda _, path: load_conch(path))
    state, file = Conch().state_dict(), tmp_path / "w.safetensors"
    pos, norm = "visual.trunk.pos_embed", "visual.ln_contrast.weight"
    whole = {
        "of another grid": state | {pos: torch.randn(1, 9, 2)},
        "without text": {name: value for name, value in state.items() if not name.startswith("text.")},
    }
    for held in whole.values():
        load_encoder("conch", str(saved(held, file)))
    others = {
        "none": {"cls_token": torch.zeros(1), "blocks.0.norm.weight": torch.zeros(2)},
        "one fewer": {name: value for name, value in state.items() if name != norm},
        "another shape": state | {norm: torch.ones(5)},
        "positions": state | {pos: torch.randn(1, 5, 7)},
    }
    told = f"{file} does not hold the weights of conch: (1|7) of 7 tensors are missing or others"
    for held in others.values():
        with pytest.raises(WeightsError, match=told):
            load_encoder("conch", str(saved(held, file)))


def test_what_a_package_cannot_open_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_: str) -> None:
        raise KeyError("visual.trunk.pos_embed")

    stand_in(monkeypatch, MODULES["conch"], create_model_from_pretrained=create)
    with pytest.raises(WeightsError, match=r"cannot be opened by the package of .* conch \(KeyError: ") as told:
        load_encoder("conch", str(file))
    assert "give the published pytorch_model.bin of MahmoodLab/conch" in str(told.value)


def test_conch_v1_5_is_built_for_448_px(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def create(**options: Any) -> tuple[nn.Module, None]:
        asked.update(options)
        return Sums(768), None

    stand_in(monkeypatch, MODULES["conch-v1.5"], create_model_from_pretrained=create)
    assert load_encoder("conch-v1.5", str(file)).encode(tiles(512)).shape == (2, 768)
    assert asked == {"checkpoint_path": str(file), "img_size": 448}


def test_musk_sees_a_tile_at_two_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loaded, file = Musk(), [], tmp_path / "w.safetensors"
    state = Musk().state_dict()
    saved({name: value for name, value in state.items() if ".B." not in name and "text" not in name}, file)
    stand_in(monkeypatch, "musk.modeling")
    utils = ModuleType("musk.utils")

    def load(*arguments: Any) -> None:
        loaded.append(arguments)
        loosely(*arguments)

    utils.load_model_and_may_interpolate = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "musk.utils", utils)
    monkeypatch.setattr(import_timm(), "create_model", lambda name: model if name == "musk_large_patch16_384" else None)
    assert load_encoder("musk", str(file)).encode(tiles(384)).shape == (2, 2048)
    assert model.asked == {"with_head": False, "out_norm": False, "ms_aug": True, "return_global": True}
    assert loaded == [(str(file), model, "model|module", "")]
    saved({name: value for name, value in state.items() if "vision_embed" not in name}, file)
    model.beit3["vision_embed"].reset_parameters()
    with pytest.raises(WeightsError, match="does not hold the weights of musk: 2 of 4 tensors are missing or others"):
        load_encoder("musk", str(file))


def test_plip_is_the_image_tower_of_clip_loaded_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clip(nn.Module):
        def __init__(self, config: SimpleNamespace) -> None:
            super().__init__()
            self.vision_model = nn.Linear(3, 7)
            self.visual_projection = nn.Linear(7, config.projection_dim, bias=False)

        def forward(self, pixel_values: Tensor) -> SimpleNamespace:
            return SimpleNamespace(image_embeds=self.visual_projection(self.vision_model(pixel_values.mean((2, 3)))))

    stand_in(
        monkeypatch,
        MODULES["plip"],
        CLIPVisionModelWithProjection=Clip,
        CLIPVisionConfig=lambda **o: SimpleNamespace(**o),
    )
    state = Clip(SimpleNamespace(projection_dim=512)).state_dict()
    text = {"text_model.a": torch.zeros(1), "vision_model.embeddings.position_ids": torch.arange(3)}
    save_file({**state, **text}, tmp_path / "w.safetensors")
    encoder = load_encoder("plip", str(tmp_path / "w.safetensors"))
    assert encoder.encode(tiles(224)).shape == (2, 512)
    assert torch.equal(encoder.model.network.visual_projection.weight, state["visual_projection.weight"])
    save_file({"vision_model.weight": torch.zeros(7, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(WeightsError, match="2 missing"):
        load_encoder("plip", str(tmp_path / "half.safetensors"))


ALONE = """
import sys
from wsi_mil.encoders import load_encoder
from wsi_mil.errors import WsiMilError
try:
    load_encoder(sys.argv[1], sys.argv[2])
except WsiMilError as error:
    print(error)
"""


def alone(name: str, weights: Path, path: Path) -> str:
    """What loading says in a process of its own, where nobody has cured torchvision before."""
    environment = {**os.environ, "PYTHONPATH": f"{path}:{Path(__file__).parents[1]}"}
    command = [sys.executable, "-c", ALONE, name, str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_real_transformers_gives_plip_its_image_tower(tmp_path: Path) -> None:
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    code = (
        "import sys, torch\n"
        "from wsi_mil.encoders.extras import require\n"
        "from wsi_mil.encoders.table import find_encoder\n"
        "(clip,) = require(find_encoder('plip'))\n"
        "model = clip.CLIPVisionModelWithProjection(clip.CLIPVisionConfig(projection_dim=512))\n"
        "from safetensors.torch import save_file\n"
        "save_file({k: v.contiguous() for k, v in model.state_dict().items()}, sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    path = tmp_path / "plip.safetensors"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)
    assert alone("plip", path, tmp_path) == ""
    save_file({"vision_model.a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "does not fit the model" in alone("plip", tmp_path / "other.safetensors", tmp_path)


@pytest.mark.slow
def test_a_package_that_imports_timm_itself_finds_it_importable(file: Path, tmp_path: Path) -> None:
    module = tmp_path / "conch" / "open_clip_custom.py"
    module.parent.mkdir()
    module.write_text("import timm, torch\ncreate_model_from_pretrained = lambda *a: (torch.nn.Identity(), None)\n")
    assert "does not hold the weights of conch: 0 of 0 tensors" in alone("conch", file, tmp_path)
    module.write_text("raise RuntimeError('no CUDA\\nhere')\n")
    assert alone("conch", file, tmp_path).startswith(
        "conch is run by the package of its authors, which cannot be imported (RuntimeError: no CUDA here): type `"
    )


def test_a_package_gets_a_weight_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, MODULES["conch"], create_model_from_pretrained=None)
    with pytest.raises(OptionError, match="--weights random:0: the package that runs conch wants a weight file"):
        load_encoder("conch", "random:0")
    (tmp_path / "w.bin").write_text("<!DOCTYPE html>")
    with pytest.raises(WeightsError, match="is a web page"):
        load_encoder("conch", str(tmp_path / "w.bin"))
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        load_encoder("conch")
