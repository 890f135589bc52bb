"""How good models are, as sections of a page: figures with intervals, curves, decisions."""

from collections.abc import Sequence

import numpy as np

from wsi_mil import metrics
from wsi_mil.evaluation import Judged
from wsi_mil.metrics import Interval
from wsi_mil.report.chart import COLOURS, SHARES, Chart, Curve
from wsi_mil.report.page import Section, Table, number

_SIDE = 340  # of a square chart
_CHANCE = 5  # the darkest colour


def judged_sections(judged: Sequence[Judged], notes: Sequence[str]) -> list[Section]:
    """What every page that judges models says of them first.

    Args:
        judged: the models.
        notes: what one should bear in mind, as sentences.
    """
    return [_figures(judged), _remarks(notes), _curves(judged), _decisions(judged)]


def _remarks(notes: Sequence[str]) -> Section:
    return Section("To bear in mind", points=[f"{note[0].upper()}{note[1:]}." for note in notes])


def shown(interval: Interval) -> str:
    """A figure with its interval."""
    if np.isnan(interval.low):
        return number(interval.value)
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _figures(judged: Sequence[Judged]) -> Section:
    rows = [(name, *(shown(found.figures[name]) for found in judged)) for name in judged[0].figures]
    text = "With 95% intervals over patients."
    if len(judged[0].answers.classes) > 2:
        text += " The likeliest class is decided for."
    else:
        text += (
            " Classes are decided at the threshold that was chosen on validation patients."
            f" ECE looks at the probability of the likelier class, ECE of the positive class at that of"
            f" {judged[0].answers.classes[1]}, as the reliability curve does."
        )
    text += _exact(judged)
    if any(found.rounds for found in judged):
        text += (
            " AUROC is that of each round, averaged; pooled AUROC and AUPRC also compare patients of different rounds,"
            " and with them scores of different models."
        )
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
    """Of as many models as there are colours: of two classes the curves of the last, of more those of each."""
    judged = judged[:COLOURS]
    classes = judged[0].answers.classes
    columns = range(len(classes)) if len(classes) > 2 else (1,)
    charts = [chart for column in columns for chart in (_roc(judged, column), _precision(judged, column))]
    return Section("Curves", charts=[*charts, _reliability(judged)])


def _square(caption: str, curves: tuple[Curve, ...], across: str, up: str, diagonal: bool = True) -> Chart:
    return Chart(caption, curves, 1.0, _SIDE, _SIDE, across, up, diagonal, SHARES, SHARES)


def _roc(judged: Sequence[Judged], column: int) -> Chart:
    curves = []
    for found in judged:
        answers = found.answers
        false, true = metrics.roc(answers.labels == column, metrics.by_log_odds(answers.scores)[:, column])
        name = _with_figure(found, "pooled AUROC")
        curves.append(Curve(name, tuple(true.tolist()), tuple(false.tolist())))
    caption = f"ROC of {judged[0].answers.classes[column]}; the straight line is what guesses do"
    return _square(caption, tuple(curves), "false positives (1 − specificity)", "true positives (sensitivity)")


def _precision(judged: Sequence[Judged], column: int) -> Chart:
    """In steps, and with the share of the class, which is what guesses reach."""
    curves = []
    for found in judged:
        answers = found.answers
        order = metrics.by_log_odds(answers.scores)[:, column]
        recall, precision = metrics.precision_recall(answers.labels == column, order)
        gained = np.diff(recall, prepend=0) > 0  # what gains no recall has no width
        recall, precision = recall[gained], precision[gained]
        at = np.repeat(np.concatenate([[0], recall]), 2)[1:-1]
        name = _with_figure(found, "AUPRC")
        curves.append(Curve(name, tuple(np.repeat(precision, 2).tolist()), tuple(at.tolist())))
    answers = judged[0].answers
    share, name = float((answers.labels == column).mean()), answers.classes[column]
    curves.append(Curve(f"share of {name}: what guesses reach", (share, share), (0.0, 1.0), _CHANCE, True))
    return _square(f"Precision and recall of {name}", tuple(curves), "recall (sensitivity)", "precision", False)


def _with_figure(found: Judged, figure: str) -> str:
    """The name of a curve, with the area below it where that is in the table."""
    if len(found.answers.classes) > 2:
        return found.name
    return f"{found.name}: {figure} {shown(found.figures[figure])}"


def _reliability(judged: Sequence[Judged]) -> Chart:
    """Of two classes that of the probability that a clinician is told, of more that of the likeliest's."""
    classes, curves = judged[0].answers.classes, []
    for found in judged:
        answers = found.answers
        curve = metrics.reliability(answers.labels, answers.scores, of=1 if len(classes) == 2 else None)
        curves.append(Curve(found.name, tuple(curve.accuracy.tolist()), tuple(curve.confidence.tolist())))
    if len(classes) == 2:
        caption = f"Reliability of {classes[1]}: share of bags that are {classes[1]}, over its probability"
        across, up = f"probability of {classes[1]}", f"share that are {classes[1]}"
    else:
        caption = "Reliability of the likeliest class: share of bags of which it is the true one, over its probability"
        across, up = "probability of the likeliest class", "share of which it is true"
    caption += "; on the straight line probabilities are true, and each sign stands for as many bags"
    return _square(caption, tuple(curves), across, up)


def _decisions(judged: Sequence[Judged]) -> Section:
    """A confusion matrix for each model, with shares of the true class."""
    text = "How many bags of each true class were decided for which, and which share of that class."
    return Section("Decisions", text, tables=[_confusion(found) for found in judged])


def _confusion(found: Judged) -> Table:
    answers = found.answers
    table = metrics.confusion(answers.labels, answers.predicted, len(answers.classes))
    rows = [
        (name, *(f"{count} ({100 * count / total:.0f} %)" if (total := sum(row)) else "0" for count in row))
        for name, row in zip(answers.classes, table.tolist(), strict=True)
    ]
    return Table(found.name, ("truth", *(f"as {name}" for name in answers.classes)), rows)
