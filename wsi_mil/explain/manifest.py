"""``explanation.json``: what an explanation says of itself, for programs and for pages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_mil import __version__, publishing
from wsi_mil.bags import Bag
from wsi_mil.errors import ArtifactCorrupt
from wsi_mil.explain.looking import Look
from wsi_mil.explain.places import Places
from wsi_mil.explain.tables import told_classes
from wsi_mil.guards import is_inside, read_table_of_json

MANIFEST = "explanation.json"
VERSION = 3
"""Raised whenever the same look at the same slide gives other files."""
_NO_SLIDE = "the slide was not at hand: tables and GeoJSON only, no pictures"
_NO_TISSUE = "the tiles' artifact was not at hand, or has no outline beside it: no tissue.geojson"
_WANTED = (
    "slide_id", "model", "classes", "predicted", "probabilities", "evidence", "base", "given", "told_classes",
    "together", "mpp", "notes", "warnings", "files",
)  # fmt: skip
"""Without these nobody can show it."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an explanation says besides what the model looked at."""

    classes: tuple[str, ...]
    """As the model names them, in its order."""
    predicted: str
    """The class that the model decides for."""
    model: str
    """Digest of the checkpoint."""
    places: Places
    """Where the tiles are (`read_places`)."""
    method: Mapping[str, Any] = field(default_factory=dict)
    """How the model was looked at, as JSON has it: how many partners, how many tiles left out, ..."""
    together: Mapping[str, str] = field(default_factory=dict)
    """The patient's other slides that the model was asked about at once: by slide_id, their features' fingerprint."""
    warnings: tuple[str, ...] | None = None
    """What `predict` warns of in this answer, such as that the slide is unlike those of training; None: not asked."""
    model_notes: tuple[str, ...] = ()
    """What the model cannot tell of any slide (`wsi_mil.answering.notes`)."""


def manifest(bag: Bag, look: Look, facts: Facts, files: Mapping[str, str], pictures: bool) -> dict[str, Any]:
    """What an explanation says of itself, but for its fingerprint.

    Args:
        bag: the tiles of the slide.
        look: what the model looked at.
        facts: what else there is to say.
        files: what each file is, by its name.
        pictures: whether the slide was at hand.
    """
    by_class = {
        "probabilities": look.probabilities,
        "evidence": look.evidence,
        "base": look.base,
        "given": None if look.contribution is None else look.contribution.sum(axis=0),
    }
    notes = ([] if pictures else [_NO_SLIDE]) + ([_NO_TISSUE] if facts.places.tissue is None else [])
    return {
        "wsimil": __version__,
        "version": VERSION,
        "slide_id": bag.slide_id,
        "model": facts.model,
        "features": bag.attrs.get("fingerprint"),
        "encoder": bag.attrs.get("encoder"),
        "classes": list(facts.classes),
        "predicted": facts.predicted,
        **{
            name: None if values is None else dict(zip(facts.classes, values.tolist(), strict=True))
            for name, values in by_class.items()
        },
        "told_classes": [facts.classes[index] for index in told_classes(facts.classes)],
        "method": dict(facts.method),
        "together": sorted(facts.together),
        "pictures": pictures,
        "tiles": len(facts.places.coords),
        "l0_tile": list(facts.places.l0_tile),
        "mpp": list(facts.places.mpp),
        **_doubts(facts),
        "notes": notes,
        "files": dict(sorted(files.items())),
    }


def _doubts(facts: Facts) -> dict[str, list[str] | None]:
    """Why the answer may be worth less than others, as `predict` says it."""
    warnings = None if facts.warnings is None else list(facts.warnings)
    return {"warnings": warnings, "model_notes": list(facts.model_notes)}


def what_changed(there: Mapping[str, Any], bag: Bag, facts: Facts) -> str:
    """In words, why an explanation is not what would be made now.

    Args:
        there: its manifest, which anybody may have edited.
        bag: the tiles of the slide.
        facts: what there is to say now.
    """
    now = {
        "model": facts.model,
        "features": bag.attrs.get("fingerprint"),
        "classes": list(facts.classes),
        "together": sorted(facts.together),
        "version": VERSION,
    }
    before = {name: there.get(name) for name in now}
    told = there.get("method")
    for name, value in facts.method.items():
        before[name], now[name] = told.get(name) if isinstance(told, Mapping) else None, value
    changed = [
        f"{name} was {_shown(before[name])}, now {_shown(now[name])}" for name in now if before[name] != now[name]
    ]
    if isinstance(notes := there.get("notes"), list) and (_NO_TISSUE in notes) != (facts.places.tissue is None):
        changed.append(f"the outline of its tissue was {'not ' * (_NO_TISSUE in notes)}at hand (--tiles)")
    return "; ".join(changed) or "what is known of its tiles (--tiles) or of slides asked about with it has changed"


def _shown(value: object) -> str:
    """A value; of a digest its beginning, and of slides that there are none."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return value[:12] if isinstance(value, str) else str(value)


def write_manifest(folder: Path, told: Mapping[str, Any]) -> None:
    """Publish what an explanation says of itself."""
    text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)
    publishing.write_bytes(folder / MANIFEST, f"{text}\n".encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an explanation says of itself; it may name only files of its own folder, as anybody may have edited it.

    Raises:
        ArtifactCorrupt: it is not there, damaged, of another version, or names a file that is elsewhere or lost.
    """
    where, again = folder / MANIFEST, "move the folder away, and explain the slide again"
    if not where.is_file():
        raise ArtifactCorrupt(f"{where} is not there: {again}")
    told = read_table_of_json(where, again)
    if not isinstance(files := told.get("files"), dict):
        raise ArtifactCorrupt(f"{where} is damaged (it names no files): {again}")
    for name in files:
        if not is_inside(name) or (folder / name).resolve().parent != folder.resolve():
            raise ArtifactCorrupt(f"{where} names {name!r}, which is no file of its folder: {again}")
        if not (folder / name).is_file():
            raise ArtifactCorrupt(f"{where} names {name!r}, which is not there: explain the slide again")
    if lacking := [name for name in _WANTED if name not in told]:
        raise ArtifactCorrupt(f"{where} lacks {lacking[0]}, as one of another version: {again}")
    return told


def warn_again(folder: Path, facts: Facts) -> None:
    """Bring the warnings of a finished explanation up to date: whose the slide is may be known only now.

    Nothing else changes, and nothing is written where they are the same, or nobody asked for them.

    Raises:
        ArtifactCorrupt: its manifest cannot be read.
    """
    if facts.warnings is None:
        return
    there = read_manifest(folder)
    if (now := there | _doubts(facts)) != there:
        write_manifest(folder, now)
