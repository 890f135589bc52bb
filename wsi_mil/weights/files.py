"""Weight files read and written: safetensors, and torch's pickles."""

import hashlib
import json
import logging
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wsi_mil.errors import OptionError, WeightsError, one_line
from wsi_mil.publishing import replacing
from wsi_mil.weights.scanning import require_short_words
from wsi_mil.weights.sniffing import sniff
from wsi_mil.weights.states import State, Unwrapped, some, unwrap, warn_of_student

log = logging.getLogger(__name__)
_METADATA, _CHECKSUM, _BEFORE, _BLOCK_BYTES = "__metadata__", "wsi_mil_checksum", "checksum", 1 << 24
# What torch's readers turn a flipped byte into.
_DAMAGE = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    MemoryError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
UNREADABLE = (*_DAMAGE, OSError, pickle.PickleError, SafetensorError)
"""What readers of weights raise on files that they do not understand."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Publish tensors and a table of strings at ``path`` as one safetensors file, atomically.

    The same input gives the same bytes. The table gets one more entry, ``wsi_mil_checksum``: a digest (xxh3, 128 bits)
    of the header without it and of all tensors, which `load_tensors` verifies.
    """
    data = save(_apart(tensors), metadata)
    start = 8 + int.from_bytes(data[:8], "little")
    told = {_METADATA: {}} | json.loads(data[8:start])
    found = xxhash.xxh3_128(_canonical(told))
    found.update(memoryview(data)[start:])
    told[_METADATA][_CHECKSUM] = found.hexdigest()
    header = _canonical(told)
    header += b" " * (-len(header) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        # one after the other: joined they would take their memory once more
        file.writelines([len(header).to_bytes(8, "little"), header, memoryview(data)[start:]])


def load_tensors(path: Path) -> tuple[State, dict[str, str]]:
    """Read a safetensors file back as tensors (on the CPU) and its table of strings.

    Raises:
        WeightsError: the file is missing, truncated, no safetensors file, or does not match its checksum.
    """
    kind = sniff(path)
    if kind != "safetensors":
        raise WeightsError(f"{path} is a {kind} file, not a safetensors file")
    before = _version(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path} is truncated or damaged ({one_line(error)}): fetch it again") from error
    key = _checksum_key(metadata)
    if key and metadata.pop(key) != _checksum_of(path, key):
        if _version(path) != before:  # another process has replaced it meanwhile
            return load_tensors(path)
        raise WeightsError(
            f"{path} does not match its checksum, so it is damaged: copy it again, or make it again with --overwrite"
        )
    return tensors, metadata


def _checksum_key(metadata: Mapping[str, str]) -> str:
    """Under which name the checksum stands; "" = there is none.

    Files of before have it under a word that other programs use, too, and are known by what else they say.
    """
    if _CHECKSUM in metadata:
        return _CHECKSUM
    ours = any(name.startswith("wsi_mil") or name in ("source_sha256", "history") for name in metadata)
    return _BEFORE if ours and _BEFORE in metadata else ""


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _canonical(header: Mapping[str, Any]) -> bytes:
    """A header in the same bytes each time: the library takes the order of a hash table."""
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _checksum_of(path: Path, key: str) -> str:
    """What the checksum of a file should be that the library has read: its header makes sense."""
    with path.open("rb") as file:
        told = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        del told[_METADATA][key]
        found = xxhash.xxh3_128(_canonical(told))
        while block := file.read(_BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()


def read_state(path: Path, trust: bool = False) -> State:
    """Read the tensors of a weight file, safetensors or torch pickle, by name. See `read_weights`."""
    return read_weights(path, trust).state


def read_weights(path: Path, trust: bool = False) -> Unwrapped:
    """Read a weight file, safetensors or torch pickle, down to its tensors by name.

    Args:
        path: the file.
        trust: also open pickles that hold more than tensors, which runs whatever code is in them; a warning says so.

    Raises:
        WeightsError: the file is not what it claims to be, holds no tensors by name, or would run code.
    """
    if sniff(path) == "safetensors":
        return Unwrapped(load_tensors(path)[0], [], [])
    read = unwrap(_unpickled(path, trust), str(path))
    if read.chosen:
        beside = f", left out {some(read.left_out)}" if read.left_out else ""
        log.info("%s: took %s%s", path, ".".join(read.chosen), beside)
    warn_of_student(read.chosen, f"the weights of {path}")
    return read


def read_tensor(path: Path) -> Tensor:
    """Read a torch file that holds one tensor and nothing else, such as the features of a slide.

    Raises:
        WeightsError: it is missing, damaged, or holds anything else.
    """
    if sniff(path) != "torch":
        raise WeightsError(f"{path} is a safetensors file, not a tensor that torch.save wrote")
    try:
        content = _load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} holds more than a tensor and is not opened, as that could run its code") from error
    except _DAMAGE as error:
        raise WeightsError(f"{path} is truncated or damaged ({one_line(error)}): copy it again") from error
    if not isinstance(content, Tensor):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not one tensor")
    return content


def convert(source: Path, target: Path, trust: bool = False, overwrite: bool = False) -> Unwrapped:
    """Write the tensors of a weight file as safetensors, atomically; the same file gives the same bytes.

    Args:
        source: any weight file that `read_weights` reads.
        target: the file to write; its metadata name the SHA-256 of the source.
        trust: as there.
        overwrite: replace ``target`` if it is there.

    Raises:
        OptionError: a target of another suffix, or one that is there.
        WeightsError: as `read_weights`, or its tensors are of a kind that safetensors cannot hold.
    """
    if target.suffix != ".safetensors":
        raise OptionError(f"{target} is to be a safetensors file: call it {target.with_suffix('.safetensors').name}")
    if target.exists() and not overwrite:
        raise OptionError(f"{target} is there already: add --overwrite, or give another name")
    sniff(source)
    sha256 = file_sha256(source)
    read = read_weights(source, trust)
    try:
        save_tensors(target, read.state, {"format": "pt", "source_sha256": sha256})
    except (ValueError, RuntimeError) as error:
        raise WeightsError(f"{source} holds tensors that safetensors cannot ({one_line(error)})") from error
    return read


def _apart(tensors: Mapping[str, Tensor]) -> State:
    """Tensors by name, in order, none sharing memory with another, as safetensors wants them."""
    plain: State = {}
    seen: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return plain


def _unpickled(path: Path, trust: bool) -> Any:
    try:
        return _load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust:
            raise WeightsError(_untrusted(path, error)) from error
    except _DAMAGE as error:
        raise WeightsError(f"{path} is truncated or damaged ({one_line(error)}): fetch it again") from error
    log.warning("%s holds more than tensors, and is trusted: whatever code it holds runs now, as you", path)
    try:
        return _load(path, weights_only=False)
    except (*_DAMAGE, ImportError, pickle.PickleError) as error:
        raise WeightsError(
            f"{path} cannot be opened, trusted or not ({one_line(error)}): install what it was made with, or fetch it"
            " again"
        ) from error


def _load(path: Path, weights_only: bool) -> Any:
    if weights_only:
        require_short_words(path)
    with path.open("rb") as file:  # given a path, torch goes by its suffix and not by what the file is
        return torch.load(file, map_location="cpu", weights_only=weights_only)


def _untrusted(path: Path, error: pickle.UnpicklingError) -> str:
    advice = "save the state dict alone, best as safetensors, or add --trust-checkpoint if you trust who made it"
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"{path} holds more than tensors ({found[1]}) and is not opened, because that could run its code: {advice}"
        )
    return f"{path} is damaged, or pickled in a way that cannot be opened safely: fetch it again, {advice}"
