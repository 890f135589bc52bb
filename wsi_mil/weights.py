"""Weight files: sniffed before they are opened, read without running their code, loaded strictly. The only door to
safetensors.

A download that went wrong leaves a web page, a git-LFS pointer or half a file under the right name, and the libraries
answer those with riddles ("header too large", a bare EOFError). So the first bytes are looked at first. Pickles are
only ever read with ``weights_only=True``, which runs no code of the file's.
"""

import hashlib
import json
import logging
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from wsi_mil.errors import WeightsError, one_line
from wsi_mil.store import write_bytes

State = dict[str, Tensor]
Convert = Callable[[State], State]
log = logging.getLogger(__name__)
_NAMES_SHOWN = 3
# What torch's readers turn a flipped byte into.
_DAMAGE = (
    RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError,
    zipfile.BadZipFile,
)  # fmt: skip


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over the names, types, shapes and values of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Publish tensors and a table of strings at ``path`` as one safetensors file, atomically.

    The same input gives the same bytes.
    """
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    data = save(plain, metadata)
    # The library writes metadata in the order of a hash table that differs from run to run: sort the header.
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    write_bytes(path, b"".join([len(header).to_bytes(8, "little"), header, memoryview(data)[start:]]))


def load_tensors(path: Path) -> tuple[State, dict[str, str]]:
    """Read a safetensors file back as tensors (on the CPU) and its table of strings.

    Raises:
        WeightsError: the file is missing, truncated or no safetensors file.
    """
    kind = sniff(path)
    if kind != "safetensors":
        raise WeightsError(f"{path} is a {kind} file, not a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path} is truncated or damaged ({error}): fetch it again") from error


def read_state(path: Path) -> State:
    """Read the tensors of a weight file, safetensors or torch pickle, by name.

    Raises:
        WeightsError: the file is not what it claims to be, holds anything but tensors by name, or would run code.
    """
    if sniff(path) == "safetensors":
        return load_tensors(path)[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors and is not opened, because that could run its code: "
            "save the state dict alone, best as safetensors"
        ) from error
    except _DAMAGE as error:
        raise WeightsError(f"{path} is truncated or damaged ({one_line(error)}): fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(map(str, list(state)[:_NAMES_SHOWN])) if isinstance(state, dict) else type(state).__name__
        raise WeightsError(f"{path} holds {found} instead of tensors by name: save the state dict alone")
    return state


def sniff(path: Path) -> str:
    """Tell from a file's first bytes whether it is ``"safetensors"`` or ``"torch"``.

    Raises:
        WeightsError: it is neither, with a guess at what happened.
    """
    if not path.is_file():
        what = "is a folder: name the file in it" if path.is_dir() else "does not exist: name a weight file"
        raise WeightsError(f"{path} {what}")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1024)
    if _is_safetensors(head):  # first, since the length it begins with can look like anything
        return "safetensors"
    if complaint := _complaint(head, size):
        raise WeightsError(f"{path} {complaint}")
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            raise WeightsError(f"{path} is truncated ({size:,} bytes): fetch it again")
        return "torch"
    if head.startswith(b"\x80\x02"):  # a bare pickle, as torch wrote them before 1.6
        return "torch"
    raise WeightsError(f"{path} is neither safetensors nor a torch file (it begins with {head[:8]!r})")


def load_strictly(
    model: nn.Module,
    state: State,
    source: str,
    convert: Convert | None = None,
) -> None:
    """Give a model every one of its tensors from ``state``, or refuse: nothing is skipped, nothing stays random.

    Args:
        model: takes the tensors.
        state: tensors by name.
        source: where they come from, for messages.
        convert: puts a published layout into the model's, where names or shapes differ. It may resample ``pos_embed``
            to another grid, which is logged; a tensor of any other size is refused all the same.

    Raises:
        WeightsError: some name is missing, unexpected or of another shape; the first few are named.
    """
    wanted = model.state_dict()
    if convert and _differences(wanted, state):
        state = _converted(convert, state)
    if differences := _differences(wanted, state):
        raise WeightsError(f"{source} does not fit the model: {'; '.join(differences)}")
    model.load_state_dict(state, strict=True)


def _converted(convert: Callable[[dict[str, Tensor]], dict[str, Tensor]], state: dict[str, Tensor]) -> State:
    """Convert, but keep what would only fit because its values were resampled; fall back to ``state`` on nonsense."""
    try:
        converted = convert(dict(state))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        log.debug("conversion failed: %s", error)
        return state
    for name in state.keys() & converted.keys():
        before, after = state[name], converted[name]
        if name == "pos_embed" and before.shape != after.shape:
            log.info("position embeddings resampled from %d to %d tokens", before.shape[1], after.shape[1])
        elif before.numel() != after.numel():
            converted[name] = before
    return converted


def _differences(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``state`` from fitting, in a few words each."""
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    kinds = (
        ("missing", sorted(wanted.keys() - state.keys())),
        ("unexpected", sorted(state.keys() - wanted.keys())),
        ("of another shape", shapes),
    )
    return [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds if names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _complaint(head: bytes, size: int) -> str:
    """What a file that is no weight file seems to be, and what to do about it; empty when nothing looks wrong."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if size == 0:
        return "is empty: fetch it again"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, most likely a login page: accept the terms in a browser, then fetch the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the weights: run `git lfs pull`, or fetch the file itself"
    if head.startswith((b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "is a Python pickle that torch did not write: save the state dict, best as safetensors"
    return ""


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000  # its own limit
