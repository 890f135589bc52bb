"""The benchmark of attention: it runs, its variants compute the same, and it says what it leaves out."""

import csv
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from planted import plant, untrained

from wsi_mil import checkpoint
from wsi_mil.explain import read_places

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run_main(bench: ModuleType, monkeypatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_attention.py", *map(str, arguments)])
    bench.main()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_the_benchmark_prints_a_table_and_writes_it_and_a_picture(tmp_path):
    command = [sys.executable, EXAMPLES / "bench_attention.py", "--quick", "--phi", "shared", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--threads", "1"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "threads: 1" in done.stdout
    assert f"torch {torch.__version__}" in done.stdout

    printed = [line for line in done.stdout.splitlines() if line.startswith("|")]
    with (tmp_path / "bench-attention" / "attention.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert cells(printed[0]) == list(rows[0])
    assert [cells(line)[0] for line in printed[2:]] == [row["n"] for row in rows]
    for row in rows:
        for column in ("forward ms", "ratio to SDPA", "memory MB", "TFLOP/s"):
            assert math.isfinite(float(row[column]))
            assert float(row[column]) > 0, (row, column)
        assert (row["forward+backward ms"] == "") == (row["n"] == "320")
    measured = {row["variant"] for row in rows}
    missing = set(re.findall(r"^\* Not measured: (\w+): .+", done.stdout, flags=re.MULTILINE))
    assert measured >= {"sdpa", "published", "reference", "tiled"}
    assert measured | missing == {"sdpa", "published", "reference", "tiled", "numba", "triton"}
    assert not measured & missing
    by_variant = {row["variant"]: float(row["memory MB"]) for row in rows if row["n"] == "256"}
    assert by_variant["published"] > 4 * 256**2 * 64 * 3 / 1e6 > 5 * by_variant["tiled"]

    picture = (tmp_path / "bench-attention" / "attention.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


@pytest.mark.parametrize("phi", ["shared", "three"])
def test_all_variants_compute_the_same(load, phi):
    variants = load("bench_variants")
    case = variants.Case(70, 2, torch.float64, "cpu", True)
    given = variants.Inputs.draw(case)
    bias = given.biases[phi]
    given.biases[phi] = bias._make([*(t.detach().double().requires_grad_() for t in bias[:5]), bias.self_bias])
    given = given._replace(coords=given.coords.double())
    learnt = [given.q, given.k, given.v, *given.biases[phi][:5]]
    results = []
    for name in ("reference", "published", "tiled"):
        out = variants.attend(variants.Variant(name, phi), given)
        results.append([out, *torch.autograd.grad(out, learnt, given.gradient)])
    for others in results[1:]:
        torch.testing.assert_close(others, results[0], rtol=1e-6, atol=1e-6)
    plain = variants.attend(variants.Variant("sdpa", "none"), given)
    assert (plain - results[0][0]).abs().max() > 0.1


def test_what_would_take_too_long_is_left_out_and_what_is_slow_is_run_less_often(load, capsys):
    bench, variants = load("bench_attention"), load("bench_variants")
    small, large = (variants.Case(n, 1, torch.float32, "cpu", True) for n in (1024, 4096))
    fast, slow = variants.Variant("sdpa", "none"), variants.Variant("tiled", "shared")
    patience = bench.Patience(rounds=5, seconds=10)
    assert patience.choose(small, [fast, slow]) == {fast: 5, slow: 5}
    patience.speeds = {(fast, torch.float32): 4 / large.operations, (slow, torch.float32): 1 / small.operations}
    assert patience.choose(large, [fast, slow]) == {fast: 2}
    assert "left out: tiled, shared phi, 4096 tiles, 1 heads: 16 s" in capsys.readouterr().err


def test_variants_with_arrays_of_all_pairs_stop_where_these_get_out_of_hand(load):
    variants = load("bench_variants")
    taken = {
        (name, n, heads)
        for name in ("published", "reference", "tiled")
        for n in (2048, 4096, 8192)
        for heads in (1, 8)
        if variants.Variant(name, "shared").takes(variants.Case(n, heads, torch.float32, "cpu", True))
    }
    assert {entry for entry in taken if entry[0] == "published"} == {("published", 2048, 1)}
    assert {n for name, n, _ in taken if name == "reference"} == {2048, 4096}
    assert {n for name, n, _ in taken if name == "tiled"} == {2048, 4096, 8192}


def test_a_backend_that_was_asked_for_and_is_not_here_is_refused(load, monkeypatch, tmp_path):
    bench = load("bench_attention")
    with pytest.raises(SystemExit, match=r"--backends triton: backend triton .*(not installed|cannot take)"):
        run_main(bench, monkeypatch, "--device", "cpu", "--backends", "tiled", "triton", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_table_is_left(load, monkeypatch, tmp_path, capsys):
    bench, variants = load("bench_attention"), load("bench_variants")

    def measured(case, chosen, patience):
        return [bench.Row(case, variants.Variant("sdpa", "none"), 0.5, 1.5, 1.5, 2_000_000, 3)]

    monkeypatch.setattr(bench, "measure", measured)
    monkeypatch.setattr(bench, "can_draw", lambda: False)
    run_main(bench, monkeypatch, "--quick", "--device", "cpu", "--backends", "tiled", "--out", tmp_path)
    shown = capsys.readouterr()
    assert "matplotlib is missing" in shown.err
    assert str(tmp_path / "attention.csv") in shown.err
    assert "| 256 | 1 | none | float32 | sdpa | 500 | 1500 | 1 | 2 |" in shown.out
    assert [path.name for path in tmp_path.iterdir()] == ["attention.csv"]


def test_the_gpu_check_takes_another_interpreter_as_it_is():
    done = subprocess.run(
        ["make", "--dry-run", "gpu-check", "GPU_PYTHON=some-python"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "some-python -m pytest -o addopts= -m gpu" in done.stdout
    assert "some-python examples/bench_attention.py --device cuda" in done.stdout
    assert "venv" not in done.stdout


def test_the_benchmark_of_a_step_compares_with_plain_self_attention(load, monkeypatch, capsys):
    bench = load("bench_step")
    monkeypatch.setattr(sys, "argv", ["bench_step.py", "das-mil", "--tiles", "400", "--threads", "1"])
    bench.main()
    header, _, baseline, row = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert cells(header) == ["tiles", "model", "seconds", "memory MB", "time to self-attention"]
    assert (cells(baseline)[1], cells(baseline)[4]) == ("self-attention", "1.00")
    assert cells(row)[:2] == ["400", "das-mil"]
    assert all(float(cell) > 0 for cell in cells(row)[2:])


@pytest.mark.slow
def test_the_benchmark_of_looking_compares_with_a_plain_prediction(load, monkeypatch, capsys):
    bench = load("bench_explain")
    monkeypatch.setattr(sys, "argv", ["bench_explain.py", "--tiles", "400", "--occlusions", "1", "--threads", "1"])
    bench.main()
    header, _, *lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert cells(header) == ["tiles", "answer", "seconds", "memory MB", "time to predict", "memory to predict"]
    assert [cells(line)[1] for line in lines] == ["predict", "look, nothing left out", "look, 1 tiles left out"]
    assert cells(lines[0])[4:] == ["1.00", "1.00"]
    assert all(float(cell) > 0 for line in lines for cell in cells(line)[2:])


def test_where_a_model_looked_is_compared_with_where_things_are(load, monkeypatch, capsys, tmp_path):
    where = load("where_it_looked")
    labels = ["slide_id,label,patient_id,split"]
    truth = ["slide_id,kind,x_um,y_um,radius_um"]
    for index, label in enumerate(("near", "far", "near")):
        plant(tmp_path / "feats", f"s{index}", positive=label == "near", seed=index, tiles=100)
        labels.append(f"s{index},{label},p{index},{'test' if index < 2 else 'train'}")
        truth += [f"s{index},nest,500,500,100", f"s{index},nest,2000,300,100", f"s{index},cluster,900,1300,150"]
    (tmp_path / "labels.csv").write_text("\n".join(labels) + "\n")
    (tmp_path / "truth.csv").write_text("\n".join(truth) + "\n")
    path = untrained(tmp_path / "model", tmp_path / "feats" / "s0.h5", classes=("far", "near"))
    seen = list(where.look_at(tmp_path, checkpoint.load(path), "test", 4))
    assert [one.label for one in seen] == ["near", "far"]
    assert seen[0].deciding == {"nest": 0, "cluster": 2}
    corners = read_places(tmp_path / "feats" / "s0.h5").coords * 0.5  # tiles of 224 um
    near = np.hypot(*(np.clip((500, 500), corners, corners + 224) - (500, 500)).T) <= 100
    assert (seen[0].touched([0]) == near).all()
    assert set(seen[0].kinds[near]) == {"nest"}
    monkeypatch.setattr(sys, "argv", ["where_it_looked.py", str(tmp_path), "--occlusions", "4"])
    where.main()
    told = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {row[0]: row[1:] for row in told}
    assert rows["slides, tiles that touch"] == ["tiles", *where.QUANTITIES]
    for place in range(4):  # each sums to the whole
        parts = [float(rows[f"all, {kind}"][place].removesuffix(" %")) for kind in (*where.KINDS, where.NEITHER)]
        assert sum(parts) == pytest.approx(100, abs=0.2)
    assert rows["near, nest"][0] == f"{100 * (seen[0].kinds == 'nest').mean():.1f} %"
    assert rows["most attention: on the nest or cluster of the closest pair"][0] in ("0 of 1", "1 of 1")
    assert -1 <= float(rows["Spearman correlation"][0].partition(" ")[0]) <= 1


def test_the_benchmark_of_stain_prints_a_row_per_method(load, monkeypatch, capsys):
    bench = load("bench_stain")
    monkeypatch.setattr(sys, "argv", ["bench_stain.py", "--rounds", "1"])
    bench.main()
    header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert cells(header) == ["method", "ms per tile", "s to fit a slide"]
    assert [cells(row)[0] for row in rows] == ["macenko", "reinhard"]
    assert all(float(cell) > 0 for row in rows for cell in cells(row)[1:])


def test_the_bench_of_reading_prints_each_step_beside_the_thumbnail(load, monkeypatch, capsys):
    bench = load("bench_reading")
    monkeypatch.setattr(sys, "argv", ["bench_reading.py", "--side", "2048", "--tiles", "4", "--rounds", "1"])
    bench.main()
    table = capsys.readouterr().out
    steps = ("thumbnail", "tissue", "tissue with pen strokes", "outline", "lattice", "quality", "lattice of a million")
    for step in steps:
        assert f"\n| {step} | " in table
    assert "| thumbnail | " in table
    assert " | 1.00 | " in table
    (pens,) = [cells(row) for row in table.splitlines() if row.startswith("| tissue with pen strokes |")]
    assert float(pens[-1].removesuffix("% under ink")) > 6
    ours = [cells(row) for row in table.splitlines() if row.startswith("| wsimil |")]
    assert len(ours) == 4  # JPEG and JPEG 2000, each on the lattice and off it
    assert all(row[-1] == "identical" for row in ours)
    fast = [cells(row) for row in table.splitlines() if row.startswith("| wsimil --fast-decode |")]
    assert len(fast) == 2  # JPEG alone
    assert all(float(row[-1]) > 30 for row in fast)


@pytest.mark.slow
def test_the_bench_of_extraction_compares_with_the_usual_way_and_with_its_parts():
    command = [sys.executable, EXAMPLES / "bench_extract.py", "--count", "2", "--side", "1500", "--rounds", "1"]
    quick = ["--model", "timm:test_vit", "--sleep", "0.01", "--workers", "1", "--sparse-side", "4096"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *quick], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    header, _, *rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [cells(row)[0] for row in rows] == ["tiny", "sleeping", "timm:test_vit"]
    assert all(len(cells(row)) == len(cells(header)) for row in rows)
    assert all(float(cell) > 0 for row in rows for cell in cells(row)[1:])
    assert re.search(r"^4096 x 4096 px: 16 tiles, 8 at once: peak \d+ MB beyond", done.stdout, re.MULTILINE)


def test_the_bench_of_bags_compares_with_plain_files_and_leaves_a_given_folder_alone(
    load, monkeypatch, capsys, tmp_path
):
    bench = load("bench_bags")
    monkeypatch.setattr(sys, "argv", ["bench_bags.py", "--count", "3", "--tiles", "50", "--dim", "8", "--rounds", "1"])
    bench.main()
    header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert cells(header) == ["files", "read by", "bags/s", "GB/s", "by numpy.fromfile"]
    ways = ["numpy.fromfile", "store.read", "read_bag (float32)", "read_bag, first"]
    assert [cells(row)[:2] for row in rows if cells(row)[0] == "warm"] == [["warm", way] for way in ways]
    assert all(float(cells(row)[2]) > 0 for row in rows)
    bench.write_bags(tmp_path, 2, 10, 4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(sys, "argv", ["bench_bags.py", "--bags", str(tmp_path), "--rounds", "1"])
    bench.main()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "read_bag, first" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_bench_of_training_compares_with_a_bare_loop_and_tells_the_memory_of_a_large_bag():
    command = [sys.executable, EXAMPLES / "bench_train.py", "--tiles", "300", "--dim", "8", "--count", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    quick = ["--rounds", "1", "--large", "400", "--aggregator", "abmil"]
    done = subprocess.run([*command, *quick], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    header, _, row = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert cells(header)[-2:] == ["to bare loop", "waiting for data, %"]
    assert cells(row)[:3] == ["abmil", "2", "300"]
    assert all(float(cell) > 0 for cell in cells(row)[3:])
    peak = re.search(r"^One bag of 400 tiles: peak (\d+\.\d+) GiB", done.stdout, re.MULTILINE)
    assert peak
    assert 0.1 < float(peak[1]) < 4


def test_the_bench_of_scale_tells_what_a_slide_costs_and_what_cohorts_need(load, monkeypatch, capsys):
    bench = load("bench_scale")
    arguments = ["--side-um", "2500", "--tiles-read", "2", "--encoder", "morphology", "--weights", ""]
    monkeypatch.setattr(sys, "argv", ["bench_scale.py", *arguments])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    costs = {row[0]: float(row[1]) for row in rows if len(row) == 4 and row[0] not in {"stage", ":--"}}
    assert list(costs)[:3] == ["tile", "extract: reading tiles", "extract: the encoder, on CPU"]
    assert all(seconds > 0 for seconds in costs.values())
    cohorts = [line.split("|")[1:3] for line in lines if line.startswith("| 1")]
    assert [int(slides.replace(",", "")) for slides, _ in cohorts] == [100, 10_000, 1_000_000]
    one, two, _ = (int(tiles.replace(",", "")) for _, tiles in cohorts)
    assert two == 100 * one > 0


@pytest.mark.slow
def test_the_bench_of_sharing_tells_how_bags_are_dealt_and_how_far_gradients_lie_apart():
    command = [sys.executable, EXAMPLES / "bench_ddp.py", "--tiles", "40", "--dim", "8", "--count", "6"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    quick = ["--rounds", "1", "--aggregators", "abmil", "--bags-per-step", "3"]
    done = subprocess.run([*command, *quick], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [cells(line) for line in done.stdout.splitlines() if line.startswith(("| 2 ", "| 4 ", "| 8 ", "| abmil "))]
    *shares, measured = rows
    assert len(shares) == 15
    assert all(int(by_cost) <= int(in_turn) for _, _, in_turn, by_cost in shares)
    assert float(measured[-1]) < 1e-6
