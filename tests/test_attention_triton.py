"""The Triton kernels against `tiled`: interpreted on a CPU, compiled for a GPU that need not be there, and run on one.

Triton decides when it is imported whether kernels are interpreted, so those tests run in a process of their own.
"""

import os
import re
import subprocess
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from parts import retrace_of
from test_attention import FORWARD_32, GRADIENT_32, LARGE_32, golden_cases_of, golden_errors, needs_golden

from wsi_mil.attention import tiled
from wsi_mil.attention.dropout import codes
from wsi_mil.attention.operands import Gradients, Operands, Part, Runs, Task

triton = pytest.importorskip("triton", reason="Triton is not installed (it comes with PyTorch for CUDA)")

VERSION = tuple(int(number) for number in triton.__version__.split(".")[:2])
compiled = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set")

WHOLE = (((0, 110),),)
BAGS = (((0, 30), (30, 101)), ((101, 102),), ((102, 120),))
SLIDES = (((0, 40), (40, 41), (41, 110)), ((110, 113), (113, 120)))


class Case(NamedTuple):
    runs: Runs = WHOLE
    phis: int = 1
    terms: str = "kqv"
    across: bool = False
    diagonal: bool = True
    dropout_p: float = 0.0
    dim: int = 10
    dim_v: int = 16
    dtype: torch.dtype = torch.float32
    heads: int = 2
    strided: bool = False

    @property
    def task(self) -> Task:
        return Task(self.runs, self.across, self.diagonal, "v" in self.terms, self.dropout_p)


CASES = {
    "shared phi": Case(),
    "separate phi": Case(phis=3),
    "shared phi, key term": Case(terms="k"),
    "shared phi, query and value term": Case(terms="qv"),
    "separate phi, query term": Case(phis=3, terms="q"),
    "separate phi, value term": Case(phis=3, terms="v"),
    "separate phi, key and value term": Case(phis=3, terms="kv"),
    "no phi": Case(terms=""),
    "several bags": Case(BAGS),
    "several bags, no diagonal": Case(BAGS, phis=3, diagonal=False),
    "no diagonal": Case(diagonal=False),
    "no diagonal, no phi": Case(terms="", diagonal=False),
    "across slides": Case(SLIDES, terms="", across=True, diagonal=False),
    "across slides that have no other": Case(BAGS, terms="", across=True),
    "dropout, shared phi": Case(dropout_p=0.3),
    "dropout, separate phi, no diagonal": Case(BAGS, phis=3, diagonal=False, dropout_p=0.3),
    "dropout, no phi, across slides": Case(SLIDES, terms="", across=True, dropout_p=0.3),
    "one tile": Case((((0, 1),),)),
    "one tile without itself": Case((((0, 1),),), diagonal=False),
    "no tile": Case(((),)),
    "blocks without a rest": Case((((0, 128),),), dim=64, dim_v=64),
    "heads of 64": Case(dim=64, dim_v=64, phis=3),
    "memory layout": Case(strided=True),
    "bfloat16": Case(dtype=torch.bfloat16, dim=64, dim_v=64),
    "bfloat16, separate phi": Case(dtype=torch.bfloat16, dim=32, dim_v=32, phis=3, diagonal=False),
    "float16": Case(dtype=torch.float16, dropout_p=0.3),
}

# Largest error per output, relative to its largest number.
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def operands_of(case: Case, device: str = "cpu") -> Operands:
    """Random operands of which scores, and phi of 16-bit ones, are of the size that training meets."""
    g = torch.Generator().manual_seed(0)
    n = case.runs[-1][-1][1] if case.runs[-1] else 0

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(device, dtype)

    def vectors(dim: int) -> torch.Tensor:
        if case.strided:
            return draw(n, dim, case.heads, dtype=case.dtype).permute(2, 0, 1)
        return draw(n, case.heads, dim, dtype=case.dtype).transpose(0, 1)

    q, k, v = vectors(case.dim), vectors(case.dim), vectors(case.dim_v)
    row, col = (draw(case.heads, n) if letter in case.terms else None for letter in "kq")
    beta, theta, xy = (draw(case.phis, case.heads).exp(), draw(case.phis, case.heads).exp(), 2 * draw(2, n))
    dropped = codes(torch.tensor(3), 1, case.heads, n, torch.device(device)) if case.dropout_p else None
    fates = (None, None) if dropped is None else (dropped.row[0], dropped.col[0])
    phi = (beta, theta, xy) if case.terms else (None, None, None)
    near = draw(case.heads, n) if "q" in case.terms else None
    return Operands(q, k, v, row, col, *phi, *fates, near, 1.4 * case.dim**-0.5)


