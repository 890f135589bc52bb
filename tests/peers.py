"""Files as TRIDENT, CLAM, STAMP and AtlasPatch write them: names, types, layout and attributes."""

from pathlib import Path

import h5py
import numpy as np
import torch

DIM = 6


def bag(seed: int = 0, tiles: int = 12, step: float = 512, positive: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (tiles, DIM), in a positive slide some with a signal, and corners on a grid of four columns."""
    features = np.random.default_rng(seed).normal(size=(tiles, DIM)).astype(np.float32)
    if positive:
        features[: tiles // 3, 0] += 6
    cells = np.arange(tiles)
    return features, np.stack([cells % 4, cells // 4], axis=1) * step


def trident(
    path: Path, features: np.ndarray, coords: np.ndarray, encoder: str | None = "uni_v2", **attrs: object
) -> Path:
    """``features_<encoder>/<slide>.h5``; an attribute of None is left out."""
    said = {
        "patch_size": 256,
        "patch_size_level0": 512.0,
        "level0_magnification": 40,
        "target_magnification": 20.0,
        "overlap": 0,
        "name": path.stem,
        "savetodir": "/jobs/a/20x_256px_0px_overlap",
        "level0_width": 24576,
        "level0_height": 24576,
        **attrs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("features", data=features, maxshape=(None, *features.shape[1:]))
        if encoder:
            made.attrs["encoder"] = encoder
        of_tiles = file.create_dataset("coords", data=coords.astype(np.int64), maxshape=(None, 2))
        of_tiles.attrs.update({key: value for key, value in said.items() if value is not None})
    return path


def clam_patches(path: Path, coords: np.ndarray, patch: int = 256, level: int = 0, downsample: float = 1.0) -> Path:
    """``patches/<slide>.h5``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("coords", data=coords.astype(np.int64), maxshape=(None, 2), chunks=(1, 2))
        made.attrs.update({"patch_size": patch, "patch_level": level, "downsample": np.full(2, downsample)})
        made.attrs.update({"level_dim": np.array([24576, 20480]), "name": path.stem, "save_path": "/out/patches"})
    return path


def clam(path: Path, features: np.ndarray, coords: np.ndarray) -> Path:
    """``h5_files/<slide>.h5``: no attributes at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, maxshape=(None, DIM))
        file.create_dataset("coords", data=coords.astype(np.int32), maxshape=(None, 2))
    return path


def clam_pt(path: Path, features: np.ndarray) -> Path:
    """``pt_files/<slide>.pt``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(features), path)
    return path


def stamp(path: Path, features: np.ndarray, coords_um: np.ndarray, **attrs: object) -> Path:
    """``<extractor>-<hash>/<slide>.h5``; an attribute of None is left out."""
    said = {
        "stamp_version": "2.5.0",
        "extractor": "uni2",
        "unit": "um",
        "tile_size_um": 256.0,
        "tile_size_px": 224,
        "code_hash": "ab12cd34",
        "feat_type": "tile",
        **attrs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["feats"], file["coords"] = features.astype(np.float16), coords_um.astype(np.float32)
        file.attrs.update({key: value for key, value in said.items() if value is not None})
    return path


def atlaspatch(path: Path, features: dict[str, np.ndarray], coords: np.ndarray, **attrs: object) -> Path:
    """``patches/<slide>.h5`` with the features of some encoders; an attribute of None is left out."""
    said = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "level0_width": 24576,
        "level0_height": 24576,
        "num_patches": len(coords),
        "wsi_path": f"/slides/{path.stem}.svs",
        **attrs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    side = np.full((len(coords), 2), 512)
    with h5py.File(path, "w") as file:
        file["coords"] = np.hstack([coords, side, np.zeros((len(coords), 1))]).astype(np.int32)
        file["passports"] = np.full(len(coords), b"x", dtype="S160")
        for name, values in features.items():
            file[f"features/{name}"] = values
        file.attrs.update({key: value for key, value in said.items() if value is not None})
    return path
