"""Valid files of every kind that is read, as small as they come. None is kept in the repository: all are written."""

import json
import os
from pathlib import Path

import h5py
import multifile
import numpy as np
import peers
import planted
import pyramids
import torch
from ndpi import write_ndpi
from openpyxl import Workbook
from PIL import Image, TiffImagePlugin

from wsi_mil import store
from wsi_mil.distances import DistanceParams, DistanceStage
from wsi_mil.evaluation.record import RECORD
from wsi_mil.learning import RunParams, resume
from wsi_mil.predictions import TABLE, Prediction, write_predictions
from wsi_mil.stage import Item, run
from wsi_mil.tiling import TileParams, TileStage
from wsi_mil.weights import save_tensors

IDENTITY = resume.Identity.of(RunParams(fingerprint="f" * 32, options={"lr": 0.1}), 1, "cpu")
SLIDES = ("a", "b", "c", "dead", "sub/d")
_BOX = [[0, 0], [900, 0], [900, 700], [0, 700], [0, 0]]
_HOLE = [[100, 100], [100, 300], [300, 300], [100, 100]]


def features(folder: Path) -> list[Path]:
    stain = json.dumps({"stains": [[0.6, 0.7, 0.3], [0.1, 0.9, 0.2]], "most": [1.5, 0.9]})
    planted.plant(folder, "a", True, 0, tiles=12, stain=stain, level0_width=6000, level0_height=5000)
    planted.plant(folder, "b", False, 1, tiles=0)
    made = store.read(folder / "a.h5")
    shares = np.linspace(0, 1, 24, dtype=np.float32).reshape(12, 2)
    arrays = {**made.arrays, "annotations": shares, "coverage": shares[:, 0]}
    marked = store.Artifact(arrays, made.attrs, {"annotations": {"classes": '["x", "y"]'}, "coords": {"name": "a"}})
    store.write(folder / "c.h5", marked)
    return [folder / f"{name}.h5" for name in "abc"]


def tiles(folder: Path) -> list[Path]:
    image = np.full((700, 700, 3), 243, np.uint8)
    image[:500, :500] = np.random.default_rng(0).normal((222, 140, 186), 20, (500, 500, 3)).clip(0, 255)
    folder.mkdir(parents=True, exist_ok=True)
    pyramids.write(folder / "slide.tif", [image], pyramids.Kind())
    run(TileStage(TileParams(tile_um=64.0)), [Item("slide", folder / "slide.tif")], folder / "tiles")
    return [folder / "tiles" / "slide.h5"]


def distances(folder: Path) -> list[Path]:
    [path, *_] = features(folder / "feats")
    stage = DistanceStage(DistanceParams(k=4), folder / "distances")
    run(stage, [Item("a", path)], folder / "distances")
    return [folder / "distances" / "a.h5"]


def trident(folder: Path) -> list[Path]:
    values, coords = peers.bag()
    peers.trident(folder / "features_uni_v2" / "b.h5", values, coords, mpp=0.25)
    return [peers.trident(folder / "features_uni_v2" / "a.h5", values, coords), folder / "features_uni_v2" / "b.h5"]


def clam(folder: Path) -> list[Path]:
    values, coords = peers.bag()
    with h5py.File(peers.clam(folder / "h5_files" / "b.h5", values, coords), "r+") as file:
        file["coords"].attrs.update({"patch_level": 0, "patch_size": 256, "level_dim": np.array([9000, 9000])})
    return [peers.clam(folder / "h5_files" / "a.h5", values, coords), folder / "h5_files" / "b.h5"]


def clam_patches(folder: Path) -> list[Path]:
    values, coords = peers.bag()
    peers.clam_pt(folder / "pt_files" / "a.pt", values)
    return [peers.clam_patches(folder / "patches" / "a.h5", coords)]


def clam_pt(folder: Path) -> list[Path]:
    values, coords = peers.bag()
    peers.clam_patches(folder / "patches" / "a.h5", coords)
    return [peers.clam_pt(folder / "pt_files" / "a.pt", values)]


def stamp(folder: Path) -> list[Path]:
    values, coords = peers.bag(step=256)
    old = peers.stamp(folder / "uni2-ab" / "b.h5", values, coords * 0.875, unit=None, tile_size_um=None)
    return [peers.stamp(folder / "uni2-ab" / "a.h5", values, coords), old]


