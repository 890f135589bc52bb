"""The stages together, on real slides, as a user types them."""

import csv
import itertools
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import call

from wsi_mil import store, workflow
from wsi_mil.predictions import read_predictions
from wsi_mil.stage import artifact_items
from wsi_mil.train_params import TrainParams

MORPHOLOGY = ("--model", "morphology")


@pytest.fixture
def folder(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of one's own, with that cohort in it."""
    (tmp_path / "slides").symlink_to(cohort / "slides")
    shutil.copy(cohort / "labels.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summary(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "summary.csv").open() as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def test_the_four_lines_without_distances_train_and_predict(folder: Path) -> None:
    assert call("tile", "slides/") == 0
    assert call("extract", *MORPHOLOGY) == 0
    assert call("train", "--bags", "feats/", "--epochs", "1") == 0
    slide = min((folder / "slides").iterdir())
    shutil.copy(slide, folder / "slide.tif")
    assert call("predict", "slide.tif") == 0
    (row,), classes, _ = read_predictions(folder / "predictions" / "predictions.csv")
    assert classes == ("far", "near")
    recorded = {p.slide_id: p for p in read_predictions(folder / "model" / "predictions.csv")[0]}
    assert row.probabilities == pytest.approx(recorded[slide.stem].probabilities, abs=1e-5)
    assert row.tiles == recorded[slide.stem].tiles
    # a second call finds tiles and features in the cache
    before = {item: item.source.stat().st_mtime_ns for item in artifact_items(folder / "predictions" / "cache")}
    assert call("predict", "slide.tif") == 0
    assert {item: item.source.stat().st_mtime_ns for item in before} == before
    # raw slides and their features say the same
    assert call("predict", "--bags", f"feats/{slide.stem}.h5", "--out", "other") == 0
    assert read_predictions(folder / "other" / "predictions.csv")[0][0].probabilities == row.probabilities
    assert (folder / "model" / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")


@pytest.mark.slow
def test_a_run_with_normalised_stain_predicts_raw_slides_as_it_was_trained(folder: Path) -> None:
    assert call("run", "slides", *MORPHOLOGY, "--stain", "macenko") == 0
    slide = min((folder / "slides").iterdir())
    assert call("predict", slide) == 0
    (cached,) = [item.source for item in artifact_items(folder / "predictions" / "cache" / "feats")]
    made, again = store.read(folder / "feats" / f"{slide.stem}.h5"), store.read(cached)
    assert made.params["stain"]["method"] == "macenko"
    assert again.attrs["stain"] == made.attrs["stain"]
    assert (again.arrays["features"] == made.arrays["features"]).all()
    assert call("extract", *MORPHOLOGY, "--out", "plain") == 0
    assert call("predict", "--bags", "plain", "--out", "other") == 1
    rows, *_ = read_predictions(folder / "other" / "predictions.csv")
    assert {row.status for row in rows} == {"failed"}
    assert "stain is none and not macenko" in rows[0].error
    assert call("run", "slides", *MORPHOLOGY) == 1  # other features lie there


def test_a_cohort_with_bad_slides_goes_on_with_the_others_and_leaves_with_1(
    folder: Path, cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "slides").unlink()
    shutil.copytree(cohort / "slides", folder / "slides")
    slides = sorted((folder / "slides").iterdir())
    slides[0].write_bytes(slides[0].read_bytes()[:20_000])
    (folder / "slides" / "page.svs").write_text("<!DOCTYPE html><html>Please log in</html>")
    assert call("run", "slides", *MORPHOLOGY) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "failed: page: " in error
    assert f"failed: {slides[0].stem}: " in error
    assert summary(folder / "tiles")["page"]["status"] == "failed"
    assert (folder / "model" / "checkpoint.safetensors").exists()
    assert f"{slides[0].stem} was left out" in (folder / "model" / "report.html").read_text()
    assert not list(folder.rglob(".*.tmp"))
    assert call("run", "slides", *MORPHOLOGY) == 1  # and again: nothing but the failures is done anew


def test_features_of_tiles_that_are_gone_are_left_out(folder: Path, cohort: Path) -> None:
    """Tiles are made again by other options, and a slide fails now: what was made of its old tiles is of no cohort."""
    (folder / "slides").unlink()
    shutil.copytree(cohort / "slides", folder / "slides")
    lost, *others = sorted((folder / "slides").iterdir())
    assert call("tile", "slides") == 0
    assert call("extract", *MORPHOLOGY) == 0
    lost.write_bytes(lost.read_bytes()[:20_000])
    assert call("tile", "slides", "--min-coverage", "0.4", "--overwrite") == 1
    assert call("extract", *MORPHOLOGY, "--overwrite") == 0
    assert (folder / "feats" / f"{lost.stem}.h5").exists()  # nothing is lost
    found = workflow.labelled(workflow.LabelTable(folder / "labels.csv"), workflow.Folders.under(folder))
    assert found.left_out[lost.stem].startswith("its features are of tiles that are gone: ")
    assert {member.slide_id for member in found.members} == {path.stem for path in others}


@pytest.mark.parametrize(
    ("labels", "model", "message"),
    [
        ("slide_id,class\nslide-000,x\n", "morphology", "has no column label"),
        ("slide_id,label\nslide-000,x\nghost,y\n", "morphology", "row 3: no stage has seen a slide ghost"),
        (None, "morfology", "did you mean morphology"),
    ],
)
def test_a_run_checks_labels_and_encoder_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], labels: str | None, model: str, message: str
) -> None:
    if labels:
        (folder / "labels.csv").write_text(labels)
    assert call("run", "slides", "--model", model) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "tiles").exists()


