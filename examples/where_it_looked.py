"""Does a model look at what decides? Where attention and contributions lie on a cohort whose truth is known.

    wsimil demo --out demo
    python examples/where_it_looked.py demo

Every slide of the demo holds tumour nests and lymphocyte clusters; the label says whether some nest lies near some
cluster. `demo/truth.csv` tells where they are, so what the model looked at can be compared with them: over the slides
of one split, the share of what it looked at on tiles that touch a nest, a cluster or neither, beside the share of such
tiles; how often the strongest tile of a ``near`` slide touches the closest pair; and whether contributions agree with
what is lost when a tile is left out. Prints Markdown.
"""

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from wsi_mil.bags import read_bag
from wsi_mil.checkpoint import Checkpoint, load
from wsi_mil.errors import TableError
from wsi_mil.explain import Look, LookOptions, Places, look, read_places
from wsi_mil.workflow import checkpoint_at

KINDS = ("nest", "cluster")
NEITHER = "neither"
QUANTITIES = ("attention", "size of contribution", "attended")


class Blob(NamedTuple):
    """A nest or a cluster, as a circle."""

    kind: str
    x_um: float
    y_um: float
    radius_um: float


class Seen(NamedTuple):
    """One slide: what lies on it, and what the model made of it."""

    label: str
    told: Look
    gap_um: np.ndarray
    """(tiles, blobs): from the edge of a blob to the tile's square; 0 or less where they touch."""
    blobs: list[Blob]

    @property
    def kinds(self) -> np.ndarray:
        """(tiles,): what each tile touches; where it is two things, the one that reaches further into it."""
        nearest = self.gap_um.argmin(axis=1)
        names = np.array([blob.kind for blob in self.blobs])[nearest]
        return np.where(self.gap_um.min(axis=1) <= 0, names, NEITHER)

    @property
    def deciding(self) -> dict[str, int]:
        """The nest and the cluster whose centres lie closest, as indices of ``blobs``."""
        pairs = [
            (np.hypot(one.x_um - other.x_um, one.y_um - other.y_um), first, second)
            for first, one in enumerate(self.blobs)
            for second, other in enumerate(self.blobs)
            if (one.kind, other.kind) == KINDS
        ]
        _, nest, cluster = min(pairs)
        return {"nest": nest, "cluster": cluster}

    def touched(self, blobs: Iterable[int]) -> np.ndarray:
        """(tiles,): whether a tile touches one of them."""
        return (self.gap_um[:, list(blobs)] <= 0).any(axis=1)

    def quantity(self, name: str) -> np.ndarray | None:
        """(tiles,): how much of it lies on each tile, of 1 in all; None where the model does not tell."""
        told = self.told
        if name == "size of contribution":
            size = None if told.contribution is None else np.abs(told.contribution[:, -1])
            return None if size is None else size / max(size.sum(), np.finfo(float).tiny)
        return told.attention if name == "attention" else told.attended


def gaps_um(places: Places, blobs: Sequence[Blob]) -> np.ndarray:
    """From the edge of each blob to the square of each tile, (tiles, blobs)."""
    half = np.array(places.l0_tile) * places.mpp / 2
    centres = np.array([[blob.x_um, blob.y_um] for blob in blobs])
    beside = np.maximum(np.abs(places.centres_um[:, None] - centres) - half, 0)
    return np.hypot(beside[..., 0], beside[..., 1]) - np.array([blob.radius_um for blob in blobs])


