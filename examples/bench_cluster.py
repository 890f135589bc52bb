"""What a Dask cluster of two local workers takes beside one process, on the same slides; the bytes are compared.

    python examples/bench_cluster.py --slides 8 --side-um 4096

Both have the same number of threads: a process with two, and two workers with one each. Prints, for `tile`, `extract`
and `distances`, the wall time of each, their ratio, and whether every artifact is equal to the byte. Starting the
workers is told apart; what they load in their first task (the interpreter's modules, the encoder) is in the figures of
the column "first", and not in those of "again", which repeat all on the same workers with --overwrite.
"""

import argparse
import dataclasses
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STAGES = ("tile", "extract", "distances")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=8, help="how many")
    parser.add_argument("--side-um", type=float, default=4096.0, help="side of each, um (0.5 um/px)")
    parser.add_argument("--model", default="morphology", help="the encoder")
    parser.add_argument("--weights", help="its weights")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: the workers' processes inherit it
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), given)


def measure(folder: Path, given: argparse.Namespace) -> None:
    """Make slides, put them through both, and print the table."""
    from distributed import LocalCluster

    from wsi_mil import synthetic
    from wsi_mil.progress import silent

    params = dataclasses.replace(synthetic.SyntheticParams.quick(), slides=given.slides, side_um=given.side_um)
    synthetic.make_cohort(folder, params)
    with silent():
        stages = _stages(folder, given)
        here = {name: _timed(do, folder / "here", "", 2) for name, do in stages.items()}
        here_again = {name: _timed(do, folder / "here", "", 2) for name, do in stages.items()}
        began = time.perf_counter()
        with LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster:
            started = time.perf_counter() - began
            address = cluster.scheduler_address
            there = {name: _timed(do, folder / "there", address, 0) for name, do in stages.items()}
            there_again = {name: _timed(do, folder / "there", address, 0) for name, do in stages.items()}
    print(f"{given.slides} slides of {given.side_um:g} um, {given.model}; two workers started in {started:.1f} s\n")
    print("| stage | local, s | cluster, s | first | local again, s | cluster again, s | again | bytes |")
    print("|---|---|---|---|---|---|---|---|")
    for name in STAGES:
        first, again = there[name] / here[name], there_again[name] / here_again[name]
        equal = _contents(folder / "here" / name) == _contents(folder / "there" / name)
        figures = (
            f"{here[name]:.1f} | {there[name]:.1f} | {first:.2f} | {here_again[name]:.1f} | {there_again[name]:.1f}"
        )
        print(f"| {name} | {figures} | {again:.2f} | {'equal' if equal else 'DIFFER'} |")
    whole = sum(there_again.values()) / sum(here_again.values())
    print(f"\nall stages, again: {whole:.2f} times the local wall time")


def _stages(folder: Path, given: argparse.Namespace) -> dict[str, Callable]:
    from wsi_mil import workflow
    from wsi_mil.distances import DistanceParams
    from wsi_mil.encoding import Encoding
    from wsi_mil.tiling import TileParams

    encoding, slides = Encoding({given.model: given.weights}), folder / "slides"
    return {
        "tile": lambda out, how: workflow.tile(slides, out / "tile", TileParams(), how),
        "extract": lambda out, how: workflow.extract_features(out / "tile", out / "extract", encoding, how, None),
        "distances": lambda out, how: workflow.measure_distances(
            out / "extract", out / "distances", DistanceParams(), how
        ),
    }


def _timed(do: Callable, out: Path, scheduler: str, workers: int) -> float:
    from wsi_mil.stage import RunOptions

    began = time.perf_counter()
    do(out, RunOptions(overwrite=True, workers=workers, scheduler=scheduler))
    return time.perf_counter() - began


def _contents(folder: Path) -> dict[str, bytes]:
    """Artifacts and the files beside them; tables tell of times."""
    made = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in made.items() if path.suffix != ".csv"}


if __name__ == "__main__":
    main()
