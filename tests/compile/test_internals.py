"""Others' internals that the compiler uses are as they were. A failure here means that a library has moved.

Each is used in one module only, which a test's message names.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tvm
from onnx import TensorProto, helper
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

import zmq_offload
from zmq_offload.compile.operators import tvm_importer
from zmq_offload.compile.tuning import tvm_internals


def parameters(function: Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)


def moved(module: str, what: str) -> str:
    return f"TVM {tvm.__version__} has changed {what}; adapt {module}"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("__init__", ["self", "shape_dict", "dtype_dict"]),
        ("from_onnx", ["self", "graph", "opset"]),
        ("_check_for_unsupported_ops", ["self", "graph"]),
        ("_construct_nodes", ["self", "graph"]),
        ("_convert_operator", ["self", "op_name", "inputs", "attrs", "opset"]),
    ],
)
def test_the_onnx_importer_has_the_methods_that_are_overridden(method: str, expected: list[str]) -> None:
    function = getattr(onnx_frontend.ONNXGraphImporter, method, None)
    assert function is not None, moved("operators/tvm_importer.py", f"ONNXGraphImporter.{method}")
    found = parameters(function)
    assert found[: len(expected)] == expected, moved("operators/tvm_importer.py", f"ONNXGraphImporter.{method}")


def test_the_onnx_importer_keeps_its_state_under_the_names_that_are_read() -> None:
    importer = onnx_frontend.ONNXGraphImporter(None, "float32")
    assert isinstance(importer._nodes, dict) and isinstance(importer.bb, relax.BlockBuilder), moved(
        "operators/tvm_importer.py", "the attributes of ONNXGraphImporter"
    )


def test_the_onnx_importer_calls_the_overridden_methods() -> None:
    """A model goes through both; the node that is handed over has TVM's attribute with its name."""
    calls: list[str] = []

    class Importer(tvm_importer.GraphImporter):
        def add_node(self, node: object) -> None:
            calls.append("add")
            self.add_node_by_tvm(node)
            assert self.result("y") is not None

        def convert(self, operator: str, inputs: object, attributes: object, opset: int) -> object:
            calls.append(operator)
            assert tvm_importer.node_info(attributes) == ("node", 1)
            return self.convert_by_tvm(operator, inputs, attributes, opset)

    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "node")],
        "g",
        [info("x", TensorProto.FLOAT, [2])],
        [info("y", TensorProto.FLOAT, [2])],
    )
    Importer().import_model(helper.make_model(graph), 17)
    assert calls == ["add", "Relu"], moved("operators/tvm_importer.py", "what ONNXGraphImporter calls")


def test_a_converter_takes_builder_inputs_attributes_and_the_importers_state() -> None:
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    with bb.function("main", [x]):
        result = tvm_importer.convert(bb, "Relu", 17, [x], {})
        bb.emit_func_output(bb.normalize(result))
    assert result.op.name == "relax.nn.relu", moved("operators/tvm_importer.py", "the form of converters")


def test_a_converter_that_reads_an_input_that_is_computed_fails_as_expected() -> None:
    with pytest.raises(AttributeError) as caught:
        relax.Var("x", relax.TensorType((2,), "float32")).value.numpy()
    assert tvm_importer.expects_constant(caught.value), moved("operators/tvm_importer.py", "the message for a variable")


needs_tune = pytest.mark.skipif(importlib.util.find_spec("psutil") is None, reason="MetaSchedule needs psutil")


@needs_tune
def test_metaschedule_can_be_handed_a_time_and_an_error() -> None:
    assert [float(s) for s in tvm_internals.measured(0.5).result().run_secs] == [0.5]
    assert str(tvm_internals.failed("crashed").result().error_msg) == "crashed"


def test_the_intrinsics_for_gpus_are_the_modules_that_are_left_out() -> None:
    folder = Path(tvm.__file__).parent / "s_tir" / "tensor_intrin"  # importing the package takes seconds
    found = {file.stem for file in folder.glob("*.py")}
    assert {"cuda", "rocm", "hexagon", "x86"} <= found, moved("tuning/tvm_internals.py", "its tensor intrinsics")


@pytest.mark.tune
@needs_tune
def test_tensor_intrinsics_are_imported_without_those_for_gpus() -> None:
    """In a process of its own, since an import happens once."""
    code = (
        "import sys\n"
        "from zmq_offload.compile.tuning.tvm_internals import INTRINSICS, cpu_intrinsics_only\n"
        "with cpu_intrinsics_only(): pass\n"
        "assert f'{INTRINSICS}.x86' in sys.modules, 'TVM has moved its intrinsics'\n"
        "assert not [m for m in sys.modules if m.startswith(INTRINSICS) and m.endswith(('cuda', 'rocm', 'hexagon'))]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, moved("tuning/tvm_internals.py", f"its tensor intrinsics: {done.stderr[-500:]}")


@needs_tune
def test_metaschedules_logger_is_silent_while_it_tunes(caplog: pytest.LogCaptureFixture) -> None:
    from tvm.s_tir.meta_schedule.runner import local_runner

    caplog.set_level(logging.DEBUG, local_runner.logger.name.rpartition(".runner")[0])
    assert local_runner.logger.isEnabledFor(logging.INFO)
    with tvm_internals.quiet():
        assert not local_runner.logger.isEnabledFor(logging.INFO), moved("tuning/tvm_internals.py", "its loggers")
    assert local_runner.logger.isEnabledFor(logging.INFO)


def test_internals_are_used_in_their_modules_only() -> None:
    folder = Path(zmq_offload.__file__).parent / "compile"
    private = re.compile(r"onnx_frontend|_get_convert_map|LocalRunnerFuture|config_threadpool|sys\.modules")
    using = {str(f.relative_to(folder)) for f in folder.rglob("*.py") if private.search(f.read_text())}
    assert using == {"operators/tvm_importer.py", "tuning/tvm_internals.py"}
