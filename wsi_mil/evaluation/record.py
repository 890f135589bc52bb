"""What was judged in a folder, written down, so that results of something else are never replaced in silence."""

import json
from collections.abc import Mapping
from pathlib import Path

from wsi_mil import publishing
from wsi_mil.errors import ArtifactStale, OptionError
from wsi_mil.evaluation.patients import PATIENTS
from wsi_mil.evaluation.study import TABLES
from wsi_mil.guards import read_table_of_json
from wsi_mil.predictions import TABLE
from wsi_mil.train import CHECKPOINT

RECORD = "study.json"
REPORT = "report.html"
_RESULTS = (TABLE, PATIENTS, *TABLES, REPORT)


def require_own(out: Path, inputs: Mapping[str, str], overwrite: bool) -> None:
    """Refuse a folder that holds the results of something else; the same once more is welcome.

    Args:
        out: the folder.
        inputs: by name everything that decides the results.
        overwrite: refuse nothing.

    Raises:
        ArtifactStale: it holds other results, and overwriting was not asked for.
    """
    before, there = _recorded(out), _there(out)
    if there and before != inputs and not overwrite:
        raise ArtifactStale(
            f"{out} holds {_otherwise(before, inputs, there)}. Add --overwrite to replace it, or --out for another"
            " folder"
        )


def claim(out: Path, inputs: Mapping[str, str]) -> None:
    """Make a folder that of one judging, before anything of it is written: results of something else are removed."""
    if _recorded(out) == inputs:
        return
    for name in _there(out):
        (out / name).unlink(missing_ok=True)  # another run may be doing the same
    publishing.write_bytes(out / RECORD, json.dumps(dict(inputs), indent=1, sort_keys=True).encode())


def refuse_judged(out: Path, rounds: bool = False) -> None:
    """Refuse to put something else into a folder of `wsimil evaluate`, `wsimil compare` or `wsimil crossval`.

    Args:
        out: the folder.
        rounds: whether it may be one of `wsimil crossval`.

    Raises:
        ArtifactStale: it is one.
    """
    command = _recorded(out).get("command")
    if not command and not rounds and any(out.glob("*/fold-*")):
        command = "crossval"
    if command:
        raise ArtifactStale(f"{out} holds the results of `wsimil {command}`: give another --out")


def refuse_model(out: Path) -> None:
    """Refuse to write over what a model or a cross-validation says of its own patients.

    Raises:
        OptionError: it is the folder of one.
    """
    if (out / CHECKPOINT).exists():
        raise OptionError(f"--out {out} holds a model and its own predictions: give another folder")


def _there(out: Path) -> list[str]:
    return [name for name in _RESULTS if (out / name).exists()]


def _recorded(out: Path) -> dict[str, str]:
    path = out / RECORD
    found = read_table_of_json(path, "delete it, and judge again with --overwrite") if path.exists() else {}
    return {name: str(value) for name, value in found.items()}


def _otherwise(before: Mapping[str, str], now: Mapping[str, str], there: list[str]) -> str:
    """What lies there instead, in words."""
    if not before:
        return f"{there[0]}, and nothing says what it is of"
    if before.get("command") != now.get("command"):
        return f"the results of `wsimil {before.get('command')}`"
    changed = [
        f"{name} was {before.get(name) or 'none'}, now {now.get(name) or 'none'}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return f"another result: {'; '.join(changed)}"