def exact_of(operands: Operands) -> Operands:
    """In float64, as backends take them that want scores scaled and near in q: here as one more number of each tile."""
    exact = Operands(*(x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in operands))
    row, col = (None if x is None else x * exact.scale for x in (exact.row, exact.col))
    near = torch.zeros_like(exact.k[..., 0]) if exact.near is None else exact.near
    q = torch.cat([exact.q, torch.ones_like(near).unsqueeze(-1)], dim=-1) * exact.scale
    k = torch.cat([exact.k, near.unsqueeze(-1)], dim=-1)
    return exact._replace(q=q, k=k, row=row, col=col, near=None, scale=1.0)


def apart(gradients: Gradients, operands: Operands) -> Gradients:
    """From those of `exact_of` to those of the operands."""
    row, col = (None if x is None else x * operands.scale for x in (gradients.row, gradients.col))
    near = None if operands.near is None else gradients.k[..., -1]
    q, k = gradients.q[..., :-1] * operands.scale, gradients.k[..., :-1]
    return gradients._replace(q=q, k=k, row=row, col=col, near=near)


def gradients_for(part: Part, task: Task) -> Part:
    """Of a random linear function of what is wanted; rows without keys have none."""
    g = torch.Generator().manual_seed(1)
    value, far, kept, lse = (torch.randn(output.shape, generator=g).to(output) for output in part)
    alone = part.lse == -torch.inf
    value.masked_fill_(alone.unsqueeze(-1), 0)
    far.masked_fill_(alone, 0).mul_(task.far)
    kept.masked_fill_(alone, 0).mul_(task.dropout_p > 0)
    return Part(value, far, kept, lse.masked_fill_(alone, 0))


def errors_of(case: Case, device: str = "cpu") -> dict[str, float]:
    """Of every output and gradient against `tiled` in float64, relative to the largest number."""
    from wsi_mil.attention import cuda

    task, operands = case.task, operands_of(case, device)
    exact = exact_of(operands)
    wanted, got = tiled.forward(exact, task), cuda.forward(operands, task)
    grads = gradients_for(got, task)
    wanted_grads = tiled.backward(exact, task, retrace_of(task, wanted, Part(*(grad.double() for grad in grads))))
    wanted_grads = apart(wanted_grads, operands)
    got_grads = cuda.backward(operands, task, retrace_of(task, got, grads))
    assert torch.equal(got.lse == -torch.inf, wanted.lse == -torch.inf)
    pairs = {name: (getattr(got, name), getattr(wanted, name)) for name in Part._fields}
    pairs |= {f"gradient of {name}": (getattr(got_grads, name), x) for name, x in wanted_grads._asdict().items()}
    assert {got.value.dtype, got_grads.q.dtype, got_grads.k.dtype} == {torch.float32}
    for name in ("v", "row", "col", "beta", "theta", "near"):
        x, y = getattr(got_grads, name), getattr(operands, name)
        assert (None if x is None else x.dtype) == (None if y is None else y.dtype)
    return {name: relative_error(x, y) for name, (x, y) in pairs.items() if y is not None and y.numel()}


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    finite = wanted.isfinite()
    got, wanted = got.double()[finite], wanted[finite]
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-2)) if finite.any() else 0.0


