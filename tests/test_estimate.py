"""What a cohort will take is told from some of its slides, and what was told comes true."""

import math
from pathlib import Path

import numpy as np
import pytest
from test_cli import call

from wsi_mil import store
from wsi_mil.errors import SlideError
from wsi_mil.estimate import STAGES, Cost, Estimate, Measured, _evenly, _together, estimate
from wsi_mil.slides import slide_bytes
from wsi_mil.stage import Item, RunOptions, artifact_items, run
from wsi_mil.tiling import TileParams, TileStage

DIM = 768


@pytest.fixture
def cohort(make_slide) -> list[Item]:
    sizes = {"small": 300.0, "middle": 500.0, "large": 700.0}
    return [Item(name, make_slide(f"{name}.tif", radius_um=radius)) for name, radius in sizes.items()]


def test_what_is_told_of_every_slide_comes_true(cohort: list[Item], tmp_path: Path) -> None:
    stage = TileStage(TileParams(tile_um=128.0), 1)
    told = estimate(stage, cohort, DIM)
    run(stage, cohort, tmp_path / "tiles", RunOptions())
    artifacts = [store.read(item.source) for item in artifact_items(tmp_path / "tiles")]
    assert told.slide_bytes == sum(item.source.stat().st_size for item in cohort)
    assert told.tiles == sum(len(one.arrays["coords"]) for one in artifacts) > 50
    made = [path for path in (tmp_path / "tiles").iterdir() if path.suffix in {".h5", ".jpg", ".geojson"}]
    written = sum(path.stat().st_size for path in made if path.name != "index.html")
    assert told.total("tile").written == pytest.approx(written, rel=0.15)  # who published it is not recorded yet
    assert told.total("extract").written == pytest.approx(told.tiles * (2 * DIM + 16), abs=3)  # of a mean
    for name in STAGES:
        assert told.total(name).cpu_s > 0
        assert told.total(name).read > 0


def test_nothing_is_left_behind(cohort: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    estimate(TileStage(TileParams(), 1), cohort[:1], DIM)
    assert not list((tmp_path / "temporary").iterdir())


def test_slides_are_drawn_evenly_by_their_size() -> None:
    items = [Item(f"{index:02}", Path()) for index in range(20)]
    assert [int(item.slide_id) for item in _evenly(items, 4)] == [2, 7, 12, 17]
    assert _evenly(items[:3], 8) == items[:3]


def test_the_tiles_that_are_read_lie_together_in_the_order_of_the_list() -> None:
    coords = np.stack(np.meshgrid(np.arange(100), np.arange(100)), -1).reshape(-1, 2)
    some = _together(coords, 256)
    assert len(some) == 256
    assert (np.ptp(some, axis=0) <= 17).all()
    assert (np.diff(some[:, 1]) >= 0).all()
    assert (_together(coords[:10], 256) == coords[:10]).all()
    assert len(_together(coords[:0], 256)) == 0


def test_slides_that_fail_count_as_their_share() -> None:
    cost = dict.fromkeys(STAGES, Cost(2.0, 10, 4))
    told = Estimate(
        100, 0, [Measured("a", 10, cost), Measured("b", 20, cost)], {"c": SlideError(""), "d": SlideError("")}
    )
    assert (told.working, told.tiles) == (50, 750)
    assert told.total("tile") == Cost(100.0, 500, 200)
    assert math.isclose(told.total("extract").cpu_s, 100.0)


def test_a_cohort_of_which_nothing_can_be_tiled_is_an_error_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("<!DOCTYPE html>")
    with pytest.raises(SlideError, match=r"none of 1 slides that were tried can be tiled, as a: .*a\.svs"):
        estimate(TileStage(TileParams(), 1), [Item("a", tmp_path / "a.svs")], DIM)


def test_the_bytes_of_a_slide_are_those_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"12")
    (tmp_path / "a" / "Data0001.dat").write_bytes(b"345")
    assert slide_bytes(tmp_path / "a.mrxs") == 5
    assert slide_bytes(tmp_path / "gone.svs") == 0


def test_the_command_prints_it_and_writes_nothing(
    make_slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    make_slide("a.tif").rename(tmp_path / "slides" / "a.tif")
    (tmp_path / "slides" / "b.svs").write_text("<!DOCTYPE html><html>Please log in</html>")
    assert call("tile", "slides", "--dry-run", "--for", "uni") == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("2 slides, ")
    for words in ("extract", "the features of uni", "1 of the 2 that were tried failed"):
        assert words in printed.out
    assert "failed: b: " in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slides"]
    assert call("tile", "slides", "--dry-run", "--min-coverage", "0") == 2
    assert call("tile", "slides", "--dry-run", "--scheduler", "tcp://127.0.0.1:9") == 2
    assert "leave --scheduler out" in capsys.readouterr().err


def test_a_part_without_slides_is_refused(
    make_slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_slide("slides/a.tif")
    assert call("tile", "slides", "--dry-run", "--shard", "2/2") == 2
    assert "--shard: this part of the cohort holds no slide" in capsys.readouterr().err