def atlaspatch(folder: Path) -> list[Path]:
    values, coords = peers.bag()
    peers.atlaspatch(folder / "patches" / "b.h5", {"uni": values, "conch": values}, coords, patch_size_level0=None)
    return [peers.atlaspatch(folder / "patches" / "a.h5", {"uni": values}, coords), folder / "patches" / "b.h5"]


def _text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


_LABELS = (
    "slide_id,label,patient_id,split,site,fold\na,x,p,train,s,1\nb.svs,y,q,train,s,2\nd,x,r,val,t,1\ndead,y,u,val,t,2\n"
)


def labels_csv(folder: Path) -> list[Path]:
    bare = "\ufeffFILENAME;PATIENT;label\r\na;p;1,5\r\nb;q;2\r\n"
    return [_text(folder / "labels.csv", _LABELS), _text(folder / "bare.csv", bare)]


def labels_xlsx(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    book = Workbook()
    for row in _LABELS.split():
        book.active.append([int(cell) if cell.isdigit() else cell for cell in row.split(",")])
    book.active["H1"], book.active["H2"] = "age", "=1+1"
    book.save(folder / "labels.xlsx")
    return [folder / "labels.xlsx"]


def slides_csv(folder: Path) -> list[Path]:
    table = "slide,mpp,min_coverage\na,0.25,0.5\nb.svs,0.5,\nsub/d,,0.1\n"
    return [_text(folder / "slides.csv", table), _text(folder / "owners.csv", "slide,patient,mpp\na,p,0.5\nb,q,1\n")]


def run_tables(folder: Path) -> list[Path]:
    [artifact, *_] = features(folder)
    run(DistanceStage(DistanceParams(k=2), folder), [Item("gone", artifact.with_name("none.h5"))], folder / "made")
    return sorted((folder / "made" / "runs").glob("*.csv"))


def predictions(folder: Path) -> list[Path]:
    rows = [
        Prediction("a", "done", (0.25, 0.75), 12, predicted="y", label="y", split="test", warnings=("odd",)),
        Prediction("b", "done", (0.75, 0.25), 12, predicted="x", label="x", split="test", spread=0.1, seconds=2.0),
        Prediction("c", "empty", error="no tissue", label="x", split="test"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", rows, ("x", "y"), "0" * 16)
    return [folder / "predictions.csv"]


def geojson(folder: Path) -> list[Path]:
    polygon = {"type": "Polygon", "coordinates": [_BOX, _HOLE]}
    kinds = (
        {"classification": {"name": "Tumor", "color": [1, 2, 3]}},
        {"classification": {"names": ["a", "b"]}, "name": "n"},
        {"classification": '{"name": "T"}'},
        None,
    )
    shapes = (
        polygon,
        {"type": "MultiPolygon", "coordinates": [[_BOX], [_HOLE]]},
        {"type": "GeometryCollection", "geometries": [polygon, {"type": "Point", "coordinates": [1, 2]}]},
        {"type": "LineString", "coordinates": [[0, 0], [9, 9]]},
    )
    found = [{"type": "Feature", "geometry": s, "properties": k} for s, k in zip(shapes, kinds, strict=True)]
    camelyon = {"positive": [{"name": "t", "vertices": _BOX}], "negative": [{"name": "n", "vertices": _HOLE}]}
    whole = {"type": "FeatureCollection", "features": found}
    return [
        _text(folder / f"{index}.geojson", json.dumps(content))
        for index, content in enumerate((whole, camelyon, found))
    ]


def asap(folder: Path) -> list[Path]:
    points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}.5" />' for i, (x, y) in enumerate(_BOX))
    drawn = "".join(
        f'<Annotation Name="n{group}" Type="Polygon" PartOfGroup="{group}"><Coordinates>{points}</Coordinates>'
        "</Annotation>"
        for group in ("Tumor", "_2", "metastases", "normal", "None")
    )
    text = f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{drawn}</Annotations></ASAP_Annotations>'
    return [_text(folder / "a.xml", text)]


def checkpoints(folder: Path) -> list[Path]:
    bag = features(folder / "feats")[0]
    return [
        planted.untrained(folder / "one", bag, "abmil"),
        planted.untrained(folder / "das", bag),
        planted.untrained(folder / "several", bag, "mean", seeds=(0, 1)),
    ]


def resumes(folder: Path) -> list[Path]:
    standing = resume.Standing({"model.w": torch.zeros(3, 2), "best.w": torch.ones(3)}, {"epoch": 2, "history": []})
    folder.mkdir(parents=True, exist_ok=True)
    resume.save(folder, IDENTITY, standing)
    return [folder / resume.RESUME]


def _state() -> dict[str, torch.Tensor]:
    return {"module.a.weight": torch.zeros(4, 3), "module.a.bias": torch.ones(4, dtype=torch.float16)}


def weights_safetensors(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "w.safetensors", _state(), {"format": "pt"})
    return [folder / "w.safetensors"]


def weights_torch(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": _state(), "epoch": 3}, folder / "w.pth")
    torch.save({"teacher": {"backbone": _state()}, "student": _state()}, folder / "t.pth")
    return [folder / "w.pth", folder / "t.pth"]


def explanation(folder: Path) -> list[Path]:
    shares = {"x": 0.5, "y": 0.5}
    told = {"slide_id": "a", "files": {"a.png": "attention"}, "fingerprint": "f", "pictures": True, "model": "m"}
    told |= {"classes": ["x", "y"], "predicted": "x", "told_classes": ["y"], "mpp": [1, 1], "warnings": ["a"]}
    told |= {"notes": [], "together": [], "probabilities": shares, "evidence": shares, "base": shares, "given": shares}
    path = _text(folder / "a" / "explanation.json", json.dumps(told))
    Image.new("RGB", (8, 8)).save(folder / "a" / "a.png")
    return [path]


def records(folder: Path) -> list[Path]:
    kept = {"encoder": "uni", "sha256": "0" * 64, "suffix": ".pth", "origin": "/x"}
    weights = Path(os.environ["WSIMIL_HOME"]) / "weights"
    _text(folder / TABLE, "")
    return [
        _text(folder / RECORD, json.dumps({"command": "evaluate", "model": "m"})),
        _text(weights / "uni.json", json.dumps(kept)),
    ]


def idx(folder: Path) -> list[Path]:
    import gzip

    folder.mkdir(parents=True, exist_ok=True)
    images = np.zeros((3, 28, 28), np.uint8)
    head = bytes([0, 0, 8, 3]) + b"".join(side.to_bytes(4, "big") for side in images.shape)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(head + images.tobytes()))
    return [path]


def _levels(side: int = 600) -> list[np.ndarray]:
    image = pyramids.textured(side, side + 40)
    return [image, np.array(Image.fromarray(image).reduce(2))]


def tiff(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {
        "jpeg": pyramids.Kind(),
        "lzw": pyramids.Kind("lzw", photometric="rgb", predictor=True),
        "deflate": pyramids.Kind("adobe_deflate", photometric="rgb"),
        "zstd": pyramids.Kind("zstd", photometric="rgb"),
        "raw": pyramids.Kind("none", tile=128, photometric="rgb", sparse=frozenset({1})),
    }
    return [pyramids.write(folder / f"{name}.tif", _levels(300), kind) for name, kind in kinds.items()]


def svs(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {
        "jpeg": pyramids.Kind(aperio=True),
        "rgb": pyramids.Kind(photometric="rgb", subsampling=None, aperio=True),
        "j2k": pyramids.Kind("aperio_jp2000_rgb", photometric="rgb", aperio=True),
    }
    return [pyramids.write(folder / f"{name}.svs", _levels(300), kind) for name, kind in kinds.items()]


def philips(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [pyramids.write(folder / "a.tiff", _levels(), pyramids.Kind(philips=True))]


def ndpi(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [write_ndpi(folder / "a.ndpi", _levels())]


def dicom(folder: Path) -> list[Path]:
    return multifile.write_dicom(folder, pyramids.textured(512, 768), 0.5)


def several_files(folder: Path) -> list[Path]:
    image = pyramids.textured(512, 1024)
    mrxs = multifile.write_mrxs(folder / "m.mrxs", image, 1.0)
    vms = multifile.write_vms(folder / "v.vms", image, 1.0)
    return [*sorted(mrxs.with_suffix("").iterdir()), vms, *sorted(folder.glob("v*.jpg"))]


def images(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pyramids.textured(200, 300))
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[282], info[283], info[296] = 20_000.0, 20_000.0, 3
    picture.save(folder / "a.png")
    picture.convert("P").save(folder / "p.png", transparency=3)
    picture.save(folder / "a.jpg", quality=60)
    picture.save(folder / "l.jpg", progressive=True)
    picture.save(folder / "raw.tif", tiffinfo=info)
    picture.save(folder / "lzw.tif", compression="tiff_lzw", tiffinfo=info)
    picture.save(folder / "jpeg.tif", compression="jpeg")
    return sorted(folder.iterdir())