@pytest.mark.slow
def test_two_slides_of_one_name_are_not_mistaken_for_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("tile", "slides/") == 0
    assert call("extract", *MORPHOLOGY) == 0
    assert call("train", "--epochs", "1") == 0
    for index, place in enumerate(("one", "two", "copy")):
        (folder / place).mkdir()
        shutil.copy(sorted((folder / "slides").iterdir())[index % 2], folder / place / "slide.tif")
    assert call("predict", "one/slide.tif") == 0
    assert call("predict", "copy/slide.tif") == 0  # the very same slide
    assert call("predict", "two/slide.tif") == 1
    assert "was predicted as slide before: give another --out" in capsys.readouterr().err
    assert call("predict", "two/slide.tif", "--out", "elsewhere") == 0
    (folder / "elsewhere" / "cache" / "tiles" / "slide.h5").write_bytes(b"torn")  # a damaged cache is made anew
    assert call("predict", "two/slide.tif", "--out", "elsewhere") == 0
    (folder / "one" / "slide.tif").unlink()  # a slide that moved is found where it is named
    shutil.rmtree(folder / "predictions" / "cache" / "feats")
    assert call("predict", "copy/slide.tif") == 0


def test_features_never_come_from_another_slide_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_slide: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    make_slide("slide.tif").rename(tmp_path / "slides" / "a.tif")
    assert call("tile", "slides") == 0
    make_slide("slide.tif", seed=1).rename(tmp_path / "slides" / "a.tif")
    assert call("extract", *MORPHOLOGY) == 1
    assert "a.tif is not the slide that its tiles were made from" in capsys.readouterr().err


def test_tiling_a_folder_that_holds_its_own_output_finds_no_slides_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_slide: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_slide("slide.tif")
    assert call("tile", ".") == 0
    assert call("tile", ".") == 0
    assert list(summary(tmp_path / "tiles")) == ["slide"]


def test_artifacts_may_lie_beside_their_slides_but_never_over_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_slide: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "s" / "sub").mkdir(parents=True)
    make_slide("slide.tif").rename(tmp_path / "s" / "sub" / "slide.tif")
    for _ in range(2):  # its own artifacts and previews are no reason to see no slides, and no slides
        assert call("tile", "s", "--out", "s") == 0
        assert list(summary(tmp_path / "s")) == ["sub/slide"]
    Image.new("RGB", (600, 600), "white").save(tmp_path / "s" / "b.jpg")
    content = (tmp_path / "s" / "b.jpg").read_bytes()
    assert call("tile", "s", "--out", "s", "--slide-mpp", "1") == 2
    assert "the preview of s/b.jpg would be written over it" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "s" / "b.jpg").read_bytes() == content


