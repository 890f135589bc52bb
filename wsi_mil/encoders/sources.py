"""Where an encoder's weights are: what the user names, else the cache on this machine, else the hub.

Whatever is found is hashed before it is opened, so that a file of other weights than wanted never runs any code.
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

from wsi_mil.encoders._hub import cached_by_hub, hub_file
from wsi_mil.encoders.cache import by_sha256, folder, kept
from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import IncompatibleError, OptionError, WeightsError
from wsi_mil.weights import file_sha256, sniff

__all__ = ["Found", "again", "by_sha256", "find", "local_file", "require"]

log = logging.getLogger(__name__)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".torch")
"""What weight files are called, where a folder is searched for one."""


class Found(NamedTuple):
    """A weight file, sniffed and hashed but not opened."""

    path: Path
    """Where it lies."""
    source: str
    """What is recorded with features, and finds it again: its path, or ``hub:...``."""
    sha256: str
    """Of its bytes."""


def local_file(spec: EncoderSpec) -> Path | None:
    """Return the weight file that is on this machine already, in the cache of wsimil or else in the hub's.

    Raises:
        WeightsError: the cache of wsimil is damaged.
    """
    entry = kept(spec)
    return entry.path if entry else cached_by_hub(spec)


def find(spec: EncoderSpec, given: str | None = None, sha256: str | None = None) -> Found:
    """Find the weight file of an encoder.

    Args:
        spec: of the encoder.
        given: a file; a folder with one in it; ``spec.source``: from the hub; or None: from the cache, else the hub.
        sha256: what its hash must be; None = anything, though a hash other than the published one is warned of.

    Raises:
        OptionError: ``given`` is empty, or names a place on the hub that is not this encoder's.
        WeightsError: nothing is there, or it is no weight file.
        IncompatibleError: it has another hash than it must have.
    """
    path, source = _located(spec, given)
    sniff(path)
    found = Found(path, source, file_sha256(path))
    _require_its_name(found)
    if sha256:
        require(sha256, found.sha256, str(path))
    _compare_with_published(spec, found)
    return found


def again(spec: EncoderSpec, source: str, sha256: str) -> str:
    """Say where the weights are now that were recorded with features or a checkpoint.

    Args:
        spec: of the encoder.
        source: where they came from.
        sha256: of the weights.

    Returns:
        What `load_encoder` takes: ``source`` if they still are there, else the cache's file of that hash, else the hub.

    Raises:
        WeightsError: they came from a file that is gone, and the hub does not give it either.
    """
    if source == "built-in" or source.startswith("random:"):
        return source
    on_hub = source.startswith("hub:")
    there = not on_hub and Path(source).is_file()
    if there and file_sha256(Path(source)) == sha256:
        return source
    if cached := by_sha256(sha256):
        return str(cached)
    if on_hub:
        return source
    what = "holds other weights now" if there else "is not there any more"
    missing = f"{source} {what}, nor is a file of its sha256 {sha256[:12]} in the cache"
    if not spec.hub_id:
        raise WeightsError(f"{missing}: name it by --weights, or run `wsimil weights add {spec.name} FILE`")
    try:
        hub_file(spec)
    except WeightsError as error:
        raise WeightsError(f"{missing}; {error}") from error
    log.warning("%s: taking %s", missing, spec.source)
    return spec.source


def require(wanted: str, found: str, where: str) -> None:
    """Refuse weights of another hash.

    Raises:
        IncompatibleError: names both.
    """
    if found != wanted:
        raise IncompatibleError(
            f"{where} holds weights {found[:12]}, but {wanted[:12]} are wanted, those that the model was trained with:"
            " name them by --weights"
        )


def _require_its_name(found: Found) -> None:
    """Refuse a damaged file of a cache, ours or the hub's (its ``blobs``), whose files are called by their hash."""
    file = found.path.resolve()
    cached = file.parent == folder().resolve() or file.parent.name == "blobs"
    if cached and re.fullmatch("[0-9a-f]{64}", file.stem) and file.stem != found.sha256:
        raise WeightsError(
            f"{found.path} is damaged, its sha256 is not the one in its name: delete {file}, then fetch it again, or"
            " `wsimil weights add` it"
        )


def _located(spec: EncoderSpec, given: str | None) -> tuple[Path, str]:
    if given is None and (entry := kept(spec)):
        return entry.path, str(entry.path)
    if given in (None, spec.source):
        return hub_file(spec), spec.source
    if not given:  # an unset variable would mean this folder
        raise OptionError("--weights is empty: give a file, a folder or random:SEED, or leave the option out")
    if given.startswith("hub:"):
        raise OptionError(f"--weights {given}: {spec.name} comes from {spec.source}; give that, or a file")
    path = Path(given).expanduser().absolute()
    path = _in_folder(spec, path) if path.is_dir() else path
    return path, str(path)


def _in_folder(spec: EncoderSpec, path: Path) -> Path:
    """The weight file of a folder: the published one by its name, else the only one."""
    if (path / spec.hub_file).is_file():
        return path / spec.hub_file
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise WeightsError(f"{path} holds several weight files ({names}): name one of them")
    raise WeightsError(f"{path} holds no weight file ({' '.join(SUFFIXES)}): name a file, or another folder")


def _compare_with_published(spec: EncoderSpec, found: Found) -> None:
    """Say whether these are the published weights, where their hash is known.

    Others are warned of once, by whoever brings them; what `wsimil weights add` keeps has been accepted.
    """
    if not spec.sha256:
        return
    if found.sha256 == spec.sha256:
        log.info("%s: these are the published weights (sha256 %s)", spec.name, found.sha256)
        return
    rehost = found.source == spec.source and spec.page  # the published hash is that of the file at the page
    accepted = rehost or found.path.parent == folder()
    copy = f" (the copy at {spec.hub_id} is another file)" if spec.hub_id and spec.page else ""
    log.log(
        logging.INFO if accepted else logging.WARNING,
        "%s has sha256 %s, the file of the authors of %s %s%s: if it fits, it is used and recorded by its own",
        found.path, found.sha256, spec.name, spec.sha256, copy,
    )  # fmt: skip
