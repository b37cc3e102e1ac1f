"""Products of 8-bit integers: every sum is exact, with the instructions of each CPU that this host can run."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.target import codegen

from tests.schedules.integer_harness import MCPUS, Requantize, convolved, extremes, module
from tests.schedules.schedule_harness import HOST, compiled
from zmq_offload.compile.pipeline import cpu_pipeline
from zmq_offload.schedules import machine_of
from zmq_offload.schedules.integers.dot_product import dot_product, tile_of

few = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def target_features(target: tvm.target.Target) -> set[str]:
    return set(map(str, codegen.llvm_get_cpu_features(target)))


_HERE = target_features(HOST)
TARGETS = [
    target
    for target in (tvm.target.Target({"kind": "llvm", "mcpu": name, "num-cores": 2}) for name in MCPUS)
    if target_features(target) <= _HERE
] or [HOST]
targets = st.sampled_from(TARGETS)
dtypes = st.sampled_from(["uint8", "int8"])


def requantize(rng: np.random.Generator, columns: tuple[int, ...], largest: int, dtype: str) -> Requantize:
    return Requantize(
        rng.integers(-1000, 1000, columns).astype("int32"),
        (rng.random(columns) * 200 / largest).astype("float32"),
        int(rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1)),
        dtype,
        relu=bool(rng.integers(2)),
    )


@few
@given(
    targets,
    dtypes,
    st.sampled_from([(1,), (3,), (7,), (2, 5), (40,)]),
    st.sampled_from([1, 2, 3, 4, 13, 64, 130]),
    st.sampled_from([1, 5, 16, 37, 64, 200]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_products_are_exact(
    target: Any, dtype: str, rows: tuple[int, ...], depth: int, columns: int, symbolic: bool, raw: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, w = extremes(rng, (*rows, depth), dtype), extremes(rng, (depth, columns), "int8")
    total = a.astype("int64") @ w.astype("int64")
    finish = requantize(rng, (columns,), 255 * 128 * depth, dtype)

    def steps(builder: relax.BlockBuilder, x: relax.Var) -> tvm.ir.Expr:
        product = builder.emit(relax.op.matmul(x, relax.const(w, "int8"), out_dtype="int32"))
        return product if raw else finish.steps(builder.emit, product)

    shape = ["m", *a.shape[1:]] if symbolic else a.shape
    (got,) = compiled(module(shape, dtype, steps), target)(a)
    np.testing.assert_array_equal(got, total if raw else finish.expected(total))


@pytest.mark.parametrize(("largest", "dtype"), [(64, "uint8"), (64, "int8"), (65, "uint8")])
def test_small_weights_are_added_in_16_bits_and_exact(largest: int, dtype: str) -> None:
    """The largest pairs of weights that cannot saturate, and those that could."""
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 1})
    rng = np.random.default_rng(largest)
    a = extremes(rng, (7, 37), dtype)
    a[0], a[1] = np.iinfo(dtype).max, np.iinfo(dtype).min
    w = np.where(rng.random((37, 21)) < 0.5, -64, 64).astype("int8")
    w[:, 0] = largest

    def steps(builder: relax.BlockBuilder, x: relax.Var) -> tvm.ir.Expr:
        return relax.op.matmul(x, relax.const(w, "int8"), out_dtype="int32")

    mod = module(a.shape, dtype, steps)
    assert ("vpmaddubsw" in assembly(mod, target)) == (largest == 64)
    if target_features(target) <= _HERE:
        np.testing.assert_array_equal(compiled(mod, target)(a)[0], a.astype("int64") @ w.astype("int64"))


@few
@given(
    targets,
    dtypes,
    st.sampled_from([(3, 8, 1), (4, 17, 1), (5, 7, 1), (8, 64, 1), (6, 9, 3), (16, 16, 2), (39, 39, 39), (20, 20, 20)]),
    st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 3, 5])),
    st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2])),
    st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2])),
    st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0)]),
    st.tuples(st.sampled_from([1, 2]), st.sampled_from([7, 12]), st.sampled_from([9, 21])),
    st.integers(0, 99),
)
def test_convolutions_are_exact(
    target: Any,
    dtype: str,
    channels: tuple[int, int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
    pads: tuple[int, int, int, int],
    size: tuple[int, int, int],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    ic, oc, groups = channels
    x, w = extremes(rng, (size[0], ic, *size[1:]), dtype), extremes(rng, (oc, ic // groups, *kernel), "int8")
    fill = int(extremes(rng, (1,), dtype)[0])
    total = convolved(x, w, pads, fill, strides, dilation, groups)
    finish = requantize(rng, (oc, 1, 1), 255 * 128 * w[0].size, dtype)

    def steps(builder: relax.BlockBuilder, data: tvm.ir.Expr) -> tvm.ir.Expr:
        if any(pads):
            top, left, bottom, right = pads
            data = builder.emit(relax.op.nn.pad(data, [0, 0, 0, 0, top, bottom, left, right], "constant", fill))
        product = relax.op.nn.conv2d(
            data, relax.const(w, "int8"), strides, 0, dilation, groups=groups, out_dtype="int32"
        )
        return finish.steps(builder.emit, builder.emit(product))

    (got,) = compiled(module(x.shape, dtype, steps), target)(x)
    np.testing.assert_array_equal(got, finish.expected(total))


@pytest.mark.parametrize("target", TARGETS[-1:], ids=lambda target: str(target.attrs["mcpu"]))
@pytest.mark.parametrize(("channels", "groups", "dtype"), [(16, 1, "uint8"), (3, 1, "int8"), (16, 16, "uint8")])
def test_sizes_known_at_run_time(channels: int, groups: int, dtype: str, target: Any) -> None:
    rng = np.random.default_rng(2)
    x, w = extremes(rng, (1, channels, 9, 31), dtype), extremes(rng, (16, channels // groups, 3, 3), "int8")

    def steps(builder: relax.BlockBuilder, data: tvm.ir.Expr) -> tvm.ir.Expr:
        data = builder.emit(relax.op.nn.pad(data, [0, 0, 0, 0, 1, 1, 1, 1], "constant", 7))
        return relax.op.nn.conv2d(data, relax.const(w, "int8"), 1, 0, 1, groups=groups, out_dtype="int32")

    run = compiled(module((1, channels, "h", "w"), dtype, steps), target)
    for height, width in ((9, 31), (1, 3), (4, 16)):
        part = np.ascontiguousarray(x[:, :, :height, :width])
        np.testing.assert_array_equal(run(part)[0], convolved(part, w, (1, 1, 1, 1), 7, (1, 1), (1, 1), groups))


def test_scalars_for_the_epilogue_are_no_obstacle() -> None:
    """A product with a scale and a zero point that are computed when the model runs, as of dynamic quantization."""
    rng = np.random.default_rng(1)
    a, w = extremes(rng, (24, 64), "uint8"), extremes(rng, (64, 48), "int8")
    sums = w.astype("int32").sum(0)

    def steps(builder: relax.BlockBuilder, x: relax.Var) -> tvm.ir.Expr:
        emit, op = builder.emit, relax.op
        least = emit(op.min(x))
        zero, scale = emit(op.astype(least, "int32")), emit(op.multiply(op.astype(least, "float32"), relax.const(0.5)))
        product = emit(op.matmul(x, relax.const(w, "int8"), out_dtype="int32"))
        product = emit(op.subtract(product, emit(op.multiply(zero, relax.const(sums)))))
        return op.multiply(emit(op.astype(product, "float32")), scale)

    a[0, 0], a[a < 3] = 3, 3
    mod = module(a.shape, "uint8", steps)
    (got,) = compiled(mod)(a)
    np.testing.assert_array_equal(got, (a.astype("int64") @ w - 3 * sums.astype("int64")).astype("float32") * 1.5)
    target = tvm.target.Target({"kind": "llvm", "mcpu": "cascadelake", "num-cores": 1})
    assert "vpdpbusd" in assembly(mod, target)


@pytest.mark.parametrize(
    ("target", "instruction", "widening"),
    [
        ({"mcpu": "cascadelake"}, r"vpdpbusd\s.*%zmm", r"vpmovsxbw|vpmaddwd"),
        ({"mcpu": "alderlake"}, r"vpdpbusd\s.*%ymm", r"vpmovsxbw|vpmaddwd"),
        ({"mcpu": "x86-64-v4"}, r"vpmaddwd\s.*%zmm", r"vpmulld"),
        ({"mcpu": "x86-64-v3"}, r"vpmaddwd\s.*%ymm", r"vpmulld|vpmaddubsw"),
        ({"mtriple": "aarch64-linux-gnu", "mattr": ["+neon", "+dotprod"]}, r"sdot\s", r"smull|smlal|sxtl"),
        ({"mtriple": "aarch64-linux-gnu", "mattr": ["+neon", "+dotprod", "+i8mm"]}, r"usdot\s", r"smull|smlal|eor"),
        ({"mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]}, r"smull\s", r"sxtl"),
    ],
    ids=["AVX-512 VNNI", "AVX-VNNI", "AVX-512", "AVX2", "dotprod", "i8mm", "NEON"],
)
def test_hot_loops_consist_of_dot_products(target: dict[str, Any], instruction: str, widening: str) -> None:
    """One instruction for each vector of sums in the innermost loop, and none that widens what it need not."""
    chosen = tvm.target.Target({"kind": "llvm", "num-cores": 1, **target})
    w = np.full((256, 64), 127, "int8")

    def steps(builder: relax.BlockBuilder, x: relax.Var) -> tvm.ir.Expr:
        return relax.op.matmul(x, relax.const(w, "int8"), out_dtype="int32")

    loop = hottest_loop(assembly(module((48, 256), "uint8", steps), chosen), instruction)
    tile = tile_of(machine_of(chosen), dot_product(machine_of(chosen), "uint8"), 48, 64)
    vectors = tile.rows * tile.columns // machine_of(chosen).lanes
    found = sum(bool(re.search(instruction, line)) for line in loop)
    assert found and found % vectors == 0
    spare = [line for line in loop if re.search(widening, line)]
    assert len(spare) <= (found if "maddwd" in instruction else 0)
    # Sums stay in registers: the loop stores nothing.
    assert not [line for line in loop if re.search(r"(vmov\w+\s+%[xyz]mm\d+, .*\(|\bst[rp]\s+q)", line)]


def assembly(mod: tvm.IRModule, target: tvm.target.Target) -> str:
    """The machine code of a module."""
    executable = tvm.compile(mod, target, relax_pipeline=cpu_pipeline(target))
    return str(executable.mod.imports[0].inspect_source("s"))


def hottest_loop(code: str, instruction: str) -> list[str]:
    """The instructions of the innermost loop with the most of one instruction: from a label to the jump back to it."""
    lines = [line for line in code.splitlines() if not re.match(r"\s*\.(p2align|loc|cfi)|\.Ltmp", line)]
    loops, start = [], {}
    for at, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            start = {label[1]: at}
        elif (jump := re.search(r"\s(?:j\w+|b\.\w+|cbn?z\s+\w+,|tbn?z\s+[^,]+,[^,]+,)\s*(\.L\w+)", line)) and jump[
            1
        ] in start:
            loops.append(lines[start[jump[1]] : at])
    return max(loops, key=lambda body: sum(bool(re.search(instruction, line)) for line in body))


@few
@given(
    targets,
    dtypes,
    st.tuples(
        st.sampled_from([1, 2]), st.sampled_from([3, 16, 35]), st.sampled_from([4, 8]), st.sampled_from([4, 9, 16])
    ),
    st.sampled_from(["last", "first", "swap", "concat", "pool"]),
    st.integers(0, 99),
)
def test_bytes_move(target: Any, dtype: str, shape: tuple[int, ...], kind: str, seed: int) -> None:
    x = extremes(np.random.default_rng(seed), shape, dtype)
    axes = {"last": [0, 2, 3, 1], "first": [0, 3, 1, 2], "swap": [0, 1, 3, 2]}.get(kind)

    def steps(builder: relax.BlockBuilder, data: tvm.ir.Expr) -> tvm.ir.Expr:
        if axes is not None:
            return relax.op.permute_dims(data, axes)
        if kind == "concat":
            return relax.op.concat([data, builder.emit(relax.op.maximum(data, relax.const(3, dtype)))], 1)
        return relax.op.nn.max_pool2d(data, (3, 2), (2, 1), (1, 1, 1, 0))

    (got,) = compiled(module(shape, dtype, steps), target)(x)
    if axes is not None:
        want = x.transpose(axes)
    elif kind == "concat":
        want = np.concatenate([x, np.maximum(x, 3)], 1)
    else:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 0)), constant_values=np.iinfo(dtype).min)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 2), (2, 3))
        want = windows[:, :, ::2].max((4, 5))
    np.testing.assert_array_equal(got, want)


def test_transposed_bytes_stay_in_registers() -> None:
    """No byte is inserted into a vector by itself."""
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 1})
    mod = module((1, 64, 16, 16), "uint8", lambda _, x: relax.op.permute_dims(x, [0, 2, 3, 1]))
    code = assembly(mod, target)
    assert "vpunpcklbw" in code
    assert "vpinsrb" not in code
