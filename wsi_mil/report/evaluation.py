"""The page of a cross-validation, an evaluation or a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsi_mil import metrics
from wsi_mil.evaluation import Comparison, Judged, Spatial, Study
from wsi_mil.report.judged import judged_sections, shown
from wsi_mil.report.page import NOTHING, Section, number, page
from wsi_mil.report.provenance import provenance


@dataclass(frozen=True)
class Beside:
    """What stands beside the figures of a study."""

    cohort: Section = NOTHING
    """Who was looked at."""
    learnt: Sequence[Section] = ()
    """What distance models learnt."""
    slides: Section = NOTHING
    """`wsi_mil.report.slides_section`."""
    facts: Sequence[tuple[str, str]] = ()
    """What was done to what: pairs of what and value."""
    commands: Sequence[str] = ()
    """What was typed."""


_ALONE = Beside()


def study_page(title: str, lead: str, study: Study, beside: Beside = _ALONE) -> bytes:
    """Render what came of judging models.

    Args:
        title: what was done.
        lead: in a sentence or two.
        study: what came of it.
        beside: what else stands on the page.
    """
    judged = study.judged
    parts = [
        beside.cohort, *judged_sections(judged, study.notes), _classes(judged), _folds(judged), _groups(judged),
        _compared(study.comparisons), _space(study.spatial), *beside.learnt, beside.slides,
        provenance(beside.facts, beside.commands),
    ]  # fmt: skip
    return page(title, lead, parts)


def _classes(judged: Sequence[Judged]) -> Section:
    """AUROC of each of several classes against the rest."""
    names = judged[0].answers.classes
    if len(names) == 2:
        return Section("Classes")
    areas = [
        (found.name, metrics.auroc_per_class(found.answers.labels, metrics.by_log_odds(found.answers.scores)))
        for found in judged
    ]
    rows = [(name, *(number(float(area)) for area in each)) for name, each in areas]
    return Section("Classes", "Pooled AUROC of each class against the rest.", ("model", *names), rows)


def _folds(judged: Sequence[Judged]) -> Section:
    names = list(judged[0].rounds)
    rows = [(found.name, *(number(found.rounds.get(name, np.nan)) for name in names)) for found in judged]
    rows = rows if names else []
    if not rows:
        return Section("Rounds")
    text = "AUROC of each round on the patients that it tested."
    return Section("Rounds", text, ("model", *(f"round {name}" for name in names)), rows)


def _groups(judged: Sequence[Judged]) -> Section:
    rows = [
        (
            found.name,
            group.column,
            group.value,
            str(group.patients),
            str(group.bags),
            shown(group.auroc),
            shown(group.accuracy),
        )
        for found in judged
        for group in found.groups
    ]
    return Section(
        "Groups", header=("model", "column", "value", "patients", "bags", "AUROC", "balanced accuracy"), rows=rows
    )


def _compared(comparisons: Sequence[Comparison]) -> Section:
    rows = [
        (
            f"{c.first} – {c.second}",
            shown(c.difference),
            p_value(c.delong),
            p_value(c.holm_delong),
            p_value(c.mcnemar),
            p_value(c.holm_mcnemar),
        )
        for c in comparisons
    ]
    text = (
        "Difference in AUROC on the same patients, with the interval of a paired bootstrap; p of DeLong's test"
        " (within rounds) and of McNemar's exact test of decisions, each also adjusted for their number after Holm."
    )
    return Section(
        "Comparison",
        text if rows else "",
        ("models", "difference", "DeLong", "after Holm", "McNemar", "after Holm"),
        rows,
    )


def p_value(value: float) -> str:
    """The p of a test, or a dash where it is undefined."""
    return "–" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _space(spatial: Spatial | None) -> Section:
    if spatial is None:
        return Section("Does space matter?")
    rows = [(row.name, number(row.auroc), shown(row.lost), f"{row.moved:.3f}") for row in spatial.rows]
    header = ("tiles", "AUROC", "AUROC lost", "mean change of probability")
    return Section("Does space matter?", spatial.sentence, header, rows)
