"""Every command of the pipeline on a tiny cohort, undisturbed: what a disturbed one is measured against."""

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from children import Ended, Parent
from painting import EOSIN, HAEMATOXYLIN, disc, flat, noisy

from wsi_mil.slides import write_pyramid

SLIDES = 8
_TRAIN = ("--epochs", "2", "--device", "cpu")
_JUDGE = ("--resamples", "100", "--device", "cpu")
_LOOK = ("--device", "cpu", "--top", "2")


@dataclass(frozen=True)
class Step:
    """One command of the pipeline."""

    words: tuple[str, ...]
    needs: tuple[str, ...]
    """What it reads, in its folder."""
    makes: tuple[str, ...]
    """What it writes."""

    def typed(self, cohort: Path) -> tuple[str, ...]:
        """The words, with the place of the slides, which artifacts record, in them."""
        return tuple(word.format(cohort=cohort) for word in self.words)

    @property
    def name(self) -> str:
        """The command."""
        return self.words[0]


PIPELINE = (
    Step(("tile", "{cohort}/slides"), (), ("tiles",)),
    Step(("extract", "--model", "morphology"), ("tiles",), ("feats",)),
    Step(("distances",), ("feats",), ("distances",)),
    Step(("train", *_TRAIN, "--save-every-minutes", "0"), ("feats", "tiles", "distances"), ("model",)),
    Step(
        ("crossval", "--folds", "2", *_TRAIN, "--resamples", "100"),
        ("feats", "tiles", "distances"),
        ("crossval",),
    ),
    Step(("evaluate", *_JUDGE), ("feats", "tiles", "model"), ("evaluation",)),
    Step(("predict", "{cohort}/new", "--device", "cpu"), ("model",), ("predictions",)),
    Step(("explain", "{cohort}/new", *_LOOK, "--out", "explained"), ("model",), ("explained",)),
)
STEPS = {step.name: step for step in PIPELINE}


@dataclass(frozen=True)
class Known:
    """What is known of an undisturbed run of a step."""

    seconds: float
    steps: int
    """On the way of its files into their folder (`sabotage.PUBLISHING`)."""
    files: dict[str, bytes]
    """What it made (`made`)."""


@dataclass(frozen=True)
class Reference:
    """The whole pipeline, run once."""

    folder: Path
    parent: Parent
    known: dict[str, Known]

    def working_copy(self, step: Step, to: Path) -> Path:
        """A folder in which a step can be run: what it reads is there, what it makes is not."""
        to.mkdir(parents=True)
        shutil.copy(self.folder / "labels.csv", to)
        for name in step.needs:
            shutil.copytree(self.folder / name, to / name, symlinks=True)
        return to

    def run(self, step: Step, folder: Path, *more: str, kill_after_s: float = 300.0, **sabotage: dict) -> Ended:
        """Run a step in a folder, with more words and what is to go wrong in it."""
        return self.parent.run((*step.typed(self.folder), *more), folder, sabotage, kill_after_s)


def paint(folder: Path) -> None:
    """Eight slides of six tiles or so, of two kinds, their labels, and a folder of two of them that are new."""
    (folder / "slides").mkdir(parents=True)
    (folder / "new").mkdir()
    rows = ["slide_id,label,split"]
    for index in range(SLIDES):
        image = flat(896, 1024)
        disc(image, 512, 448, 360, EOSIN)
        rng = np.random.default_rng(index)
        for x, y in (np.array([512, 448]) + rng.uniform(-200, 200, (60 + 200 * (index % 2), 2))).astype(int):
            image[y : y + 5, x : x + 5] = HAEMATOXYLIN
        write_pyramid(folder / "slides" / f"s{index}.tif", noisy(image, 2, index), 1.0)
        rows.append(f"s{index},{'pos' if index % 2 else 'neg'},{('train', 'train', 'val', 'test')[index // 2]}")
    for index in (0, 1):
        shutil.copy(folder / "slides" / f"s{index}.tif", folder / "new" / f"n{index}.tif")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def run_undisturbed(folder: Path, parent: Parent, last: str = "explain") -> Reference:
    """Paint the cohort and run the pipeline, as far as a step."""
    paint(folder)
    known = {}
    for step in PIPELINE:
        ended = parent.run(step.typed(folder), folder, {"count": {"to": str(folder / "count")}})
        assert ended.code == 0, ended.err
        known[step.name] = Known(ended.seconds, int((folder / "count").read_text()), made(folder, step))
        if step.name == last:
            break
    return Reference(folder, parent, known)


def made(folder: Path, step: Step) -> dict[str, bytes]:
    """What a step has published, by path; without run tables, whose names differ, and without times."""
    found = {}
    for path in visible(folder, step):
        if path.parent.name != "runs":
            found[path.relative_to(folder).as_posix()] = _timeless(path)
    return found


def visible(folder: Path, step: Step) -> Iterator[Path]:
    """The files of a step that nobody would take for temporary ones."""
    for top in step.makes:
        for path in sorted((folder / top).rglob("*")):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path


def leftovers(folder: Path) -> list[Path]:
    """What a killed process left."""
    return list(folder.rglob(".*.tmp"))


_OF_A_RUN = {"seconds", "tiles_per_s", "decode_s", "waiting_share", "busy_share", "source"}  # times, and places


def _timeless(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        return json.dumps([{key: value for key, value in row.items() if key not in _OF_A_RUN} for row in rows]).encode()
    if path.name == "predictions.json":
        return re.sub(rb'"seconds": [\d.e-]+', b"", data)
    if path.suffix == ".html":
        return re.sub(rb"[\d.,]+ s\b| --overwrite", b"", data)  # a page tells what was typed
    return data