def read_truth(path: Path) -> dict[str, list[Blob]]:
    """What lies on each slide."""
    found: dict[str, list[Blob]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            blob = Blob(row["kind"], *(float(row[name]) for name in ("x_um", "y_um", "radius_um")))
            found.setdefault(row["slide_id"], []).append(blob)
    return found


def look_at(folder: Path, checkpoint: Checkpoint, split: str, occlusions: int) -> Iterator[Seen]:
    """Look at each slide of a split, and at what is lost without each of the tiles that gave most."""
    truth, model = read_truth(folder / "truth.csv"), checkpoint.model()
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    if not rows:
        raise TableError(f"{folder / 'labels.csv'} has no slide of the split {split}: name another by --split")
    for row in rows:
        path = folder / "feats" / f"{row['slide_id']}.h5"
        bag, blobs = read_bag(path), truth[row["slide_id"]]
        checkpoint.require(bag, path)
        told = look(model, bag, LookOptions(top=0, occlusions=occlusions))
        yield Seen(row["label"], told, gaps_um(read_places(path), blobs), blobs)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Markdown, line by line."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + " :-- |" + " --: |" * (len(header) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def shares(seen: Sequence[Seen]) -> Iterator[list[str]]:
    """Where what was looked at lies, the mean over slides, by label."""
    for label in (*sorted({one.label for one in seen}), "all"):
        some = [one for one in seen if label in (one.label, "all")]
        for kind in (*KINDS, NEITHER):
            on = [one.kinds == kind for one in some]
            cells = [f"{100 * np.mean([own.mean() for own in on]):.1f} %"]
            for name in QUANTITIES:
                amounts = [one.quantity(name) for one in some]
                parts = [amount[own].sum() for amount, own in zip(amounts, on, strict=True) if amount is not None]
                cells.append(f"{100 * np.mean(parts):.1f} %" if parts else "–")
            yield [f"{label}, {kind}", *cells]


def strongest(seen: Sequence[Seen]) -> Iterator[tuple[str, str, str]]:
    """How often the strongest tile of a near slide touches the closest pair, beside how many tiles do."""
    near = [one for one in seen if one.label == "near"]
    for name, pick in (
        ("largest contribution to near", lambda one: None if one.told.contribution is None else
         int(one.told.contribution[:, -1].argmax())),
        ("most attention", lambda one: int(one.told.attention.argmax())),
    ):  # fmt: skip
        tiles = [pick(one) for one in near]
        for what in (*KINDS, "nest or cluster"):
            of = [one.deciding.values() if what not in KINDS else [one.deciding[what]] for one in near]
            on = [one.touched(which) for one, which in zip(near, of, strict=True)]
            hits = [touching[tile] for touching, tile in zip(on, tiles, strict=True) if tile is not None]
            chance = np.mean([touching.mean() for touching in on]) if near else 0
            said = f"{sum(hits)} of {len(hits)}" if hits else "–"
            yield f"{name}: on the {what} of the closest pair", said, f"{100 * chance:.1f} %"


def agreement(seen: Sequence[Seen]) -> Iterator[tuple[str, str]]:
    """Whether what a tile gave is what is lost without it, the mean over slides."""
    ranks, signs = [], []
    for one in seen:
        lost, gave = one.told.occlusion[:, -1], one.told.contribution
        tried = ~np.isnan(lost)
        if gave is None or tried.sum() < 3:
            continue
        pair = gave[tried, -1], lost[tried]
        if all(map(np.ptp, pair)):
            ranks.append(float(spearmanr(*pair).statistic))
        signs.append(float(np.mean(np.sign(pair[0]) == np.sign(pair[1]))))
    for name, values in (("Spearman correlation", ranks), ("share of the same sign", signs)):
        yield name, f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "–"


def report(checkpoint: Checkpoint, split: str, seen: Sequence[Seen]) -> Iterator[str]:
    """All of it as Markdown."""
    right = sum(checkpoint.decide(one.told.probabilities.tolist()) == one.label for one in seen)
    yield f"{checkpoint.aggregator}, {len(seen)} slides of the split {split}, {right} answered right.\n"
    yield from table(("slides, tiles that touch", "tiles", *QUANTITIES), shares(seen))
    yield ""
    yield from table(("tile of a near slide", "slides", "tiles that do"), strongest(seen))
    yield ""
    yield from table(("contribution and occlusion", "mean over slides (least to most)"), agreement(seen))


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder of `wsimil demo`")
    parser.add_argument("--model", type=Path, help="checkpoint or its folder; by default the demo's")
    parser.add_argument("--split", default="test")
    parser.add_argument("--occlusions", type=int, default=32, help="tiles to leave out of each slide, one by one")
    asked = parser.parse_args()
    checkpoint = load(checkpoint_at(asked.model or asked.folder / "model"))
    seen = list(look_at(asked.folder, checkpoint, asked.split, asked.occlusions))
    print("\n".join(report(checkpoint, asked.split, seen)))


if __name__ == "__main__":
    main()
