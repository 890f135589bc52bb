"""The explanation of one slide as a folder of files: tables, GeoJSON for QuPath, pictures, an overlay, a manifest.

``explanation.json`` names what is in the folder. The folder appears under its name only when complete.
"""

from pathlib import Path

from wsi_mil import publishing, store
from wsi_mil.bags import Bag
from wsi_mil.errors import ArtifactError, ArtifactStale, SlideError
from wsi_mil.explain.annotations import write_tile_detections, write_tissue
from wsi_mil.explain.drawing import draw
from wsi_mil.explain.heatmap import require_one_slide
from wsi_mil.explain.looking import Look
from wsi_mil.explain.manifest import MANIFEST, VERSION, Facts, manifest, warn_again, what_changed, write_manifest
from wsi_mil.explain.places import Places
from wsi_mil.explain.tables import figures, write_pairs, write_tiles
from wsi_mil.guards import inside, parse_json
from wsi_mil.slides import Slide


def explanation_folder(out: Path, slide_id: str) -> Path:
    """Where the explanation of a slide lies among those of others.

    No slide's folder lies in another's, as a slide ``a`` may have a neighbour ``a/b``: ``/`` and ``%`` are
    percent-encoded.

    Raises:
        ArtifactError: no file can be called so.
    """
    return inside(out, slide_id.replace("%", "%25").replace("/", "%2F"))


def write_explanation(
    folder: Path, slide: Slide | None, bag: Bag, look: Look, facts: Facts, overwrite: bool = False
) -> None:
    """Write the explanation of one slide, unless it is there already.

    Args:
        folder: its own folder (`explanation_folder`).
        slide: the open slide; None where it is not at hand: tables and GeoJSON are written then, and the manifest says
            that there are no pictures.
        bag: the tiles of the slide.
        look: what the model looked at.
        facts: what else there is to say.
        overwrite: take an explanation by another model or of other features away.

    Raises:
        SlideError: the bag is of several slides, or of a slide of another size.
        ArtifactStale: an explanation of something else lies there, and overwriting was not asked for.
        ArtifactError: the folder holds something else than an explanation, or the tiles are not those of the bag.
        SlideUnreadable: the slide's pixels cannot be read.
    """
    require_one_slide(bag)
    _require_same_size(bag, slide, facts.places)
    if len(bag.features) != len(facts.places.coords):
        raise ArtifactError(
            f"{bag.slide_id} has features of {len(bag.features)} tiles, but coordinates of {len(facts.places.coords)}:"
            " extract it again with `wsimil extract --overwrite`"
        )
    pictures = slide is not None
    if is_explained(folder, bag, facts, pictures, overwrite):
        warn_again(folder, facts)
        return
    with publishing.replacing_folder(folder) as temporary:
        files = _tables(temporary, bag, look, facts)
        if slide is not None:
            files |= draw(temporary, slide, bag.slide_id, look, facts.places, facts.classes, facts.predicted)
        told = manifest(bag, look, facts, files, pictures)
        write_manifest(temporary, told | {"fingerprint": explanation_fingerprint(bag, facts)})


def explanation_fingerprint(bag: Bag, facts: Facts) -> str:
    """Hash all that decides an explanation but whether it has pictures; it can be asked before the model looks.

    Args:
        bag: the tiles of the slide.
        facts: see `write_explanation`.
    """
    columns = sorted(facts.places.columns)
    params = {
        "model": facts.model,
        "classes": list(facts.classes),
        "method": dict(facts.method),
        "together": list(facts.together.items()),
        "columns": columns,
        "tissue": facts.places.tissue is not None,
    }
    return store.fingerprint("explain", VERSION, params, str(bag.attrs.get("fingerprint", "")))


def is_explained(folder: Path, bag: Bag, facts: Facts, pictures: bool, overwrite: bool = False) -> bool:
    """Whether this very explanation lies there, so that none needs to be made.

    One with pictures stands for one without. One without them, or that lost a file, is made again without asking.

    Args:
        folder: where it would lie.
        bag: the tiles of the slide.
        facts: see `write_explanation`.
        pictures: whether it should have pictures.
        overwrite: whether another one may be taken away.

    Raises:
        ArtifactStale: another one does, and overwriting was not asked for.
        ArtifactError: the folder holds something else, which not even overwriting takes away.
    """
    if not folder.exists():
        return False
    try:
        there = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        known = {MANIFEST, *there["files"]}
        found, has_pictures = there["fingerprint"], there["pictures"] is True
    except (OSError, ValueError, KeyError, TypeError) as error:
        if folder.is_dir() and not any(folder.iterdir()):
            return False
        raise ArtifactError(f"{folder} holds no explanation: move it away, or give another --out") from error
    lies_there = {path.name for path in folder.iterdir()}
    if not overwrite and found != explanation_fingerprint(bag, facts):
        why = what_changed(there, bag, facts)
        raise ArtifactStale(f"{folder} was explained otherwise: {why}. Add --overwrite, or give another --out")
    if not overwrite and known <= lies_there and has_pictures >= pictures:
        return True
    if others := sorted(lies_there - known):
        raise ArtifactError(f"{folder} holds more than its explanation ({', '.join(others[:4])}): move that away")
    return False


def _require_same_size(bag: Bag, slide: Slide | None, places: Places) -> None:
    if slide is not None and places.l0_size is not None and places.l0_size != slide.l0_size:
        raise SlideError(
            f"{slide.place} has {slide.l0_size[0]} x {slide.l0_size[1]} px, but {bag.slide_id} had"
            f" {places.l0_size[0]} x {places.l0_size[1]} when it was tiled: name the folder of its slides by --slides"
        )


def _tables(folder: Path, bag: Bag, look: Look, facts: Facts) -> dict[str, str]:
    """Write what needs no pixels; what each file is, by its name."""
    places, columns = facts.places, figures(look, facts.places, facts.classes)
    write_tiles(folder / "tiles.csv", places, columns)
    write_tile_detections(folder / "tiles.geojson", bag.slide_id, places, look, facts.classes, columns)
    files = {"tiles.csv": "a row per tile", "tiles.geojson": "tiles as QuPath's detections, with measurements"}
    if look.pairs is not None:
        write_pairs(folder / "pairs.csv", places, look.pairs)
        files["pairs.csv"] = "the tiles that counted most, with those that they attended to most"
    if places.tissue is not None:
        write_tissue(folder / "tissue.geojson", places)
        files["tissue.geojson"] = "outline of the tissue as QuPath's annotations"
    return files
