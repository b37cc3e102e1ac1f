"""Functions over all of float32, against float64: the worst error in units in the last place (pytest -s prints it)."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper
from tvm import relax, tirx
from tvm.ir.transform import Sequential
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.number_cases import FUNCTIONS, OPSET, Array, module, sweep, worst
from tests.schedules.schedule_harness import HOST, compiled
from zmq_offload.compile.pipeline import fusing
from zmq_offload.compile.target import runs_here
from zmq_offload.schedules.machine import machine_of
from zmq_offload.schedules.schedule import schedule_pass


def _target(cpu: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, "num-cores": 2})


PATHS = {"AVX-512": _target("skylake-avx512"), "AVX2": _target("haswell"), "SSE2": _target("x86-64")}


@pytest.mark.parametrize("path", PATHS)
def test_functions_over_the_whole_range(path: str) -> None:
    target = PATHS[path]
    if not runs_here(target):
        pytest.skip(f"this CPU cannot run {path} code")
    x, names = sweep(), list(FUNCTIONS)
    results = compiled(module(names, x.size), target)(x)
    check(path, x, dict(zip(names, results, strict=True)))


def check(path: str, x: Array, results: dict[str, Array]) -> None:
    """Every result within its function's bound."""
    errors = {name: worst(name, x, got) for name, got in results.items()}
    print(f"\n{path}: " + ", ".join(f"{name} {error:.2f} at {at:.6g}" for name, (error, at) in errors.items()))
    over = {n: e for n, e in errors.items() if not e[0] <= FUNCTIONS[n].bound}
    assert not over, over


OURS = [
    *("Exp", "Sigmoid", "Tanh", "Erf", "Log", "Softplus", "Mish", "Elu", "Selu", "Gelu", "HardSwish"),
    *("Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Asin", "Acos", "Atan", "Pow 2.2", "Pow 5", "Pow 0.5"),
]
SPECIAL = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -104, 88.8, 1, -1]).view(
    "uint32"
)
BITS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from(SPECIAL.tolist()))


@pytest.mark.parametrize("count", [3, 37])
def test_any_bits_side_by_side(count: int) -> None:
    """A result does not depend on the other numbers in its vector, on its lane, or on being in a tail."""
    run = compiled(module(OURS, count), HOST)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(arrays(np.uint32, count, elements=BITS, fill=st.nothing()))
    def each(bits: Array) -> None:
        x = bits.view("float32")
        for name, result in zip(OURS, run(x), strict=True):
            error, at = worst(name, x, result)
            assert error <= FUNCTIONS[name].bound, f"{name} of {at!r} among {x}: {error}"

    each()


@pytest.mark.parametrize("path", PATHS)
def test_powers_of_two_tensors(path: str) -> None:
    """Every exponent of the base, and results over the whole range."""
    if not runs_here(PATHS[path]):
        pytest.skip(f"this CPU cannot run {path} code")
    rng = np.random.default_rng(1)
    x = sweep(4)
    with np.errstate(all="ignore"):
        y = (rng.uniform(-155, 135, x.size) / np.log2(np.abs(x))).astype("float32")
    y = np.where(rng.random(x.size) < 0.2, np.rint(y), y).astype("float32")
    specs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [x.size]) for name in "xyz"]
    graph = helper.make_graph([helper.make_node("Pow", ["x", "y"], ["z"])], "powers", specs[:2], specs[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    (got,) = compiled(from_onnx(model, opset=OPSET), PATHS[path])(x, y)
    with np.errstate(all="ignore"):
        exact = np.power(x.astype("float64"), y.astype("float64"))
        rounded = exact.astype("float32")
        np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
        finite = np.isfinite(rounded) & np.isfinite(got)
        error = (np.abs(got - exact) / np.spacing(np.abs(rounded)))[finite].max()
        differs = got[~finite] != rounded[~finite]
    assert np.isnan(rounded[~finite][differs]).all()
    assert np.array_equal(np.signbit(got[finite]), np.signbit(rounded[finite]))
    assert error <= 1


NEON = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 2})


def functions_of(names: list[str], count: int, target: tvm.target.Target) -> tuple[list[str], tvm.runtime.Module]:
    """The names of the compiled functions, in the order of `names`, and the machine code of all."""
    passes = [*fusing(target), schedule_pass(machine_of(target)), relax.transform.AttachGlobalSymbol()]
    with target:
        mod = Sequential(passes)(module(names, count))
    bindings = [b for block in mod["main"].body.blocks for b in block.bindings]
    values = {b.var: b.value for b in bindings}
    result = bindings[-1].value
    called = [values[v] for v in result.fields] if isinstance(result, relax.Tuple) else [result]
    prims = tvm.IRModule({g: f for g, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)})
    return [str(c.args[0].name_hint) for c in called], tvm.compile(prims, target).mod


@pytest.mark.parametrize(
    ("target", "vector"),
    [
        (PATHS["AVX-512"], r"\bv(fm|f?n?m|mul|add)\w*ps\s.*%zmm"),
        (PATHS["AVX2"], r"\bv(fm|f?n?m|mul|add)\w*ps\s.*%ymm"),
        (NEON, r"\bf(mla|mls|mul|add)\s+v\d+\.4s"),
    ],
    ids=["AVX-512", "AVX2", "NEON"],
)
def test_functions_are_vector_code(target: tvm.target.Target, vector: str) -> None:
    """Over whole vectors: no call of the C library, no jump that depends on a value, no scalar arithmetic."""
    _, code = functions_of(OURS, 4096, target)
    assembly = code.inspect_source("s")
    called = set(re.findall(r"^\s+(?:bl|callq?)\s+(\w+f)\b(?!\w)", assembly, re.MULTILINE))
    assert not called
    assert len(re.findall(vector, assembly)) > 100
    compared = re.findall(r"^\s+(?:v?u?comiss|fcmpe?|vfn?m\w+ss|vmulss|fmadd|fmul\s+s)\b", assembly, re.MULTILINE)
    assert not compared


@pytest.mark.arm
def test_functions_over_the_whole_range_on_neon(tmp_path: Path) -> None:
    """The machine code for ARM, in a program of its own, emulated."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None or importlib.util.find_spec("ziglang") is None:
        pytest.skip("qemu-aarch64(-static), of Debian's package qemu-user-static, or the package ziglang is missing")
    x = sweep()
    names = list(FUNCTIONS)
    functions, code = functions_of(names, x.size, NEON)
    code.write_to_file(str(tmp_path / "functions.o"))
    each = " ".join(f"F({f})" for f in functions)
    (tmp_path / "functions.h").write_text(f"#define COUNT {x.size}\n#define NAMES(F) {each}\n")
    program = tmp_path / "driver"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", "-O1"]
    source = Path(__file__).with_name("driver.c")
    subprocess.run([*compiler, f"-I{tmp_path}", source, "functions.o", "-o", program], cwd=tmp_path, check=True)
    run = [emulator, "-cpu", "cortex-a72", str(program)]
    done = subprocess.run(run, input=x.tobytes(), stdout=subprocess.PIPE, check=True)
    results = np.frombuffer(done.stdout, "float32").reshape(len(names), x.size)
    check("NEON", x, dict(zip(names, results, strict=True)))
