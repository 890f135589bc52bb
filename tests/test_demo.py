from pathlib import Path

import pytest

from wsi_mil import demo
from wsi_mil.errors import OptionError, TableError
from wsi_mil.predictions import read_predictions


def test_the_quick_demo_runs_every_stage_and_writes_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wsi_mil")
    scores = demo.show(tmp_path / "demo", seeds=1, quick=True)
    assert [score.model for score in scores] == ["das-mil", "abmil", "self-attention"]
    assert all(0 <= auroc <= 1 for score in scores for auroc in score.aurocs)
    printed = capsys.readouterr().out
    for score in scores:
        assert score.model in printed
        assert score.cells[1] in printed
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<img ") == 6  # of each class: the slide, its tiles, the attention
    assert scores[0].cells[1] in page
    assert "no figure here is a result" in page
    assert len(page) < 10_000_000
    rows = read_predictions(tmp_path / "demo" / "predictions" / "predictions.csv")[0]
    assert {row.status for row in rows} == {"done"}
    assert len(rows) == 2
    for row in rows:  # each slide's section says what was predicted of it
        section = page[page.index(f'-heading">{row.slide_id}: ') :]
        assert f"far {row.probabilities[0]:.3f}, near {row.probabilities[1]:.3f}" in section[:400]
    for command in ("tile", "extract", "distances", "train", "predict"):
        assert any(message.startswith(f"$ wsimil {command} ") for message in caplog.messages)


def test_a_folder_with_labels_of_its_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("slide_id,label\nMüller,x\n".encode("latin-1"))  # as old spreadsheets write
    with pytest.raises(TableError, match="tells of other slides"):
        demo.show(tmp_path, seeds=1, quick=True)
    assert (tmp_path / "labels.csv").read_text(encoding="latin-1") == "slide_id,label\nMüller,x\n"
    with pytest.raises(OptionError, match="--seeds 0"):
        demo.show(tmp_path / "demo", seeds=0)


@pytest.mark.slow
def test_distance_is_learnt_where_position_free_models_guess(tmp_path: Path) -> None:
    by_model = {score.model: score for score in demo.show(tmp_path, seeds=3)}
    assert by_model["das-mil"].mean >= 0.95
    for name in ("abmil", "self-attention"):
        assert 0.3 <= by_model[name].mean <= 0.7
