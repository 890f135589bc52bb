"""Where a page came from: what decided it, made with what, and what to type for the same again."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_mil import checkpoint
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.cohort import Cohort
from wsi_mil.metrics import Resampling
from wsi_mil.remote import origin
from wsi_mil.report.page import Section

_UNKNOWN = "–"


def provenance(facts: Iterable[tuple[str, str]], commands: Sequence[str] = ()) -> Section:
    """The last section of every page.

    Args:
        facts: what decided the page, as pairs of what and value.
        commands: that make the same again; none where no command made it.
    """
    rows = [*facts, ("this page", f"made with {listed(checkpoint.versions())}")]
    text = "To repeat it, type in the same folder:" if commands else ""
    return Section("Provenance", text, ("what", "value"), rows, commands=commands)


def model_facts(made: Checkpoint) -> list[tuple[str, str]]:
    """What decided a checkpoint: features, model, training, cohort, versions."""
    recipe, training = made.recipe, made.training
    weights = f"{made.encoder_weights}, sha256 {recipe.encoder_weights_sha256[:16]}"
    facts = [
        ("encoder", f"{recipe.encoder} ({weights})"),
        ("tile", f"{recipe.tile_um:g} µm read as {recipe.tile_px} px; stain: {recipe.stain['method']}"),
        ("model", f"{made.aggregator}; {listed(made.options)}"),
        *_trained(training.get("params", {})),
        ("fingerprint of training", training.get("fingerprint", _UNKNOWN)),
        ("cohort of training", training.get("cohort", _UNKNOWN)),
        ("slides of training", _known(made)),
        ("trained with", listed(training.get("versions", {"wsi_mil": made.version}))),
    ]
    return [(what, value) for what, value in facts if value]


def _known(made: Checkpoint) -> str:
    """What slides it learnt from; "" where nobody knows."""
    return "" if made.domain is None else f"{made.domain.slides} of {', '.join(made.domain.told)} each"


def judged_facts(cohort: Cohort, labels: Path, how: Resampling) -> list[tuple[str, str]]:
    """Who was judged, by which labels, and how often patients were drawn."""
    return [("labels", origin(labels)), ("cohort", cohort.digest), ("intervals", drawn(how))]


def drawn(how: Resampling) -> str:
    """How intervals were made."""
    return f"{how.level:.0%} by {how.resamples} resamples, seed {how.seed}"


def listed(values: Mapping[str, Any]) -> str:
    """Settings for people: ``heads 4, dropout 0.25``."""
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _trained(params: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How a training, or the trainings of a cross-validation, went about it."""
    inner = params.get("train", params)
    learn = inner.get("learn", {})
    rounds = {name: value for name, value in params.items() if name != "train"} if "train" in params else {}
    others = {name: value for name, value in inner.items() if name not in ("aggregator", "options", "learn")}
    settings = others | {name: value for name, value in learn.items() if name != "seed"}
    return [("seed", str(learn.get("seed", _UNKNOWN))), ("training", listed(settings)), ("rounds", listed(rounds))]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return " / ".join(map(_plain, value)) or "none"
    return json.dumps(value) if isinstance(value, dict) else str(value)
