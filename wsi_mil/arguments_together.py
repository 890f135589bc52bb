"""What options of the command line say together, as the pipeline wants it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_mil.errors import OptionError

if TYPE_CHECKING:
    from wsi_mil.arguments import Unit
    from wsi_mil.interop import PeerOptions
    from wsi_mil.remote import CacheParams
    from wsi_mil.stage import RunOptions
    from wsi_mil.tiling import TileParams
    from wsi_mil.workflow import LabelTable


def tile_params(
    tile_px: int | None, tile_um: float | None, mpp: float | None, encoder: str | None = None, **others: Any
) -> "TileParams":
    """The tile geometry that the options describe, or that an encoder was trained on; ``others`` as `TileParams`."""
    from wsi_mil.tiling import TileParams

    if encoder is not None:
        from wsi_mil.encoders import find_encoder, tile_geometry

        given = {"--tile-px": tile_px, "--tile-um": tile_um, "--mpp": mpp}
        if named := [f"{option} {value:g}" for option, value in given.items() if value is not None]:
            raise OptionError(f"--for {encoder} {' '.join(named)}: give one or the other, --for decides all of them")
        return TileParams(*tile_geometry(find_encoder(encoder)), **others)
    if tile_um is not None and mpp is not None:
        raise OptionError(f"--tile-um {tile_um:g} --mpp {mpp:g}: give one of them, --tile-px decides the other")
    side_px = TileParams.tile_px if tile_px is None else tile_px
    if mpp is not None:
        if not 0 < mpp < float("inf"):
            raise OptionError(f"--mpp {mpp:g}: give a positive number of um/px, such as 0.5")
        tile_um = mpp * side_px
    return TileParams(side_px, TileParams.tile_um if tile_um is None else tile_um, **others)


def with_regions(
    params: "TileParams", include: list[str] | None, exclude: list[str] | None, regions: Path | None
) -> "TileParams":
    """The tile geometry, with the classes of regions that count."""
    for option, classes in (("--include", include), ("--exclude", exclude)):
        if classes and regions is None:
            raise OptionError(f"{option} {classes[0]}: say where the regions are, by --regions DIR")
    return replace(params, include=tuple(sorted(set(include or ()))), exclude=tuple(sorted(set(exclude or ()))))


def encoder_weights(models: list[str], weights: list[str] | None) -> dict[str, str | None]:
    """The encoders of repeated ``--model``, each with what ``--weights`` says of it: a value, or ``NAME=VALUE``."""
    given: dict[str, str | None] = dict.fromkeys(models)
    if len(given) < len(models):
        raise OptionError(f"--model {' --model '.join(models)}: name each encoder once")
    for word in weights or []:
        name, equals, value = word.partition("=")
        if not (equals and name in given):
            if len(models) > 1:
                raise OptionError(f"--weights {word}: give NAME=FILE, NAME being one of {', '.join(models)}")
            if equals and not Path(word).exists():
                raise OptionError(f"--weights {word}: no such file, nor is {name} the --model, which is {models[0]}")
            name, value = models[0], word
        if not value or given[name] is not None:
            raise OptionError(f"--weights {word}: give {name} one file, or random:SEED")
        given[name] = value
    return given


def peer_options(slides: Path | None, table: Path | None, mpp: float | None, encoder: str | None) -> "PeerOptions":
    """What the user knows of other programs' bags."""
    from wsi_mil.interop import PeerOptions

    return PeerOptions(slides, table, mpp, encoder)


def label_table(
    labels: Path, slides: Path | None, target: str, positive: str | None, unit: "Unit", by: list[str] | None
) -> "LabelTable":
    """Where labels are, and what of them counts."""
    from wsi_mil.cohort import CohortParams
    from wsi_mil.workflow import LabelTable

    return LabelTable(labels, slides, CohortParams(target, str(unit), tuple(by or ()), positive=positive or ""))


def run_options(
    overwrite: bool, workers: int, shard: str, cache: "CacheParams | None" = None, scheduler: str = ""
) -> "RunOptions":
    """How a run goes about its work."""
    from wsi_mil.stage import RunOptions

    options = RunOptions(overwrite, workers=workers, shard=shard, scheduler=scheduler)
    return replace(options, cache=cache) if cache else options


def key_values(words: list[str] | None) -> dict[str, Any]:
    """Aggregator options: values are JSON where they can be (8, 0.1, true, [1, 2]), else text."""
    options = {}
    for word in words or []:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise OptionError(f"--option {word}: give KEY=VALUE, such as --option heads=8")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options
