"""Features of ours -> files for another program: the stage behind ``wsimil export``.

TRIDENT, CLAM and torchmil read ``feats/*.h5`` as they are; STAMP calls things otherwise, and counts in micrometres.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_mil import store
from wsi_mil.bags import FEATURE_STAGES
from wsi_mil.errors import ArtifactError, ArtifactMissing, IncompatibleError, OptionError
from wsi_mil.progress import Progress
from wsi_mil.runs import Report, RunOptions
from wsi_mil.stage import Item, Result, artifact_items, attempt, per_slide, run

FORMATS = ("stamp",)
EXPORT = "export"
"""Name of the stage."""
_MARKS = ("mpp_x", "mpp_y", "mpp_source", "guessed", "reason")
"""Attributes of the features that STAMP does not ask for: without them, what is approximate would look exact."""
_ENCODER = ("encoder", "encoder_weights_sha256")
_STAMP_VERSION = "2.0.0"  # the oldest that knows this layout, because STAMP refuses files that are newer than itself


@dataclass(frozen=True)
class ExportParams:
    """What to write."""

    format: str = "stamp"
    """One of `FORMATS`."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise OptionError(
                f"--format {self.format}: give {' or '.join(FORMATS)}; TRIDENT, CLAM and torchmil read feats/"
            )


@dataclass(frozen=True)
class ExportStage:
    """``feats/<slide_id>.h5`` -> ``<out>/<slide_id>.h5`` as STAMP writes it."""

    params: ExportParams
    workers: int = 1
    name: str = EXPORT
    version: int = 2
    beside: tuple[str, ...] = ()

    def upstream(self, item: Item) -> str:
        """Fingerprint of the features."""
        attrs = store.read_attrs(item.source)
        if attrs.get("stage") not in FEATURE_STAGES:
            raise ArtifactError(
                f"{item.source} holds no features of wsimil: make them with `wsimil extract` or `import`"
            )
        return attrs["fingerprint"]

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        """Convert each slide in a thread."""
        return per_slide(self.convert, items, self.workers, track)

    def convert(self, item: Item) -> Result:
        """Convert one slide: ``feats`` float16, ``coords`` float32 (top left corners, um)."""
        features = store.read(item.source)
        attrs, coords = features.attrs, features.arrays["coords"]
        coords_um = (coords * np.array([attrs["mpp_x"], attrs["mpp_y"]])).astype(np.float32)
        written = {
            "stamp_version": _STAMP_VERSION,
            "extractor": attrs["encoder"],
            "unit": "um",
            "tile_size_um": float(attrs["tile_um"]),
            "tile_size_px": int(attrs["tile_px"]),
            "code_hash": attrs["fingerprint"][:8],
            "feat_type": "tile",
            "status": attrs["status"],
        }
        written |= {key: attrs[key] for key in _MARKS if key in attrs}
        return Result(store.Artifact({"feats": features.arrays["features"], "coords": coords_um}, written), len(coords))


def export_bags(bags: Path, out: Path, params: ExportParams, options: RunOptions) -> Report:
    """Write a folder of features for another program.

    Raises:
        ArtifactMissing: there are none.
        IncompatibleError: they are of several encoders.
        ArtifactStale: ``out`` holds files of other features, and overwriting was not asked for.
    """
    items = artifact_items(bags) if bags.is_dir() else []
    if not items:
        raise ArtifactMissing(f"{bags} holds no features: make them with `wsimil extract` or `wsimil import`")
    _require_one_encoder(bags, items)
    return run(ExportStage(params, options.threads), items, out, options)


def _require_one_encoder(bags: Path, items: Sequence[Item]) -> None:
    """Refuse features that no model could learn from together; what cannot be read fails alone, as its turn comes."""
    first: dict[tuple[str, str], str] = {}
    for item in items:
        attrs = attempt(store.read_attrs, item.source, _ENCODER)
        if isinstance(attrs, dict) and "encoder" in attrs:
            first.setdefault((attrs["encoder"], attrs.get("encoder_weights_sha256", "")), item.slide_id)
    if len(first) > 1:
        (one, here), (other, there) = list(first.items())[:2]
        same = one[0] == other[0]  # then only its weights tell them apart
        names = [f"{name} ({weights[:12]})" if same else name for name, weights in (one, other)]
        raise IncompatibleError(
            f"{bags} holds features of several encoders, such as {here} of {names[0]} and {there} of {names[1]}: name a"
            " folder that holds those of one, by --bags"
        )
