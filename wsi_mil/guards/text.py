"""JSON and XML of anybody: no depth that ends the process, no entities."""

import json
from pathlib import Path
from typing import Any

from wsi_mil.errors import ArtifactCorrupt


def parse_json(text: str | bytes) -> Any:
    """Read JSON, as `json.loads`.

    Raises:
        ValueError: it is none, or is nested so deeply that only a bomb is.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists in lists in lists, too many to be meant") from error


def parse_words(text: Any) -> list[str]:
    """Read a list of words in JSON.

    Raises:
        ValueError: it is none.
    """
    found = parse_json(text) if isinstance(text, str | bytes) else None
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ValueError("no list of words")
    return found


def read_table_of_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a file of JSON that holds values by name, as wsimil writes them.

    Args:
        path: the file.
        remedy: what to do where it is damaged.

    Raises:
        ArtifactCorrupt: it is no such thing.
    """
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise ArtifactCorrupt(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise ArtifactCorrupt(f"{path} is damaged (it holds {type(found).__name__}, no values by name): {remedy}")
    return found


def require_plain_xml(data: bytes) -> None:
    """Refuse XML that declares a document type, before any parser sees it: entities are declared nowhere else.

    So nothing is fetched, read from this machine's files, or grown from a few bytes to gigabytes. The bytes are looked
    at as UTF-8 and as UTF-16; the parser takes no encoding in which ASCII would look otherwise.

    Raises:
        ValueError: it declares one.
    """
    if b"<!DOCTYPE" in data or b"<!DOCTYPE" in data.replace(b"\0", b""):
        raise ValueError("declares a document type, as no drawing or table needs it, and is not read")
