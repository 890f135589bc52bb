"""Arithmetic inside Numba at the speed of the machine's vector units: products of matrices, powers of two.

A product of small blocks is most of the work of attention. Calling BLAS for it would take and give up the interpreter
lock at each block; here a register tile of the product is spelt out in LLVM's vector types (Goto and van de Geijn 2008,
doi 10.1145/1356052.1356053), for any instruction set that LLVM knows.
"""

from typing import no_type_check

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 16
"""Columns of products come in multiples of it: an AVX-512 register of floats, two of AVX2, four of Neon."""
HEIGHT = 6
"""Rows of a register tile: rows of products are fastest in multiples of it."""
# Of `WIDTH` columns in a register tile. Its sums, a line of columns and a factor should just fill the registers.
_VECTORS = 4 if llvm.get_host_cpu_features().get("avx512f") else 1

# Sums may be reordered and products fused, but infinities and NaN keep their meaning: what is wrong shows.
FASTMATH = {"contract", "reassoc", "nsz"}

_INDEX, _WORD, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, WIDTH)


@no_type_check
def _address(builder, array, row, column, kind):
    """Pointer to an entry of a matrix and those after it."""
    strides = cgutils.unpack_tuple(builder, array.strides, 2)
    place = builder.bitcast(array.data, ir.IntType(8).as_pointer())
    for at, stride in zip((row, column), strides, strict=True):
        place = builder.gep(place, [builder.mul(at, stride)])
    return builder.bitcast(place, kind.as_pointer())


@no_type_check
def _spread(builder, number):
    """A vector of one number."""
    nothing, lanes = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(_WORD, WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(builder.insert_element(nothing, number, _WORD(0)), nothing, lanes)


@no_type_check
def _sum_of_products(builder, a, b, lines, columns):
    """The loop over the inner dimension, with all its sums in registers."""
    entry, loop, done = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(_INDEX)
    sums = [builder.phi(_VECTOR) for _ in lines for _ in columns]
    across = [builder.load(_address(builder, b, k, column, _VECTOR), align=4) for column in columns]
    down = [_spread(builder, builder.load(_address(builder, a, line, k, _FLOAT))) for line in lines]
    fuse = {"flags": ["contract"]}
    products = [builder.fmul(one, other, **fuse) for one in down for other in across]
    grown = [builder.fadd(product, total, **fuse) for product, total in zip(products, sums, strict=True)]
    following = builder.add(k, _INDEX(1))
    for phi, first, later in zip((k, *sums), (0, *([0.0] * WIDTH for _ in sums)), (following, *grown), strict=True):
        phi.add_incoming(ir.Constant(phi.type, first), entry)
        phi.add_incoming(later, loop)
    depth = cgutils.unpack_tuple(builder, a.shape, 2)[1]
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
    builder.position_at_end(done)
    return grown


@no_type_check
def _register_tile(rows, vectors):
    """Code for ``c[i : i + rows, j : j + vectors * WIDTH] (+)= a[i : i + rows] @ b[:, j : j + vectors * WIDTH]``."""

    def generate(context, builder, signature, args):
        kinds, (i, j, add) = signature.args[:3], args[3:]
        c, a, b = (context.make_array(kind)(context, builder, arg) for kind, arg in zip(kinds, args[:3], strict=True))
        lines = [builder.add(i, _INDEX(row)) for row in range(rows)]
        columns = [builder.add(j, _INDEX(part * WIDTH)) for part in range(vectors)]
        targets = [_address(builder, c, line, column, _VECTOR) for line in lines for column in columns]
        totals = _sum_of_products(builder, a, b, lines, columns)
        with builder.if_else(add) as (adding, setting):
            with adding:
                for target, total in zip(targets, totals, strict=True):
                    builder.store(builder.fadd(builder.load(target, align=4), total), target, align=4)
            with setting:
                for target, total in zip(targets, totals, strict=True):
                    builder.store(total, target, align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(_context, c, a, b, i, j, add):
        return types.void(c, a, b, types.intp, types.intp, types.boolean), generate

    return tile


_TALL_WIDE, _TALL = _register_tile(HEIGHT, _VECTORS), _register_tile(HEIGHT, 1)
_FLAT_WIDE, _FLAT = _register_tile(1, _VECTORS), _register_tile(1, 1)


@njit(nogil=True)
@no_type_check
def matmul(c, a, b, add):
    """``c = a @ b``, or ``c += a @ b``.

    Columns of b and c are contiguous and a multiple of `WIDTH`; a may be any view. None may be empty.
    """
    rows, columns = c.shape
    tall, wide = rows - rows % HEIGHT, columns - columns % (_VECTORS * WIDTH)
    for j in range(0, wide, _VECTORS * WIDTH):
        for i in range(0, tall, HEIGHT):
            _TALL_WIDE(c, a, b, i, j, add)
        for i in range(tall, rows):
            _FLAT_WIDE(c, a, b, i, j, add)
    for j in range(wide, columns, WIDTH):
        for i in range(0, tall, HEIGHT):
            _TALL(c, a, b, i, j, add)
        for i in range(tall, rows):
            _FLAT(c, a, b, i, j, add)


@intrinsic
@no_type_check
def _nearest(_context, x):
    """The nearest whole number."""

    def generate(_context, builder, _signature, args):
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [_FLOAT]), args)

    return types.float32(x), generate


@intrinsic
@no_type_check
def _power_of_two(_context, x):
    """``2 ** x`` of a whole number; 0 for -127."""

    def generate(_context, builder, _signature, args):
        exponent = builder.add(builder.fptosi(args[0], _WORD), _WORD(127))
        return builder.bitcast(builder.shl(exponent, _WORD(23)), _FLOAT)

    return types.float32(x), generate


@njit(nogil=True, error_model="numpy", fastmath=FASTMATH)
@no_type_check
def exp2(x):
    """``2 ** x`` with a relative error below 2e-7; 0 below -126.5, and no overflow. NaN stays NaN."""
    f = np.float32
    x = f(-127) if x < f(-127) else x
    x = f(127) if x > f(127) else x
    whole = _nearest(x)
    part = x - whole
    power = f(1.535336188319500e-4)
    power = power * part + f(1.339887440266574e-3)
    power = power * part + f(9.618437357674640e-3)
    power = power * part + f(5.550332471162809e-2)
    power = power * part + f(2.402264791363012e-1)
    power = power * part + f(6.931472028550421e-1)
    power = power * part + f(1)
    return power * _power_of_two(whole)


@intrinsic
@no_type_check
def greater(_context, x, y):
    """The greater number, in a form whose reduction is vectorised. NaN may get lost."""

    def generate(_context, builder, _signature, args):
        kind = ir.FunctionType(_FLOAT, [_FLOAT] * 2)
        return builder.call(
            builder.module.declare_intrinsic("llvm.maxnum", [_FLOAT], kind), args, fastmath=["nnan", "nsz"]
        )

    return types.float32(x, y), generate
