"""Stage 2 as a command asks for it: one encoder or several over a folder of tiles that must fit them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_mil import store
from wsi_mil.bags import feature_folder, feature_roots
from wsi_mil.devices import pick_device
from wsi_mil.encoders import Encoder, TileSize, find_encoder, load_encoder, require_resolution, tile_geometry
from wsi_mil.errors import ArtifactMissing, ArtifactStale, OptionError
from wsi_mil.extraction import Extraction
from wsi_mil.remote import Url
from wsi_mil.runs import Report
from wsi_mil.slides import find_slides, require_reader
from wsi_mil.stage import Item, RunOptions, artifact_items, attempt
from wsi_mil.stain import stain_recipe
from wsi_mil.tiling import TileParams


@dataclass(frozen=True)
class Encoding:
    """Which encoders, and how they run."""

    models: Mapping[str, str | None]
    """Names in the table of encoders, each with its weights: a file, "random:SEED", or None, where the table says."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:I."""
    batch: int = 0
    """Tiles per forward pass; 0 = what suits the device."""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16."""
    allow_mpp_mismatch: bool = False
    """Whether tiles may have quite another resolution than an encoder's authors used."""
    trust: bool = False
    """Whether to open weights that hold code, and run it."""
    stain: str = "none"
    """How the stain of tiles is normalised: none, macenko or reinhard."""
    fast_decode: bool = False
    """Whether JPEGs are decoded at a fraction of their size, which is not quite the same."""
    reader: str = "auto"
    """Who reads pixels: auto, direct or openslide."""

    def __post_init__(self) -> None:
        stain_recipe(self.stain)  # refuses an unknown one here, before hours of tiling
        require_reader(self.reader, self.fast_decode)

    def load(self, device: str = "") -> list[Encoder]:
        """Load the encoders, to their device or to another one."""
        device = str(pick_device(device or self.device))
        return [
            load_encoder(name, weights, device, self.precision, self.trust) for name, weights in self.models.items()
        ]

    def absolute(self) -> "Encoding":
        """The same, for whoever works in another folder: weight files by their absolute paths."""
        given = {name: Path(weights) for name, weights in self.models.items() if weights}
        there = {name: str(path.absolute()) for name, path in given.items() if path.exists()}
        return replace(self, models={**self.models, **there})

    def require_geometry(self, params: TileParams, slides: Path | Url) -> None:
        """Refuse tiles that are still to be made; a warning comes with the extraction, and once.

        Raises:
            IncompatibleError: an encoder would see them at quite another resolution than its authors did.
        """
        for spec in map(find_encoder, self.models):
            if spec.mpp is not None:
                tile_px, tile_um = tile_geometry(spec)
                remedy = f"wsimil run {slides} --model {spec.name} --tile-px {tile_px} --tile-um {tile_um:.10g}"
                tiles = {Path(str(slides)): TileSize(params.tile_um, params.tile_px)}
                require_resolution(spec, tiles, remedy, self.allow_mpp_mismatch, warn=False)

    def folders(self, out: Path) -> list[Path]:
        """Where the features of each encoder go: ``out`` for one, a folder in it for each of several.

        Raises:
            OptionError: two of them would share a folder.
        """
        if len(self.models) == 1:
            return [out]
        folders = [out / feature_folder(name) for name in self.models]
        if len(set(folders)) < len(folders):
            raise OptionError(f"--model {' --model '.join(self.models)}: two would share a folder, extract one by one")
        return folders


def extract_features(
    tiles: Path,
    out: Path,
    encoding: Encoding,
    options: RunOptions,
    slides: Path | Url | None,
    loaded: list[Encoder] | None = None,
) -> dict[Path, Report]:
    """Run stage 2 over a folder of tiles, reading each tile once for all encoders.

    Args:
        tiles: the folder of tiles.
        out: where the features go.
        encoding: which encoders, and how they run.
        options: how the stage runs.
        slides: a folder, or an address, where slides lie that are not at their recorded path any more.
        loaded: the encoders, where they were loaded before.

    Returns:
        What became of the slides, by the folder of an encoder's features.

    Raises:
        ArtifactMissing: ``tiles`` holds no artifacts.
        IncompatibleError: an encoder would see the tiles at quite another resolution than its authors did.
        ClusterError: the options name a cluster that cannot do it.
        ArtifactStale: ``out`` holds the features of one encoder, and several were asked for, or the other way round.
    """
    items = artifact_items(tiles) if tiles.is_dir() else []
    if not items:
        raise ArtifactMissing(f"{tiles} holds no artifacts: make them with `wsimil tile slides/`")
    folders = encoding.folders(out)
    _require_resolution(encoding, options.part(items))
    _refuse_other_layout(out, folders)
    moved = dict(find_slides(slides, options.cache)) if slides else None
    reading = {"stain": encoding.stain, "fast_decode": encoding.fast_decode, "reader": encoding.reader}
    extraction = Extraction(
        encoding.absolute().load, tuple(folders), reading, encoding.device, encoding.batch, options.workers, moved,
        options.cache,
    )  # fmt: skip
    return extraction.run(items, options, loaded)


def _require_resolution(encoding: Encoding, items: list[Item]) -> None:
    """Check tiles that were made already; what cannot be read is told by the loop, slide by slide."""
    attrs = {item.source: attempt(store.read_attrs, item.source, {"tile_um", "tile_px"}) for item in items}
    sizes = {
        path: TileSize(found["tile_um"], found["tile_px"])
        for path, found in attrs.items()
        if isinstance(found, dict) and {"tile_um", "tile_px"} <= found.keys()
    }
    for name in encoding.models:
        out = f"tiles-{feature_folder(name)}"
        remedy = f"wsimil tile SLIDES --for {name} --out {out}` and `wsimil extract --model {name} --tiles {out}"
        require_resolution(find_encoder(name), sizes, remedy, encoding.allow_mpp_mismatch)


def _refuse_other_layout(out: Path, folders: list[Path]) -> None:
    """Keep features of one encoder and folders of several apart: nobody could tell what ``out`` holds."""
    roots = feature_roots(out) if out.exists() else set()
    if folders != [out] and out in roots:
        raise ArtifactStale(f"{out} holds the features of one encoder: give another --out for a folder per encoder")
    if folders == [out] and (inner := roots - {out}):
        raise ArtifactStale(
            f"{out} holds a folder per encoder, such as {min(inner)}: give another --out, such as {out}/NAME"
        )
