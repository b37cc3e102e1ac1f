"""Products of 8-bit integers on ARM: machine code in a program of its own, emulated."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.ir.transform import Sequential

from tests.schedules.integer_harness import Array, Requantize, convolved, extremes, module
from zmq_offload.compile.pipeline import fusing
from zmq_offload.schedules.machine import machine_of
from zmq_offload.schedules.schedule import schedule_pass
from zmq_offload.schedules.simplify import constant_array

pytestmark = pytest.mark.arm

FEATURES = {"NEON": ["+neon"], "dotprod": ["+neon", "+dotprod"], "i8mm": ["+neon", "+dotprod", "+i8mm"]}
CODES = {"int": 0, "uint": 1, "float": 2}


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("kind", ["dense", "conv2d", "strided", "depthwise"])
def test_sums_are_exact(kind: str, dtype: str, features: str, tmp_path: Path) -> None:
    target = tvm.target.Target(
        {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": FEATURES[features], "num-cores": 2}
    )
    rng = np.random.default_rng(5)
    if kind == "dense":
        x, w = extremes(rng, (19, 30), dtype), extremes(rng, (30, 41), "int8")
        finish = Requantize(w.astype("int32").sum(0), (rng.random(41) / 4000).astype("float32"), 3, dtype)
        total = x.astype("int64") @ w.astype("int64")
    else:
        ic, oc, groups = (20, 20, 20) if kind == "depthwise" else (7, 13, 1)
        strides = (2, 2) if kind == "strided" else (1, 1)
        x, w = extremes(rng, (1, ic, 11, 17), dtype), extremes(rng, (oc, ic // groups, 3, 3), "int8")
        sums = w.astype("int32").sum((1, 2, 3))[:, None, None]
        finish = Requantize(sums, (rng.random((oc, 1, 1)) / 1000).astype("float32"), 3, dtype, relu=True)
        total = convolved(x, w, (1, 1, 1, 1), 5, strides, (1, 1), groups)

    def steps(builder: relax.BlockBuilder, data: tvm.ir.Expr) -> tvm.ir.Expr:
        weight, op = relax.const(w, "int8"), relax.op
        if kind == "dense":
            return finish.steps(builder.emit, builder.emit(op.matmul(data, weight, out_dtype="int32")))
        data = builder.emit(op.nn.pad(data, [0, 0, 0, 0, 1, 1, 1, 1], "constant", 5))
        product = op.nn.conv2d(data, weight, strides, 0, groups=groups, out_dtype="int32")
        return finish.steps(builder.emit, builder.emit(product))

    got = emulated(module(x.shape, dtype, steps), x, target, tmp_path)
    np.testing.assert_array_equal(got.view(dtype).reshape(total.shape), finish.expected(total))


def emulated(mod: tvm.IRModule, x: Array, target: tvm.target.Target, folder: Path) -> Array:
    """The bytes of the result of `mod`, on an emulated CPU with all features."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None or importlib.util.find_spec("ziglang") is None:
        pytest.skip("qemu-aarch64(-static), of Debian's package qemu-user-static, or the package ziglang is missing")
    with target:
        mod = Sequential([*fusing(target), schedule_pass(machine_of(target))])(mod)
    given, shapes, calls, data = _calls(mod["main"], x)
    named = {
        g: f.with_attr("global_symbol", str(g.name_hint))
        for g, f in mod.functions.items()
        if isinstance(f, tirx.PrimFunc)
    }
    code = tvm.compile(tvm.IRModule(named), target).mod
    code.write_to_file(str(folder / "calls.o"))
    declared = "\n".join(f"Function __tvm_ffi_{name};" for name, _ in calls)
    listed = ", ".join(f"{{__tvm_ffi_{name}, {len(t)}, {{{', '.join(map(str, t))}}}}}" for name, t in calls)
    tensors = ", ".join(
        f"{{{CODES[kind]}, {bits}, {len(shape)}, {int(i in given)}, {{{', '.join(map(str, shape)) or 0}}}}}"
        for i, (kind, bits, shape) in enumerate(shapes)
    )
    (folder / "calls.h").write_text(
        f"{declared}\nstatic Shape shapes[] = {{{tensors}}};\nstatic Call calls[] = {{{listed}}};\n"
    )
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", "-O1"]
    program = folder / "driver"
    source = Path(__file__).with_name("integer_driver.c")
    subprocess.run([*compiler, f"-I{folder}", source, "calls.o", "-o", program], cwd=folder, check=True)
    done = subprocess.run([emulator, "-cpu", "max", str(program)], input=data, stdout=subprocess.PIPE, check=True)
    return np.frombuffer(done.stdout, "uint8")


def _calls(
    main: relax.Function, x: Array
) -> tuple[set[int], list[tuple[str, int, list[int]]], list[tuple[str, list[int]]], bytes]:
    """The given tensors, the shapes of all, the calls, and the given tensors' bytes."""
    shapes: list[tuple[str, int, list[int]]] = []
    places: dict[relax.Var, int] = {}
    data, given = b"", set()

    def tensor(ty: relax.TensorType) -> int:
        kind = str(ty.dtype)
        name = kind.rstrip("0123456789")
        shapes.append((name, int(kind[len(name) :]), [int(s) for s in ty.shape.values]))
        return len(shapes) - 1

    def argument(value: tvm.ir.Expr) -> int:
        nonlocal data
        array = constant_array(value)
        if array is None:
            return places[value]
        at = tensor(value.ty)
        given.add(at)
        data += array.tobytes()
        return at

    places[main.params[0]] = tensor(main.params[0].ty)
    given.add(0)
    data = x.tobytes()
    calls = []
    for binding in (b for block in main.body.blocks for b in block.bindings):
        if isinstance(binding.value, relax.Var):
            places[binding.var] = places[binding.value]
            continue
        inputs = [argument(a) for a in binding.value.args[1].fields]
        places[binding.var] = tensor(binding.value.ty)
        calls.append((str(binding.value.args[0].name_hint), [*inputs, places[binding.var]]))
    return given, shapes, calls, data
