"""What a file is, told from its first bytes and before any library opens it."""

import zipfile
from pathlib import Path

from wsi_mil.errors import WeightsError

_HEADER_LIMIT = 100_000_000  # safetensors' own


def sniff(path: Path) -> str:
    """Tell from a file's first bytes whether it is ``"safetensors"`` or ``"torch"``.

    Raises:
        WeightsError: it is neither, with a guess at what happened.
    """
    if not path.is_file():
        what = "is a folder: name the file in it" if path.is_dir() else "does not exist: name a weight file"
        raise WeightsError(f"{path} {what}")
    with path.open("rb") as file:
        head = file.read(1024)
    if _is_safetensors(head, path):  # first, since the length it begins with can look like anything
        return "safetensors"
    if complaint := _complaint(head) or (_zip_complaint(path) if head.startswith(b"PK") else ""):
        raise WeightsError(f"{path} {complaint}")
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):  # a zip, or a bare pickle, as torch wrote them before 1.6
        return "torch"
    raise WeightsError(
        f"{path} is neither safetensors nor a torch file (it begins with {head[:8]!r}): fetch the weight file itself"
    )


def _is_safetensors(head: bytes, path: Path) -> bool:
    """Whether it begins as such; an absurd header length is safetensors' to refuse where the name promises one."""
    return head[8:9] == b"{" and (int.from_bytes(head[:8], "little") < _HEADER_LIMIT or path.suffix == ".safetensors")


def _complaint(head: bytes) -> str:
    """What a file that is no weight file seems to be, and what to do about it; empty when nothing looks wrong."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty: fetch it again"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, most likely a login page: accept the terms in a browser, then fetch the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the weights: run `git lfs pull`, or fetch the file itself"
    if start.startswith((b"{", b"[")):
        return "is JSON text, such as a server's error or an index of shards: fetch the weight file itself"
    if head.startswith((b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "is a Python pickle that torch did not write: save the state dict, best as safetensors"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        return "is compressed: unpack it first"
    return ""


def _zip_complaint(path: Path) -> str:
    """What is wrong with a zip archive; torch's hold one folder with ``data.pkl`` in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # its directory comes last, so half a file has none
        return f"is truncated ({path.stat().st_size:,} bytes): fetch it again"
    if "data.pkl" not in names:
        return "is a zip archive that torch did not write: unpack it, and name the weight file in it"
    if "constants.pkl" in names:
        return "is a TorchScript program: save its state dict alone, by torch.jit.load and torch.save"
    return ""
