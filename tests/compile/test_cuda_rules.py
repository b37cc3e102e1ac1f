"""The schedules for GPUs, without one: their CUDA C++ runs on the CPU, and NVRTC compiles it.

What is marked `emulated` takes long: each function is compiled by a C++ compiler.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, s_tir, tirx
from tvm.support import cc

from tests.compile.gpu_functions import TARGET, differences, function_of, functions, module_of, weights
from tests.compile.test_cuda import needs_nvrtc
from tests.support.gpu_facts import facts, registers
from tests.support.gpu_kernels import lowered
from tests.support.gpu_on_cpu import run_on_cpu
from zmq_offload.compile.cuda import rules, tensorcores, tiles
from zmq_offload.compile.cuda.nvrtc import machine_code
from zmq_offload.compile.cuda.products import Tile, Unsuited, chosen, product_of
from zmq_offload.compile.cuda.rules import RULE, schedule
from zmq_offload.compile.cuda.tensorcores import on_tensor_cores
from zmq_offload.compile.cuda.tiles import tiled

needs_compiler = pytest.mark.skipif(cc.get_cc() is None, reason="no C++ compiler is installed")
emulated = pytest.mark.emulated

STATIC_SHARED = 48 * 1024


def conv(
    x: tuple[int, ...], out: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1, dilation: int = 1
) -> tirx.PrimFunc:
    """A convolution with a bias, and its result times its sigmoid: what follows reads the sum twice."""

    def build(emit, data):
        weight = weights(out, x[1] // groups, kernel, kernel)
        y = emit(relax.op.nn.conv2d(data, weight, strides=stride, padding=padding, groups=groups, dilation=dilation))
        y = emit(relax.op.add(y, weights(1, out, 1, 1)))
        return relax.op.multiply(y, emit(relax.op.sigmoid(y)))

    return function_of([x], build)


def half_conv(x: tuple[int, ...], out: int, kernel: int, stride: int = 1, padding: int = 0) -> tirx.PrimFunc:
    def build(emit, data):
        weight = weights(out, x[1], kernel, kernel, dtype="float16", scale=0.1)
        y = emit(relax.op.nn.conv2d(data, weight, strides=stride, padding=padding, out_dtype="float32"))
        y = emit(relax.op.nn.relu(emit(relax.op.add(y, weights(1, out, 1, 1)))))
        return relax.op.astype(y, "float16")

    return function_of([x], build, "float16")


def matmul(a: tuple[int, ...], b: tuple[int, ...], dtype: str = "float32", transposed: bool = False) -> tirx.PrimFunc:
    def build(emit, x, y):
        if transposed:
            y = emit(relax.op.permute_dims(y, [*range(len(b) - 2), len(b) - 1, len(b) - 2]))
        return relax.op.matmul(x, y, out_dtype="float32")

    found = module_of([a, b], build, dtype)
    return next(f for name, f in functions(found).items() if "matmul" in name)


def pool(kind: str, x: tuple[int, ...], size: int, stride: int, padding: int) -> tirx.PrimFunc:
    return function_of([x], lambda emit, data: getattr(relax.op.nn, kind)(data, (size, size), stride, padding))


def rule_of(function: tirx.PrimFunc) -> str:
    return str(schedule(function, TARGET).attrs[RULE])


# -- which rule -------------------------------------------------------------------------------------------------------


def test_each_kind_of_function_gets_its_rule() -> None:
    assert rule_of(conv((1, 8, 10, 10), 16, 3, padding=1)) == "tiles"
    assert rule_of(conv((1, 32, 20, 20), 32, 3, padding=1, groups=32)) == "windows"
    assert rule_of(half_conv((1, 16, 10, 10), 32, 3)) == "tensor cores"
    assert rule_of(pool("max_pool2d", (1, 8, 20, 20), 3, 2, 1)) == "windows"
    assert rule_of(function_of([(4, 33)], lambda emit, x: relax.op.nn.softmax(x))) == "dlight GeneralReduction"
    assert rule_of(function_of([(1, 8, 100)], lambda emit, x: relax.op.sum(x, axis=-1))) == "dlight Reduction"
    assert rule_of(function_of([(3, 50)], lambda emit, x: relax.op.permute_dims(x))) == "maps"


def test_an_axis_of_the_result_that_is_contiguous_is_that_of_neighboring_threads() -> None:
    product = product_of(s_tir.Schedule(conv((2, 8, 10, 10), 16, 3, padding=1)))
    # Channels are rows, positions columns, and the weights have the rows.
    assert product.extents == (1, 16, 200, 72) and product.rows == 1
    product = product_of(s_tir.Schedule(matmul((3, 20, 30), (3, 30, 40))))
    assert product.extents == (3, 20, 40, 30) and product.rows == 0 and product.deep == (True, False)


def test_what_is_no_product_is_left_to_other_rules() -> None:
    for function in (
        function_of([(4, 33)], lambda emit, x: relax.op.nn.softmax(x)),
        function_of([(4, 33)], lambda emit, x: relax.op.nn.relu(x)),
        conv((1, 32, 20, 20), 32, 3, padding=1, groups=32),
        matmul((1, 1, 64), (1, 64, 64)),
    ):
        with pytest.raises(Unsuited):
            tiled(function)
    with pytest.raises(Unsuited):
        on_tensor_cores(conv((1, 8, 10, 10), 16, 3, padding=1))


def test_a_small_product_gets_small_tiles_that_fill_the_gpu() -> None:
    large = chosen(tiles.TILES, (1, 4096, 4096, 512))
    small = chosen(tiles.TILES, (1, 64, 196, 512))
    assert (large.rows, large.columns) == (128, 128)
    assert small.rows * small.columns < 64 * 64
    assert chosen(tiles.TILES, (1, 6, 400, 64)).rows <= 16


def test_a_schedule_that_tvm_cannot_lower_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: tirx.PrimFunc):
        found = tiled(function)
        found.annotate(found.get_loops(found.get_sblock("conv2d_nchw_update"))[0], "software_pipeline_stage", [0])
        return found

    monkeypatch.setitem(rules._OWN, "tiles", broken)
    assert rule_of(conv((1, 8, 10, 10), 16, 3, padding=1)) != "tiles"


def test_a_small_product_does_not_compute_what_it_is_spread_over() -> None:
    def build(emit, x):
        y = emit(relax.op.mean(x, axis=[2, 3], keepdims=True))
        y = emit(relax.op.sigmoid(emit(relax.op.nn.conv2d(y, weights(8, 8, 1, 1)))))
        return relax.op.multiply(x, y)

    found = functions(module_of([(1, 8, 40, 40)], build))
    assert rule_of(next(f for name, f in found.items() if name.startswith("multiply"))) == "maps"


# -- right results ----------------------------------------------------------------------------------------------------


@needs_compiler
def test_kernels_compute_what_the_function_does() -> None:
    function = conv((1, 5, 9, 7), 6, 3, stride=2, padding=1)
    scheduled = schedule(function, TARGET)
    assert scheduled.attrs[RULE] == "tiles"
    assert max(differences(function, scheduled)) < 1e-5


@needs_compiler
def test_a_missing_barrier_shows() -> None:
    kernels = lowered(schedule(conv((1, 8, 6, 6), 16, 3, padding=1), TARGET), TARGET)
    inputs = [np.ones(shape, dtype) for _, shape, dtype in kernels.parameters[:-1]]
    right = run_on_cpu(kernels, inputs)[-1]
    np.testing.assert_array_equal(run_on_cpu(kernels, inputs, reverse=True)[-1], right)
    without = dataclasses.replace(kernels, source=kernels.source.replace("__syncthreads();", ""))
    assert not np.array_equal(run_on_cpu(without, inputs)[-1], right)


@emulated
@needs_compiler
@pytest.mark.parametrize("tile", tiles.TILES, ids=str)
@pytest.mark.parametrize("number", range(4))
def test_every_tile_is_right(tile: Tile, number: int) -> None:
    function = (
        lambda: conv((2, 9, 13, 11), 19, 3, padding=1),
        lambda: conv((1, 32, 16, 16), 64, 1),
        lambda: matmul((2, 40, 33), (2, 33, 36)),
        lambda: matmul((17, 64), (40, 64), transposed=True),
    )[number]()
    scheduled = tiled(function, (tile,)).mod["main"]
    assert max(differences(function, scheduled)) < 1e-5


@emulated
@needs_compiler
@pytest.mark.parametrize("tile", tensorcores.TILES, ids=str)
@pytest.mark.parametrize("number", range(4))
def test_every_tile_of_tensor_cores_is_right(tile: Tile, number: int) -> None:
    function = (
        lambda: half_conv((2, 9, 13, 11), 19, 3, padding=1),
        lambda: half_conv((1, 32, 16, 16), 64, 1),
        lambda: matmul((2, 40, 33), (2, 33, 36), "float16"),
        lambda: matmul((17, 64), (40, 64), "float16", transposed=True),
    )[number]()
    scheduled = on_tensor_cores(function, (tile,)).mod["main"]
    assert max(differences(function, scheduled)) < 2e-3


@st.composite
def convolutions(draw: st.DrawFn) -> tirx.PrimFunc:
    groups = draw(st.sampled_from([1, 1, 1, 2, 8]))
    channels, out = (groups * draw(st.integers(1, 12)) for _ in range(2))
    kernel = draw(st.integers(1, 4))
    dilation = draw(st.integers(1, 2))
    height, width = (draw(st.integers(dilation * kernel, 15)) for _ in range(2))
    return conv(
        (draw(st.integers(1, 3)), channels, height, width),
        out,
        kernel,
        draw(st.integers(1, 3)),
        draw(st.integers(0, 2)),
        groups,
        dilation,
    )


@emulated
@needs_compiler
@settings(deadline=None, max_examples=25)
@given(convolutions())
def test_convolutions_of_any_shape_are_right(function: tirx.PrimFunc) -> None:
    assert max(differences(function, schedule(function, TARGET))) < 1e-4


@emulated
@needs_compiler
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.booleans(), st.booleans())
def test_products_of_any_shape_are_right(b: int, m: int, n: int, k: int, transposed: bool, half: bool) -> None:
    function = matmul((b, m, k), (b, n, k) if transposed else (b, k, n), "float16" if half else "float32", transposed)
    assert max(differences(function, schedule(function, TARGET))) < (2e-3 if half else 1e-4)


@emulated
@needs_compiler
@pytest.mark.parametrize(
    "build",
    [
        lambda: pool("max_pool2d", (2, 5, 17, 16), 3, 2, 1),
        lambda: pool("avg_pool2d", (2, 5, 16, 16), 2, 2, 0),
        lambda: function_of([(3, 5, 70)], lambda emit, x: relax.op.nn.softmax(x)),
        lambda: function_of([(3, 5, 700)], lambda emit, x: relax.op.nn.softmax(x)),
        lambda: function_of([(3, 9, 70)], lambda emit, x: relax.op.mean(x, axis=[1, 2])),
        lambda: function_of([(4, 60)], lambda emit, x: relax.op.nn.layer_norm(x, weights(60), weights(60), axes=[-1])),
        lambda: function_of([(7, 9, 5)], lambda emit, x: relax.op.permute_dims(x, [2, 0, 1])),
        lambda: function_of([(2, 3), (2, 5)], lambda emit, x, y: relax.op.concat([x, y], axis=1)),
        lambda: function_of([(1, 3, 9, 9)], lambda emit, x: relax.op.image.resize2d(x, (18, 18), layout="NCHW")),
        lambda: function_of([(50, 12)], lambda emit, x: relax.op.take(x, relax.const([3, 1, 49], "int64"), axis=0)),
    ],
)
def test_other_functions_are_right(build) -> None:
    function = build()
    assert max(differences(function, schedule(function, TARGET))) < 1e-4


# -- what a GPU allows ------------------------------------------------------------------------------------------------


@needs_nvrtc
def test_nvrtc_compiles_the_kernels_within_the_limits() -> None:
    kernels = lowered(schedule(half_conv((1, 16, 10, 10), 32, 3), TARGET), TARGET)
    (fact,) = facts(kernels)
    assert fact.threads <= 1024 and 0 < fact.shared_bytes <= STATIC_SHARED
    used, stack = registers(machine_code(kernels.source, "sm_80"))["f_kernel"]
    assert 0 < used <= 128 and stack == 0


@emulated
@needs_nvrtc
@pytest.mark.parametrize(
    ("rule", "tile"),
    [*((tiled, t) for t in tiles.TILES), *((on_tensor_cores, t) for t in tensorcores.TILES)],
    ids=lambda p: getattr(p, "__name__", str(p)),
)
def test_no_tile_spills_registers(rule, tile: Tile) -> None:
    function = (half_conv if rule is on_tensor_cores else conv)((1, 64, 28, 28), 128, 3, padding=1)
    kernels = lowered(rule(function, (tile,)).mod["main"], TARGET)
    (fact,) = facts(kernels)
    assert fact.threads <= 1024 and fact.shared_bytes <= STATIC_SHARED
    for architecture in ("sm_80", "sm_90"):
        used, stack = registers(machine_code(kernels.source, architecture))["f_kernel"]
        assert used * fact.threads <= 65536 and stack == 0


def test_neighboring_threads_load_neighboring_elements() -> None:
    for build in (lambda: conv((1, 64, 32, 32), 64, 1), lambda: conv((1, 64, 32, 32), 64, 3, padding=1, groups=64)):
        (fact,) = facts(lowered(schedule(build(), TARGET), TARGET))
        assert fact.sectors <= 1.6 * fact.ideal
