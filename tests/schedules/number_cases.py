"""Functions of float32 with their exact values and the error that code may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm.relax.frontend.onnx import from_onnx

Array = np.ndarray[Any, Any]
OPSET = 20


@dataclass(frozen=True)
class Function:
    """An ONNX operator, its value in float64, and the largest error of the float32 result.

    `bound` is in units in the last place of the exact result. With `of_input` it is in units of the input, for formulas
    of ONNX whose last step subtracts. With `of_product` a unit is at least `x` denormals: the result is `x` times a
    value that may be denormal. `second` is the operator's second operand.
    """

    exact: Callable[[Array], Array]
    bound: float
    attributes: dict[str, Any] = field(default_factory=dict)
    of_input: bool = False
    of_product: bool = False
    second: float | None = None


def _each(function: Callable[[float], float]) -> Callable[[Array], Array]:
    return np.vectorize(function, otypes=[np.float64])


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _sigmoid(x: Array) -> Array:
    return np.where(x < 0, np.exp(np.minimum(x, 0)), 1.0) / (1.0 + np.exp(-np.abs(x)))


def _power(exponent: float, bound: float) -> Function:
    # The exact exponent is the float32. Of a number alone, NumPy takes 0.5 as the square root, which differs at -inf.
    return Function(lambda x: np.power(x, np.full_like(x, np.float32(exponent))), bound, second=exponent)


def _expm1(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


_SCALE, _ALPHA = float(np.float32(1.0507010221481323)), float(np.float32(1.6732631921768188))

# Where the bounds come from: a polynomial's and the range reduction's error is below 0.5 each, and each rounded
# operation after them adds up to 0.5, times the factor by which a subtraction magnifies it. The C library has its own.
FUNCTIONS: dict[str, Function] = {
    "Exp": Function(np.exp, 2),
    "Sigmoid": Function(_sigmoid, 3),  # exp, sum, division
    "Tanh": Function(np.tanh, 4),  # a polynomial, two sums, division
    "Erf": Function(_each(math.erf), 4),  # a polynomial with two more operations, expm1
    "Log": Function(np.log, 2),
    "Softplus": Function(_softplus, 3),  # exp, log1p, sum
    "Mish": Function(lambda x: x * np.tanh(_softplus(x)), 8, of_product=True),  # exp, log1p, tanh, product
    "Elu": Function(_expm1, 2),
    "Selu": Function(lambda x: _SCALE * np.where(x > 0, x, _ALPHA * np.expm1(np.minimum(x, 0))), 3),
    "HardSwish": Function(lambda x: x * np.clip(x / 6 + 0.5, 0, 1), 2, of_input=True),
    "HardSigmoid": Function(lambda x: np.clip(0.2 * x + 0.5, 0, 1), 2, of_input=True),
    "Gelu": Function(lambda x: 0.5 * x * _each(math.erfc)(-x / math.sqrt(2)), 4, of_input=True),
    "Gelu tanh": Function(
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        4,
        {"approximate": "tanh"},
        of_input=True,
    ),
    "Sqrt": Function(np.sqrt, 0.5),
    "Reciprocal": Function(np.reciprocal, 0.5),
    "Softsign": Function(lambda x: x / (1 + np.abs(x)), 2),
    "Sinh": Function(np.sinh, 2),
    "Cosh": Function(np.cosh, 2),
    "Asinh": Function(np.arcsinh, 3),
    "Acosh": Function(np.arccosh, 3),
    "Atanh": Function(np.arctanh, 3),
    "Sin": Function(np.sin, 1),
    "Cos": Function(np.cos, 1),
    "Tan": Function(np.tan, 2),
    "Asin": Function(np.arcsin, 3),
    "Acos": Function(np.arccos, 2),
    "Atan": Function(np.arctan, 2),
    # One rounding, or one for each multiplication, division or root.
    **{f"Pow {e}": _power(e, 1) for e in (2.2, -0.3, 5, -7, 1e-3, 0.5, 1, 0, -1, 2)},
    **{f"Pow {e}": _power(e, 3) for e in (3, 4, -0.5, -2)},
}


def sweep(each: int = 24) -> Array:
    """Every exponent of float32 with both signs, `each` random significands; edges of the functions; special values."""
    rng = np.random.default_rng(0)
    exponents = np.arange(255, dtype="uint32") << 23
    bits = exponents[:, None] | rng.integers(0, 1 << 23, (255, each), dtype="uint32")
    powers = exponents[:, None] + np.array([0, 1, 0x7FFFFF], "uint32")
    positive = np.concatenate([bits.ravel(), powers.ravel()]).view("float32")
    edges = np.concatenate(
        [
            np.linspace(-106, 90, 6000),  # where exp is neither 0 nor infinite
            np.linspace(-6, 6, 6000),
            np.float32([87.33654, 88.72283, 88.72284, 103.97207, 103.97208, 104.0, 0.25, 1.0, 9.0]),
        ]
    ).astype("float32")
    near = np.concatenate([np.nextafter(edges, np.float32(s)) for s in (-np.inf, np.inf)])
    both = np.concatenate([positive, edges, near])
    special = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45])
    values = np.concatenate([both, -both, special])
    # Some come twice: with whole vectors in each task, there is half as much code to compile.
    return np.resize(values, -(-values.size // 1024) * 1024)


def module(names: list[str], count: int) -> tvm.IRModule:
    """All the functions of one input, an output for each."""
    nodes, constants = [], []
    for name in names:
        f, result = FUNCTIONS[name], name.replace(" ", "_")
        inputs = ["x"]
        if f.second is not None:
            inputs.append(f"second of {result}")
            constants.append(numpy_helper.from_array(np.float32(f.second), inputs[1]))
        nodes.append(helper.make_node(name.split()[0], inputs, [result], **f.attributes))
    graph = helper.make_graph(
        nodes,
        "numbers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [count])],
        [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, [count]) for n in nodes],
        constants,
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return from_onnx(model, opset=OPSET, keep_params_in_input=False)


def worst(name: str, x: Array, got: Array) -> tuple[float, float]:
    """Return the largest error in units in the last place, and its input; check the places of infinities and NaN."""
    f = FUNCTIONS[name]
    with np.errstate(all="ignore"):
        exact = f.exact(x.astype("float64"))
        rounded = exact.astype("float32")
        unit = np.spacing(np.abs(x if f.of_input else rounded)).astype("float64")
        if f.of_input:
            unit = np.maximum(unit, np.spacing(np.abs(rounded)).astype("float64"))
        if f.of_product:
            unit = np.maximum(unit, np.abs(x.astype("float64")) * 2.0**-149)
        unit = np.where(np.isfinite(unit), unit, np.spacing(np.abs(rounded)))
        error = np.abs(got.astype("float64") - exact) / unit
    assert got.dtype == np.float32
    wrong = np.isnan(got) != np.isnan(exact)
    assert not wrong.any(), f"{name}: NaN for {x[wrong][:5]}: {got[wrong][:5]}, exactly {exact[wrong][:5]}"
    # Near the largest number, both it and infinity are within one unit.
    edge = np.abs(exact) > float(np.finfo("float32").max) * (1 - 2.0**-22)
    infinite = (np.isinf(got) != np.isinf(rounded)) & ~edge
    assert not infinite.any(), f"{name}: {x[infinite][:5]}: {got[infinite][:5]}, exactly {exact[infinite][:5]}"
    finite = np.isfinite(got) & np.isfinite(rounded)
    error = np.where(finite, error, 0.0)
    at = int(np.argmax(error))
    return float(error[at]), float(x[at])
