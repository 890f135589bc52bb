"""Where the tiles of a slide lie to the pixel, and what earlier stages found of them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64

from wsi_mil import store
from wsi_mil.errors import ArtifactCorrupt, ArtifactStale
from wsi_mil.geometry import Area, merged, read_drawing
from wsi_mil.guards import parse_words

QUALITY = ("coverage", "sharpness", "pen", "white", "black", "saturation")
"""Columns of the tiles' artifact that describe a tile."""
_ANNOTATIONS = "annotations"


class Places(NamedTuple):
    """The tiles of one slide."""

    coords: Int64[np.ndarray, "tiles 2"]
    """Top left corners (x, y), level-0 pixels, as the artifact has them."""
    l0_tile: tuple[int, int]
    """(width, height) of a tile, level-0 pixels."""
    mpp: tuple[float, float]
    """Micrometres per level-0 pixel, x and y."""
    columns: dict[str, Float32[np.ndarray, " tiles"]]
    """What is known of each tile: `QUALITY`, and ``annotation_<class>``, the share that an annotated class covers."""
    tissue: Area | None = None
    """Its outline, level-0 pixels; None where nobody recorded it."""
    l0_size: tuple[int, int] | None = None
    """(width, height) of the slide, level-0 pixels; None where nobody knows them."""

    @property
    def centres_um(self) -> Float[np.ndarray, "tiles 2"]:
        """Centres (x, y), micrometres from the slide's top left corner."""
        return (self.coords + np.array(self.l0_tile) / 2) * self.mpp


def read_places(features: Path, tiles: Path | None = None) -> Places:
    """Read where the tiles of a slide are.

    Args:
        features: their features (``feats/<slide_id>.h5``).
        tiles: the tiles that these were made of (``tiles/<slide_id>.h5``), which know their quality and, in the
            GeoJSON beside them, the outline of the tissue. Without them nothing is known of either.

    Raises:
        ArtifactMissing: a file is not there.
        ArtifactCorrupt: it is damaged.
        ArtifactStale: the features were made of other tiles.
    """
    found = store.survey(features)
    try:
        l0_tile = int(found.attrs["l0_tile_width"]), int(found.attrs["l0_tile_height"])
        mpp = float(found.attrs["mpp_x"]), float(found.attrs["mpp_y"])
        sides = [found.attrs[name] for name in ("level0_width", "level0_height") if name in found.attrs]
        l0_size = (int(sides[0]), int(sides[1])) if len(sides) == 2 else None
    except KeyError as error:
        raise ArtifactCorrupt(f"{features} lacks {error}: make it again with `wsimil extract --overwrite`") from error
    except (ValueError, TypeError, OverflowError) as error:
        mend = "make it again with `wsimil extract --overwrite`"
        raise ArtifactCorrupt(f"{features} does not say where its tiles lie ({error}): {mend}") from error
    coords, columns = store.read_arrays(features, ["coords"])["coords"], _columns(features, found)
    if tiles is None:
        return Places(coords, l0_tile, mpp, columns, l0_size=l0_size)
    of_tiles = store.survey(tiles)
    if of_tiles.attrs.get("fingerprint") != found.attrs.get("upstream"):
        raise ArtifactStale(f"{features} was not made of {tiles}: run `wsimil extract` again, or name other --tiles")
    outline = tiles.with_name(f"{tiles.name.removesuffix('.h5')}.geojson")
    tissue = merged(read_drawing(outline).areas.values()) if outline.exists() else None
    return Places(coords, l0_tile, mpp, _columns(tiles, of_tiles) | columns, tissue, l0_size)


def _columns(path: Path, found: store.Survey) -> dict[str, Float32[np.ndarray, " tiles"]]:
    """What a file of tiles or features says of each tile."""
    arrays = store.read_arrays(path, [name for name in (*QUALITY, _ANNOTATIONS) if name in found.shapes])
    shares = arrays.pop(_ANNOTATIONS, None)
    if shares is not None:
        try:
            classes = parse_words(found.array_attrs[_ANNOTATIONS].get("classes"))
        except ValueError as error:
            raise ArtifactCorrupt(f"{path} does not name its annotations ({error}): make it again") from error
        if shares.shape != (len(shares), len(classes)):
            raise ArtifactCorrupt(f"{path} names {len(classes)} annotations and holds {shares.shape}: make it again")
        arrays |= {f"annotation_{name}": shares[:, index] for index, name in enumerate(classes)}
    return arrays