def assert_close(errors: dict[str, float], bound: float) -> None:
    assert {name: error for name, error in errors.items() if not error <= bound} == {}


# ---- interpreted


def prepare_interpreter() -> None:
    """Warnings are errors there too; blocks have a size at which interpretation is fast and there are several."""
    from triton.runtime import interpreter

    from wsi_mil.attention import backends, cuda

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "overflow encountered in exp2")  # where phi is 1 / (1 + inf), 0 as it should be
    cuda.LIGHT_LAUNCHES.clear()
    for key in cuda.LAUNCHES:
        rows, cols = (32, 64) if key[0] == "trace_keys" else (64, 32)
        cuda.LAUNCHES[key] = cuda.Launch(rows, cols, warps=4, stages=2)
    builder = interpreter.interpreter_builder
    multiply = builder.create_dot

    def multiply_numbers(a, b, *more):  # the interpreter multiplies bfloat16's bits as if they were integers
        if a.dtype == triton.language.bfloat16:
            a, b = (builder.create_fp_ext(x, triton.language.float32) for x in (a, b))
        return multiply(a, b, *more)

    cut = builder.create_fp_trunc

    def round_to_even(x, kind):  # the interpreter cuts off what bfloat16 has no room for, which no GPU does
        if (x.dtype.scalar, kind.scalar) == (triton.language.float32, triton.language.bfloat16):
            bits = np.ascontiguousarray(x.data).view(np.uint32)
            bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            x = interpreter.TensorHandle(bits.view(np.float32), x.dtype)
        return cut(x, kind)

    builder.create_dot, builder.create_fp_trunc = multiply_numbers, round_to_even
    backends.INTERPRETED.add(torch.bfloat16)
    patch_once(interpreter)


def patch_once(interpreter: ModuleType) -> None:
    """The interpreter patches the language of a function's module at each call of one by a kernel, half of its time.

    Once as the kernel starts is enough, if it is for all modules.
    """
    patch, language = interpreter._patch_lang, triton.language
    everywhere = SimpleNamespace(__globals__={"tl": language, "core": language.core})
    interpreter._patch_lang = lambda fn: patch(everywhere)
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **options: self.rewrite()(*args, **options)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process whose Triton interprets."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(prepare_interpreter).result()
        yield pool


@pytest.mark.skipif(VERSION <= (3, 6), reason="the interpreter of Triton 3.6 cannot read the bounds of loops")
@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_agree_with_tiled(name, interpreter):
    case = CASES[name]
    assert_close(interpreter.submit(errors_of, case).result(), BOUNDS[case.dtype])


def golden_params():
    """Those of many tiles and heads show nothing of their own, and take Triton's interpreter long."""
    return [
        pytest.param(name, marks=pytest.mark.slow if "n200" in name and "_h4" in name else ())
        for name in golden_cases_of("triton")
    ]


@needs_golden
@pytest.mark.skipif(VERSION <= (3, 6), reason="the interpreter of Triton 3.6 cannot read the bounds of loops")
@pytest.mark.parametrize("name", golden_params())
def test_interpreted_kernels_agree_with_the_published_layer(name, interpreter):
    forward, backward = interpreter.submit(golden_errors, name, "triton", torch.float32).result()
    assert forward <= (LARGE_32 if "bigx" in name else FORWARD_32)
    assert backward <= (LARGE_32 if "bigx" in name else GRADIENT_32)


def errors_over_slides(self_bias: bool) -> dict[str, float]:
    """Of attention in a bag of interleaved slides, and one of a single slide, against the definition in float64."""
    from test_attention import random_case, some_mask
    from test_attention_backends import in_dtype, outcome

    case = random_case(tiles=100, self_bias=self_bias)
    slide = torch.randint(0, 3, (2, 100), generator=torch.Generator().manual_seed(1)) * torch.tensor([[1], [0]])
    options = {"mask": some_mask(2, 100), "slide": slide}
    got = outcome("triton", in_dtype(case, torch.float32), **options)
    wanted = outcome("reference", case, **options)
    return {str(name): relative_error(x, y) for name, (x, y) in enumerate(zip(*map(_flat, (got, wanted)), strict=True))}


