"""Triton kernels of distance-aware attention: flash attention whose scores depend on phi, with sums of phi beside.

Every program keeps one block of tiles, its own (queries, or keys in `trace_keys`), and walks over the blocks of their
partners. A row of ``work`` says which, see `wsi_mil.attention.cuda`: first the blocks that need no mask, then those
that do. One program writes what belongs to its own block, so nothing is added atomically and equal inputs give equal
bits. Optional arrays are None, which compiles to code without them.
"""

from typing import no_type_check

import triton
import triton.language as tl

from wsi_mil.attention.triton_pairs import (
    LANES,
    LN2,
    LOG2E,
    LOWEST,
    biased,
    by_lane,
    change_of,
    change_start,
    distance_of,
    exp2,
    load_curves,
    load_numbers,
    load_places,
    load_vectors,
    own_block,
    paired,
    partner_block,
    phis_of,
    slope_of,
    stays_of,
    store_sums,
    store_vectors,
    times_factor,
    walk_of,
)


@triton.jit
@no_type_check
def attend(
    q_ptr, k_ptr, v_ptr, row_ptr, col_ptr, near_ptr, xy_ptr, curve_ptr, row_code_ptr, col_code_ptr, work_ptr,
    value_ptr, far_ptr, kept_ptr, lse_ptr,
    q_head, q_tile, k_head, k_tile, v_head, v_tile, heads, tiles, threshold, scale, amplify,
    DIM: tl.constexpr, DIM_V: tl.constexpr, PAD: tl.constexpr, PAD_V: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, EDGE: tl.constexpr, SHARED: tl.constexpr, DIAGONAL: tl.constexpr,
    STAGES: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Value, far, kept and lse of a block of rows."""
    ROW: tl.constexpr = row_ptr is not None
    COL: tl.constexpr = col_ptr is not None
    FAR: tl.constexpr = far_ptr is not None
    DROPOUT: tl.constexpr = row_code_ptr is not None
    head = tl.program_id(1).to(tl.int64)
    base = head * tiles
    work, start, rows, own = own_block(work_ptr, ROWS)
    curves = load_curves(curve_ptr, head, heads, SHARED)
    q = load_vectors(q_ptr + head * q_head + start * q_tile, q_tile, own, DIM, PAD, True)
    x, y = load_places(xy_ptr, tiles, rows, own, True)
    row = load_numbers(row_ptr, base, rows, own, 0.0, True)
    row_code = load_numbers(row_code_ptr, base, rows, own, 0, True)
    top = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS, LANES], tl.float32)
    kept, far = total, total
    value = tl.zeros([ROWS, PAD_V], tl.float32)
    for MASKED in tl.static_range(2):
        walk = walk_of(work, MASKED, EDGE if MASKED else COLS)
        for step in tl.range(walk[4], num_stages=STAGES):
            j, cols, real = partner_block(walk, step, EDGE if MASKED else COLS)
            k = load_vectors(k_ptr + head * k_head + j * k_tile, k_tile, real, DIM, PAD, MASKED)
            v = load_vectors(v_ptr + head * v_head + j * v_tile, v_tile, real, DIM_V, PAD_V, MASKED)
            col = load_numbers(col_ptr, base, cols, real, 0.0, MASKED)
            x_col, y_col = load_places(xy_ptr, tiles, cols, real, MASKED)
            distance = distance_of(x[:, None], y[:, None], x_col[None, :], y_col[None, :], FAST)
            phi_key, phi_query, phi_value = phis_of(distance, curves, ROW, COL, FAR, SHARED, FAST)
            near = load_numbers(near_ptr, base, cols, real, 0.0, MASKED)
            score = tl.broadcast_to(near[None, :], distance.shape)
            score = biased(score, row[:, None], col[None, :], phi_key, phi_query, ROW, COL, SHARED)
            score = tl.dot(q, tl.trans(k), score, input_precision="ieee") * scale
            if MASKED:
                score = tl.where(paired(rows[:, None], cols[None, :], real[None, :], DIAGONAL), score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, 1))
            shrink = exp2(top - higher, FAST)
            # Rounded for the product, so for all sums: else what values have in common does not cancel in gradients.
            weight = exp2(score - higher[:, None], FAST).to(v.dtype)
            top = higher
            total = total * shrink[:, None] + by_lane(weight)
            if DROPOUT:
                col_code = load_numbers(col_code_ptr, base, cols, real, 0, MASKED)
                weight = tl.where(stays_of(row_code[:, None] + col_code[None, :], threshold), weight, 0.0)
                kept = kept * shrink[:, None] + by_lane(weight)
            if FAR:
                far = far * shrink[:, None] + by_lane(weight * phi_value)
            value = tl.dot(weight, v, value * shrink[:, None], input_precision="ieee")
    total = tl.sum(total, 1)
    attended = total > 0
    total = tl.where(attended, total, 1.0)
    tl.store(lse_ptr + base + rows, tl.where(attended, top + tl.log2(total), float("-inf")), mask=own)
    share = tl.where(attended, amplify / total, 0.0)
    store_vectors(value_ptr + (base + start) * DIM_V, value * share[:, None], own, DIM_V, PAD_V)
    if FAR:
        tl.store(far_ptr + base + rows, tl.sum(far, 1) * share, mask=own)
    if DROPOUT:
        tl.store(kept_ptr + base + rows, tl.sum(kept, 1) * share, mask=own)


@triton.jit
@no_type_check
def trace_queries(
    q_ptr, k_ptr, v_ptr, row_ptr, col_ptr, near_ptr, xy_ptr, curve_ptr, row_code_ptr, col_code_ptr, work_ptr,
    dvalue_ptr, dfar_ptr, dkept_ptr, shift_ptr, steady_ptr, dq_ptr, drow_ptr, dcurve_ptr,
    q_head, q_tile, k_head, k_tile, v_head, v_tile, dvalue_head, dvalue_tile, heads, tiles, threshold, scale,
    DIM: tl.constexpr, DIM_V: tl.constexpr, PAD: tl.constexpr, PAD_V: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, EDGE: tl.constexpr, SHARED: tl.constexpr, DIAGONAL: tl.constexpr,
    STAGES: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Gradients of q and row of a block of rows, and what it adds to those of phi's exponents."""
    ROW: tl.constexpr = row_ptr is not None
    COL: tl.constexpr = col_ptr is not None
    FAR: tl.constexpr = dfar_ptr is not None
    DROPOUT: tl.constexpr = row_code_ptr is not None
    head = tl.program_id(1).to(tl.int64)
    base = head * tiles
    work, start, rows, own = own_block(work_ptr, ROWS)
    curves = load_curves(curve_ptr, head, heads, SHARED)
    q = load_vectors(q_ptr + head * q_head + start * q_tile, q_tile, own, DIM, PAD, True)
    dvalue = dvalue_ptr + head * dvalue_head + start * dvalue_tile
    dvalue = load_vectors(dvalue, dvalue_tile, own, DIM_V, PAD_V, True)
    x, y = load_places(xy_ptr, tiles, rows, own, True)
    row = load_numbers(row_ptr, base, rows, own, 0.0, True)
    row_code = load_numbers(row_code_ptr, base, rows, own, 0, True)
    dfar = load_numbers(dfar_ptr, base, rows, own, 0.0, True)
    dkept = load_numbers(dkept_ptr, base, rows, own, 0.0, True)
    shift = load_numbers(shift_ptr, base, rows, own, float("inf"), True)
    steady = load_numbers(steady_ptr, base, rows, own, 0.0, True)
    dq = tl.zeros([ROWS, PAD], tl.float32)
    drow = tl.zeros([ROWS, LANES], tl.float32)
    alone, times_distance, value_alone, value_times_distance = drow, drow, drow, drow
    for MASKED in tl.static_range(2):
        walk = walk_of(work, MASKED, EDGE if MASKED else COLS)
        for step in tl.range(walk[4], num_stages=STAGES):
            j, cols, real = partner_block(walk, step, EDGE if MASKED else COLS)
            k = load_vectors(k_ptr + head * k_head + j * k_tile, k_tile, real, DIM, PAD, MASKED)
            v = load_vectors(v_ptr + head * v_head + j * v_tile, v_tile, real, DIM_V, PAD_V, MASKED)
            col = load_numbers(col_ptr, base, cols, real, 0.0, MASKED)
            col_code = load_numbers(col_code_ptr, base, cols, real, 0, MASKED)
            x_col, y_col = load_places(xy_ptr, tiles, cols, real, MASKED)
            distance = distance_of(x[:, None], y[:, None], x_col[None, :], y_col[None, :], FAST)
            phi_key, phi_query, phi_value = phis_of(distance, curves, ROW, COL, FAR, SHARED, FAST)
            near = load_numbers(near_ptr, base, cols, real, 0.0, MASKED)
            score = tl.broadcast_to(near[None, :], distance.shape)
            score = biased(score, row[:, None], col[None, :], phi_key, phi_query, ROW, COL, SHARED)
            score = tl.dot(q, tl.trans(k), score, input_precision="ieee") * scale
            weight = exp2(score - shift[:, None], FAST)
            if MASKED:
                weight = tl.where(paired(rows[:, None], cols[None, :], real[None, :], DIAGONAL), weight, 0.0)
            change = change_start(phi_value, dfar[:, None], dkept[:, None], steady[:, None], FAR, DROPOUT)
            change = tl.dot(dvalue, tl.trans(v), change, input_precision="ieee")
            code = row_code[:, None] + col_code[None, :]
            weight, change = change_of(weight, change, steady[:, None], code, threshold, DROPOUT)
            dq = tl.dot(change.to(k.dtype), k, dq, input_precision="ieee")
            if ROW:
                drow += by_lane(change * phi_key)
            if SHARED:
                through = times_factor(change, (row * scale)[:, None], (col * scale)[None, :], ROW, COL)
                if FAR:
                    through += weight * (dfar * LOG2E)[:, None]
                through *= slope_of(phi_value)
                alone += by_lane(through)
                times_distance += by_lane(through * distance)
            else:
                if ROW:
                    through = change * slope_of(phi_key)
                    alone += by_lane(through)
                    times_distance += by_lane(through * distance)
                if FAR:
                    through = weight * slope_of(phi_value)
                    value_alone += by_lane(through)
                    value_times_distance += by_lane(through * distance)
    store_vectors(dq_ptr + (base + start) * DIM, dq * (LN2 * scale), own, DIM, PAD)
    if ROW:
        tl.store(drow_ptr + base + rows, tl.sum(drow, 1) * (LN2 * scale), mask=own)
    plane = tl.num_programs(1).to(tl.int64) * tiles
    if SHARED:
        store_sums(dcurve_ptr, alone, times_distance, 1.0, base + rows, own, plane)
    else:
        if ROW:
            store_sums(dcurve_ptr, alone, times_distance, row * scale, base + rows, own, plane)
        if FAR:
            dcurve_ptr += 4 * plane
            store_sums(dcurve_ptr, value_alone, value_times_distance, dfar * LOG2E, base + rows, own, plane)


@triton.jit
@no_type_check
def trace_keys(
    q_ptr, k_ptr, v_ptr, row_ptr, col_ptr, near_ptr, xy_ptr, curve_ptr, row_code_ptr, col_code_ptr, work_ptr,
    shift_ptr, steady_ptr, dvalue_ptr, dfar_ptr, dkept_ptr,
    dk_ptr, dv_ptr, dcol_ptr, dnear_ptr, dcurve_ptr,
    q_head, q_tile, k_head, k_tile, v_head, v_tile, dvalue_head, dvalue_tile, heads, tiles, threshold, scale,
    DIM: tl.constexpr, DIM_V: tl.constexpr, PAD: tl.constexpr, PAD_V: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, EDGE: tl.constexpr, SHARED: tl.constexpr, DIAGONAL: tl.constexpr,
    STAGES: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Gradients of k, v and col of a block of columns, and what it adds to those of phi_query's exponent.

    Blocks of scores are transposed here (columns by rows), so that the products that make dk and dv find their left
    operands in registers.
    """
    ROW: tl.constexpr = row_ptr is not None
    COL: tl.constexpr = col_ptr is not None
    FAR: tl.constexpr = dfar_ptr is not None
    DROPOUT: tl.constexpr = row_code_ptr is not None
    head = tl.program_id(1).to(tl.int64)
    base = head * tiles
    work, start, cols, own = own_block(work_ptr, COLS)
    curves = load_curves(curve_ptr, head, heads, SHARED)
    k = load_vectors(k_ptr + head * k_head + start * k_tile, k_tile, own, DIM, PAD, True)
    v = load_vectors(v_ptr + head * v_head + start * v_tile, v_tile, own, DIM_V, PAD_V, True)
    x, y = load_places(xy_ptr, tiles, cols, own, True)
    col = load_numbers(col_ptr, base, cols, own, 0.0, True)
    near = load_numbers(near_ptr, base, cols, own, 0.0, True)
    col_code = load_numbers(col_code_ptr, base, cols, own, 0, True)
    dk = tl.zeros([COLS, PAD], tl.float32)
    dv = tl.zeros([COLS, PAD_V], tl.float32)
    dcol = tl.zeros([COLS, LANES], tl.float32)
    dnear = tl.zeros([COLS], tl.float32)
    alone, times_distance = dcol, dcol
    for MASKED in tl.static_range(2):
        walk = walk_of(work, MASKED, EDGE if MASKED else ROWS)
        for step in tl.range(walk[4], num_stages=STAGES):
            i, rows, real = partner_block(walk, step, EDGE if MASKED else ROWS)
            q = load_vectors(q_ptr + head * q_head + i * q_tile, q_tile, real, DIM, PAD, MASKED)
            dvalue = dvalue_ptr + head * dvalue_head + i * dvalue_tile
            dvalue = load_vectors(dvalue, dvalue_tile, real, DIM_V, PAD_V, MASKED)
            row = load_numbers(row_ptr, base, rows, real, 0.0, MASKED)
            row_code = load_numbers(row_code_ptr, base, rows, real, 0, MASKED)
            shift = load_numbers(shift_ptr, base, rows, real, float("inf"), MASKED)
            steady = load_numbers(steady_ptr, base, rows, real, 0.0, MASKED)
            dfar = load_numbers(dfar_ptr, base, rows, real, 0.0, MASKED)
            dkept = load_numbers(dkept_ptr, base, rows, real, 0.0, MASKED)
            x_row, y_row = load_places(xy_ptr, tiles, rows, real, MASKED)
            distance = distance_of(x[:, None], y[:, None], x_row[None, :], y_row[None, :], FAST)
            phi_key, phi_query, phi_value = phis_of(distance, curves, ROW, COL, FAR, SHARED, FAST)
            score = tl.broadcast_to(near[:, None], distance.shape)
            score = biased(score, row[None, :], col[:, None], phi_key, phi_query, ROW, COL, SHARED)
            score = tl.dot(k, tl.trans(q), score, input_precision="ieee") * scale
            weight = exp2(score - shift[None, :], FAST)
            if MASKED:
                weight = tl.where(paired(rows[None, :], cols[:, None], real[None, :], DIAGONAL), weight, 0.0)
            change = change_start(phi_value, dfar[None, :], dkept[None, :], steady[None, :], FAR, DROPOUT)
            change = tl.dot(v, tl.trans(dvalue), change, input_precision="ieee")
            code = row_code[None, :] + col_code[:, None]
            weight, change = change_of(weight, change, steady[None, :], code, threshold, DROPOUT)
            dv = tl.dot(weight.to(dvalue.dtype), dvalue, dv, input_precision="ieee")
            dk = tl.dot(change.to(q.dtype), q, dk, input_precision="ieee")
            if COL:
                dcol += by_lane(change * phi_query)
                dnear += tl.sum(change, 1)  # by lane it would take registers that there are not
                if not SHARED:
                    through = change * slope_of(phi_query)
                    alone += by_lane(through)
                    times_distance += by_lane(through * distance)
    store_vectors(dk_ptr + (base + start) * DIM, dk * (LN2 * scale), own, DIM, PAD)
    store_vectors(dv_ptr + (base + start) * DIM_V, dv, own, DIM_V, PAD_V)
    if COL:
        tl.store(dcol_ptr + base + cols, tl.sum(dcol, 1) * (LN2 * scale), mask=own)
        tl.store(dnear_ptr + base + cols, dnear * (LN2 * scale), mask=own)
        if not SHARED:
            plane = tl.num_programs(1).to(tl.int64) * tiles
            store_sums(dcurve_ptr + 2 * plane, alone, times_distance, col * scale, base + cols, own, plane)
