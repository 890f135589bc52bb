"""What a table of MNIST-COLLAGE was made of, kept beside it, so that nothing made otherwise goes into it unseen."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collage_data import Source
from collage_models import CHOICES, PUBLISHED, fresh_options
from collage_runs import FRESH_BATCH, FRESH_CLIP, FRESH_DECAY, FRESH_EPOCHS, PAPER_EPOCHS, Score
from collage_search import Trial, weights_of
from row_files import read_rows

from wsi_mil.aggregators import params_of
from wsi_mil.errors import WsiMilError
from wsi_mil.publishing import replacing_text

_PROCEDURE = {"fresh": 1, "paper": 1}
"""Raised when models learn otherwise by a protocol for a reason that no option tells."""

_FOUND = ("length_scales_um", "max_distance_um", "tile_um")
"""Lengths that `fitting.lengths` takes from the training collages, unless they are given."""


def record(options: argparse.Namespace, source: Source) -> None:
    """Write down what the table is made of from now on.

    Raises:
        WsiMilError: it holds what was made of other digits, by another procedure, with other epochs, learning rate or
            options of a model, or what nothing is known of.
    """
    path, now = options.out.with_suffix(".json"), _made_of(options, source)
    known = _read(path)
    before = known.get(options.protocol, {})
    if there := _measured(options):
        if not before:
            raise WsiMilError(
                f"{there} holds results of protocol {options.protocol}, and {path} does not tell of what"
                ": give another --out"
            )
        _compare(before, now, options.out)
    else:
        before = {}
    models = {**before.get("models", {}), **now["models"]}
    with replacing_text(path) as file:
        file.write(json.dumps({**known, options.protocol: {**now, "models": models}}, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise WsiMilError(f"{path} is damaged ({error}): delete it with the table it belongs to") from None
    if not isinstance(known, dict) or not all(isinstance(made, dict) for made in known.values()):
        raise WsiMilError(f"{path} does not tell what a table was made of: delete it, or give another --out")
    return known


def _made_of(options: argparse.Namespace, source: Source) -> dict[str, Any]:
    """Whatever decides a row besides its model, variant and seed."""
    fresh = options.protocol == "fresh"
    made = {
        "procedure": _PROCEDURE[options.protocol],
        "digits": source.name,
        "epochs": options.epochs or (FRESH_EPOCHS if fresh else PAPER_EPOCHS),
        **(_of_fresh(options) if fresh else {}),
        "models": {name: _fresh(name) if fresh else _published(name) for name in options.models},
    }
    return json.loads(json.dumps(made))  # as it is read again: tuples are lists


def _of_fresh(options: argparse.Namespace) -> dict[str, Any]:
    asked = {"lr": options.lr, "reader": options.reader, "test_seed": options.test_seed}
    return {"batch": FRESH_BATCH, "weight_decay": FRESH_DECAY, "clip": FRESH_CLIP, **asked}


def _fresh(name: str) -> dict[str, Any]:
    """Options of a model by the name of its choice, without lengths that its training collages decide."""
    told: dict[str, Any] = {}
    for choice in ("", *CHOICES.get(name, {})):
        given = fresh_options(name, choice)
        options = asdict(params_of(name, given))
        told[choice or "usual"] = {key: options[key] for key in options if key in given or key not in _FOUND}
    return told


def _published(name: str) -> dict[str, Any]:
    published = PUBLISHED[name]
    return {
        "lr": published.lr,
        "weight_decay": published.weight_decay,
        "lookahead": published.lookahead,
        "logits": published.logits,
        **asdict(params_of(name, published.options)),
    }


def _measured(options: argparse.Namespace) -> Path | None:
    """What of the protocol is there already: rows, or trials and trainings, which only protocol fresh has."""
    if any(row.protocol == options.protocol for row in read_rows(options.out, Score)):
        return options.out
    trials, weights = options.out.with_suffix(".trials.csv"), weights_of(options.out)
    if options.protocol == "fresh" and read_rows(trials, Trial):
        return trials
    return weights if options.protocol == "fresh" and weights.is_dir() and any(weights.iterdir()) else None


def _compare(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    differing = [
        f"{name} {before.get(name)}, now {now[name]}"
        for name in now
        if name != "models" and before.get(name) != now[name]
    ]
    known = before.get("models", {})
    differing += [f"other options of {name}" for name, its in now["models"].items() if known.get(name, its) != its]
    if differing:
        raise WsiMilError(f"{out} was made with {', '.join(differing)}: give another --out")
