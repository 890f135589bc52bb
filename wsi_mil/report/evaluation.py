"""The page of a cross-validation, an evaluation or a comparison."""

from collections.abc import Sequence

import numpy as np

from wsi_mil import metrics
from wsi_mil.evaluation import Answers, Comparison, Judged, Spatial, Study
from wsi_mil.metrics import Interval
from wsi_mil.report.page import Chart, Curve, Section, number, page

_FOUND_MOST = 6  # colours of the page


def study_page(title: str, lead: str, study: Study, facts: Sequence[tuple[str, str]] = ()) -> bytes:
    """Render what came of judging models.

    Args:
        title: what was done.
        lead: in a sentence or two.
        study: what came of it.
        facts: what was done to what: pairs of what and value.
    """
    notes = Section("To bear in mind", header=("note",), rows=[(note,) for note in study.notes])
    judged = study.judged
    parts = [
        _figures(judged), notes, _curves(judged), *map(_confusion, judged), _classes(judged), _folds(judged),
        _groups(judged), _compared(study.comparisons), _space(study.spatial),
    ]  # fmt: skip
    provenance = Section("Provenance", header=("what", "value"), rows=list(facts))
    return page(title, lead, [*parts, provenance])


def shown(interval: Interval) -> str:
    """A figure with its interval."""
    if np.isnan(interval.low):
        return number(interval.value)
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _figures(judged: Sequence[Judged]) -> Section:
    rows = [(name, *(shown(found.figures[name]) for found in judged)) for name in judged[0].figures]
    text = (
        "With 95% intervals over patients. Classes are decided at the threshold that was chosen on validation patients."
    )
    if len(judged[0].answers.classes) == 2:
        text += (
            f" ECE looks at the probability of the likelier class, ECE of the positive class at that of"
            f" {judged[0].answers.classes[1]}, as the reliability curve does."
        )
    text += _exact(judged)
    if any(found.rounds for found in judged):
        text += " AUROC is that of each round, averaged; pooled AUROC also compares patients of different rounds."
    return Section("Figures", text, ("figure", *(found.name for found in judged)), rows)


def _exact(judged: Sequence[Judged]) -> str:
    """A sentence on whose proportions have exact intervals."""
    exact = [found.name for found in judged if found.answers.patient_count == len(found.answers)]
    if not exact:
        return ""
    whose = "" if len(exact) == len(judged) else f" for {', '.join(exact)}"
    figures = "accuracy, sensitivity and specificity" if len(judged[0].answers.classes) == 2 else "accuracy"
    return f" Intervals of {figures} are exact (Clopper and Pearson){whose}."


def _curves(judged: Sequence[Judged]) -> Section:
    judged = judged[:_FOUND_MOST]
    classes = judged[0].answers.classes
    pairs = [(found.name, found.answers) for found in judged]
    charts = [
        Chart(f"ROC of {name}: sensitivity over false positives", _rocs(pairs, column), 1.0, 320, 320, ("0", "1"), True)
        for column, name in enumerate(classes)
        if len(classes) > 2 or column == 1
    ]
    reliable = tuple(_reliable(name, answers) for name, answers in pairs)
    charts.append(Chart(_reliability_of(classes), reliable, 1.0, 320, 320, ("0", "1"), True))
    return Section("Curves", charts=charts)


def _reliability_of(classes: Sequence[str]) -> str:
    """What the curve shows: of two classes the probability that a clinician is told, of more the likeliest's."""
    if len(classes) == 2:
        return f"Reliability of {classes[1]}: share of bags that are {classes[1]}, over its probability"
    return "Reliability of the likeliest class: share of bags of which it is the true one, over its probability"


def _rocs(pairs: list[tuple[str, Answers]], column: int) -> tuple[Curve, ...]:
    curves = []
    for name, answers in pairs:
        false, true = metrics.roc(answers.labels == column, answers.scores[:, column])
        curves.append(Curve(name, tuple(true.tolist()), tuple(false.tolist())))
    return tuple(curves)


def _reliable(name: str, answers: Answers) -> Curve:
    curve = metrics.reliability(answers.labels, answers.scores, of=1 if len(answers.classes) == 2 else None)
    return Curve(name, tuple(curve.accuracy.tolist()), tuple(curve.confidence.tolist()))


def _confusion(found: Judged) -> Section:
    answers = found.answers
    table = metrics.confusion(answers.labels, answers.predicted, len(answers.classes))
    rows = [(name, *map(str, row)) for name, row in zip(answers.classes, table.tolist(), strict=True)]
    return Section(
        f"Decisions of {found.name}", header=("truth", *(f"as {name}" for name in answers.classes)), rows=rows
    )


def _classes(judged: Sequence[Judged]) -> Section:
    """AUROC of each of several classes against the rest."""
    names = judged[0].answers.classes
    if len(names) == 2:
        return Section("Classes")
    areas = [(found.name, metrics.auroc_per_class(found.answers.labels, found.answers.scores)) for found in judged]
    rows = [(name, *(number(float(area)) for area in each)) for name, each in areas]
    return Section("Classes", "Pooled AUROC of each class against the rest.", ("model", *names), rows)


def _folds(judged: Sequence[Judged]) -> Section:
    rows = [(found.name, *(number(value) for value in found.rounds.values())) for found in judged if found.rounds]
    if not rows:
        return Section("Rounds")
    text = "AUROC of each round on the patients that it tested."
    return Section("Rounds", text, ("model", *(f"round {name}" for name in judged[0].rounds)), rows)


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
            _p(c.delong),
            _p(c.holm_delong),
            _p(c.mcnemar),
            _p(c.holm_mcnemar),
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


def _p(value: float) -> str:
    return "–" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _space(spatial: Spatial | None) -> Section:
    if spatial is None:
        return Section("Does space matter?")
    rows = [(row.name, number(row.auroc), shown(row.lost), f"{row.moved:.3f}") for row in spatial.rows]
    header = ("tiles", "AUROC", "AUROC lost", "mean change of probability")
    return Section("Does space matter?", spatial.sentence, header, rows)
