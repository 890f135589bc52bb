"""What SECURITY.md promises: files of strangers run no code, lead nowhere else, and end no process."""

import html
import os
import pickle
import resource
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from explained import Plain, bag_of, facts_of, some_look, some_places
from planted import plant
from toy_stage import ToyStage

from wsi_mil import checkpoint, publishing, store
from wsi_mil.asked import find_bags
from wsi_mil.bags import read_bag
from wsi_mil.contact_sheet import Card
from wsi_mil.errors import ArtifactCorrupt, ArtifactError, ArtifactStale, PolygonError, TableError, WeightsError
from wsi_mil.explain import MANIFEST, explanation_folder, read_manifest, write_explanation
from wsi_mil.geometry import read_drawing
from wsi_mil.guards import inside, is_formula, is_inside, parse_json, printable
from wsi_mil.interop import read_peer
from wsi_mil.learning import RunParams, resume
from wsi_mil.pages import render
from wsi_mil.predictions import Prediction
from wsi_mil.report import prediction
from wsi_mil.report.card import _code, _text
from wsi_mil.runs import artifact_path, failures
from wsi_mil.stage import Item, run
from wsi_mil.tables import read_table
from wsi_mil.weights import read_state, read_tensor

ROOT = Path(__file__).parents[1]
ESCAPES = [
    "../x",
    "a/../../x",
    "/etc/x",
    "..",
    "a//b",
    "./a",
    "",
    "a\0b",
    "a\x1b[2Jb",
    "sl\udce9",
    "\ud800",
    "a\nb",
    "x" * 241,
    "a/" * 1500 + "b",
]
NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Write a pickle that leaves a mark where its code runs; in the end nothing may have left one."""
    mark = tmp_path / "mark"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(mark),)

    def write(path: Path) -> Path:
        torch.save({"weights": torch.zeros(2), "code": Bomb()}, path)
        return path

    pickle.loads(pickle.dumps(Bomb()))  # it does go off
    mark.rmdir()
    yield write
    assert not mark.exists()


def test_no_pickle_runs_in_place_of_a_checkpoint_a_weight_file_a_bag_or_an_interrupted_training(bomb, tmp_path) -> None:
    with pytest.raises(WeightsError, match="not a safetensors file"):
        checkpoint.load(bomb(tmp_path / "checkpoint.safetensors"))
    with pytest.raises(WeightsError, match="trust-checkpoint"):
        read_state(bomb(tmp_path / "weights.pth"))
    with pytest.raises(WeightsError, match="could run its code"):
        read_tensor(bomb(tmp_path / "bag.pt"))
    with pytest.raises(WeightsError, match="could run its code"):
        read_peer(tmp_path / "bag.pt")
    bomb(tmp_path / resume.RESUME)
    with pytest.raises(ArtifactCorrupt, match="is damaged"):
        resume.load(tmp_path, resume.Identity.of(RunParams(), 1, "cpu"))


def _linked(path: Path, features: str) -> Path:
    """A bag of CLAM whose features are somewhere else."""
    secret = path.with_name("secret.h5")
    with h5py.File(secret, "w") as file:
        file["features"] = np.ones((3, 4), np.float32)
    raw = path.with_name("secret.raw")
    raw.write_bytes(bytes(48))
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((3, 2), np.int64)
        match features:
            case "external link":
                file["features"] = h5py.ExternalLink(str(secret), "features")
            case "soft link":
                file["outside"] = h5py.ExternalLink(str(secret), "/")
                file["features"] = h5py.SoftLink("/outside/features")
            case "virtual dataset":
                layout = h5py.VirtualLayout((3, 4), np.float32)
                layout[:] = h5py.VirtualSource(str(secret), "features", (3, 4))
                file.create_virtual_dataset("features", layout)
            case "external storage":
                file.create_dataset("features", (3, 4), np.float32, external=[(str(raw), 0, 48)])
            case "objects":
                file.create_dataset("features", data=np.array([[b"a"]] * 3, object), dtype=h5py.string_dtype())
    return path


@pytest.mark.parametrize("kind", ["external link", "soft link", "virtual dataset", "external storage", "objects"])
def test_a_bag_holds_its_own_data_or_is_refused_by_every_reader(kind: str, tmp_path: Path) -> None:
    path = _linked(tmp_path / "a.h5", kind)
    readers: list[Callable[[], object]] = [
        lambda: store.read(path),
        lambda: store.read_arrays(path, ["features"]),
        lambda: store.digest(path, ["features"]),
        lambda: read_bag(path),
        lambda: read_peer(path),
    ]
    for reader in readers:
        with pytest.raises(ArtifactCorrupt, match=r"a link|another file|holds objects"):
            reader()
    if kind != "objects":  # what a file holds is told without its values
        with pytest.raises(ArtifactCorrupt, match=r"a link|another file"):
            store.survey(path)


def test_a_group_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    _linked(tmp_path / "a.h5", "external link")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/")
    with pytest.raises(ArtifactCorrupt, match="features is a link"):
        store.read_arrays(tmp_path / "b.h5", ["features/features"])


@pytest.mark.parametrize("name", ESCAPES, ids=lambda name: repr(name[:12]))
def test_a_name_that_leads_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    assert not is_inside(name)
    for place in (inside, artifact_path):
        with pytest.raises(ArtifactError, match="rename it"):
            place(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "a.b-01Z-00-DX1.F3", "site/a", "..a", "a..", "ü" * 120, "a b"])
def test_a_name_that_stays_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    assert artifact_path(tmp_path, name) == tmp_path / f"{name}.h5"
    store.write(artifact_path(tmp_path, name), store.Artifact({"a": np.zeros(1)}))
    assert store.read(artifact_path(tmp_path, name)).arrays["a"].shape == (1,)


def test_a_slide_that_would_be_written_elsewhere_fails_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    out = tmp_path / "deep" / "out"
    report = run(ToyStage(), [Item(name, source) for name in ("../x", "/x", "sl\udce9", "good")], out)
    assert report.done == ["good"]
    assert set(report.failed) == {"../x", "/x", "sl\udce9"}
    assert printable("a\x1b[2Jü") == "a\\x1b[2Jü"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    # A table that names them is read again, and leads nowhere either.
    assert set(failures(out)) == {"../x", "/x", "sl\\udce9"}


def test_an_explanation_is_written_below_its_folder_whatever_a_bag_calls_itself(tmp_path: Path) -> None:
    plant(tmp_path / "feats", "a", True, 0)
    path = tmp_path / "feats" / "a.h5"
    made = store.read(path)
    store.write(path, store.Artifact(made.arrays, {**made.attrs, "slide_id": "../../x"}, made.array_attrs))
    [item] = find_bags(path)
    assert item.slide_id == "../../x"
    assert explanation_folder(tmp_path / "out", item.slide_id).parent == tmp_path / "out"
    with pytest.raises(ArtifactError, match="leads out of its folder"):
        explanation_folder(tmp_path / "out", "..")


def test_pictures_named_by_an_explanation_lie_in_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / MANIFEST).write_text('{"slide_id": "a", "files": {"heatmap/../../secret.png": "attention"}}')
    with pytest.raises(ArtifactCorrupt, match="no file of its folder"):
        read_manifest(tmp_path / "a")


def test_files_of_a_class_are_called_by_what_file_systems_take(tmp_path: Path) -> None:
    places = some_places()
    classes = ("../../x", "/etc/y", "z" * 300)
    facts = facts_of(places, classes)
    write_explanation(tmp_path / "out" / "a", Plain(), bag_of(places), some_look(places, 3), facts)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


@pytest.mark.parametrize("slide", ["../a", "/etc/passwd", "a/../../a"])
def test_a_table_of_labels_names_slides_that_were_seen_or_none(slide: str, tmp_path: Path) -> None:
    from wsi_mil.cohort import Seen, read_cohort

    table = tmp_path / "labels.csv"
    table.write_text(f"slide_id,label\n{slide},x\nb,y\n")
    with pytest.raises(TableError, match="row 2"):
        read_cohort(table, Seen({"c", "b"}, {}, {}))


def test_a_table_of_slides_names_slides_that_were_found_or_none(tmp_path: Path) -> None:
    from wsi_mil.cohort import read_slides_table

    table = tmp_path / "slides.csv"
    table.write_text("slide,mpp\n../a,0.5\n")
    with pytest.raises(TableError, match="row 2"):
        read_slides_table(table, {"b": tmp_path / "b.tif"}, ())


def test_what_an_artifact_says_of_itself_ends_no_run(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    run(ToyStage(), [Item("a", source)], tmp_path / "out")
    made = store.read(tmp_path / "out" / "a.h5")
    attrs = made.attrs | {"params": "[" * 100_000, "excluded": "[" * 100_000, "fingerprint": "other"}
    store.write(tmp_path / "out" / "a.h5", store.Artifact(made.arrays, attrs))
    with pytest.raises(ArtifactStale, match="was made otherwise"):
        run(ToyStage(), [Item("a", source)], tmp_path / "out")
    assert run(ToyStage(), [Item("b", source)], tmp_path / "out").done == ["b"]
    assert "\na,damaged" in (tmp_path / "out" / "summary.csv").read_text()


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
XML = {
    "external entity": '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><ASAP_Annotations>&e;</ASAP_Annotations>',
    "billion laughs": f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]><ASAP_Annotations>&l11;</ASAP_Annotations>',
    "external DTD": '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><ASAP_Annotations/>',
}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("kind", XML)
def test_xml_that_declares_entities_is_refused_unparsed(kind: str, encoding: str, tmp_path: Path) -> None:
    path, before, start = tmp_path / "a.xml", _peak(), time.process_time()
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{XML[kind]}'.encode(encoding))
    with pytest.raises(PolygonError, match="document type"):
        read_drawing(path)
    assert time.process_time() - start < 1
    assert _peak() - before < 50_000  # kB


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 200_000, '{"type":"GeometryCollection","geometries":[' * 300 + "]}" * 300],
    ids=["lists", "objects", "collections"],
)
def test_outlines_nested_to_exhaustion_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(PolygonError, match=r"too many to be meant|no JSON"):
        read_drawing(path)


def test_json_nested_to_exhaustion_is_damage() -> None:
    with pytest.raises(ValueError, match="too many to be meant"):
        parse_json("[" * 200_000 + "]" * 200_000)
    assert parse_json('{"a": [1]}') == {"a": [1]}


def _workbook(path: Path, sheet: str, filler: int = 0, name: str = "sheet1.xml") -> Path:
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(["slide_id", "label"])
    book.active.append(["a", "x"])
    book.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts[f"xl/worksheets/{name}"] = sheet.encode() or parts["xl/worksheets/sheet1.xml"]
    for told in ("xl/_rels/workbook.xml.rels", "[Content_Types].xml"):
        parts[told] = parts[told].replace(b"sheet1.xml", name.encode())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
        if filler:
            with archive.open("xl/media/a.bin", "w", force_zip64=True) as file:
                for _ in range(filler):
                    file.write(bytes(1 << 20))
    return path


def test_a_workbook_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    before = _peak()
    assert len(read_table(_workbook(tmp_path / "good.xlsx", ""), ("slide_id", "label"), ())) == 1
    cases = {
        "document type": (XML["billion laughs"], 0),
        "would unpack": ("", 300),
        "reaches to cell XFD1048576": (
            '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
            '<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
            "</sheetData></worksheet>",
            0,
        ),
    }
    for message, (sheet, filler) in cases.items():
        with pytest.raises(TableError, match=message):
            read_table(_workbook(tmp_path / "bad.xlsx", sheet, filler), ("slide_id", "label"), ())
    assert _peak() - before < 150_000  # kB


@pytest.mark.parametrize("name", ["sheet1.xml", "sheet1.bin", "sheet1.png", "sheet1"])
def test_xml_in_a_workbook_is_looked_at_whatever_its_part_is_called(name: str, tmp_path: Path) -> None:
    assert len(read_table(_workbook(tmp_path / "good.xlsx", "", 0, name), ("slide_id", "label"), ())) == 1
    path = _workbook(tmp_path / "bad.xlsx", XML["external entity"], 0, name)
    with pytest.raises(TableError, match="document type"):
        read_table(path, ("slide_id", "label"), ())


def test_the_contact_sheet_and_the_page_of_predictions_escape_every_name() -> None:
    card = Card(NASTY, "a.jpg", {NASTY: NASTY}, [NASTY], 1)
    text = render("contact_sheet.html", cards=[card], folder=NASTY).decode()
    assert NASTY not in text
    assert text.count(html.escape(NASTY)) >= 5
    row = Prediction(NASTY, "done", (0.5, 0.5), predicted=NASTY, warnings=(NASTY,), error=NASTY)
    model = _checkpoint()
    page = prediction.prediction_page([row], prediction.Told(model, "0" * 16, (NASTY,))).decode()
    assert NASTY not in page
    assert "&lt;img src=x" in page


def _checkpoint() -> checkpoint.Checkpoint:
    recipe = checkpoint.Recipe(NASTY, "0" * 64, 256.0, 224)
    return checkpoint.Checkpoint(
        "das-mil", (checkpoint.Part({"a": NASTY}),), 4, (NASTY, "[x](javascript:alert(1))"), recipe, NASTY, {}, {},
        {
            "slides": {NASTY: 1}, "patients": [], "cohort": "`" + NASTY, "versions": {NASTY: NASTY},
            "fingerprint": "f", "params": {"learn": {"`" + NASTY: "`" + NASTY}},
        },
        {}, threshold=0.5,
    )  # fmt: skip


def test_a_model_card_shows_names_as_text() -> None:
    from wsi_mil.report import model_card

    card = model_card(_checkpoint(), {NASTY: "1"}, "Judged.").decode()
    outside = "".join(card.split("`")[::2])
    assert not any(f"{before}<img" in outside for before in (" ", "(", ": ", "\n"))
    assert "\\<img" in outside
    assert "](javascript" not in outside.replace("\\]", "")
    assert _text("a\n\n# b <i>") == "a \\# b \\<i\\>"
    assert _code("a`<b>`\nc") == "a'<b>' c"


def test_names_that_a_spreadsheet_computes_are_kept_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    formula = "=HYPERLINK(1)"
    assert [is_formula(name) for name in (formula, "+1", "-1", "@x", "a=b")] == [True, True, True, True, False]
    run(ToyStage(), [Item(formula, source), Item("good", source)], tmp_path / "out")
    assert f"1 names, such as {formula}, begin like a formula" in caplog.text
    assert f"\n{formula},done" in (tmp_path / "out" / "summary.csv").read_text()


def test_temporary_files_are_ours_alone_beside_their_target_and_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with publishing.replacing(tmp_path / "a") as temporary:
            assert temporary.parent == tmp_path
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
            temporary.write_bytes(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_temporary_file_never_goes_through_a_link_that_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    monkeypatch.setattr(publishing, "_sibling", lambda path: tmp_path / "guessed")
    (tmp_path / "guessed").symlink_to(victim)
    with pytest.raises(FileExistsError):
        publishing.write_bytes(tmp_path / "a", b"theirs")
    assert victim.read_bytes() == b"mine"


def test_sweeping_removes_a_link_and_not_what_it_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"mine")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(publishing, "_alive", lambda pid: False)
    link = publishing._sibling(out / "a")
    link.symlink_to(kept)
    publishing.sweep(out)
    assert not link.is_symlink()
    assert (kept / "file").read_bytes() == b"mine"


AUDITS = {
    "found": ("print('torch 1.0 PYSEC-1'); sys.exit(1)", 1, "PYSEC-1"),
    "none": ("print('No known vulnerabilities found')", 0, "No known"),
    "offline": ("sys.exit('requests.exceptions.ConnectionError: Max retries exceeded')", 0, "skipped"),
}


@pytest.mark.parametrize("how", AUDITS)
def test_the_audit_fails_for_what_is_known_and_is_skipped_in_a_line_where_it_cannot_run(how: str, tmp_path) -> None:
    code, status, word = AUDITS[how]
    (tmp_path / "pip_audit").mkdir()
    (tmp_path / "pip_audit" / "__init__.py").touch()
    (tmp_path / "pip_audit" / "__main__.py").write_text(f"import sys\n{code}\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    audit = [sys.executable, str(ROOT / ".ci" / "audit.py")]
    done = subprocess.run(audit, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert word in done.stdout
    assert how != "offline" or done.stdout.count("\n") == 1
