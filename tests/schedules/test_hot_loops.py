"""Innermost loops compute whole vectors: no scalar floating-point arithmetic, no call of the C library."""

from __future__ import annotations

import re
from collections.abc import Callable

import onnx
import pytest
import tvm
from tvm import relax, tirx
from tvm.ir.transform import Sequential
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.assembly import innermost_loops, scalar_arithmetic
from tests.schedules.schedule_harness import Net
from zmq_offload.compile.pipeline import fusing
from zmq_offload.schedules.machine import machine_of
from zmq_offload.schedules.schedule import schedule_pass

TARGETS = {
    "AVX2": {"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 2},
    "AVX-512": {"kind": "llvm", "mcpu": "x86-64-v4", "num-cores": 2},
    "NEON": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 2},
}


def _silu(net: Net, x: str) -> str:
    return str(net.op("Mul", x, net.op("Sigmoid", x)))


def _mish(net: Net, x: str) -> str:
    return str(net.op("Mul", x, net.op("Tanh", net.op("Softplus", x))))


def _gelu(net: Net, x: str) -> str:
    inner = net.op("Add", net.op("Erf", net.op("Mul", x, net.constant(0.70710677))), net.constant(1.0))
    return str(net.op("Mul", net.op("Mul", x, inner), net.constant(0.5)))


def _of(kind: str) -> Callable[[Net, str], str]:
    return lambda net, x: str(net.op(kind, x))


def _power(exponent: float) -> Callable[[Net, str], str]:
    return lambda net, x: str(net.op("Pow", x, net.constant(exponent)))


ACTIVATIONS: dict[str, Callable[[Net, str], str]] = {
    **{
        k: _of(k)
        for k in ("Exp", "Sigmoid", "Tanh", "Erf", "Softplus", "Elu", "Selu", "HardSwish", "LeakyRelu", "Relu")
    },
    **{k: _of(k) for k in ("HardSigmoid", "Softsign", "Log", "Sqrt", "Reciprocal", "Sin", "Cos", "Tan")},
    **{k: _of(k) for k in ("Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh")},
    **{f"Pow {e}": _power(e) for e in (2.2, 0.5, -2, 3)},
    "Pow": lambda net, x: str(net.op("Pow", x, net.op("Neg", x))),
    "SiLU": _silu,
    "Mish": _mish,
    "Gelu": _gelu,
}


# Those that are tried in every form, since compiling takes most of the time: a selection, a division, a function with
# two polynomials, and arithmetic only.
FUSED = ("Elu", "SiLU", "Gelu", "HardSwish")


def _alone(net: Net, act: Callable[[Net, str], str], x: str) -> str:
    return act(net, x)


def _after_convolution(net: Net, act: Callable[[Net, str], str], x: str) -> str:
    return act(net, net.op("Conv", x, net.weight(32, 32, 3, 3), pads=[1] * 4))


def _after_depthwise(net: Net, act: Callable[[Net, str], str], x: str) -> str:
    return act(net, net.op("Conv", x, net.weight(32, 1, 3, 3), pads=[1] * 4, group=32))


def _after_product(net: Net, act: Callable[[Net, str], str], x: str) -> str:
    return act(net, net.op("MatMul", x, net.weight(32, 64)))


def _global_average(net: Net, act: Callable[[Net, str], str], x: str) -> str:
    return str(net.op("GlobalAveragePool", act(net, x)))


def _global_maximum(net: Net, act: Callable[[Net, str], str], x: str) -> str:
    return str(net.op("GlobalMaxPool", act(net, x)))


def _before_softmax(net: Net, act: Callable[[Net, str], str], x: str) -> str:
    return str(net.op("Softmax", act(net, x)))


def _before_normalization(net: Net, act: Callable[[Net, str], str], x: str) -> str:
    ones = net.weight(2048)
    return str(net.op("LayerNormalization", act(net, x), ones, ones))


FORMS: dict[str, Callable[[Net, Callable[[Net, str], str], str], str]] = {
    "alone": _alone,
    "after a convolution": _after_convolution,
    "after a depthwise convolution": _after_depthwise,
    "after a product": _after_product,
    "before GlobalAveragePool": _global_average,
    "before GlobalMaxPool": _global_maximum,
    "before Softmax": _before_softmax,
    "before LayerNormalization": _before_normalization,
}


def assembly(net: Net, outputs: list[str], target: tvm.target.Target) -> str:
    passes = [*fusing(target), schedule_pass(machine_of(target)), relax.transform.AttachGlobalSymbol()]
    with target:
        mod = Sequential(passes)(from_onnx(net.model(*outputs), keep_params_in_input=False))
    prims = tvm.IRModule({g: f for g, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)})
    return str(tvm.compile(prims, target).mod.inspect_source("s"))


