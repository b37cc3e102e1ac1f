"""Where results go: what is there is kept, and a new version has to fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm import relax

from tests.support import onnx_models
from zmq_offload.artifacts.manifest import MANIFEST
from zmq_offload.artifacts.repository import Repository
from zmq_offload.compile import compile_model, compile_module, cut_module
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument

NET: dict[str, Any] = {"inputs": {"x": (1, 3, 8, 8)}, "name": "net"}


def test_output_that_cannot_be_written_is_refused_at_once(convnet: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for option in ({"output": tmp_path / "file" / "dist"}, {"output": tmp_path, "repository": tmp_path / "file" / "r"}):
        with pytest.raises(FailedPrecondition, match=r"file/.* cannot be written: Not a directory"):
            compile_model(convnet, cut=["features"], **NET, **option)  # type: ignore[arg-type]


def test_a_name_that_is_too_long_for_a_folder_is_refused(convnet: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="cannot be written: File name too long"):
        compile_model(convnet, cut=["features"], output=tmp_path / ("x" * 300), **NET)


def test_force_replaces_a_device_bundle_and_no_other_folder(convnet: Path, tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "thesis.tex").touch()
    with pytest.raises(FailedPrecondition, match="device is not a device bundle and is not replaced"):
        compile_model(convnet, cut=["features"], output=tmp_path, force=True, **NET)
    assert (tmp_path / "device" / "thesis.tex").exists()


def test_nothing_that_is_there_is_replaced_without_force(fresh_mlp: Path, mlp: Path) -> None:
    options: dict[str, Any] = {"inputs": {"x": (2, 8)}, "cut": ["h2"], "until": ["h4"], "name": "mlp"}

    def written() -> dict[Path, float]:
        return {p: p.stat().st_mtime_ns for p in fresh_mlp.rglob("*") if p.is_file()}

    before = written()
    with pytest.raises(AlreadyExists, match=r"repository/mlp/1 exists; choose another version \(--version 2\)"):
        compile_model(mlp, output=fresh_mlp, **options)
    with pytest.raises(AlreadyExists, match=r"device exists; keep it and add a subgraph \(--only-subgraph\)"):
        compile_model(mlp, output=fresh_mlp, version=2, **options)
    assert written() == before
    compile_model(mlp, output=fresh_mlp, force=True, **options)
    assert set(written()) == set(before) and written() != before


def test_wrong_arguments_are_reported_before_existing_files(fresh_mlp: Path, mlp: Path) -> None:
    options: dict[str, Any] = {"inputs": {"x": (2, 8)}, "cut": ["h2"], "until": ["h4"], "name": "mlp"}
    for changed, words in (
        ({"cut": ["h9"]}, "--cut: the model has no tensor 'h9'"),
        ({"cut": ["h4"], "until": ["h2"]}, "--cut"),
        ({"inputs": {"y": (2, 8)}}, "the model has no input 'y'"),
        ({"target": "?"}, "target"),
        ({"wire": "float8"}, "float8"),
        ({"name": "m l p"}, "model name"),
        ({"tune": -1}, "--tune"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            compile_model(mlp, output=fresh_mlp, **(options | changed))


class TestAnotherSignature:
    """Devices ask for the latest version. One with another signature would fail on all of them."""

    OPTIONS: dict[str, Any] = {"inputs": {"x": (2, 8)}, "cut": ["h2"], "until": ["h4"], "name": "mlp"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("changed", "fault"),
        [
            ({"inputs": {"x": (3, 8)}}, r"input 'h2' is h2 FP32\[3,16\], version 1 has h2 FP32\[2,16\]"),
            ({"cut": ["h1"]}, r"version 1's input h2 FP32\[2,16\] is missing"),
            ({"until": ["h3", "h4"]}, r"version 1 has no output h3"),
            ({"wire": "int8"}, r"input 'h2' is h2 INT8\[2,16\], version 1 has h2 FP32\[2,16\]"),
            ({"wire": "float16"}, r"input 'h2' is h2 FP16\[2,16\], version 1 has h2 FP32\[2,16\]"),
            ({"inputs": {"x": ("N", 8)}}, r"input 'h2' is h2 FP32\[\?,16\], version 1 has"),
        ],
    )
    def test_it_is_refused_and_both_are_shown(
        self, fresh_mlp: Path, mlp: Path, tmp_path: Path, changed: dict[str, Any], fault: str
    ) -> None:
        options = self.OPTIONS | changed
        repository = fresh_mlp / "repository"
        with pytest.raises(FailedPrecondition, match=fault) as caught:
            compile_model(mlp, output=tmp_path / "other", repository=repository, version=2, **options)
        said = str(caught.value)
        assert "version 1 takes h2 FP32[2,16] and returns h4 FP32[2,8], the new one takes h" in said
        assert "--new-signature" in said
        assert sorted(p.name for p in (repository / "mlp").iterdir()) == ["1"]
        assert not (tmp_path / "other" / "device").exists()

    def test_the_flag_allows_it_and_then_it_is_the_one_to_compare_with(
        self, fresh_mlp: Path, mlp: Path, tmp_path: Path
    ) -> None:
        repository = fresh_mlp / "repository"
        options = self.OPTIONS | {"inputs": {"x": (3, 8)}, "repository": repository}
        compile_model(mlp, output=tmp_path / "a", version=2, new_signature=True, **options)
        compile_model(mlp, output=tmp_path / "b", version=3, **options)
        with pytest.raises(FailedPrecondition, match="another signature than version 3"):
            compile_model(mlp, output=fresh_mlp, only_subgraph=True, **self.OPTIONS)
        compile_model(mlp, output=fresh_mlp, only_subgraph=True, new_signature=True, **self.OPTIONS)
        assert Repository(repository).versions("mlp") == [1, 2, 3, 4]

    def test_a_version_that_is_replaced_and_one_that_is_damaged_are_not_compared_with(
        self, fresh_mlp: Path, mlp: Path
    ) -> None:
        options = self.OPTIONS | {"output": fresh_mlp, "force": True}
        compile_model(mlp, **(options | {"inputs": {"x": (3, 8)}}))
        (fresh_mlp / "repository/mlp/1/subgraph.so").write_bytes(b"damaged")
        compile_model(mlp, version=2, **options)

    def test_a_relax_module_is_compared_in_the_same_way(self, tmp_path: Path) -> None:
        def module(rows: int) -> tvm.IRModule:
            x = relax.Var("x", relax.TensorType([rows, 4], "float32"))
            builder = relax.BlockBuilder()
            with builder.function("main", [x]):
                with builder.dataflow():
                    h = builder.emit(relax.op.nn.relu(x), "h")
                    y = builder.emit_output(relax.op.exp(h))
                builder.emit_func_output(y)
            return cut_module(builder.get(), "h")

        compile_module(module(2), name="m", output=tmp_path)
        options: dict[str, Any] = {"name": "m", "output": tmp_path / "b", "repository": tmp_path / "repository"}
        with pytest.raises(FailedPrecondition, match=r"version 2 of 'm' would have another signature .*new-signature"):
            compile_module(module(3), version=2, **options)
        compile_module(module(2), version=2, **options)
        compile_module(module(3), version=3, new_signature=True, force=True, **options)


class TestOnlySubgraph:
    """A new version of a subgraph for a device bundle that is out in the field."""

    def options(self, output: Path) -> dict[str, Any]:
        return {
            "inputs": {"x": (2, 8)},
            "cut": ["h2"],
            "until": ["h4"],
            "name": "mlp",
            "output": output,
            "only_subgraph": True,
        }

    def test_it_takes_the_next_free_version_and_leaves_the_device_alone(self, fresh_mlp: Path, mlp: Path) -> None:
        before = {p: p.read_bytes() for p in (fresh_mlp / "device").iterdir()}
        assert compile_model(mlp, **self.options(fresh_mlp)).models[0].version == 2
        assert compile_model(mlp, **self.options(fresh_mlp), version=7).models[0].version == 7
        assert compile_model(mlp, **self.options(fresh_mlp)).models[0].version == 8
        assert before == {p: p.read_bytes() for p in (fresh_mlp / "device").iterdir()}
        with pytest.raises(AlreadyExists, match="mlp/7 exists"):
            compile_model(mlp, **self.options(fresh_mlp), version=7)

    def test_a_signature_that_does_not_fit_is_refused_by_tensor(self, fresh_mlp: Path, mlp: Path) -> None:
        wider = onnx_models.mlp(fresh_mlp / "wider.onnx", hidden=24)
        cases: list[tuple[Path, dict[str, Any], str]] = [
            (wider, {}, r"input 'h2' is h2 FP32\[2,24\], the device has h2 FP32\[2,16\]"),
            (mlp, {"inputs": {"x": (3, 8)}}, r"input 'h2' is h2 FP32\[3,16\], the device has h2 FP32\[2,16\]"),
            (mlp, {"cut": ["h1"]}, r"the device's input h2 FP32\[2,16\] is missing"),
            (mlp, {"until": None}, r"the device's output h4 FP32\[2,8\] is missing"),
            (mlp, {"until": ["h3", "h4"]}, r"the device has no output h3"),
        ]
        for path, changed, message in cases:
            with pytest.raises(FailedPrecondition, match=f"model 'mlp' does not fit the device bundle: .*{message}"):
                compile_model(path, **(self.options(fresh_mlp) | changed))
        assert sorted(p.name for p in (fresh_mlp / "repository" / "mlp").iterdir()) == ["1"]

    def test_the_device_bundle_must_be_there_and_call_the_model(self, fresh_mlp: Path, mlp: Path) -> None:
        with pytest.raises(FailedPrecondition, match="does not call a model 'other'; it calls mlp"):
            compile_model(mlp, **(self.options(fresh_mlp) | {"name": "other"}))
        (fresh_mlp / "device" / MANIFEST).unlink()
        with pytest.raises(FailedPrecondition, match=r"manifest\.json: No such file or directory"):
            compile_model(mlp, **self.options(fresh_mlp))


def test_a_failed_write_leaves_nothing(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise FailedPrecondition("no linker")

    monkeypatch.setattr("zmq_offload.compile.bundle.build_library", fail)
    with pytest.raises(FailedPrecondition, match="no linker"):
        compile_model(mlp, inputs={"x": (2, 8)}, cut=["h2"], name="m", output=tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
