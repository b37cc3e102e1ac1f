"""Running a deployed subgraph on the worker's side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm

from tests.support import onnx_models
from workers.executor import GraphExecutor
from zmq_offload.artifacts.repository import DESCRIPTION, LIBRARY, Repository, checksum
from zmq_offload.compile import Compiled, compile_model
from zmq_offload.errors import FailedPrecondition, Internal
from zmq_offload.runtime.machine import Machine

H2 = onnx_models.random(2, 16, seed=21)


def expected(h2: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = 1 / (1 + np.exp(-(h2 @ onnx_models.random(16, 8, seed=2))))
    return result


@pytest.fixture
def executor(compiled_mlp: Compiled) -> GraphExecutor:
    return GraphExecutor(Repository(compiled_mlp.subgraphs[0].parent.parent), "mlp", 1)


def test_it_has_the_description_of_its_version(executor: GraphExecutor) -> None:
    model = executor.model
    assert (model.name, model.version) == ("mlp", 1)
    assert [str(t) for t in (*model.inputs, *model.outputs)] == ["h2 FP32[2,16]", "h4 FP32[2,8]"]
    assert model.target["kind"] == "llvm" and model.target["mcpu"]


def test_inputs_may_be_unaligned_read_only_views_that_go_away(executor: GraphExecutor) -> None:
    frame = bytearray(b"\x01" + H2.tobytes())
    view = np.frombuffer(memoryview(frame)[1:].toreadonly(), "<f4").reshape(2, 16)
    assert not view.flags.aligned and not view.flags.writeable
    ((found,),) = executor.run([[view]])
    frame[:] = bytes(len(frame))
    np.testing.assert_allclose(found, expected(H2), atol=1e-5)


def test_outputs_stay_valid_while_the_executor_runs_again_and_after_it(compiled_mlp: Compiled) -> None:
    executor = GraphExecutor(Repository(compiled_mlp.subgraphs[0].parent.parent), "mlp", 1)
    outputs = [executor.run([[H2 * i]])[0][0] for i in range(8)]
    del executor
    for i, found in enumerate(outputs):
        np.testing.assert_allclose(found, expected(H2 * i), atol=1e-5)


def test_an_output_that_is_an_input_handed_through_is_not_overwritten(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Reshape", ["h", "flat"], ["y"]),
    ]
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2, 4]}, {"y": [8]}, {"flat": np.array([8])})
    compile_model(path, cut=["h"], name="m", output=tmp_path)
    executor = GraphExecutor(Repository(tmp_path / "repository"), "m", 1)
    ((first,),) = executor.run([[np.ones((2, 4), "f4")]])
    executor.run([[np.zeros((2, 4), "f4")]])
    np.testing.assert_array_equal(first, np.ones(8, "f4"))


def test_a_symbolic_batch_runs_at_every_size(mlp: Path, tmp_path: Path) -> None:
    compile_model(mlp, inputs={"x": ("N", 8)}, cut=["h2"], until=["h4"], name="mlp", output=tmp_path)
    executor = GraphExecutor(Repository(tmp_path / "repository"), "mlp", 1)
    for batch in (1, 7, 3):
        h2 = onnx_models.random(batch, 16)
        np.testing.assert_allclose(executor.run([[h2]])[0][0], expected(h2), atol=1e-5)


def test_a_failure_inside_tvm_is_one_line(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_model(mlp, inputs={"x": ("N", 8)}, cut=["h2"], until=["h4"], name="mlp", output=tmp_path)
    executor = GraphExecutor(Repository(tmp_path / "repository"), "mlp", 1)

    def failing(_machine: Machine, _arrays: object) -> None:
        raise tvm.error.InternalError("Check failed: a kernel\nfailed\n  at a line of TVM's")

    with monkeypatch.context() as patch:
        patch.setattr(Machine, "run", failing)
        with pytest.raises(Internal, match=r"model 'mlp' version 1 failed: .*kernel") as caught:
            executor.run([[H2]])
    assert "\n" not in str(caught.value)
    assert executor.run([[H2]])[0][0].shape == (2, 8)


def spoil(folder: Path, library: bytes) -> None:
    """Replace the library, with its checksum, as a deployment would."""
    (folder / LIBRARY).write_bytes(library)
    described = json.loads((folder / DESCRIPTION).read_text()) | {"checksum": checksum(folder / LIBRARY)}
    (folder / DESCRIPTION).write_text(json.dumps(described))


def test_damage_is_refused_and_the_file_is_named(fresh_mlp: Path) -> None:
    repository = Repository(fresh_mlp / "repository")
    folder = repository.path("mlp", 1)
    whole = (folder / LIBRARY).read_bytes()

    def refusal() -> str:
        with pytest.raises(FailedPrecondition) as caught:
            GraphExecutor(repository, "mlp", 1)
        return str(caught.value)

    (folder / LIBRARY).write_bytes(whole[: len(whole) // 2])
    assert f"{folder / LIBRARY} is damaged: its checksum is" in refusal()
    spoil(folder, b"no library")
    assert f"{folder / LIBRARY} cannot be loaded: " in refusal()
    spoil(folder, (fresh_mlp / "device" / "device.so").read_bytes())
    assert "cannot be loaded: " in refusal()  # it has a main, but what that calls is missing
    (folder / LIBRARY).unlink()
    assert f"{folder / LIBRARY}: No such file" in refusal()
    description = (folder / DESCRIPTION).read_text()
    (folder / DESCRIPTION).write_text(description[:-20])
    assert f"{folder / DESCRIPTION} is damaged" in refusal()


def test_a_library_that_is_not_tvms_is_refused(fresh_mlp: Path, tmp_path: Path) -> None:
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text("int other(void) { return 1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    repository = Repository(fresh_mlp / "repository")
    spoil(repository.path("mlp", 1), library.read_bytes())
    with pytest.raises(FailedPrecondition, match=r"subgraph.so cannot be loaded: .*vm_load_executable"):
        GraphExecutor(repository, "mlp", 1)


def test_a_subgraph_of_another_tvm_is_refused_with_both_versions(fresh_mlp: Path) -> None:
    repository = Repository(fresh_mlp / "repository")
    file = repository.path("mlp", 1) / DESCRIPTION
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tvm_version": "0.26.0"}))
    with pytest.raises(
        FailedPrecondition, match=r"built by TVM 0\.26\.0, this is TVM 0\.27.*compile it again"
    ) as caught:
        GraphExecutor(repository, "mlp", 1)
    assert str(file.parent) in str(caught.value)


def test_tvms_runtime_library_alone_is_enough_for_worker_and_device(compiled_mlp: Compiled) -> None:
    program = """
