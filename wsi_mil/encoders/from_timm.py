"""Records that are made of what timm and the hub know about a model: ``timm:<name>`` and ``hf-hub:<owner/repo>``."""

import difflib
import logging
from pathlib import Path
from typing import Any

from wsi_mil.encoders.cache import keeps
from wsi_mil.encoders.spec import IMAGENET, EncoderSpec
from wsi_mil.errors import EncoderError
from wsi_mil.guards import parse_json

log = logging.getLogger(__name__)
_SECONDS = 5.0
_AS_REPOSITORY = "give the owner and the repository, such as hf-hub:timm/resnet50.a1_in1k"
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def of_timm(name: str) -> EncoderSpec:
    """Return the record of a model of timm. Tiles are resized whole, whatever it cuts from pictures.

    Raises:
        EncoderError: timm has no such model.
    """
    import torch  # here, since the table is also read by those who load nothing

    from wsi_mil.encoders._timm import import_timm

    timm = import_timm()
    published = timm.list_models(pretrained=True)
    if not (timm.is_model(name) and ("." not in name or name in published)):
        near = nearest(name, [*timm.list_models(), *published])
        raise EncoderError(f"timm has no model {name!r}{near}: see `wsimil encoders`, or timm.list_models()")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    config = model.pretrained_cfg
    return EncoderSpec(
        name=f"timm:{name}",
        dim=getattr(model, "head_hidden_size", model.num_features),
        tile_px=config["input_size"][-1],
        tile_um=None,
        licence=config.get("license") or "unknown",
        arch=name,
        layout="timm-resampled",
        mean=config["mean"],
        std=config["std"],
        interpolation=config["interpolation"],
        hub_id=config.get("hf_hub_id") or "",
        page="" if config.get("hf_hub_id") else config.get("url") or "",
    )


def of_hub(repo: str) -> EncoderSpec:
    """Return the record of a timm model on huggingface.co, made of its config.json, cropping included.

    Raises:
        EncoderError: the repository cannot be asked, or does not describe a model of timm.
    """
    import torch

    from wsi_mil.encoders.building import build_network

    name = f"hf-hub:{repo}"
    if "/" not in repo:
        raise EncoderError(f"{name}: {_AS_REPOSITORY}")
    config = _config(repo)
    recipe = config.get("pretrained_cfg") or {}
    if not isinstance(config.get("architecture"), str) or "input_size" not in recipe:
        raise EncoderError(f"{name}: its config.json describes no model of timm: see https://huggingface.co/{repo}")
    tile_px = recipe["input_size"][-1]
    crop = recipe.get("crop_pct") or 1.0
    spec = EncoderSpec(
        name=name,
        dim=config.get("num_features") or 0,
        tile_px=tile_px,
        tile_um=None,
        licence=recipe.get("license") or "unknown",
        arch=config["architecture"],
        arch_kwargs=_arguments(config),
        layout="timm-resampled",
        mean=_rgb(recipe, "mean", IMAGENET[0]),
        std=_rgb(recipe, "std", IMAGENET[1]),
        interpolation=recipe.get("interpolation") or "bicubic",
        resize_px=int(tile_px / crop) if crop < 1 else None,
        hub_id=repo,
        hub_file=_weight_file(repo),
    )
    with torch.device("meta"):
        model = build_network(spec)
        dim = model.eval()(torch.zeros(1, 3, tile_px, tile_px)).shape[-1]
    return EncoderSpec(**{**vars(spec), "dim": dim})


def _rgb(recipe: dict[str, Any], key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    red, green, blue = recipe.get(key) or default
    return float(red), float(green), float(blue)


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the architecture, as timm takes them from a config.json."""
    arguments = dict(config.get("model_args") or {})
    if "global_pool" in config:
        arguments.setdefault("global_pool", config["global_pool"])
    arguments.pop("num_classes", None)
    return arguments


def _config(repo: str) -> dict[str, Any]:
    """The config.json of a repository."""
    path = _config_file(repo)
    try:
        config = parse_json(path.read_text())
    except ValueError as error:
        raise EncoderError(f"hf-hub:{repo}: {path} is damaged ({error}): delete it, and it is fetched again") from error
    return config if isinstance(config, dict) else {}


def _config_file(repo: str) -> Path:
    """Where that lies: in the cache, or fetched from the hub within seconds."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        if path := _cached(repo, "config.json"):
            return path
        # One quick question first: a download alone retries for half a minute where there is no network.
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, "config.json"), timeout=_SECONDS)
        return Path(hub.hf_hub_download(repo, "config.json"))
    except errors.HFValidationError as error:
        raise EncoderError(f"hf-hub:{repo}: {_AS_REPOSITORY}") from error
    except (OSError, RuntimeError, errors.HTTPError) as error:
        raise EncoderError(
            f"hf-hub:{repo}: its config.json is not in the cache and cannot be had ({_reason(repo, error)}): where "
            f"there is a network, type `hf download {repo}`, and copy the cache that it fills (HF_HOME) here"
        ) from error


def _reason(repo: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"a login is wanted: accept the terms on https://huggingface.co/{repo}, type `hf auth login`"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set"
    return " ".join(str(error).split()) or type(error).__name__


def _cached(repo: str, file: str) -> Path | None:
    import huggingface_hub as hub

    found = hub.try_to_load_from_cache(repo, file)
    return Path(found) if isinstance(found, str) else None


def _weight_file(repo: str) -> str:
    """Which weight file a repository has: what was added for it, else safetensors where both are there."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    for there in (keeps, _cached):
        for file in _WEIGHT_FILES:
            if there(repo, file):
                return file
    try:
        siblings = hub.HfApi().model_info(repo, timeout=_SECONDS).siblings or []
    except (OSError, errors.HTTPError) as error:
        log.debug("%s cannot be listed: %s", repo, error)
        return _WEIGHT_FILES[0]
    names = [sibling.rfilename for sibling in siblings]
    return next((file for file in _WEIGHT_FILES if file in names), _WEIGHT_FILES[0])


def nearest(name: str, known: list[str]) -> str:
    """Return the known names that look like ``name``, as a question in brackets, or nothing."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
