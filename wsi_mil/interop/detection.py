"""Which program wrote a file, and what is in it, told without reading its arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from wsi_mil import store
from wsi_mil.errors import ArtifactCorrupt, ArtifactError
from wsi_mil.interop import clam, trident
from wsi_mil.interop.bag import PeerBag
from wsi_mil.interop.clam import read_clam
from wsi_mil.interop.exporting import EXPORT
from wsi_mil.interop.stamp import read_stamp
from wsi_mil.interop.trident import encoders_of, read_atlaspatch, read_trident
from wsi_mil.weights import file_sha256

_T = TypeVar("_T")
_NONSENSE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_PEERS = "TRIDENT, CLAM, STAMP or AtlasPatch"


class Kind(NamedTuple):
    """What a file is."""

    peer: str
    """The program that wrote it: wsimil, TRIDENT, CLAM, STAMP, AtlasPatch, or "" where nobody can tell."""
    holds: str
    """features, coordinates, slide features, image bag, the stage of an artifact of ours, or ""."""


def is_own(survey: store.Survey) -> bool:
    """Whether it is an artifact of ours for us; what `wsimil export` wrote is a file of the program it is for."""
    return survey.is_artifact and survey.attrs["stage"] != EXPORT


def kind_of(survey: store.Survey) -> Kind:
    """Tell what an HDF5 file is."""
    shapes, root = survey.shapes, survey.attrs
    if is_own(survey):
        return Kind("wsimil", str(root["stage"]))
    if "feats" in shapes:
        tiles = root.get("feat_type", "tile") == "tile" and len(shapes["feats"]) == 2
        return Kind("STAMP", "features" if tiles else "slide features")
    coords = shapes.get("coords", ())
    if encoders_of(survey):
        return Kind("AtlasPatch", "features")
    if "imgs" in shapes:
        return Kind("CLAM", "image bag")
    if len(coords) == 2 and coords[1] == 5 and "patch_size" in root:
        return Kind("AtlasPatch", "coordinates")
    if len(coords) != 2 or coords[1] != 2:
        return Kind("", "")
    return _kind_by_coords(survey)


def _kind_by_coords(survey: store.Survey) -> Kind:
    attrs, features = survey.array_attrs["coords"], survey.shapes.get("features")
    tiles = survey.shapes["coords"][0]
    empty = tiles == 0 and features == (0,)
    if {"patch_size_level0", "target_magnification"} & attrs.keys():
        if features is None:
            return Kind("TRIDENT", "coordinates")
        return Kind("TRIDENT", "features" if len(features) == 2 or empty else "slide features")
    if features is not None:
        return Kind("CLAM", "features") if len(features) == 2 else Kind("", "")
    return Kind("CLAM", "coordinates") if "patch_level" in attrs else Kind("", "")


def read_peer(path: Path, encoder: str | None = None) -> PeerBag:
    """Read the features of one slide that another program made.

    Args:
        path: its file, ``.h5`` or ``.pt``.
        encoder: which of several, where a file holds those of several.

    Raises:
        ArtifactError: the file holds no features of tiles; says what it holds, and what to name instead.
        ArtifactCorrupt: the file is damaged.
        WeightsError: a ``.pt`` file is damaged, or no tensor.
    """
    if path.suffix == ".pt":
        return meant(path, "CLAM", lambda: read_clam(path))
    survey = store.survey(path)
    kind = kind_of(survey)
    if kind.holds != "features":
        raise ArtifactError(f"{path} {_what_instead(kind)}")
    readers: dict[str, Callable[[], PeerBag]] = {
        "STAMP": lambda: read_stamp(path, survey),
        "AtlasPatch": lambda: read_atlaspatch(path, survey, encoder),
        "TRIDENT": lambda: read_trident(path, survey),
        "CLAM": lambda: read_clam(path),
    }
    return meant(path, kind.peer, readers[kind.peer])


def meant(path: Path, peer: str, read: Callable[[], _T]) -> _T:
    """What is read of a file of another program.

    Raises:
        ArtifactCorrupt: its numbers and words are not of the kinds and shapes that this program writes.
    """
    try:
        return read()
    except _NONSENSE as error:
        raise ArtifactCorrupt(f"{path} is none that {peer} writes ({error}): make it again with {peer}") from error


def content_of(path: Path, encoder: str | None = None) -> str:
    """Hash all that `read_peer` may read of a file: every byte of what it takes, so that no edit goes unseen.

    Raises:
        ArtifactCorrupt: the file is damaged.
    """
    survey = None if path.suffix == ".pt" else store.survey(path)
    if survey is None or survey.shapes.keys() == {"coords"}:  # CLAM's patches/ hold a chunk per tile: slow to decode
        return file_sha256(path)[:32]
    names, of_encoders = {"coords", "feats", "features"}, encoders_of(survey)
    names |= {f"features/{name}" for name in ([encoder] if encoder in of_encoders else of_encoders)}
    digest = store.digest(path, names & survey.shapes.keys())
    if (
        "features" in survey.shapes
        and "encoder" not in survey.array_attrs.get("features", {})
        and (name := trident.of_folder(path))
    ):
        return f"{digest} encoder={name}"
    return digest


def l0_size_of(path: Path) -> tuple[int, int] | None:
    """Width and height of a bag's slide, level-0 px, where its file tells them."""
    if path.suffix == ".pt":
        return None
    survey = store.survey(path)
    attrs = {**survey.attrs, **survey.array_attrs.get("coords", {})}
    if "patch_level" in attrs:
        return meant(path, "CLAM", lambda: clam.l0_size(attrs))
    return trident.l0_size(attrs)


def _what_instead(kind: Kind) -> str:
    """What a file is that holds no features of tiles, and what to do."""
    if kind.peer == "wsimil":
        return "was made by wsimil: keep our files and those of other programs in folders of their own"
    if kind.holds == "coordinates":
        return f"holds coordinates of {kind.peer} and no features: name the folder of features"
    if kind.holds == "slide features":
        return f"holds one vector of {kind.peer} for the whole slide: name the folder with features of tiles"
    if kind.holds == "image bag":
        return "is an image bag of an old CLAM: make features of it with CLAM, or `wsimil tile` the slide itself"
    return f"is no file of {_PEERS} that is known here: name a folder of features"
