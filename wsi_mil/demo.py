"""The demonstration: synthetic slides through every stage, three models compared, one page to look at.

Every slide holds tumour nests and lymphocyte clusters in the same numbers; the label says only whether some nest lies
near a cluster. A model that ignores positions cannot beat chance.
"""

import logging
import shlex
import statistics
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from wsi_mil import workflow
from wsi_mil.aggregators import infer
from wsi_mil.bags import read_bag
from wsi_mil.cohort import Member
from wsi_mil.distances import DistanceParams
from wsi_mil.errors import OptionError
from wsi_mil.explain import attention_png, slide_png
from wsi_mil.learning import LearnParams
from wsi_mil.predict import PredictOptions, predict_slides
from wsi_mil.predictions import Prediction
from wsi_mil.progress import print_table
from wsi_mil.publishing import write_bytes
from wsi_mil.report import Picture, Section, number, page
from wsi_mil.slides import SlideFile, open_slide
from wsi_mil.stage import RunOptions, artifact_path
from wsi_mil.synthetic import SyntheticParams, make_cohort
from wsi_mil.tiling import TileParams
from wsi_mil.train import CHECKPOINT, Trained, fit
from wsi_mil.train_params import TrainParams

log = logging.getLogger(__name__)

MODELS = ("das-mil", "abmil", "self-attention")
_QUICK_EPOCHS = 2


class Score(NamedTuple):
    """Held-out AUROC of one model, one value per seed."""

    model: str
    aurocs: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.aurocs)

    @property
    def cells(self) -> tuple[str, ...]:
        """Name, mean, and the AUROC of each seed, as text."""
        return self.model, number(self.mean), ", ".join(map(number, self.aurocs))


HEADER = ("model", "mean AUROC", "of each seed")


def show(out: Path, seeds: int = 3, quick: bool = False, workers: int = 0) -> list[Score]:
    """Run the demonstration in a folder.

    Args:
        out: where slides, artifacts, model, predictions and ``report.html`` go.
        seeds: trainings per model.
        quick: a cohort too small to learn from, to show the way in seconds.
        workers: threads; 0 = the cores this process may use.
    """
    if seeds < 1:
        raise OptionError(f"--seeds {seeds}: give a positive number of trainings per model")
    folders = workflow.Folders.under(out)
    _prepare(
        out, folders, SyntheticParams.quick() if quick else SyntheticParams(), RunOptions(refresh=True, workers=workers)
    )
    learn = LearnParams(epochs=_QUICK_EPOCHS) if quick else LearnParams()
    few = ("--epochs", _QUICK_EPOCHS) if quick else ()
    _say("train", "--bags", folders.feats, "--labels", out / "labels.csv", "--out", folders.model, *few, "--overwrite")
    trained = workflow.train_model(
        workflow.LabelTable(out / "labels.csv"), folders, TrainParams(learn=learn), "auto", overwrite=True
    )
    if trained is None:
        raise AssertionError("a training that overwrites is never found finished")
    scores = [_score(name, out, folders, learn, seeds, trained) for name in MODELS]
    write_bytes(out / "report.html", _page(out, folders, scores, trained, quick))
    print_table(
        f"held-out AUROC over {seeds} seeds: see {out / 'report.html'}", list(HEADER), [list(s.cells) for s in scores]
    )
    return scores


def _prepare(out: Path, folders: workflow.Folders, cohort: SyntheticParams, options: RunOptions) -> None:
    """Make slides and put them through stages 1 to 3."""
    make_cohort(out, cohort, options.threads)
    _say("tile", out / "slides", "--out", folders.tiles)
    workflow.tile(out / "slides", folders.tiles, TileParams(), options)
    _say("extract", "--model", "morphology", "--tiles", folders.tiles, "--out", folders.feats)
    workflow.extract_features(folders.tiles, folders.feats, workflow.Encoding({"morphology": None}), options, None)
    _say("distances", "--bags", folders.feats, "--out", folders.distances)
    workflow.measure_distances(folders.feats, folders.distances, DistanceParams(), options)


def _score(
    name: str, out: Path, folders: workflow.Folders, learn: LearnParams, seeds: int, published: Trained
) -> Score:
    """Train one model with several seeds; the training that was published is one of them."""
    labelled, device = workflow.labelled(workflow.LabelTable(out / "labels.csv"), folders), workflow.pick_device()
    aurocs = []
    for seed in range(seeds):
        params = TrainParams(name, learn=replace(learn, seed=seed))
        made = published if (name, seed) == (published.checkpoint.aggregator, learn.seed) else None
        trained = made or fit(labelled, folders.feats, params, folders.distances, device)
        aurocs.append(trained.auroc("test"))
        log.info("%s, seed %d: held-out AUROC %s", name, seed, number(aurocs[-1]))
    return Score(name, tuple(aurocs))


def _page(out: Path, folders: workflow.Folders, scores: list[Score], trained: Trained, quick: bool) -> bytes:
    classes, test = trained.checkpoint.classes, trained.cohort.part("test")
    table = Section(
        "Held-out AUROC",
        f"Over {len(scores[0].aurocs)} seeds, on {len(test)} test slides that no model has seen. Every slide holds the"
        " same numbers of tumour nests and lymphocyte clusters; only their distance differs.",
        HEADER,
        [score.cells for score in scores],
    )
    shown = [next(member for member in test if member.label == name) for name in classes]
    slides = [SlideFile(member.slide_id, out / "slides" / f"{member.slide_id}.tif") for member in shown]
    options = PredictOptions(out / "predictions", overwrite=True)
    paths = [slide.path for slide in slides]
    _say("predict", *paths, "--model", folders.model, "--out", options.out, "--overwrite")
    rows = {row.slide_id: row for row in predict_slides(folders.model / CHECKPOINT, slides, options)}
    parts = [
        _slide_section(folders, trained, member, slide, rows[member.slide_id])
        for member, slide in zip(shown, slides, strict=True)
    ]
    lead = f"Synthetic slides: is some tumour nest {' or '.join(classes)} to a cluster of lymphocytes?"
    if quick:
        count = len(trained.cohort.members)
        lead += f" {count} slides and {_QUICK_EPOCHS} epochs show the way; no figure here is a result."
    return page("Does the model know where things are?", lead, [table, *parts])


def _slide_section(
    folders: workflow.Folders, trained: Trained, member: Member, slide_file: SlideFile, row: Prediction
) -> Section:
    """One test slide: what was predicted from the raw file, and the slide with its tiles and the attention."""
    bag = read_bag(artifact_path(folders.feats, member.slide_id))
    with open_slide(slide_file.path) as slide:
        whole = slide_png(slide)
        attention = attention_png(slide, bag, infer(trained.checkpoint.model(), bag).attention)
    preview = (folders.tiles / f"{member.slide_id}.jpg").read_bytes()
    chances = zip(trained.checkpoint.classes, row.probabilities, strict=False)  # none where it failed
    return Section(
        f"{member.slide_id}: {member.label}",
        f"Predicted from the raw slide: {row.error or ', '.join(f'{label} {p:.3f}' for label, p in chances)}.",
        pictures=[
            Picture("The slide", whole),
            Picture("Its tissue and tiles", preview),
            Picture("What the model looked at: the share of pooled features that each tile won", attention),
        ],
    )


def _say(*words: object) -> None:
    log.info("$ %s", shlex.join(["wsimil", *map(str, words)]))