import sys
import numpy as np
import onnx
from workers.executor import GraphExecutor
from zmq_offload.device.model import load
from zmq_offload.artifacts.repository import Repository

class Client:
    def infer(self, model, inputs, *, outputs, **_):
        executor = GraphExecutor(Repository(sys.argv[2]), model, 1)
        return dict(zip(outputs, executor.run([[inputs["h2"]]])[0]))

y = load(sys.argv[1], client=Client())(np.ones((2, 8), "f4"))
assert y.shape == (2, 2, 4) and np.isfinite(y).all()
assert "tvm.relax" not in sys.modules
print("fine")
"""
    arguments = [str(compiled_mlp.device), str(compiled_mlp.subgraphs[0].parent.parent)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "fine\n", done.stderr


@pytest.fixture(scope="module")
def batching_executor(mlp: Path, tmp_path_factory: pytest.TempPathFactory) -> GraphExecutor:
    """h2 [N,16] -> h4 [N,8] with a symbolic N."""
    output = tmp_path_factory.mktemp("batching")
    compiled = compile_model(mlp, inputs={"x": ("N", 8)}, cut=["h2"], until=["h4"], name="mlp", output=output)
    return GraphExecutor(Repository(compiled.subgraphs[0].parent.parent), "mlp", 1)


def test_requests_that_run_together_get_their_own_rows(batching_executor: GraphExecutor) -> None:
    requests = [[onnx_models.random(rows, 16, seed=rows)] for rows in (1, 3, 2)]
    together = batching_executor.run(requests)
    for request, outputs in zip(requests, together, strict=True):
        (alone,) = batching_executor.run([request])
        assert outputs[0].shape == alone[0].shape
        np.testing.assert_allclose(outputs[0], alone[0], atol=1e-6)


def test_outputs_of_a_batch_are_not_overwritten_by_the_next(batching_executor: GraphExecutor) -> None:
    requests = [[np.ones((1, 16), "f4")], [np.zeros((2, 16), "f4")]]
    first = batching_executor.run(requests)
    kept = [outputs[0].copy() for outputs in first]
    batching_executor.run([[-inputs[0] - 1] for inputs in requests])
    for outputs, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(outputs[0], copy)


def test_a_version_for_a_better_cpu_is_refused_before_it_is_loaded(fresh_mlp: Path) -> None:
    repository = Repository(fresh_mlp / "repository")
    file = repository.path("mlp", 1) / DESCRIPTION
    described = json.loads(file.read_text())
    described["cpu"]["features"].append("avx1024")
    file.write_text(json.dumps(described))
    with pytest.raises(FailedPrecondition, match=r"mlp/1/subgraph\.so was built for a CPU with avx1024"):
        GraphExecutor(repository, "mlp", 1)


@pytest.mark.parametrize("kept", [True, False])
def test_a_version_that_was_replaced_is_not_taken_for_the_old_one(mlp: Path, tmp_path: Path, kept: bool) -> None:
    ways = {"inputs": {"x": (2, 8)}, "cut": ["h2"], "name": "m", "output": tmp_path, "force": True}
    repository = Repository(tmp_path / "repository")
    compile_model(mlp, until=["h4"], **ways)  # type: ignore[arg-type]
    old = [GraphExecutor(repository, "m", 1)]
    if not kept:
        old.clear()
    other = tmp_path / "other.onnx"
    model = onnx.load(mlp)
    weight = next(w for w in model.graph.initializer if list(w.dims) == [16, 8])
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx_models.random(16, 8, seed=2), weight.name))
    onnx.save(model, other)
    compile_model(other, until=["h4"], **ways)  # type: ignore[arg-type]
    ((found,),) = GraphExecutor(repository, "m", 1).run([[H2]])
    np.testing.assert_allclose(found, 1 - expected(H2), atol=1e-5)
    for executor in old:
        np.testing.assert_allclose(executor.run([[H2]])[0][0], expected(H2), atol=1e-5)
