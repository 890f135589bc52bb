"""Where a training stands, in one safetensors file, written atomically: going on from it ends in the same bytes.

Beside the weights it holds all that the next step depends on: optimiser, schedule, the generators of every rank, the
history with the best weights, and how far the epoch has come. The order of the bags and the tiles that are drawn are
not in it: the seed and the epoch decide them.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wsi_mil import __version__
from wsi_mil.changes import changes
from wsi_mil.errors import ArtifactCorrupt, ArtifactError, ArtifactStale, WeightsError, one_line
from wsi_mil.guards import parse_json
from wsi_mil.learning.params import RunParams
from wsi_mil.weights import load_tensors, save_tensors

log = logging.getLogger(__name__)

RESUME = "resume.safetensors"
_KEY = "wsi_mil_resume"


class Identity(NamedTuple):
    """What has to be equal for a training to go on as if it had not stopped."""

    fingerprint: str
    options: Mapping[str, Any]
    """Those of the fingerprint that have a name."""
    devices: int
    device: str
    """Its kind."""
    torch: str
    wsi_mil: str

    @classmethod
    def of(cls, run: RunParams, devices: int, device: str) -> "Identity":
        """With the versions of this process."""
        return cls(run.fingerprint, run.options, devices, device, torch.__version__, __version__)

    def otherwise(self, before: "Identity") -> list[str]:
        """What was otherwise, in words; empty if nothing was."""
        now = self._asdict()
        told = changes(before._asdict(), {name: now[name] for name in ("devices", "device", "torch", "wsi_mil")})
        if self.fingerprint == before.fingerprint:
            return list(told.values())
        if not before.options:  # older ones do not tell
            return ["the options, the labels or the features have changed", *told.values()]
        named = changes(before.options, self.options).values()
        return [*(named or ["the labels, the features or the version of wsimil have changed"]), *told.values()]


class Standing(NamedTuple):
    """Where a training stands."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """Numbers, words and lists, as JSON holds them."""


def save(folder: Path, identity: Identity, standing: Standing) -> None:
    """Publish where a training stands, in place of where it stood before."""
    header = json.dumps({"identity": identity._asdict(), "facts": standing.facts}, sort_keys=True)
    save_tensors(folder / RESUME, standing.tensors, {_KEY: header})


def load(folder: Path, identity: Identity, overwrite: bool = False) -> Standing | None:
    """Where the same training stood when it was interrupted, or None if nothing was written down.

    Args:
        folder: where it was written down.
        identity: the training that is to go on.
        overwrite: give up another training, or a damaged file, instead of raising.

    Raises:
        ArtifactStale: another training was interrupted there.
        ArtifactCorrupt: the file is damaged.
    """
    if not (folder / RESUME).exists():
        return None
    try:
        return _load(folder / RESUME, identity)
    except ArtifactError as error:
        if not overwrite:
            raise
        log.warning("%s: given up, as --overwrite says", one_line(error))
        discard(folder)
        return None


def _load(path: Path, identity: Identity) -> Standing:
    try:
        tensors, metadata = load_tensors(path)
        header = parse_json(metadata[_KEY])
        told: dict[str, Any] = {"options": {}, **header["identity"]}
        before = Identity(**told)._replace(options=dict(told["options"]))
        standing = Standing(tensors, header["facts"])
    except (WeightsError, KeyError, TypeError, ValueError) as error:
        raise ArtifactCorrupt(f"{path} is damaged ({one_line(error)}): add --overwrite to train anew") from error
    if changed := identity.otherwise(before):
        raise ArtifactStale(
            f"{path} is of another training, which was interrupted: {'; '.join(changed)}. Train as then to go on, add"
            " --overwrite to give it up, or --out for another folder"
        )
    return standing


def discard(folder: Path) -> None:
    """Remove what was written down, if anything was."""
    (folder / RESUME).unlink(missing_ok=True)
