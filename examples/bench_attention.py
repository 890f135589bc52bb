"""What distance costs: time and memory of attention with distances, beside attention that knows none.

    python examples/bench_attention.py --quick                        # seconds: shows the way, not the result
    python examples/bench_attention.py --threads 1 > table.md         # a quarter of an hour or more
    python examples/bench_attention.py --device cuda --sizes 16384 65536 --heads 8 --dtypes bfloat16

Prints Markdown to stdout and what it is doing to stderr; writes attention.csv and attention.png to --out. The variants:

* sdpa: torch's scaled_dot_product_attention on the same q, k and v, without distances: the floor;
* published: the layer as published, which makes arrays of n x n x dim for key, query and value (up to 2048 tiles);
* reference: arrays of n x n (up to 4096 tiles);
* tiled, numba, triton: the backends of `wsi_mil.attention.distance_attention` that are linear in memory.

phi tells whether key, query and value share one function of the distance or have one each. Times are wall-clock
medians of rounds in which all variants take turns, after one round that does not count. Memory is the peak above the
inputs, the output's gradient among them: of the resident set of a fresh process, or of torch's allocator on CUDA.
TFLOP/s count 4 n^2 dim heads operations forward and 10 n^2 dim heads backward, whatever a variant really does.
"""

import argparse
import importlib.metadata
import itertools
import multiprocessing
import platform
import shlex
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bench_report import Columns, can_draw, cpu_model, draw, markdown, write_csv
from bench_variants import LIMITS, Case, Inputs, Variant, attend

from wsi_mil.attention.backends import MODULES, choose, module_of
from wsi_mil.devices import pick_device
from wsi_mil.errors import OptionError

WARM_TILES = 128
PRELOADED = ["wsi_mil.attention", "torch.fx.experimental.symbolic_shapes"]
"""What takes seconds to import, at the latest by the first backward: imported once, not by each fresh process."""
NAMES = (*LIMITS, *reversed(MODULES))


@dataclass(frozen=True)
class Row:
    """What was measured. ``whole_s`` is forward and, where the case has one, backward."""

    case: Case
    variant: Variant
    forward_s: float
    whole_s: float
    sdpa_s: float | None
    memory: int
    rounds: int

    def columns(self) -> Columns:
        """The row of the table."""
        return {
            "n": str(self.case.tiles),
            "heads": str(self.case.heads),
            "phi": self.variant.phi,
            "dtype": str(self.case.dtype).removeprefix("torch."),
            "variant": self.variant.name,
            "forward ms": 1e3 * self.forward_s,
            "forward+backward ms": 1e3 * self.whole_s if self.case.backward else None,
            "ratio to SDPA": self.whole_s / self.sdpa_s if self.sdpa_s else None,
            "memory MB": self.memory / 1e6,
            "TFLOP/s": self.case.operations / self.whole_s / 1e12,
            "rounds": str(self.rounds),
        }


def step(case: Case, variant: Variant, given: Inputs) -> tuple[float, float]:
    """Seconds of forward, and of forward and backward."""
    learnt = [given.q, given.k, given.v, *(given.biases[variant.phi][:5] if variant.phi != "none" else ())]
    began = now(case.device)
    with torch.set_grad_enabled(case.backward):
        out = attend(variant, given)
    forward = now(case.device) - began
    if case.backward:
        _gradients = torch.autograd.grad(out, learnt, given.gradient)  # kept until the clock is read, as in training
    return forward, now(case.device) - began


def now(device: str) -> float:
    """The time, when all work is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def race(case: Case, rounds: dict[Variant, int]) -> dict[Variant, tuple[float, float]]:
    """Median times. The variants take turns, so that what else the machine does meets them all."""
    given = Inputs.draw(case)
    taken: dict[Variant, list[tuple[float, float]]] = {variant: [] for variant in rounds}
    for turn, variant in itertools.product(range(max(rounds.values(), default=0) + 1), rounds):
        if turn <= rounds[variant]:
            times = step(case, variant, given)
            if turn:
                taken[variant].append(times)
    return {variant: tuple(map(statistics.median, zip(*times, strict=True))) for variant, times in taken.items()}


def peak_memory(case: Case, variant: Variant) -> int:
    """Bytes above the inputs, at most, during forward and backward."""
    if case.device == "cuda":
        given = Inputs.draw(case)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(case, variant, given)
        return torch.cuda.max_memory_allocated() - before
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context) as fresh:
        return fresh.submit(peak_resident, case, variant, torch.get_num_threads()).result()


def peak_resident(case: Case, variant: Variant, threads: int) -> int:
    """`peak_memory` of this process, which has done nothing yet."""
    torch.set_num_threads(threads)
    small = replace(case, tiles=min(case.tiles, WARM_TILES))
    step(small, variant, Inputs.draw(small))  # libraries are loaded, kernels compiled, threads started
    given = Inputs.draw(case)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak up to now
    before = status_bytes("VmRSS")
    step(case, variant, given)
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    """What Linux knows about the memory of this process."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


class Patience:
    """Decides what is left out, and how often the rest is run, by the speed of each variant so far."""

    def __init__(self, rounds: int, seconds: float) -> None:
        self.rounds, self.seconds = rounds, seconds
        self.speeds: dict[tuple[Variant, torch.dtype], float] = {}

    def expected(self, case: Case, variant: Variant) -> float:
        """Seconds that one call will take; 0 if nothing is known."""
        return case.operations * self.speeds.get((variant, case.dtype), 0.0)

    def choose(self, case: Case, variants: list[Variant]) -> dict[Variant, int]:
        """The rounds of those that take not too long."""
        rounds = {}
        for variant in variants:
            if variant.takes(case):
                seconds = self.expected(case, variant)
                if seconds <= self.seconds:
                    rounds[variant] = max(1, min(self.rounds, int(self.seconds / max(seconds, 1e-9))))
                else:
                    what = f"{variant.name}, {variant.phi} phi, {case.tiles} tiles, {case.heads} heads"
                    say(f"left out: {what}: {seconds:.0f} s > --seconds")
        return rounds


