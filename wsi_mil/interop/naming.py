"""What other programs call encoders: one network goes by several names, and a mistyped name must relabel nothing."""

import re
from pathlib import Path

from wsi_mil.encoders import list_encoders
from wsi_mil.encoders.from_timm import nearest
from wsi_mil.errors import ArtifactError
from wsi_mil.interop.bag import PeerBag

_ALIASES = {
    "conch15": "conchv15",
    "conchv1": "conch",
    "mahmoodconch": "conch",
    "mahmooduni": "uni",
    "midnight": "midnight12k",
    "phikonv1": "phikon",
    "provgigapath": "gigapath",
    "resnet50trunc": "resnet50layer3",
    "uni2": "uni2h",
    "univ1": "uni",
    "univ2": "uni2h",
    "virchowv1": "virchow",
    "virchowv2": "virchow2",
}
"""Names in TRIDENT, CLAM, STAMP and AtlasPatch that are other words than ours, not only otherwise spelt."""


def same_encoder(name: str, other: str) -> bool:
    """Whether two names are of one encoder, as far as is known here: ``uni_v2``, ``UNI2`` and ``uni2-h`` are."""
    return _plain(name) == _plain(other)


def is_known(name: str) -> bool:
    """Whether an encoder is known here, by any of its names."""
    if name.startswith(("timm:", "hf-hub:")):
        return True
    return _plain(name) in {_plain(spec.name) for spec in list_encoders()}


def require_encoder(bag: PeerBag, path: Path, told: str | None) -> None:
    """Refuse to call features of one encoder by the name of another.

    Where the file uses a name that is not known here, nobody can tell whether the other one is right: that is let
    through, for a warning.

    Raises:
        ArtifactError: names both.
    """
    if told and bag.encoder and not same_encoder(told, bag.encoder) and is_known(bag.encoder):
        raise ArtifactError(
            f"{path} says that its features are of {bag.encoder}, not of {told}{_meant(told)}: leave --encoder out, or"
            " correct the file if it is wrong"
        )


def doubts_of(told: str, said: dict[str, str | None]) -> list[str]:
    """What is doubtful about calling the encoder of some slides so.

    Args:
        told: what the user calls it.
        said: by slide_id, what their files call it.
    """
    others = {slide_id: name for slide_id, name in said.items() if name and not same_encoder(told, name)}
    doubts = []
    if others:
        slide_id, name = next(iter(others.items()))
        doubts.append(
            f"{len(others)} slides, such as {slide_id}, call their encoder {name}, which is not known here, and are"
            f" taken for {told} as told by --encoder"
        )
    confirmed = any(said.values()) and not others
    if said and not confirmed and not is_known(told):
        doubts.append(
            f"--encoder {told}: no encoder that is known here is called so{_meant(told)}; leave it if another program"
            " calls its encoder so"
        )
    return doubts


def _meant(name: str) -> str:
    return "" if is_known(name) else nearest(name.lower(), [spec.name for spec in list_encoders()])


def _plain(name: str) -> str:
    """A name without what programs disagree about: case, separators, the owner of a repository, a class token alone."""
    own = name.removeprefix("hf-hub:").rpartition("/")[2] if name.startswith("hf-hub:") else name
    letters = re.sub(r"[^a-z0-9]", "", own.casefold()).removesuffix("cls")
    return _ALIASES.get(letters, letters)
