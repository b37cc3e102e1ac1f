"""Whole modules: symbolic batches, calls to external functions, other element types, weights as inputs, other CPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.onnx import from_onnx
from tvm.script import relax as R

from tests.schedules.schedule_harness import HOST, Net, close, compiled
from zmq_offload.compile.pipeline import cpu_pipeline, graph_passes
from zmq_offload.compile.target import host_target
from zmq_offload.runtime.views import view_of
from zmq_offload.schedules import machine_of
from zmq_offload.schedules.schedule import scheduled
from zmq_offload.schedules.tvm_internals import SCHEDULED


def residual_block(net: Net, batch: int) -> str:
    x = net.input(batch, 12, 10, 11)
    y = net.op("Relu", net.op("Conv", x, net.weight(12, 12, 3, 3, scale=0.1), pads=[1, 1, 1, 1], kernel_shape=[3, 3]))
    y = net.op("Conv", y, net.weight(12, 1, 3, 3), pads=[1, 1, 1, 1], group=12, kernel_shape=[3, 3])
    y = net.op("Add", x, net.op("Conv", y, net.weight(12, 12, 1, 1)))
    flat = net.op("Flatten", net.op("GlobalAveragePool", y))
    return str(net.op("Softmax", net.op("Gemm", flat, net.weight(12, 10), net.weight(10)), axis=-1))


def test_one_library_serves_every_batch() -> None:
    net = Net(dynamic_batch=True)
    out = residual_block(net, 1)
    run = compiled(from_onnx(net.model(out), keep_params_in_input=False))
    x = np.random.default_rng(1).standard_normal((9, 12, 10, 11)).astype("float32")
    rows = [run(x[i : i + 1])[0] for i in range(9)]
    for batch in (1, 2, 5, 9):
        close(run(x[:batch])[0], np.concatenate(rows[:batch]))


def test_everything_of_a_usual_network_has_a_rule() -> None:
    net = Net()
    mod = from_onnx(net.model(residual_block(net, 1)), keep_params_in_input=False)
    with HOST:
        for step in graph_passes(machine_of(HOST)):
            mod = step(mod)
        mod = scheduled(mod, machine_of(HOST))
    plain = [
        str(name)
        for name, f in mod.functions.items()
        if isinstance(f, tvm.tirx.PrimFunc) and not f.attrs.get(SCHEDULED)
    ]
    assert plain == []


class Weighted(nn.Module):
    def __init__(self) -> None:
        self.conv = nn.Conv2D(3, 20, 3, padding=1)
        self.depthwise = nn.Conv2D(20, 20, 3, groups=20)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        y = nn.op.relu(self.depthwise(nn.op.relu(self.conv(x))))
        return self.linear(self.norm(nn.op.silu(y)))


def test_weights_that_are_inputs_are_packed_at_run_time() -> None:
    mod, params = Weighted().export_tvm(spec={"forward": {"x": nn.spec.Tensor((2, 3, 7, 10), "float32")}})
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 3, 7, 10)).astype("float32")]
    arrays += [rng.standard_normal([int(d) for d in p.shape]).astype("float32") for _, p in params]

    def run(pipeline: Any) -> np.ndarray[Any, Any]:
        vm = relax.VirtualMachine(tvm.compile(mod, HOST, relax_pipeline=pipeline), tvm.cpu())
        return np.asarray(vm["forward"](*(tvm.runtime.tensor(a) for a in arrays)).numpy())

    close(run(cpu_pipeline(HOST)), run("default"))


def test_a_call_to_an_external_function_stays_in_its_place() -> None:
    @tvm.register_global_func("zmq_offload.tests.schedules.double", override=True)
    def double(x: tvm.runtime.Tensor, out: tvm.runtime.Tensor) -> None:
        view_of(out)[:] = 2 * np.from_dlpack(x)

    @tvm.script.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, 4, 6, 6), "float32"), w: R.Tensor((4, 4, 3, 3), "float32")) -> R.Tensor:
            with R.dataflow():
                y = R.nn.relu(R.nn.conv2d(x, w, padding=1))
                z = R.call_dps_packed(
                    "zmq_offload.tests.schedules.double",
                    (y,),
                    out_ty=R.Tensor((1, 4, 6, 6), "float32"),
                )
                out = R.nn.relu(R.nn.conv2d(z, w, padding=1))
                R.output(out)
            return out

    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s).astype("float32") for s in ((1, 4, 6, 6), (4, 4, 3, 3))]
    vm = relax.VirtualMachine(tvm.compile(Module, HOST), tvm.cpu())
    want = vm["main"](*(tvm.runtime.tensor(i) for i in inputs)).numpy()
    close(compiled(Module)(*inputs)[0], want)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_other_element_types_fall_back(dtype: str) -> None:
    x = relax.Var("x", relax.TensorType((1, 4, 6, 6), dtype))
    w = np.random.default_rng(0).integers(-3, 3, (5, 4, 3, 3)).astype(dtype)
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, relax.const(w, dtype), padding=1))
            out = builder.emit_output(relax.op.nn.relu(y))
        builder.emit_func_output(out)
    mod = builder.get()
    value = np.random.default_rng(1).integers(-3, 3, (1, 4, 6, 6)).astype(dtype)
    vm = relax.VirtualMachine(tvm.compile(mod, HOST), tvm.cpu())
    close(compiled(mod)(value)[0], vm["main"](tvm.runtime.tensor(value)).numpy(), 1e-2)


@pytest.mark.parametrize(
    ("target", "lanes", "registers"),
    [
        ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512"}, 16, 32),
        ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}, 8, 16),
        ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64", "mattr": ["+avx512f"]}, 16, 32),
        ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"}, 4, 16),
        ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]}, 4, 32),
    ],
)
def test_every_kind_of_cpu_builds(target: dict[str, Any], lanes: int, registers: int) -> None:
    made = tvm.target.Target(target)
    machine = machine_of(made)
    assert (machine.lanes, machine.registers) == (lanes, registers)
    net = Net()
    mod = from_onnx(net.model(residual_block(net, 1)), keep_params_in_input=False)
    executable = tvm.compile(mod, made, relax_pipeline=cpu_pipeline(made))
    assert executable.mod.imports


def test_the_host_is_named_with_its_cores() -> None:
    target = host_target()
    assert target.attrs["mcpu"] != "generic"
    assert machine_of(target).threads == int(target.attrs["num-cores"]) >= 1


def test_other_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="is not a CPU; use kind llvm"):
        cpu_pipeline("c")


def test_values_without_a_dimension_between_reductions() -> None:
    net = Net()
    y = net.op("ReduceMean", net.input(1, 1), axes=[0], keepdims=0)
    z = net.op("ReduceMean", net.op("Exp", net.input(3, 5)), axes=[0, 1], keepdims=0)
    net.check(net.op("Softmax", y, axis=0), net.op("Sigmoid", net.op("Mul", z, z)))


def test_a_rule_that_fails_leaves_a_function_to_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a rule's mistake")

    monkeypatch.setattr("zmq_offload.schedules.schedule.schedule", broken)
    monkeypatch.setattr("zmq_offload.schedules.schedule.logger.warning", lambda *_, **__: None)
    net = Net()
    net.check(residual_block(net, 1))
