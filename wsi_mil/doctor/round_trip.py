"""A few tiny slides through every stage, in a folder that is gone afterwards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from wsi_mil.doctor.findings import FAIL, NO_TEMPORARY, OK, WARN, Check, Finding, check
from wsi_mil.errors import one_line

if TYPE_CHECKING:
    from wsi_mil.workflow import Folders

_GROUP = "round trip"
_REMEDY = "mend what failed above first; else report it with the output of `wsimil --debug doctor`"
_WORKERS = 2


def round_trip() -> Iterator[Finding]:
    """Yield what became of each stage; after one that fails, the others cannot be tried."""
    try:
        place = TemporaryDirectory(prefix="wsimil-doctor-", ignore_cleanup_errors=True)
    except OSError as error:  # a full disk, or no folder that this user may write to
        yield Finding(FAIL, one_line(error), NO_TEMPORARY, _GROUP, "folder")
        return
    with place as folder:
        yield from _go(_Trip(Path(folder)))


def _go(trip: "_Trip") -> Iterator[Finding]:
    failed = ""
    for name, stage in trip.stages().items():
        if failed:
            yield Finding(WARN, f"not tried, since {failed} failed", _REMEDY, _GROUP, name)
            continue
        found = check(Check(_GROUP, name, stage, _REMEDY))
        if found.status == FAIL:
            failed = name
        yield replace(found, told=f"{found.told} in {found.seconds:.1f} s" if found.status == OK else found.told)


@dataclass(frozen=True)
class _Trip:
    """The stages, each with what the one before it left in the folder."""

    folder: Path

    def stages(self) -> dict[str, Callable[[], Finding]]:
        """By name, in order."""
        return {
            "paint": self.paint,
            "tile": self.tile,
            "extract": self.extract,
            "distances": self.distances,
            "train": self.train,
            "predict": self.predict,
            "explain": self.explain,
        }

    def paint(self) -> Finding:
        from wsi_mil.progress import silent
        from wsi_mil.synthetic import SyntheticParams, make_cohort

        # As few and as small as fit two classes in three splits.
        params = replace(SyntheticParams.quick(), slides=6, nests=1, clusters=1, side_um=2304.0)
        with silent():
            make_cohort(self.folder, params, _WORKERS)
        return Finding(OK, f"{params.slides} slides")

    def tile(self) -> Finding:
        from wsi_mil import workflow
        from wsi_mil.progress import silent
        from wsi_mil.stage import RunOptions
        from wsi_mil.tiling import TileParams

        with silent():
            report = workflow.tile(
                self.folder / "slides", self._folders().tiles, TileParams(), RunOptions(workers=_WORKERS)
            )
        return _of_slides(report.failed)

    def extract(self) -> Finding:
        from wsi_mil import workflow
        from wsi_mil.progress import silent
        from wsi_mil.stage import RunOptions

        folders, encoding = self._folders(), workflow.Encoding({"morphology": None})
        with silent():
            reports = workflow.extract_features(
                folders.tiles, folders.feats, encoding, RunOptions(workers=_WORKERS), None
            )
        return _of_slides(reports[folders.feats].failed)

    def distances(self) -> Finding:
        from wsi_mil import workflow
        from wsi_mil.distances import DistanceParams
        from wsi_mil.progress import silent
        from wsi_mil.stage import RunOptions

        folders = self._folders()
        with silent():
            report = workflow.measure_distances(
                folders.feats, folders.distances, DistanceParams(), RunOptions(workers=_WORKERS)
            )
        return _of_slides(report.failed)

    def train(self) -> Finding:
        from wsi_mil import workflow
        from wsi_mil.learning import LearnParams
        from wsi_mil.progress import silent
        from wsi_mil.train_params import TrainParams

        labels = workflow.LabelTable(self.folder / "labels.csv")
        with silent():
            workflow.train_model(labels, self._folders(), TrainParams(learn=LearnParams(epochs=1)), "auto")
        return Finding(OK, "1 epoch")

    def predict(self) -> Finding:
        return self._answer(explain=False)

    def explain(self) -> Finding:
        return self._answer(explain=True)

    def _answer(self, explain: bool) -> Finding:
        from wsi_mil import workflow
        from wsi_mil.asked import slides_at
        from wsi_mil.explain import LookOptions
        from wsi_mil.predict import PredictOptions
        from wsi_mil.progress import silent
        from wsi_mil.reasons import Asked, answer

        path = workflow.checkpoint_at(self._folders().model)
        asked = Asked(slides_at([self.folder / "slides" / "slide-000.tif"]))
        options = PredictOptions(self.folder / "predictions", workers=_WORKERS)
        with silent():
            answered = answer(path, asked, options, LookOptions(occlusions=1) if explain else None)
        if answered.failed or [row.status for row in answered.rows] != ["done"]:
            raise RuntimeError("; ".join(answered.failed.values()) or "there is no answer")
        return Finding(OK, "1 slide")

    def _folders(self) -> "Folders":
        from wsi_mil import workflow

        return workflow.Folders.under(self.folder)


def _of_slides(failed: dict[str, Exception]) -> Finding:
    for slide_id, error in failed.items():
        raise RuntimeError(f"{slide_id}: {error}") from error
    return Finding(OK, "all slides")
