"""Slides on an S3 server, from the command line: what comes out is what the same slides give when they lie here."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from far import BUCKET, s3_server, upload
from multifile import write_dicom, write_mrxs, write_vms
from painting import EOSIN, disc, flat, noisy
from planted import plant_cohort
from test_cli import call
from test_encoders_weights import trained_on

from wsi_mil import store
from wsi_mil.encoders import load_encoder
from wsi_mil.predictions import read_predictions
from wsi_mil.remote import CacheParams, Url, bring
from wsi_mil.slides import find_slides, slide_fingerprint

TINY = ("--model", "timm:test_vit", "--weights", "random:0", "--device", "cpu")
GEOMETRY = ("--tile-px", "224", "--tile-um", "256")


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def here(tmp_path: Path, make_slide: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with two slides in ``slides/``, which lie at ``s3://BUCKET/cohort`` too."""
    make_slide("slides/a.tif", (1024, 1024))
    make_slide("slides/deep/b.tif", (1024, 1024), radius_um=300, seed=1)
    (tmp_path / "slides" / "deep" / "notes.txt").write_text("no slide")
    upload(tmp_path / "slides", f"s3://{BUCKET}/cohort")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def attrs_of(path: str) -> dict[str, object]:
    """What is recorded, but for where the slide lies, and the checksum over that."""
    read = store.read_attrs(Path(path))
    return {name: value for name, value in read.items() if name not in ("slide_path", "checksum")}


def test_slides_on_s3_give_what_they_give_here(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = ("--cache", "cache", "--cache-size", "50MB")
    assert call("tile", "slides", *GEOMETRY, "--out", "tiles-here") == 0
    assert call("tile", f"s3://{BUCKET}/cohort", *GEOMETRY, "--out", "tiles-far", *far) == 0
    assert call("extract", *TINY, "--tiles", "tiles-here", "--out", "feats-here") == 0
    assert call("extract", *TINY, "--tiles", "tiles-far", "--out", "feats-far", *far) == 0
    for slide_id in ("a", "deep/b"):
        for stage in ("tiles", "feats"):
            mine, other = (store.read(Path(f"{stage}-{where}/{slide_id}.h5")) for where in ("here", "far"))
            assert mine.arrays.keys() == other.arrays.keys()
            for name, values in mine.arrays.items():
                assert values.tobytes() == other.arrays[name].tobytes(), name
            assert attrs_of(f"{stage}-here/{slide_id}.h5") == attrs_of(f"{stage}-far/{slide_id}.h5")
    assert store.read_attrs(Path("feats-far/deep/b.h5"))["slide_path"] == f"s3://{BUCKET}/cohort/deep/b.tif"
    capsys.readouterr()
    # Slides that move to a server, or back, make nothing stale.
    assert call("tile", f"s3://{BUCKET}/cohort", *GEOMETRY, "--out", "tiles-here", *far) == 0
    assert call("tile", "slides", *GEOMETRY, "--out", "tiles-far") == 0
    assert "2 already there" in capsys.readouterr().out


def test_answers_about_slides_on_s3_are_those_here(here: Path) -> None:
    trained_on(here / "model" / "checkpoint.safetensors", load_encoder("timm:test_vit", "random:0"))
    assert call("predict", "slides/a.tif", "--out", "here", "--device", "cpu") == 0
    far = ("--device", "cpu", "--cache", "cache")
    assert call("explain", f"s3://{BUCKET}/cohort/a.tif", "--out", "far", "--occlusions", "1", *far) == 0
    rows = [json.loads(Path(where, "predictions.json").read_text())["slides"][0] for where in ("here", "far")]
    assert rows[0]["probabilities"] == rows[1]["probabilities"]
    assert rows[1]["slide_id"] == "a"
    assert list(Path("far/explanations").rglob("heatmap*.png"))  # drawn on the slide itself


def test_slides_that_moved_to_s3_are_found_there(here: Path) -> None:
    assert call("tile", "slides", *GEOMETRY) == 0
    shutil.rmtree("slides")
    assert call("extract", *TINY) == 1
    assert call("extract", *TINY, "--slides", f"s3://{BUCKET}/cohort", "--cache", "cache") == 0


def test_a_run_that_was_cut_off_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = fsspec.filesystem("s3")
    kept = system.cat_file(f"{BUCKET}/cohort/a.tif")
    far = (f"s3://{BUCKET}/cohort", *GEOMETRY, "--cache", "cache", "--workers", "1")
    listed = dict(find_slides(Url(f"s3://{BUCKET}/cohort"), CacheParams(Path("cache"))))
    slide_fingerprint(listed["a"])  # known since the first run, so that only the slide itself is missed
    system.rm_file(f"{BUCKET}/cohort/a.tif")
    assert call("tile", *far) == 0  # the other slide
    system.pipe_file(f"{BUCKET}/cohort/a.tif", kept)
    capsys.readouterr()
    assert call("tile", *far) == 0
    assert re.search("1 done, 1 already there", capsys.readouterr().out)


def test_a_slide_of_another_content_is_noticed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = (f"s3://{BUCKET}/cohort", *GEOMETRY, "--cache", "cache")
    assert call("tile", *far) == 0
    shutil.copy("slides/deep/b.tif", "slides/a.tif")
    upload(here / "slides", f"s3://{BUCKET}/cohort")
    assert call("tile", *far) == 1
    assert "was made otherwise" in capsys.readouterr().err
    assert call("extract", *TINY, "--cache", "cache") == 1
    assert "a.tif is not the slide that its tiles were made from" in capsys.readouterr().err


def test_slides_of_several_files_are_staged_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture = flat(768, 1024)
    disc(picture, 500, 400, 300, EOSIN)
    image, slides = noisy(picture, 3), tmp_path / "slides"
    write_dicom(slides / "a", image, 1.0)
    write_vms(slides / "b.vms", image, 1.0)
    write_mrxs(slides / "c.mrxs", image, 1.0)
    url = f"s3://{BUCKET}/several"
    upload(slides, url)
    local, far = dict(find_slides(slides)), dict(find_slides(Url(url), CacheParams(tmp_path / "cache")))
    assert local.keys() == far.keys() == {"a/001", "b", "c"}
    for slide_id, place in far.items():
        assert slide_fingerprint(place) == slide_fingerprint(local[slide_id])
    assert call("tile", url, "--out", "far", "--cache", "cache") == 0
    assert call("tile", "slides", "--out", "here") == 0
    for slide_id in local:
        mine, other = (store.read(Path(where, f"{slide_id}.h5")) for where in ("here", "far"))
        assert np.array_equal(mine.arrays["coords"], other.arrays["coords"])
        assert len(mine.arrays["coords"])
        assert mine.attrs["fingerprint"] == other.attrs["fingerprint"]
    one = find_slides(Url(f"{url}/c.mrxs"), CacheParams(tmp_path / "cache"))
    assert [slide.slide_id for slide in one] == ["c"]
    assert slide_fingerprint(one[0].path) == slide_fingerprint(local["c"])


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder to work in, which is as empty afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    "command",
    [
        ("tile", "slides"),
        ("extract", *TINY),
        ("distances",),
        ("train",),
        ("crossval",),
        ("evaluate",),
        ("compare", "a", "b"),
        ("import", "features"),
        ("export", "--format", "stamp"),
        ("run", "slides", *TINY[:2]),
        ("predict", "a.svs"),
        ("explain", "a.svs"),
        ("demo",),
    ],
)
def test_artifacts_do_not_go_to_addresses(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command, "--out", "s3://bucket/made") == 2
    assert "aws s3 sync FOLDER s3://bucket/made" in capsys.readouterr().err


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("command", [("compare", "a"), ("train", "--distances")])
def test_what_is_called_by_its_path_or_written_to_is_not_read_from_addresses(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*command, "s3://bucket/made") == 2
    assert "with your provider's tool" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("command", [("train",), ("crossval",), ("evaluate",), ("distances",), ("import", "features")])