def _flat(outcome: tuple[torch.Tensor, list[torch.Tensor]]) -> list[torch.Tensor]:
    return [outcome[0], *outcome[1]]


@pytest.mark.skipif(VERSION <= (3, 6), reason="the interpreter of Triton 3.6 cannot read the bounds of loops")
@pytest.mark.parametrize("self_bias", [True, False])
def test_interpreted_attention_in_bags_of_several_slides_is_the_definition(self_bias, interpreter):
    assert_close(interpreter.submit(errors_over_slides, self_bias).result(), GRADIENT_32)


def errors_in_half(
    backend: str, mean_value: float = 0.0, spread: float = 1.0, tables: str = "kqv", self_bias: bool = True
) -> dict[str, float]:
    """Of attention in bfloat16 against the definition in float64, for values with a mean and queries of some spread."""
    from test_attention import random_case
    from test_attention_backends import in_dtype, outcome

    q, k, v, coords, bias = random_case(tiles=48, dim=16, dim_v=16, tables=tables, self_bias=self_bias)
    low = in_dtype((spread * q, k, v + mean_value, coords, bias), torch.bfloat16)
    exact = in_dtype(low, torch.float64)
    got, wanted = _flat(outcome(backend, low)), _flat(outcome("reference", exact))
    names = ["value", *(f"gradient of {name}" for name in ("q", "k", "v"))]
    names += [f"gradient of {name}" for name, part in zip(bias._fields[:5], bias, strict=False) if part is not None]
    return {name: float((x.double() - y).norm() / y.norm()) for name, x, y in zip(names, got, wanted, strict=True)}


@pytest.mark.skipif(VERSION <= (3, 6), reason="the interpreter of Triton 3.6 cannot read the bounds of loops")
@pytest.mark.parametrize("self_bias", [True, False])
def test_what_values_have_in_common_leaves_no_error_in_gradients(self_bias, interpreter):
    """It cancels in those of scores, exactly only where the sums of a row are of the same weights and not rounded, and
    the gradient that comes in, in float32 where parts are joined, is rounded before and not after."""
    options = (4.0, 1.0, "kqv", self_bias)
    got, bounds = interpreter.submit(errors_in_half, "triton", *options).result(), errors_in_half("tiled", *options)
    assert {name: error for name, error in got.items() if not error <= 4 * bounds[name]} == {}


@pytest.mark.skipif(VERSION <= (3, 6), reason="the interpreter of Triton 3.6 cannot read the bounds of loops")
@pytest.mark.parametrize("tables", ["kqv", "kv"])
def test_large_scores_are_as_exact_as_their_operands(tables, interpreter):
    """Queries that are scaled in 16 bits, or given what a table adds, are rounded a second time."""
    options = (0.0, 3.0, tables)
    got, bounds = interpreter.submit(errors_in_half, "triton", *options).result(), errors_in_half("tiled", *options)
    assert {name: error for name, error in got.items() if not error <= 2 * bounds[name]} == {}


# ---- compiled


class Recorder:
    """Stands in for a kernel and keeps what it is started with."""

    def __init__(self):
        self.arguments = {}

    def __getitem__(self, grid):
        return lambda **arguments: self.arguments.update(arguments)


