"""Constant weights of 16 bits: how they are stored, and how a kernel reads them as float32.

float16 is stored as it is: CPUs convert a vector of it in one instruction. bfloat16 is stored as uint16: its bits are
the upper half of a float32, so that a shift converts it on every CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import Expr
from tvm.te.tensor import TensorSlice

STORED = ("float32", "float16", "uint16")
"""Datatypes of the weights that kernels read."""

_Array = np.ndarray[Any, Any]


def stored(weights: _Array, converts_float16: bool) -> _Array:
    """Return weights as a kernel reads them; as float32 if the CPU cannot convert vectors of float16."""
    if str(weights.dtype) == "bfloat16":
        return weights.view(np.uint16)
    return weights if converts_float16 else weights.astype(np.float32, copy=False)


def widened(weight: Expr | TensorSlice) -> Expr:
    """Return a stored weight, or a vector of them, as float32."""
    weight = weight.asobject() if isinstance(weight, TensorSlice) else weight
    dtype = weight.ty.dtype
    lanes = f"x{dtype.lanes}" if dtype.lanes > 1 else ""
    if str(dtype).startswith("float16"):
        return tirx.Cast(f"float32{lanes}", weight)
    if str(dtype).startswith("uint16"):
        upper = tirx.Cast(f"uint32{lanes}", weight) << tirx.const(16, f"uint32{lanes}")
        return tirx.reinterpret(f"float32{lanes}", upper)
    return weight
