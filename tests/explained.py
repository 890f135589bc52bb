"""Explanations that tests make up: tiles on a lattice, and what a model might have looked at."""

from pathlib import Path

import numpy as np
import shapely
import torch

from wsi_mil.bags import Bag
from wsi_mil.explain import Facts, Look, Pairs, Places
from wsi_mil.slides.base import Slide
from wsi_mil.slides.resolution import Resolution

TILE = (200, 100)


class Plain(Slide):
    """A slide of one colour that is on no disk."""

    reader = "image"

    def __init__(self, size: tuple[int, int] = (2000, 1000), mpp: tuple[float, float] = (0.5, 1.0)) -> None:
        super().__init__(Path("plain.tif"), [size], Resolution(*mpp, "option"))
        self.broken = False

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        if self.broken:
            raise OSError("the disk is gone")
        return np.full((height, width, 3), (230, 180, 210), np.uint8)

    def _close(self) -> None:
        pass


def some_places(columns: int = 6, rows: int = 4, corner: tuple[int, int] = (100, 200)) -> Places:
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    coords = (np.stack([x.ravel(), y.ravel()], axis=1) * TILE + corner).astype(np.int64)
    quality = {"coverage": np.linspace(0.5, 1, len(coords), dtype=np.float32)}
    return Places(coords, TILE, (0.5, 1.0), quality, shapely.box(50, 150, 1500, 900))


def some_look(places: Places, classes: int = 2, contribution: bool = True, pairs: bool = True) -> Look:
    """Attention grows from tile to tile; the last two tiles paid attention to the first ones."""
    tiles = len(places.coords)
    attention = np.arange(1, tiles + 1, dtype=np.float32)
    attention /= attention.sum()
    given = attention[:, None].astype(float) * np.cos(np.arange(tiles)[:, None] / 3 + np.arange(classes))
    given -= given.mean(1, keepdims=True)
    occlusion = np.full((tiles, classes), np.nan)
    occlusion[-2:] = given[-2:]
    tops = np.array([tiles - 1, tiles - 2])
    partners = np.array([[0, 1, 2], [3, 0, -1]])
    distance_um = np.linalg.norm(places.centres_um[tops][:, None] - places.centres_um[partners], axis=2)
    evidence = given.sum(0)
    return Look(
        np.exp(evidence) / np.exp(evidence).sum(),
        evidence,
        attention,
        given if contribution else None,
        np.zeros(classes) if contribution else None,
        attention[::-1].copy() if pairs else None,
        occlusion,
        Pairs(tops, partners, np.array([[0.5, 0.25, 0.1], [0.4, 0.2, 0.0]]), distance_um) if pairs else None,
    )


def bag_of(places: Places, slide_id: str = "a/slide") -> Bag:
    centres = torch.from_numpy(places.centres_um.astype(np.float32))
    attrs = {"tile_um": 100.0, "fingerprint": "f" * 32, "encoder": "morphology"}
    return Bag(slide_id, torch.zeros(len(centres), 3), centres, attrs)


def facts_of(places: Places, classes: tuple[str, ...] = ("far", "near"), model: str = "m" * 16) -> Facts:
    return Facts(classes=classes, predicted=classes[-1], model=model, places=places, method={"partners": 3})