@pytest.mark.parametrize("words", [("tile", "slides"), ("run", "slides", *MORPHOLOGY)])
@pytest.mark.parametrize("mpp", ["25", "0.01", "nan"])
def test_an_impossible_resolution_is_refused_once_and_before_any_slide(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], mpp: str
) -> None:
    assert call(*words, "--slide-mpp", mpp) == 2
    assert f"--slide-mpp {mpp}: give um per level-0 px, between 0.05 and 10" in capsys.readouterr().err
    assert not (folder / "tiles").exists()


def test_slides_that_moved_are_found_again(folder: Path, cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "slides").unlink()
    shutil.copytree(cohort / "slides", folder / "slides")
    for extra in sorted((folder / "slides").iterdir())[2:]:
        extra.unlink()
    assert call("tile", "slides") == 0
    (folder / "slides").rename(folder / "elsewhere")
    assert call("extract", *MORPHOLOGY) == 1
    assert "--slides DIR" in capsys.readouterr().err
    assert call("extract", *MORPHOLOGY, "--slides", "elsewhere") == 0
    assert [row["status"] for row in summary(folder / "feats").values()] == ["done", "done"]


def test_a_training_draws_slides_that_moved(
    folder: Path, cohort: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "slides").unlink()
    shutil.copytree(cohort / "slides", folder / "slides")
    assert call("tile", "slides") == 0
    assert call("extract", *MORPHOLOGY) == 0
    (folder / "slides").rename(folder / "elsewhere")
    pictures = []
    for words in ((), ("--slides", "elsewhere", "--overwrite")):
        caplog.clear()
        assert call("train", "--bags", "feats", "--epochs", "1", *words) == 0
        pictures.append((folder / "model" / "report.html").read_text().count("data:image/"))
        assert ("--slides" in caplog.text + capsys.readouterr().err) == (not words)
    assert pictures[0] < pictures[1]


def test_a_training_that_run_would_replace_is_replaced_alone_by_the_command_it_names(tmp_path: Path) -> None:
    labels = workflow.LabelTable(tmp_path / "my labels.csv")
    words = shlex.split(workflow._training_anew(labels, workflow.Folders.under(tmp_path), TrainParams("abmil")))
    assert words[:2] == ["wsimil", "train"]
    assert words[-1] == "--overwrite"
    given = dict(itertools.pairwise(words[2:-1]))
    assert (given["--labels"], given["--aggregator"], given["--seed"]) == (str(labels.path), "abmil", "0")
    assert given["--bags"] == str(tmp_path / "feats")


def test_a_plain_image_needs_a_resolution_by_option_or_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_slide: Callable[..., Path]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    with Image.open(make_slide("slide.tif")) as file:
        file.convert("RGB").save(tmp_path / "slides" / "a.png")
    assert call("tile", "slides") == 1
    assert "--slide-mpp" in summary(tmp_path / "tiles")["a"]["error"]
    assert call("tile", "slides", "--slide-mpp", "1.0") == 0
    assert int(summary(tmp_path / "tiles")["a"]["tiles"]) > 0
    (tmp_path / "slides.csv").write_text("slide,mpp\na.png,1.0\n")
    assert call("tile", "slides", "--slides-csv", "slides.csv", "--out", "told") == 0
    told = store.read_attrs(tmp_path / "told" / "a.h5")
    assert (told["mpp_x"], told["mpp_source"]) == (1.0, "option")
    assert told["fingerprint"] == store.read_attrs(tmp_path / "tiles" / "a.h5")["fingerprint"]


