"""The model card: what a checkpoint is, made of what, how good, and what it is not for (Mitchell et al. 2019)."""

import math
import re
from collections.abc import Mapping

import numpy as np

from wsi_mil.answering import doubts_of
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.report.page import number
from wsi_mil.train import Trained


def model_card(made: Checkpoint, figures: Mapping[str, str], judged_on: str) -> bytes:
    """Write the model card of a checkpoint, in Markdown.

    Args:
        made: the checkpoint.
        figures: of its answers, each with its interval.
        judged_on: whose answers these are, as a sentence.
    """
    parts = [
        f"# {_text(made.aggregator)}: {' or '.join(map(_text, made.classes))}",
        _model(made),
        "## Intended use\n\nResearch on slides made, stained and scanned like those of training. It is not a medical"
        " device; what it says of one patient must decide nothing.",
        _data(made),
        _domain(made),
        _features(made),
        f"## Figures\n\n{judged_on}\n\n" + "\n".join(f"* {_text(name)}: {value}" for name, value in figures.items()),
        _decisions(made),
        "## Limits\n\nIt was judged on the cohort above and no other. Other hospitals, scanners, stains and populations"
        " may lower every figure: judge it there by `wsimil evaluate --by site` before it is used. Attention shows what"
        " the model looked at, which is not why a patient has a disease.",
        f"## Provenance\n\n{_provenance(made)}",
    ]
    return ("\n\n".join(parts) + "\n").encode()


def training_card(trained: Trained) -> bytes:
    """The card of one training, with its figures on validation and test patients."""
    figures = {f"AUROC, {part}": number(trained.auroc(part)) for part in ("val", "test") if trained.cohort.part(part)}
    judged_on = (
        "Validation patients chose the epoch, the temperature and the threshold, so that figures on them flatter; only"
        " test patients are a test. `wsimil evaluate` gives every figure with its interval."
    )
    return model_card(trained.checkpoint, figures, judged_on)


def _model(made: Checkpoint) -> str:
    several = f"{len(made.parts)} models, one of each round of cross-validation, that answer by their mean probability"
    what = several if len(made.parts) > 1 else "One model"
    values = sum(tensor.numel() for tensor in made.state.values())
    options = "\n".join(f"* {_text(name)}: {_text(value)}" for name, value in made.options.items())
    return f"{what}; {values:,} values. A bag is one {made.unit}.\n\nOptions:\n\n{options}"


def _data(made: Checkpoint) -> str:
    counts = ", ".join(f"{count} slides {_text(split)}" for split, count in made.training["slides"].items())
    patients = len(made.training["patients"])
    cohort = _code(made.training["cohort"])
    learnt = f"{patients} patients took part in learning or in choosing the epoch; cohort `{cohort}`."
    return f"## Training data\n\n{counts}. {learnt}"


def _domain(made: Checkpoint) -> str:
    """What the slides were like, and from where on `predict` says that another slide is not like them."""
    title, domain = "## Slides that it knows\n\n", made.domain
    if domain is None:
        return f"{title}The checkpoint does not say what they were like, so no slide is warned of as unlike them."
    resolutions, tiles = domain.told
    text = f"{title}{domain.slides} slides of {resolutions} (level 0) and {tiles} each took part"
    if domain.cannot_tell:
        return f"{text}: too few to tell what is unlike them, so no slide is warned of."
    mpps, counts = domain.mpp_limits, domain.tile_limits
    usual = float(np.median(domain.distances))
    return (
        f"{text}. `wsimil predict` warns of a slide\n\n"
        f"* of less than {mpps[0]:.4g} or more than {mpps[1]:.4g} um/px;\n"
        f"* of fewer than {math.ceil(counts[0])} or more than {math.floor(counts[1])} tiles;\n"
        f"* whose mean feature is more than {domain.far:.2f} off theirs, in standard deviations (root mean square over"
        f" {len(domain.mean)} features). Theirs are {usual:.2f} off each other's mean in the median,"
        f" {domain.farthest:.2f} at most; features vary between slides by {_deviation(domain.between)}, within one by"
        f" {_deviation(domain.within)} (standard deviation, median over features)."
    )


def _deviation(variance: np.ndarray) -> str:
    return f"{float(np.sqrt(np.median(variance))):.3g}"


def _features(made: Checkpoint) -> str:
    recipe = made.recipe
    tile = f"{recipe.tile_um:g} um read as {recipe.tile_px} px"
    return (
        f"## Features\n\n{_text(recipe.encoder)} ({_text(made.encoder_weights)}, sha256"
        f" `{_code(recipe.encoder_weights_sha256)}`), {made.dim} per tile; tiles of {tile};"
        f" stain: {_text(recipe.stain['method'])}. Features made otherwise are refused."
    )


def _decisions(made: Checkpoint) -> str:
    temperatures = ", ".join(f"{part.temperature:.3g}" for part in made.parts)
    text = "## Probabilities and decisions\n\n"
    if any(part.prior for part in made.parts):
        text += (
            "Probabilities are multiplied by the share of each class in training, and so speak of patients among whom"
            " classes are as frequent. "
        )
    text += f"Logits are divided by {temperatures}, fitted on validation patients."
    text += _doubts(made)
    if made.threshold is None:
        return f"{text} The most probable class is decided for."
    chosen = "the mean of what was chosen on them" if len(made.parts) > 1 else "chosen on them, too"
    return f"{text} {_text(made.classes[1])} is decided for from a probability of {made.threshold:.3g} on, {chosen}."


def _doubts(made: Checkpoint) -> str:
    start = " But " if len(made.parts) == 1 else " "
    return "".join(f"{start}{_text(doubt)}." for doubt in doubts_of(made))


def _provenance(made: Checkpoint) -> str:
    versions = ", ".join(f"{_text(name)} {_text(version)}" for name, version in made.training["versions"].items())
    fingerprint, params = (_code(made.training[name]) for name in ("fingerprint", "params"))
    return f"* fingerprint `{fingerprint}`\n* {versions}\n* parameters: `{params}`"


def _text(name: object) -> str:
    """A name as Markdown that shows it as it is: on one line, and neither a tag, a link nor a picture."""
    return re.sub(r"([\\`*\[\]<>&#!|])", r"\\\1", " ".join(str(name).split()))


def _code(text: object) -> str:
    """What stands between backticks: on one line, without any of its own."""
    return " ".join(str(text).split()).replace("`", "'")
