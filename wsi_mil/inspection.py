"""What a file is: a slide, an artifact or checkpoint of ours, or features that another program made."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_mil import checkpoint, interop, store, weights
from wsi_mil.errors import ArtifactError, ArtifactMissing, OptionError, ResolutionError, SlideError, WeightsError
from wsi_mil.guards import parse_json, printable
from wsi_mil.slides import Slide, open_slide, slide_fingerprint

_HDF5 = b"\x89HDF\r\n\x1a\n"
_POLYGONS = "if it holds polygons, name its folder by `wsimil tile --regions DIR` or `--annotations DIR`"
_TABLE = "if it is a table, name it by --labels, or its um/px of slides by --slides-csv"
_USES = {".geojson": _POLYGONS, ".json": _POLYGONS, ".xml": _POLYGONS, ".csv": _TABLE}
_JSON = ("params", "tile_params", "stain", "excluded", "settings")


def inspect(path: Path) -> dict[str, Any]:
    """Tell what a file is, as names and values that JSON can hold; ``kind`` comes first.

    Lengths are um or level-0 px as their names say; ``mpp_x`` and ``mpp_y`` are um per level-0 px, None where unknown;
    where there is a ``problem``, they may be nonsense that a file says.

    Raises:
        OptionError: it is a folder.
        ArtifactMissing: it is not there.
        ArtifactError: it is an HDF5 file that is damaged.
        SlideError: it is no file that wsimil knows.
    """
    return {name: _told(value) for name, value in _found(path).items()}


def _told(value: Any) -> Any:
    """A value without numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _told(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    return _finite(value) if isinstance(value, float) else value


def _found(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise OptionError(f"{path} is a folder: name a file in it")
    if not path.is_file():
        raise ArtifactMissing(f"{path} does not exist: name a file")
    with path.open("rb") as file:
        start = file.read(len(_HDF5))
    if start == _HDF5 or path.suffix == ".h5":
        return _hdf5(path)
    if path.suffix == ".pt":
        return _tensor(path)
    if use := _USES.get(path.suffix.lower()):
        raise SlideError(f"{path} is no slide and no file of features: {use}")
    return _weights(path) or _slide(path)


def _hdf5(path: Path) -> dict[str, Any]:
    survey = store.survey(path)
    kind = interop.kind_of(survey)
    if kind.peer == "wsimil":
        return _artifact(path, survey)
    arrays = {name: _array(survey, name) for name in survey.shapes}
    name = f"{kind.peer} {kind.holds}" if kind.peer else "HDF5 file of another program"
    found: dict[str, Any] = {"kind": name, "path": str(path)}
    coords = survey.shapes.get("coords")
    found |= {"tiles": coords[0]} if coords else {}
    if kind.holds == "features":
        found |= _bag(path, survey, kind)
    elif kind.peer:
        found |= _said(survey)
    return found | {"datasets": arrays, "attributes": _attributes(survey)}


def _bag(path: Path, survey: store.Survey, kind: interop.Kind) -> dict[str, Any]:
    """What is known of features that another program made."""
    encoders = interop.encoders_of(survey)
    try:
        bag = interop.read_peer(path, encoders[0] if encoders else None)
    except ArtifactError as error:
        return {"problem": str(error)}
    resolution = _resolution(bag.mpp, bag.magnification, kind.peer)
    if bag.recorded:
        resolution = bag.recorded._asdict()
        resolution["mpp_source"] = resolution.pop("source")
    tile_um = bag.tile_um or (bag.l0_tile[0] * resolution["mpp_x"] if bag.l0_tile and resolution["mpp_x"] else None)
    found = {
        "dim": bag.features.shape[1],
        "encoder": encoders if len(encoders) > 1 else bag.encoder,
        "coordinates": "um" if bag.l0_coords is None else "level-0 px",
        "tile_px": bag.tile_px,
        "tile_um": tile_um,
        "l0_tile": list(bag.l0_tile) if bag.l0_tile else None,
        **resolution,
        "level0_size": list(bag.l0_size) if bag.l0_size else None,
        "params": dict(bag.request),
    }
    return found | ({"guessed": bag.guessed} if bag.guessed else {})


def _said(survey: store.Survey) -> dict[str, Any]:
    """What the attributes of a file without features of tiles say of the slide."""
    attrs = {**survey.attrs, **survey.array_attrs.get("coords", {})}
    power = attrs.get("level0_magnification")
    keys = ("patch_size", "patch_size_level0", "patch_level", "level0_width", "level0_height", "extractor")
    numeric = float(power) if isinstance(power, int | float) and power > 0 else None
    return _resolution(None, numeric, "") | {key: attrs[key] for key in keys if key in attrs}


def _resolution(mpp: float | None, magnification: float | None, peer: str) -> dict[str, Any]:
    if mpp:
        return {"mpp_x": mpp, "mpp_y": mpp, "mpp_source": peer.lower()}
    if magnification:
        rough = 10 / magnification
        return {"mpp_x": rough, "mpp_y": rough, "mpp_source": interop.APPROXIMATE, "magnification": magnification}
    return {"mpp_x": None, "mpp_y": None, "mpp_source": "unknown"}


def _artifact(path: Path, survey: store.Survey) -> dict[str, Any]:
    attrs = dict(survey.attrs)
    arrays = {name: _array(survey, name) for name in survey.shapes}
    features = survey.shapes.get("features")
    found: dict[str, Any] = {"kind": f"wsimil {_HOLDS.get(str(attrs['stage']), attrs['stage'])}", "path": str(path)}
    found |= {"dim": features[1]} if features and len(features) == 2 else {}
    found |= {key: _plain(value) if key in _JSON else value for key, value in attrs.items()}
    try:
        store.read(path)
        whole = "checksum verified"
    except ArtifactError as error:
        whole = f"damaged: {error}"
    return found | {"datasets": arrays, "integrity": whole}


def _plain(value: Any) -> Any:
    """JSON as what it says; damaged, as it stands: that the file is damaged is told beside it."""
    try:
        return parse_json(value)
    except (ValueError, TypeError):
        return value


_HOLDS = {"tile": "tiles", "extract": "features", "import": "features (imported)", "distances": "distances"}


def _array(survey: store.Survey, name: str) -> str:
    return f"{survey.dtypes[name]} {survey.shapes[name]}"


def _attributes(survey: store.Survey) -> dict[str, Any]:
    """The attributes as they stand, those of datasets with the dataset's name before them."""
    of_arrays = {f"{name}.{key}": value for name, attrs in survey.array_attrs.items() for key, value in attrs.items()}
    return {**survey.attrs, **of_arrays}


def _tensor(path: Path) -> dict[str, Any]:
    """A ``.pt`` file: features as CLAM writes them, or weights."""
    try:
        tensor = weights.read_tensor(path)
    except WeightsError as error:
        return _weights(path) or {"kind": "torch file", "path": str(path), "problem": str(error)}
    found = {"kind": "CLAM features", "path": str(path), "shape": list(tensor.shape), "dtype": str(tensor.dtype)}
    try:
        bag = interop.read_peer(path)
    except (ArtifactError, WeightsError) as error:
        return found | {"problem": str(error)}
    return found | {"tiles": len(bag.features), "dim": bag.features.shape[1], "tile_px": bag.tile_px}


def _weights(path: Path) -> dict[str, Any] | None:
    """A checkpoint of ours or a weight file; None where it is neither."""
    try:
        format_ = weights.sniff(path)
    except WeightsError:
        return None
    if format_ == "safetensors":
        try:
            return _checkpoint(path)
        except WeightsError:
            pass  # weights of something else
    try:
        state = weights.read_state(path)
    except WeightsError as error:
        return {"kind": f"weights ({format_})", "path": str(path), "problem": str(error)}
    values = sum(tensor.numel() for tensor in state.values())
    found = {"kind": f"weights ({format_})", "path": str(path), "tensors": len(state), "values": values}
    return found | {"sha256": weights.file_sha256(path)}


def _checkpoint(path: Path) -> dict[str, Any]:
    model = checkpoint.load(path)
    return {
        "kind": "wsimil checkpoint",
        "path": str(path),
        "digest": checkpoint.digest(path),
        "aggregator": model.aggregator,
        "options": model.options,
        "classes": list(model.classes),
        "dim": model.dim,
        "parameters": sum(tensor.numel() for tensor in model.state.values()),
        "encoder": model.recipe.encoder,
        "encoder_weights": model.encoder_weights,
        "encoder_weights_sha256": model.recipe.encoder_weights_sha256,
        "tile_um": model.recipe.tile_um,
        "tile_px": model.recipe.tile_px,
        "tile_params": model.tile_params,
        "params": model.extract_params,
        "training": model.training,
        "fingerprint": model.training.get("fingerprint"),
        "version": model.version,
    }


def _slide(path: Path) -> dict[str, Any]:
    try:
        with open_slide(path) as slide:
            return _of_slide(path, slide) | {"fingerprint": slide_fingerprint(path)}
    except ResolutionError as error:
        x, y, source = error.told or (math.nan, math.nan, "unknown")
        said = {"mpp_x": _finite(x), "mpp_y": _finite(y), "mpp_source": source, "problem": str(error)}
        with open_slide(path, 1.0) as slide:  # only to be let in: it is not told
            return _of_slide(path, slide) | said | {"fingerprint": slide_fingerprint(path)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no other numbers


def _of_slide(path: Path, slide: Slide) -> dict[str, Any]:
    levels = [
        {"width": level.width, "height": level.height, "downsample": round(downsample, 4)}
        for level, downsample in zip(slide.levels, slide.level_downsamples, strict=True)
    ]
    return {
        "kind": "slide",
        "path": str(path),
        "width": slide.l0_size[0],
        "height": slide.l0_size[1],
        "mpp_x": slide.mpp_x,
        "mpp_y": slide.mpp_y,
        "mpp_source": slide.mpp_source,
        "levels": levels,
        "reader": slide.reader,
        "reader_reason": slide.why,
    }


def lines(found: Mapping[str, Any], indent: str = "") -> list[str]:
    """What `inspect` found, one name and value a line; what holds several things has them below it."""
    told = []
    for name, value in found.items():
        key = printable(str(name))
        if isinstance(value, Mapping) and value:
            told += [f"{indent}{key}:", *lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            rows = [printable(", ".join(f"{part} {each}" for part, each in one.items())) for one in value]
            told += [f"{indent}{key}:", *(f"{indent}  {index}: {row}" for index, row in enumerate(rows))]
        elif isinstance(value, list):
            told.append(f"{indent}{key}: {printable(', '.join(map(str, value)))}")
        else:
            told.append(f"{indent}{key}: {'unknown' if value is None else printable(str(value))}")
    return told
