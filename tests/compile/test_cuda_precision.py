"""Products in float16 on a GPU: which values become float16, and that the result is compared with the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.compile.gpu_functions import TARGET, functions, module_of, weights
from zmq_offload.compile import Compiled, compile_model, packing
from zmq_offload.compile.build import _compiled
from zmq_offload.compile.cuda.precision import half_products
from zmq_offload.errors import InvalidArgument


def residual(emit: Callable[[relax.Expr], relax.Expr], x: relax.Expr) -> relax.Expr:
    """Two convolutions; the value after the first is read by the second, and by the sum of both."""
    y = emit(relax.op.nn.relu(emit(relax.op.nn.conv2d(x, weights(8, 4, 3, 3), padding=1))))
    z = emit(relax.op.nn.conv2d(y, weights(8, 8, 3, 3), padding=1))
    return relax.op.nn.softmax(emit(relax.op.add(y, z)), axis=1)


def datatypes(mod: tvm.IRModule, operator: str) -> list[list[str]]:
    """The datatypes of the operands and of the result of each call of an operator in main."""
    bindings = [binding for block in mod["main"].body.blocks for binding in block.bindings]
    calls = [b for b in bindings if getattr(getattr(b.value, "op", None), "name", "") == operator]
    return [[str(e.ty.dtype) for e in (*b.value.args, b.var) if hasattr(e.ty, "dtype")] for b in calls]


def test_operands_of_products_are_float16_and_all_else_is_float32() -> None:
    mod = half_products(module_of([(1, 4, 6, 6)], residual))
    assert datatypes(mod, "relax.nn.conv2d") == [["float16", "float16", "float32"]] * 2
    assert datatypes(mod, "relax.add") == [["float32", "float32", "float32"]]
    assert datatypes(mod, "relax.nn.softmax") == [["float32", "float32"]]
    main = mod["main"]
    assert str(main.params[0].ty.dtype) == str(main.ret_ty.dtype) == "float32"


def test_what_lies_between_two_kernels_is_float16() -> None:
    kernels = functions(half_products(module_of([(1, 4, 6, 6)], residual)))
    first = next(f for f in kernels.values() if [int(e) for e in f.params[1].ty.shape] == [8, 4, 3, 3])
    assert str(first.params[-1].ty.dtype) == "float16"


def test_a_reshape_between_products_moves_float16() -> None:
    def build(emit, x):
        y = emit(relax.op.matmul(x, weights(8, 12)))
        return relax.op.matmul(emit(relax.op.reshape(y, (12, 4))), weights(4, 5))

    mod = half_products(module_of([(4, 8)], build))
    assert datatypes(mod, "relax.reshape")[0][0] == "float16"


def test_a_weight_that_float16_cannot_hold_stays_in_float32() -> None:
    def build(emit, x):
        return relax.op.matmul(x, relax.const(np.full((8, 3), 1e5, "float32")))

    mod = half_products(module_of([(4, 8)], build))
    assert datatypes(mod, "relax.matmul") == [["float32", "float32", "float32"]]


def test_a_cpu_computes_what_a_gpu_would() -> None:
    weight = np.random.default_rng(1).standard_normal((33, 5)).astype("float32")
    mod = module_of([(7, 33)], lambda emit, x: relax.op.matmul(x, relax.const(weight)))
    executable = _compiled(mod, tvm.target.Target("llvm"), None, [], [], "float16")
    x = np.random.default_rng(2).standard_normal((7, 33)).astype("float32")
    found = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()
    right = x.astype("float16").astype("float32") @ weight.astype("float16").astype("float32")
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)
    assert np.abs(found - x @ weight).max() > 1e-4


def test_kernels_of_static_shapes_are_recorded_as_a_graph() -> None:
    text = _compiled(module_of([(1, 4, 6, 6)], residual), TARGET, None, [], []).as_text()
    captured = text[text.index("@main_cuda_graph_capture:") :]
    assert "vm.builtin.cuda_graph.run_or_capture" in text and "conv2d" in captured
    # A graph repeats its addresses: the caller's input is read, and its result written, by kernels outside of it.
    main = text[text.index("@main:") : text.index("vm.builtin.cuda_graph.run_or_capture")]
    assert "conv2d" in main


def compiled(file: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Compiled:
    monkeypatch.setattr("zmq_offload.compile.build.toolkit", lambda: output)
    monkeypatch.setattr(packing, "machine_code", lambda source, architecture: b"machine code")
    return compile_model(
        file, inputs={"x": (1, 3, 12, 12)}, cut=["features"], name="net", output=output, check=True, **options
    )


def test_the_accuracy_of_float16_is_measured_on_this_cpu(
    convnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compiled(convnet, tmp_path, monkeypatch, target="cuda-sm80", precision="float16")
    assert made.check is not None and made.check.skipped is None
    assert "with the float16 of the GPU computed by this CPU" in str(made.check)
    assert 0 < max(loss.relative for loss in made.check.losses) < 0.05
    assert not list(tmp_path.rglob("*.cpu.so"))


def test_float16_is_for_gpus(convnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InvalidArgument, match=r"--precision float16 is for GPUs, and the target of the workers is a CPU"
    ):
        compiled(convnet, tmp_path, monkeypatch, precision="float16")
    with pytest.raises(InvalidArgument, match="--precision: 'int4' is not known; use float32 or float16"):
        compiled(convnet, tmp_path, monkeypatch, target="cuda-sm80", precision="int4")