# AVX-512 differs from AVX2 in what the functions alone show; the other forms have the same loops, of other lengths.
@pytest.mark.parametrize(
    ("form", "path"),
    [
        pytest.param(f, p, marks=pytest.mark.operators if p == "AVX-512" and f != "alone" else ())
        for f in FORMS
        for p in TARGETS
    ],
)
def test_innermost_loops_are_vector_code(form: str, path: str) -> None:
    net = Net()
    # Rows and images so long that the compiler keeps a loop over each.
    x = net.input(
        *((1, 32, 16, 32) if form.startswith("after") else (4, 8, 32, 64) if "Pool" in form else (1, 8, 8, 2048))
    )
    chosen = ACTIVATIONS if form == "alone" else {k: ACTIVATIONS[k] for k in FUSED}
    outputs = [FORMS[form](net, act, x) for act in chosen.values()]
    loops = innermost_loops(assembly(net, outputs, tvm.target.Target(TARGETS[path])))
    assert len(loops) >= len(chosen)
    found = [line for loop in loops for line in scalar_arithmetic(loop)]
    assert not found


@pytest.mark.parametrize("path", TARGETS)
def test_a_loop_of_scalar_code_is_found(path: str) -> None:
    """TVM calls the C library for the remainder of a division."""
    net = Net()
    x = net.input(4096)
    text = assembly(net, [net.op("Mod", x, net.op("Neg", x), fmod=1)], tvm.target.Target(TARGETS[path]))
    assert any(scalar_arithmetic(loop) for loop in innermost_loops(text))


@pytest.mark.parametrize(("path", "wanted"), [("AVX2", False), ("AVX-512", True), ("NEON", False)])
def test_exp_scales_by_one_instruction_where_there_is_one(path: str, wanted: bool) -> None:
    """Without it, LLVM would call ldexpf of the C library for each lane."""
    net = Net()
    text = assembly(net, [net.op("Exp", net.input(4095))], tvm.target.Target(TARGETS[path]))
    assert any("vscalefps" in line for loop in innermost_loops(text) for line in loop) == wanted
    assert "ldexp" not in text


@pytest.mark.parametrize("path", TARGETS)
def test_positions_of_extremes_are_vector_code(path: str) -> None:
    net = Net()
    channels, rows = net.input(1, 20, 8, 512), net.input(4, 4096)
    found = [net.op("ArgMax", channels, axis=1, keepdims=0), net.op("ArgMin", rows, axis=-1, keepdims=1)]
    outputs = [net.op("Cast", places, to=onnx.TensorProto.FLOAT) for places in found]
    loops = innermost_loops(assembly(net, outputs, tvm.target.Target(TARGETS[path])))
    assert len(loops) >= 4
    assert not [line for loop in loops for line in scalar_arithmetic(loop)]


@pytest.mark.parametrize("path", ["AVX2", "AVX-512"])
def test_pools_that_are_not_channels_last_are_vector_code(path: str) -> None:
    """No function transposes, none copies its padded operand, and all but the edges are vectors."""
    net = Net()
    image, volume = net.input(1, 4, 66, 66), net.input(1, 4, 10, 66, 66)
    outputs = [
        net.op("MaxPool", image, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        net.op("AveragePool", image, kernel_shape=[2, 2], strides=[2, 2]),
        net.op("MaxPool", volume, kernel_shape=[3] * 3, strides=[2] * 3, pads=[1] * 6),
    ]
    target = tvm.target.Target(TARGETS[path])
    with target:
        passes = [*fusing(target), schedule_pass(machine_of(target))]
        mod = Sequential(passes)(from_onnx(net.model(*outputs), keep_params_in_input=False))
    functions = {g.name_hint: f for g, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}
    assert len(functions) == len(outputs), list(functions)
    assert not [name for name, f in functions.items() if "pad_temp" in f.script()]
    vectors = re.findall(r"v(?:max|add)ps", assembly(net, outputs, target))
    scalars = re.findall(r"v(?:max|add)ss", assembly(net, outputs, target))
    assert len(scalars) < len(vectors)


@pytest.mark.parametrize("path", TARGETS)
def test_running_sums_of_rows_are_vector_code(path: str) -> None:
    net = Net()
    total = net.op("CumSum", net.input(4, 500, 16), net.constant([1]))
    loops = innermost_loops(assembly(net, [total], tvm.target.Target(TARGETS[path])))
    assert loops
    assert not [line for loop in loops for line in scalar_arithmetic(loop)]
