"""What commands print when they are done."""

import math
from pathlib import Path

import numpy as np
import pytest

from wsi_mil.evaluation import Answers, Comparison, Study, judge
from wsi_mil.metrics import Interval, Resampling
from wsi_mil.screen import show_study


def test_what_is_not_defined_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.arange(6) % 2
    names = tuple("abcdef")
    answers = Answers(names, names, labels, np.full((6, 2), 0.5), labels, ("",) * 6, ("neg", "pos"))
    unknown = Interval(math.nan, math.nan, math.nan)
    untold = Comparison("one", "two", unknown, math.nan, math.nan, math.nan, math.nan)
    show_study(Study((judge("one", answers, Resampling(0, 100)),), (untold,)), Path("out"))
    out = capsys.readouterr().out
    assert "nan" not in out
    [row] = [line for line in out.splitlines() if "one - two" in line]
    assert row.split() == ["│", "one", "-", "two", "│", "–", "│", "–", "│", "–", "│"]