def test_slides_are_not_fetched_only_to_be_asked_for_their_resolution(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*command, "--slides", "s3://bucket/slides") == 2
    assert "s3://bucket/slides: slides are not fetched whole" in (told := capsys.readouterr().err)
    assert "um/px by --slides-csv or --mpp" in told


def test_what_is_not_there_and_what_is_empty_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("tile", f"s3://{BUCKET}/nothing") == 1
    assert f"s3://{BUCKET}/nothing does not exist, or is empty" in capsys.readouterr().err
    assert call("tile", f"s3://{BUCKET}/cohort/deep/gone.svs") == 1
    assert "does not exist, or is empty" in capsys.readouterr().err
    assert call("tile", "s3://no-such-bucket-here/slides") == 1
    assert "is not there" in " ".join(capsys.readouterr().err.split())
    assert call("tile", f"s3://{BUCKET}/cohort", "--cache-size", "lots") == 2
    assert "--cache-size lots: give an amount such as 200GB" in capsys.readouterr().err


# --- artifacts, models and tables far away ---------------------------------------------------------------------------

FAR = f"s3://{BUCKET}/study"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, server: str) -> Path:
    """Features and labels of a cohort, which lie at ``FAR`` too."""
    folder = tmp_path_factory.mktemp("study")
    plant_cohort(folder, slides=12)
    upload(folder, FAR)
    return folder


