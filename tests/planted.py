"""Features on disk with a planted signal, for tests of training and prediction that need no slides."""

import json
from pathlib import Path

import numpy as np
import torch

from wsi_mil import store
from wsi_mil.aggregators import build
from wsi_mil.bags import read_bag
from wsi_mil.checkpoint import Checkpoint, Part, Recipe, ensemble, save
from wsi_mil.train import CHECKPOINT

DIM = 6


def plant(folder: Path, slide_id: str, positive: bool, seed: int, tiles: int = 30, **attrs: object) -> None:
    """Write ``folder/<slide_id>.h5`` as `wsimil extract` would: in a positive slide a few tiles carry the signal."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(tiles, DIM))
    if positive:
        features[: tiles // 6, 0] += 6
    cells = rng.permutation(100)[:tiles]
    coords = np.stack([cells % 10, cells // 10], axis=1).astype(np.int64) * 448
    recorded = {
        "stage": "extract",
        "slide_id": slide_id,
        "status": "done" if tiles else "empty",
        "fingerprint": f"{seed:032x}",
        "upstream": "tiles",
        "params": '{"encoder": "toy", "weights_sha256": "0", "precision": "fp32"}',
        "tile_params": '{"tile_px": 224, "tile_um": 256.0, "min_coverage": 0.5}',
        "encoder": "toy",
        "encoder_weights": "built-in",
        "encoder_weights_sha256": "0",
        "mpp_x": 0.5,
        "mpp_y": 0.5,
        "l0_tile_width": 448,
        "l0_tile_height": 448,
        "tile_um": 256.0,
        "tile_px": 224,
        "slide_path": f"/nowhere/{slide_id}.svs",
        **attrs,
    }
    if not tiles:
        recorded["reason"] = "no tissue was found"
    arrays = {"features": features.astype(np.float16), "coords": coords}
    store.write(folder / f"{slide_id}.h5", store.Artifact(arrays, recorded))


def plant_cohort(root: Path, slides: int = 24, test: int = 0) -> Path:
    """Write ``feats/`` and ``labels.csv``, half of the slides positive, the last ``test`` of them in the test split."""
    rows = ["slide_id,label" + (",split" if test else "")]
    for index in range(slides):
        plant(root / "feats", f"s{index:02d}", positive=bool(index % 2), seed=index)
        row = f"s{index:02d},{'pos' if index % 2 else 'neg'}"
        rows.append(row + ((",test" if index >= slides - test else ",train") if test else ""))
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root / "labels.csv"


def untrained(
    folder: Path,
    bag: Path,
    aggregator: str = "das-mil",
    classes: tuple[str, ...] = ("neg", "pos"),
    seeds: tuple[int, ...] = (0,),
    unit: str = "slide",
) -> Path:
    """Write a checkpoint of random weights, an ensemble of several seeds, as if trained on such features."""
    like = read_bag(bag)
    dim, made = like.features.shape[1], []
    for seed in seeds:
        torch.manual_seed(seed)
        state = build(aggregator, dim, len(classes)).state_dict()
        part = Part({}) if len(seeds) == 1 else Part({}, 1.5 + seed, tuple(1 / len(classes) for _ in classes))
        params = [json.loads(like.attrs[name]) for name in ("tile_params", "params")]
        facts = Recipe.of(like.attrs), like.attrs["encoder_weights"], *params, {}
        made.append(Checkpoint(aggregator, (part,), dim, classes, *facts, state, unit=unit))
    save(folder / CHECKPOINT, ensemble(made, {}) if len(made) > 1 else made[0])
    return folder / CHECKPOINT
