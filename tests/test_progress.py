"""How a training shows its epochs: lines in a file, a live table on a terminal, nothing where another process talks."""

import io
import logging
import re
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console
from rich.text import Text

from wsi_mil import progress
from wsi_mil.learning import Epoch, Pace
from wsi_mil.learning.logs import FOLDER, TensorBoard
from wsi_mil.progress import print_table

FIGURES = {"epoch": 0, "lr": 1e-3, "train_loss": 0.7, "val_loss": 0.5, "val_auroc": float("nan")}


def tell(total: int, done: int = 0) -> None:
    with progress.epochs(total, done) as told:
        for epoch in range(done, total):
            told.tell(FIGURES | {"epoch": epoch, "val_loss": 0.5 + abs(epoch - 1)}, epoch <= 1, 12.34)


def test_elsewhere_than_on_a_terminal_an_epoch_is_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, "wsi_mil"):
        tell(3)
    assert len(caplog.messages) == 3
    assert caplog.messages[1].startswith(
        "epoch 2 of 3: lr 0.001, train loss 0.7, val loss 0.5, val auroc –, the best so far, 12.3 bags/s, "
    )
    assert "best" not in caplog.messages[2]
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 60.0)
    caplog.clear()
    with caplog.at_level(logging.INFO, "wsi_mil"):
        tell(50, done=40)
    assert [line.split(":")[0] for line in caplog.messages] == ["epoch 50 of 50"]


def test_on_a_terminal_they_are_a_table_with_the_best_marked_and_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=100, height=12))
    tell(9)
    last = Text.from_ansi(screen.getvalue()).plain.split("train loss")[-1]
    for words in ("loss", "auroc", "bags/s", "9 of at most 9 epochs"):
        assert words in last
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in last.splitlines() if line.count("│") > 3]
    assert rows == [["*", "2"], *(["", number] for number in "6789")]


def test_only_the_first_process_talks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level(logging.INFO, "wsi_mil"):
        tell(2)
        with progress.progress("train", 1) as track:
            track.advance("one")
    assert not caplog.messages


class _Writer:
    made: ClassVar[list["_Writer"]] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.start, self.told = folder, purge_step, list[Any]()
        self.closed = False
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.told.append((name, value, step))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_tensorboard_is_told_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = _Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "tensorboard" else None)
    old = tmp_path / FOLDER / "events.out.tfevents.1"
    old.parent.mkdir()
    old.touch()
    board = TensorBoard(tmp_path, 3)
    assert old.exists()  # it goes on
    board.write(Epoch(3, 1e-3, 0.7, 0.5, {"val_auroc": 0.9}), Pace(10, 2.0, 0.1))
    board.close()
    (writer,) = _Writer.made
    assert (writer.folder, writer.start, writer.closed) == (str(tmp_path / FOLDER), 3, True)
    assert ("val_auroc", 0.9, 3) in writer.told
    assert ("bags_per_s", 5.0, 3) in writer.told
    TensorBoard(tmp_path, 0).close()
    assert not old.exists()


def test_without_a_folder_or_the_package_tensorboard_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for folder in (None, tmp_path):
        board = TensorBoard(folder, 0)
        board.write(Epoch(0, 1e-3, 0.7, 0.5, {}), Pace(1, 1.0, 0.0))
        board.close()
    assert list(tmp_path.iterdir()) == []


WIDE = ["slide", "predicted", *(f"class{index}" for index in range(14)), "warnings"]
ROW = ["a/slide/of/a/name", "class3", *(f"0.1{index:02d}" for index in range(14)), "unlike training " * 8]


def test_a_table_that_nobody_looks_at_has_each_row_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("t.csv", WIDE, [ROW, ["b"]])
    lines = [line for line in capsys.readouterr().out.splitlines() if "class3" in line]
    header, row = ([cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")] for line in lines)
    assert (header, row) == (WIDE, [cell.strip() for cell in ROW])


@pytest.mark.parametrize("columns", [80, 50])
def test_a_terminal_that_is_too_narrow_for_a_table_shows_every_column(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table("t.csv", WIDE, [ROW, ["b"]])
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= columns
    words = re.split(r"[\s│┃]+", out)
    assert {*WIDE, *ROW[1:-1]} <= set(words)  # whole, each in one piece
    assert words.count("unlike") == 8
    assert words.count("slide") > 1  # tables that follow begin with the names of the rows, too


def test_a_table_that_fits_is_one_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    names = ["das-mil", "abmil", "max", "mean", "transmil", "gcn"]
    print_table("metrics.csv", ["figure", *names], [["AUROC", *["0.912 [0.812, 0.991]"] * 6]])
    assert capsys.readouterr().out.count("figure") == 1