def test_models_are_made_and_judged_of_features_on_s3_as_of_those_here(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ("--device", "cpu", "--cache", "cache")
    quick = (*few, "--aggregator", "das-mil", "--epochs", "2", "--patience", "2")
    for name, at in (("here", str(study)), ("far", FAR)):
        cohort = ("--bags", f"{at}/feats", "--labels", f"{at}/labels.csv")
        assert call("train", *cohort, *quick, "--out", f"{name}/model") == 0
        assert call("distances", *cohort[:2], *few[2:], "--out", f"{name}/distances") == 0
    assert_same("checkpoint.safetensors", "model")
    assert_same("*.h5", "distances")
    upload(Path("here/model"), f"{FAR}/model")
    for name, at in (("here", str(study)), ("far", FAR)):
        cohort = ("--bags", f"{at}/feats", "--labels", f"{at}/labels.csv")
        model = ("--model", "here/model" if name == "here" else f"{FAR}/model")
        assert call("evaluate", *cohort, *model, *few, "--resamples", "100", "--out", f"{name}/judged") == 0
        assert call("predict", *cohort[:2], *model, *few, "--out", f"{name}/answers") == 0
    assert_same("predictions.csv", "judged")
    answers = [read_predictions(Path(name, "answers", "predictions.csv"))[0] for name in ("here", "far")]
    here, far = ([row.probabilities for row in rows] for rows in answers)
    assert here == far


def assert_same(pattern: str, folder: str) -> None:
    """The same files, to the byte, were made of what lies here and far away."""
    here, far = (sorted(Path(name, folder).rglob(pattern)) for name in ("here", "far"))
    assert here
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in far]


def test_tables_regions_and_tiles_may_lie_on_s3(here: Path) -> None:
    drawn = {"type": "Polygon", "coordinates": [[[0, 0], [1024, 0], [1024, 512], [0, 512], [0, 0]]]}
    for name in ("a", "deep/b"):
        path = here / "regions" / f"{name}.geojson"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"type": "Feature", "geometry": drawn, "properties": {}}))
    (here / "tables").mkdir()
    (here / "tables" / "slides.csv").write_text("slide,mpp\na,0.5\ndeep/b,0.5\n")
    for name in ("regions", "tables"):
        upload(here / name, f"{FAR}/{name}")
    far = ("--cache", "cache")
    told = ("--slides-csv", f"{FAR}/tables/slides.csv", "--regions", f"{FAR}/regions")
    assert call("tile", "slides", "--tile-px", "64", "--tile-um", "64", *told, *far) == 0
    ys = [store.read(Path(f"tiles/{name}.h5")).arrays["coords"][:, 1].max() for name in ("a", "deep/b")]
    assert max(ys) < 512
    upload(here / "tiles", f"{FAR}/tiles")
    shutil.rmtree("tiles")
    morphology = ("--model", "morphology", "--allow-mpp-mismatch", "--device", "cpu")
    assert call("extract", *morphology, "--tiles", f"{FAR}/tiles", *far) == 0
    assert sorted(path.name for path in Path("feats").rglob("*.h5")) == ["a.h5", "b.h5"]


def test_features_that_changed_on_s3_are_fetched_anew_and_what_is_in_use_stays(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    upload(study / "feats", f"{FAR}-2/feats")
    cache = CacheParams(tmp_path / "cache", "50MB")
    first = bring(Url(f"{FAR}-2/feats"), cache)
    assert sorted(path.name for path in first.path.iterdir()) == sorted(
        path.name for path in (study / "feats").iterdir()
    )
    again = bring(Url(f"{FAR}-2/feats"), cache)
    assert again.path == first.path
    fsspec.filesystem("s3").rm_file(f"{FAR}-2/feats/{min(path.name for path in first.path.glob('*.h5'))}")
    second = bring(Url(f"{FAR}-2/feats"), cache)
    assert len(list(second.path.glob("*.h5"))) == len(list(first.path.glob("*.h5"))) - 1
    for held in (first, again, second):
        held.release()
    size = sum(path.stat().st_size for path in second.path.iterdir())
    assert call("distances", "--bags", f"{FAR}-2/feats", "--cache", "cache", "--cache-size", f"{size - 1}B") == 1
    assert f"{FAR}-2/feats has" in (told := " ".join(capsys.readouterr().err.split()))
    assert "more than the whole cache" in told


def test_what_is_wrong_with_what_lies_on_s3_is_said_of_its_address(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tables").mkdir()
    Path("tables/labels.csv").write_text("slide_id,label\ns00,pos\ns00,neg\n")
    upload(tmp_path / "tables", f"{FAR}/wrong")
    told = ("--labels", f"{FAR}/wrong/labels.csv", "--cache", "cache")
    assert call("train", "--bags", f"{FAR}/feats", *told) == 1
    assert f"error: {FAR}/wrong/labels.csv" in " ".join(capsys.readouterr().err.split())


def test_an_address_of_artifacts_at_which_nothing_lies_is_named(
    empty: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--bags", "--labels"):
        assert call("train", option, f"s3://{BUCKET}/nothing") == 1
        assert f"s3://{BUCKET}/nothing" in capsys.readouterr().err