def test_real_slides_good_and_bad_each_end_in_one_line(shared: Path, tmp_path: Path) -> None:
    """Each slide is done, empty, or fails alone; nothing is half-written, and no bad slide poisons the next."""
    slides = tmp_path / "slides"
    for kind in ("wsi", "wsi_bad"):
        shutil.copytree(shared / "data" / kind, slides / kind)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "wsi_mil", "tile", "slides", "--workers", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    rows = summary(tmp_path / "tiles")
    status = {slide_id.split("/")[1]: row["status"] for slide_id, row in rows.items()}
    assert {name for name, what in status.items() if what == "done"} == {
        "cmu-1-small-region",
        "CMU-1-Small-Region_pyramid",
    }
    assert {name for name, what in status.items() if what == "empty"} == {"fluorescence-dapi", "small"}
    assert len(status) == 14
    for row in rows.values():
        assert (row["status"] == "done") == (row["error"] == "")
        assert len(row["error"].splitlines()) <= 1
    assert not list((tmp_path / "tiles").rglob(".*"))
    assert call("extract", *MORPHOLOGY, "--tiles", tmp_path / "tiles", "--out", tmp_path / "feats") == 0


@pytest.mark.slow
def test_a_run_over_real_slides_trains_on_the_good_and_names_the_bad(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("wsi", "wsi_bad"):
        shutil.copytree(shared / "data" / kind, tmp_path / "slides" / kind)
    for index in range(4):  # the real section under other names, since two patients of a class is the least
        shutil.copy(shared / "data" / "wsi" / "cmu-1-small-region.svs", tmp_path / "slides" / f"s{index}.svs")
    rows = [f"s{index}.svs,{'ab'[index % 2]}" for index in range(4)] + ["small.svs,a", "unreadable.svs,b"]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,label", *rows]) + "\n")
    tiny = ("--mpp", "0.5", "--tile-px", "128", "--allow-mpp-mismatch")  # many tiles of a small section
    assert call("run", "slides", *MORPHOLOGY, *tiny) == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    for name in ("wsi/boxes", "wsi/camelyon-jpeg", "wsi_bad/broken", "wsi_bad/unreadable", "wsi_bad/lfs-pointer"):
        assert f"failed: {name}: " in printed
    page = (tmp_path / "model" / "report.html").read_text()
    assert "wsi/small was left out" in page
    assert "wsi_bad/unreadable was left out" in page


def _arrays(folder: Path) -> dict[str, tuple]:
    found = {}
    for item in artifact_items(folder):
        artifact = store.read(item.source)
        found[item.slide_id] = (artifact.attrs["checksum"], {k: v.tobytes() for k, v in artifact.arrays.items()})
    return found


@pytest.mark.slow
def test_killing_tile_and_extract_at_random_moments_changes_no_result(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    moments, killed = random.Random(1), 0
    for command, out in (("tile slides", "tiles"), ("extract --model morphology", "feats")):
        words = [sys.executable, "-m", "wsi_mil", *command.split(), "--out", out]
        for _ in range(4):
            process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            while process.poll() is None and not (folder / out).exists():
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 2))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            _arrays(folder / out)  # whatever exists is whole: its checksum is verified
        assert call(*command.split(), "--out", out) == 0
    assert killed >= 4
    words = [sys.executable, "-m", "wsi_mil", "train", "--epochs", "3"]
    for _ in range(3):
        process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(moments.uniform(2, 8))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert call("train", "--epochs", "3") == 0
    assert call("train", "--epochs", "3", "--out", "model-calm") == 0
    made = [(folder / name / "checkpoint.safetensors").read_bytes() for name in ("model", "model-calm")]
    assert made[0] == made[1]
    assert call("tile", "slides", "--out", "tiles-calm") == 0
    assert call("extract", *MORPHOLOGY, "--tiles", "tiles-calm", "--out", "feats-calm") == 0
    assert {k: v[1] for k, v in _arrays(folder / "feats").items()} == {
        k: v[1] for k, v in _arrays(folder / "feats-calm").items()
    }
    assert not list(folder.rglob(".*.tmp"))