def compile_for_hopper(name: str, case: Case, monkeypatch: pytest.MonkeyPatch):
    """Compile a kernel as it would be started on a GPU of compute capability 9.0, which is not needed."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from wsi_mil.attention import cuda, triton_kernels

    kernel, recorder = getattr(triton_kernels, name), Recorder()
    for other in ("attend", "trace_queries", "trace_keys"):
        monkeypatch.setattr(triton_kernels, other, recorder if other == name else Recorder())
    operands = operands_of(case)
    part = cuda.forward(operands, case.task)
    cuda.backward(operands, case.task, retrace_of(case.task, part, part))
    arguments = recorder.arguments | {"FAST": case.dtype != torch.float32}
    types = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}
    signature, constants, attributes = {}, {}, {}
    for parameter in kernel.params:
        value, place = arguments.pop(parameter.name), (parameter.num,)
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[place] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[place] = types[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[place] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=arguments)


def disassemble(cubin: bytes, folder: Path, option: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    (folder / "cubin").write_bytes(cubin)
    return subprocess.run([tool, option, folder / "cubin"], capture_output=True, text=True, check=True).stdout


KERNELS = "attend", "trace_queries", "trace_keys"
DIMS = {torch.bfloat16: (32, 64, 128, 256), torch.float16: (64,), torch.float32: (32, 64, 128, 256)}


def compilations() -> list:
    """Every kernel as the table starts it; slow are all but the most used, each with three phi, or
    with one where it has a launch of its own."""
    fast = {("attend", 3), ("trace_queries", 3), ("trace_keys", 1)}
    settings = [(dtype, dim, 0.0) for dtype, dims in DIMS.items() for dim in dims] + [(torch.bfloat16, 64, 0.1)]
    return [
        pytest.param(
            kernel,
            Case(phis=phis, dim=dim, dim_v=dim, dtype=dtype, dropout_p=dropout_p),
            id=f"{kernel}, {dtype}, heads of {dim}, {phis} phi, dropout {dropout_p}",
            marks=()
            if (dtype, dim, dropout_p) == (torch.bfloat16, 64, 0) and (kernel, phis) in fast
            else pytest.mark.slow,
        )
        for kernel in KERNELS
        for dtype, dim, dropout_p in settings
        for phis in (1, 3)
    ]


@compiled
@pytest.mark.skipif(VERSION <= (3, 6), reason="blocks were chosen with a later Triton, which uses fewer registers")
@pytest.mark.parametrize(("kernel", "case"), compilations())
def test_no_kernel_spills_registers_on_hopper(kernel, case, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cubin = compile_for_hopper(kernel, case, monkeypatch).asm["cubin"]
    usage = disassemble(cubin, tmp_path, "-res-usage")
    used = {name: int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK", "LOCAL")}
    assert 0 < used["REG"] <= 255
    if case.dim <= 128:  # larger heads spill a few registers outside the loop over whole blocks
        assert (used["STACK"], used["LOCAL"]) == (0, 0)
        hopper = "HGMMA" in disassemble(cubin, tmp_path, "-sass")
        assert hopper == (case.dtype != torch.float32), "Hopper's tensor cores should multiply numbers of 16 bits"


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kind_of_kernel_compiles(kernel, name, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if CASES[name].runs[0]:
        assert compile_for_hopper(kernel, CASES[name], monkeypatch).asm["cubin"]


# ---- on a GPU

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    compiled,
]
LARGE = {
    f"{dtype}, {phis} phi, heads of {dim}": Case(
        (((0, 700), (700, 1500)), ((1500, 2047),)), phis, dtype=dtype, dim=dim, dim_v=dim
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for phis in (1, 3)
    for dim in (16, 64, 100, 128)
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=on_gpu) for name in CASES | LARGE])
def test_kernels_agree_with_tiled_on_a_gpu(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = (CASES | LARGE)[name]
    assert_close(errors_of(case, "cuda"), BOUNDS[case.dtype])


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=on_gpu) for dtype in (torch.bfloat16, torch.float32)])
def test_equal_input_gives_equal_bits_on_a_gpu(dtype, monkeypatch, tmp_path):
    from wsi_mil.attention import cuda

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = Case(dtype=dtype, dim=64, dim_v=64, dropout_p=0.1)
    operands = operands_of(case, "cuda")
    parts = [cuda.forward(operands, case.task) for _ in range(2)]
    made = [cuda.backward(operands, case.task, retrace_of(case.task, part, part)) for part in parts]
    for first, second in zip(parts[0] + made[0], parts[1] + made[1], strict=True):
        assert torch.equal(first, second)