def measure(case: Case, variants: list[Variant], patience: Patience) -> list[Row]:
    """Time and memory of one case."""
    rounds = patience.choose(case, variants)
    say(f"{case.tiles} tiles, {case.heads} heads, {case.dtype}: {len(rounds)} variants")
    times = race(case, rounds)
    patience.speeds |= {(variant, case.dtype): whole / case.operations for variant, (_, whole) in times.items()}
    sdpa_s = next((whole for variant, (_, whole) in times.items() if variant.name == "sdpa"), None)
    return [
        Row(case, variant, *seconds, sdpa_s, peak_memory(case, variant), rounds[variant])
        for variant, seconds in times.items()
    ]


def hindrance(name: str, device: str) -> str | None:
    """Why a variant does not work here; None if it does."""
    try:
        if name in MODULES:
            empty = torch.empty(0, device=device)
            module_of(choose(name, empty, empty))
    except (OptionError, ImportError) as error:
        return str(error)
    return None


def describe(device: str, names: list[str], missing: dict[str, str]) -> list[str]:
    """What the figures depend on."""
    extras = [f"{name} {importlib.metadata.version(name)}" for name in names if name in ("numba", "triton")]
    lines = [
        "Command: `" + shlex.join(["python", "examples/bench_attention.py", *sys.argv[1:]]) + "`",
        "Software: " + ", ".join([f"Python {platform.python_version()}", f"torch {torch.__version__}", *extras]),
        f"CPU: {cpu_model()}; threads: {torch.get_num_threads()}",
    ]
    if device == "cuda":
        lines.append(f"GPU: {torch.cuda.get_device_name()}; bfloat16 matrix product 8192^3: {ceiling():.0f} TFLOP/s")
    return [*lines, *(f"Not measured: {name}: {reason}" for name, reason in missing.items())]


def ceiling() -> float:
    """TFLOP/s that a large matrix product reaches on this GPU in this run."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(50):
        began = now("cuda")
        torch.mm(a, b)
        seconds.append(now("cuda") - began)
    return 2 * 8192**3 / statistics.median(seconds) / 1e12


def say(message: str) -> None:
    """Tell who waits."""
    print(message, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """The options, completed by what is here."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    add("--sizes", type=int, nargs="*", help="tiles; none given: 1,024 to 32,768, and 100,000 without backward")
    add("--forward-sizes", type=int, nargs="*", help="tiles of cases without backward")
    add("--heads", type=int, nargs="+", default=[1, 8])
    add("--dtypes", choices=("float32", "bfloat16"), nargs="+", help="none: float32, on CUDA bfloat16 too")
    add("--phi", choices=("shared", "three"), nargs="+", default=["shared", "three"])
    add("--backends", choices=NAMES, nargs="+", help="beside sdpa; none: all that work here")
    add("--repeats", type=int, default=5, help="rounds")
    add("--seconds", type=float, default=60, help="fewer rounds, or none, of what would take longer")
    add("--out", type=Path, default=Path("bench-attention"), help="folder of attention.csv and attention.png")
    add("--quick", action="store_true", help="tiny sizes")
    options = parser.parse_args()
    if options.sizes is None:
        options.sizes, default = [1024 * 2**power for power in range(6)], [100_000]
    else:
        default = []
    options.forward_sizes = default if options.forward_sizes is None else options.forward_sizes
    if options.quick:
        options.sizes, options.forward_sizes, options.heads, options.repeats = [256], [320], [1], 2
    try:
        options.device = pick_device(options.device).type
    except OptionError as error:
        parser.error(str(error))
    options.dtypes = options.dtypes or (["float32", "bfloat16"] if options.device == "cuda" else ["float32"])
    return options


def main() -> None:
    """Measure, print, draw."""
    options = parse()
    torch.set_num_threads(options.threads)
    reasons = {name: hindrance(name, options.device) for name in options.backends or NAMES}
    missing = {name: reason for name, reason in reasons.items() if reason}
    if missing and options.backends:
        raise SystemExit("; ".join(f"--backends {name}: {reason}" for name, reason in missing.items()))
    names = [name for name in reasons if name not in missing]
    variants = [Variant("sdpa", "none"), *(Variant(*pair) for pair in itertools.product(names, options.phi))]
    facts = describe(options.device, names, missing)
    if not can_draw():
        say(f"matplotlib is missing: no picture. The table goes to {options.out / 'attention.csv'} and stdout")
    options.out.mkdir(parents=True, exist_ok=True)
    table, patience = [], Patience(options.repeats, options.seconds)
    for dtype, heads in itertools.product(options.dtypes, options.heads):
        for tiles, backward in [(n, True) for n in options.sizes] + [(n, False) for n in options.forward_sizes]:
            case = Case(tiles, heads, getattr(torch, dtype), options.device, backward)
            table += [row.columns() for row in measure(case, variants, patience)]
            if table:
                write_csv(table, options.out / "attention.csv")
    if not table:
        raise SystemExit("nothing was measured: give other --sizes, or more --seconds")
    print("\n".join([*(f"* {fact}" for fact in facts), "", *markdown(table)]))
    if can_draw():
        draw(table, options.out / "attention.png")
    say(f"see {options.out}")


if __name__ == "__main__":
    main()
