"""What `zmq-offload export --to triton` writes, and how Triton's Python backend would run it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from workers.triton import TritonPythonModel, threads_of
from zmq_offload.artifacts.repository import LIBRARY, Batching, ModelVersion, Repository
from zmq_offload.cli.main import main
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from zmq_offload.export.triton import Running, config_of
from zmq_offload.export.write import export_to_triton
from zmq_offload.protobuf.messages import message_class
from zmq_offload.protocol.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from zmq_offload.compile import Compiled

ROWS = TensorSpec("x", "FP32", (-1, 3))


def version(
    number: int = 1,
    inputs: Sequence[TensorSpec] = (ROWS,),
    outputs: Sequence[TensorSpec] = (ROWS,),
    batching: Batching | None = None,
) -> ModelVersion:
    return ModelVersion("m", number, tuple(inputs), tuple(outputs), None, "0", "", batching=batching)


def config(*versions: ModelVersion, running: Running | None = None) -> Any:
    text = config_of(versions, running or Running())
    return text_format.Parse(
        text,
        message_class("inference.ModelConfig")(),
        descriptor_pool=message_class("inference.ModelConfig").DESCRIPTOR.file.pool,
    )


def test_the_configuration_says_what_model_json_says() -> None:
    made = config(version(batching=Batching(16, 250)), running=Running(3, 2))
    assert (made.name, made.backend, made.max_batch_size) == ("m", "python", 16)
    assert made.dynamic_batching.max_queue_delay_microseconds == 250
    assert list(made.input[0].dims) == [3] and list(made.output[0].dims) == [3]
    assert made.version_policy.HasField("all")
    assert made.instance_group[0].count == 3 and made.parameters["threads"].string_value == "2"
    alone = config(version())
    assert (
        alone.max_batch_size == 0
        and not alone.HasField("dynamic_batching")
        and list(alone.input[0].dims) == [-1, 3]
        and not alone.parameters
    )


def test_versions_are_batched_as_all_of_them_allow() -> None:
    assert config(version(1, batching=Batching(4, 9)), version(2, batching=Batching(16))).max_batch_size == 4
    assert config(version(1), version(2, batching=Batching(16))).max_batch_size == 0
    bounded = TensorSpec("x", "FP32", (-1, 3), maximums=(8, -1))
    assert config(version(inputs=[bounded], batching=Batching(16))).max_batch_size == 8
    pairs = TensorSpec("x", "FP32", (-1, 3), multiples=(2, 1))
    assert config(version(inputs=[pairs], batching=Batching(16))).max_batch_size == 0, "a batch of 1 would not fit"
    column = TensorSpec("n", "INT64", (-1,))
    assert config(version(outputs=[column], batching=Batching(16))).max_batch_size == 0, "no dimension without the rows"


@pytest.mark.parametrize("datatype", DATATYPES)
def test_each_datatype_has_its_name(datatype: str) -> None:
    made = config(version(inputs=[TensorSpec("x", datatype, (2,))]))
    field = made.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type
    assert field.values_by_number[made.input[0].data_type].name == f"TYPE_{datatype}"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_name_of_a_tensor_survives(name: str) -> None:
    assert config(version(inputs=[TensorSpec(name, "FP32", (1,))])).input[0].name == name


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"inputs": [TensorSpec("s", "FP32", ())]}, "tensor s FP32[] has no dimensions; cut it elsewhere"),
        ({"outputs": [TensorSpec("s", "FP32", (2, 0))]}, "tensor s FP32[2,0] has no elements"),
        ({"inputs": []}, "it has no inputs"),
    ],
)
def test_what_triton_cannot_serve_is_refused(tensors: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match="Triton cannot serve model 'm' version 1: ") as raised:
        config_of([version(**tensors)], Running())
    assert says in raised.value.message


@pytest.mark.parametrize("running", [Running(0), Running(True), Running("1 } }"), Running(1, 0), Running(1, '1"')])  # type: ignore[arg-type]
def test_numbers_of_a_configuration_are_numbers(running: Running) -> None:
    with pytest.raises(InvalidArgument, match=r"(instances|threads) .* is not a whole number from 1"):
        config_of([version()], running)


def added(repository: Repository, model: ModelVersion) -> None:
    def build(folder: Path) -> ModelVersion:
        (folder / LIBRARY).write_bytes(b"library")
        return model

    repository.write(model.name, model.version, build)


def test_a_repository_is_written_and_replaced_only_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = Repository(tmp_path / "repository"), tmp_path / "triton"
    with pytest.raises(NotFound, match="has no model; give the repository"):
        export_to_triton(source.root, out)
    other = TensorSpec("x", "FP32", (-1, 4))
    for model in (version(1, inputs=[other]), version(2), version(3)):
        added(source, model)
    arguments = ["export", "--to", "triton", str(source.root), str(out)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/m  (version 2, 3; requests run one at a time)",
        "  left out: version 1, with another signature than version 3; Triton has one for all versions of a model",
    ]
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
        "m/2/model.json", "m/2/model.py", "m/2/subgraph.so", "m/3/model.json", "m/3/model.py", "m/3/subgraph.so",
        "m/config.pbtxt",
    ]  # fmt: skip
    for inside in (source.root, source.root / "triton", tmp_path / "triton/../repository/m"):
        with pytest.raises(InvalidArgument, match="the repository that is read; write to another folder"):
            export_to_triton(source.root, inside)
    assert Repository(out).read("m", 3) == source.read("m", 3), "a worker could serve it, too"
    with pytest.raises(AlreadyExists, match="m exists; write to another folder, or replace it"):
        export_to_triton(source.root, out)
    (source.path("m", 3) / LIBRARY).write_bytes(b"damaged")
    with pytest.raises(FailedPrecondition, match="is damaged"):
        export_to_triton(source.root, out, force=True)
    assert (out / "m/3/subgraph.so").read_bytes() == b"library"
    added_again = Repository(tmp_path / "second")
    added(added_again, version(7))
    assert (
        main(
            ["export", "--to", "triton", str(added_again.root), str(out), "--force", "--instances", "2", "--model", "m"]
        )
        == 0
    )
    assert [p.name for p in (out / "m").iterdir() if p.is_dir()] == ["7"]
    assert "count: 2" in (out / "m/config.pbtxt").read_text()
    with pytest.raises(NotFound, match="has no model 'n'"):
        export_to_triton(added_again.root, out, models=["n"], force=True)
    with pytest.raises(InvalidArgument, match="is the repository that is read; write to another folder"):
        export_to_triton(source.root, tmp_path / "triton" / ".." / "repository", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="m cannot be written: "):
        export_to_triton(added_again.root, tmp_path / "file")
    (source.path("m", 3) / LIBRARY).unlink()
    with pytest.raises(FailedPrecondition, match=r"subgraph\.so: No such file"):
        export_to_triton(source.root, tmp_path / "third")
    assert not (tmp_path / "third").exists()


class Tensor:
    """Of `triton_python_backend_utils`, as far as models use it."""

    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array

    def to_dlpack(self) -> Any:
        return self._array

    @staticmethod
    def from_dlpack(name: str, array: Any) -> Tensor:
        return Tensor(name, array)


class TritonError(Exception):
    INVALID_ARG, INTERNAL, CANCELLED = "INVALID_ARG", "INTERNAL", "CANCELLED"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message, self.code = message, code


def response(tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> SimpleNamespace:
    return SimpleNamespace(outputs={tensor.name(): tensor.as_numpy() for tensor in tensors}, error=error)


def request(*, left: bool = False, **arrays: Any) -> SimpleNamespace:
    tensors = [Tensor(name, array) for name, array in arrays.items()]
    return SimpleNamespace(inputs=lambda: tensors, is_cancelled=lambda: left)


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(Tensor=Tensor, TritonError=TritonError, InferenceResponse=response)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", made)  # type: ignore[arg-type]
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    monkeypatch.setenv("TVM_USE_RUNTIME_LIB", "0")
    return made


def arguments(folder: Path, name: str) -> dict[str, str]:
    model_config = {"name": name, "instance_group": [{"count": 1}], "parameters": {"threads": {"string_value": "1"}}}
    return {
        "model_config": json.dumps(model_config), "model_repository": str(folder), "model_name": name,
        "model_version": "1",
    }  # fmt: skip


def test_an_instance_answers_as_a_worker(compiled_mlp: Compiled, tmp_path: Path, utils: SimpleNamespace) -> None:
    from workers.executor import GraphExecutor

    source = Repository(compiled_mlp.subgraphs[0].parent.parent)
    export_to_triton(source.root, tmp_path)
    copied = (tmp_path / "mlp").rename(tmp_path / "folder-of-another-name")
    code: dict[str, Any] = {}
    exec((copied / "1/model.py").read_text(), code)
    assert code["TritonPythonModel"] is TritonPythonModel
    model = TritonPythonModel()
    model.initialize(arguments(copied, "mlp"))
    x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    gone, right, unknown, small = model.execute(
        [request(left=True, h2=x), request(h2=x), request(h3=x), request(h2=x[:1])]
    )
    [[expected]] = GraphExecutor(source, "mlp", 1).run([[x]])
    assert np.array_equal(right.outputs["h4"], expected)
    assert gone.error.code == "CANCELLED" and not gone.outputs
    for failed in (unknown, small):
        assert failed.error.code == "INVALID_ARG" and "it takes h2 FP32[2,16]" in failed.error.message


def test_a_damaged_version_or_another_numpy_is_not_served(
    compiled_mlp: Compiled, tmp_path: Path, utils: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    [written] = export_to_triton(compiled_mlp.subgraphs[0].parent.parent, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "from_dlpack", lambda name, array: Tensor(name, np.zeros_like(array)))
        with pytest.raises(FailedPrecondition, match="cannot read arrays of NumPy"):
            TritonPythonModel().initialize(arguments(written.folder, "mlp"))
    with (written.folder / "1/subgraph.so").open("ab") as file:
        file.write(b"!")
    with pytest.raises(FailedPrecondition, match=r"subgraph.so is damaged: its checksum is"):
        TritonPythonModel().initialize(arguments(written.folder, "mlp"))


def test_requests_that_fit_run_together_and_one_at_fault_fails_alone() -> None:
    from workers.triton import run
    from zmq_offload.errors import Internal

    runs: list[int] = []

    class Executor:
        model = version(batching=Batching(8))

        def run(self, requests: Sequence[Sequence[Any]]) -> list[list[Any]]:
            runs.append(len(requests))
            if any(request[0].max() > 8 for request in requests):
                raise Internal("too large")
            return [list(request) for request in requests]

    executor: Any = Executor()
    fine, bad = np.ones((2, 3), np.float32), np.full((1, 3), 9, np.float32)
    outcomes = run(executor, [{"x": fine}, {"x": fine[:1]}])
    assert [o[0].shape for o in outcomes if isinstance(o, list)] == [(2, 3), (1, 3)] and runs == [2]
    first, second = run(executor, [{"x": bad}, {"x": fine}])
    assert isinstance(first, Internal) and isinstance(second, list)
    executor.model, runs[:] = version(), []
    run(executor, [{"x": fine}, {"x": fine}])
    assert runs == [1, 1], "model.json does not say that requests may run together"


def test_the_threads_of_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.triton.usable_cores", lambda: 8)
    assert threads_of({"instance_group": [{"count": 2}, {"count": 1}]}) == 2
    assert threads_of({"instance_group": [{"count": 99}]}) == 1
    assert threads_of({"parameters": {"threads": {"string_value": "5"}}}) == 5
    with pytest.raises(InvalidArgument, match="parameter threads 'two' is not a whole number from 1"):
        threads_of({"parameters": {"threads": {"string_value": "two"}}})
